"""A worker's connections: made again when they break, and what was not answered is sent again."""

import logging
import time
from collections.abc import Callable
from threading import Event
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, OperationalError

from db.queries import Querier

PAUSE_SECONDS = 0.1

log = logging.getLogger("worker")
T = TypeVar("T")


def connect(engine: sa.Engine, give_up: Callable[[], bool]) -> sa.Connection:
    """Wait until the database can be reached. Raises OperationalError if it is time to give up."""
    while True:
        try:
            return engine.connect()
        except OperationalError as error:
            if give_up():
                raise
            pause(error)


def reconnect(connection: sa.Connection, error: DBAPIError) -> None:
    """Let the broken connection go; the next statement gets a new one."""
    connection.invalidate()
    connection.rollback()
    pause(error)


def pause(error: DBAPIError) -> None:
    log.warning("the database: %s", str(error.orig).partition("\n")[0])
    time.sleep(PAUSE_SECONDS)


def repeat(connection: sa.Connection, statement: Callable[[Querier], T]) -> T:
    """Send a statement, and send it again for as long as the database cannot be reached.

    If the first try did arrive, and only its answer was lost, the statement is carried out twice.
    So it must be one that changes nothing the second time.
    """
    while True:
        try:
            return statement(Querier(connection))
        except OperationalError as error:
            if str(getattr(error.orig, "sqlstate", "")).startswith("54"):
                raise  # too complex for Postgres, and always will be
            reconnect(connection, error)


def keep_doing(
    work: Callable[[Querier], None],
    connection: sa.Connection,
    pause: Callable[[], float],
    *,
    until: Event,
) -> None:
    """Again and again, with a pause of so many seconds; after a lost connection, at once."""
    seconds = pause()
    while not until.wait(seconds):
        try:
            work(Querier(connection))
            seconds = pause()
        except OperationalError as error:
            reconnect(connection, error)
            seconds = 0
