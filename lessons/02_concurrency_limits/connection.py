"""A worker's connections: remade when they break; what was not carried out is sent again."""

import logging
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, OperationalError

from db.queries import Querier

QUIET_SECONDS = 10
HOPELESS = ("22021", "22P02", "22P05", "54000", "54001")

log = logging.getLogger("worker")
T = TypeVar("T")
_said: dict[str, float] = {}  # when a complaint was last logged; all threads have the same ones


class Stopped(Exception):
    """The worker was stopped before it had a connection."""


def connect(engine: sa.Engine, give_up: Callable[[], bool]) -> sa.Connection:
    """Wait until the database can be reached. Raises Stopped if it is time to give up."""
    pause = pauses()
    while True:
        try:
            return engine.connect()
        except OperationalError as error:
            if give_up():
                raise Stopped from None
            complain(error)
            time.sleep(next(pause))


def pauses() -> Iterator[float]:
    """Seconds between tries: 0.1, 0.2, 0.4 and so on, up to 3."""
    seconds = 0.1
    while True:
        yield seconds
        seconds = min(2 * seconds, 3.0)


def complain(error: Exception) -> None:
    text, now = reason(error), time.monotonic()
    if now - _said.get(text, -QUIET_SECONDS) >= QUIET_SECONDS:
        _said[text] = now
        log.warning("the database: %s", text)


def reason(error: Exception) -> str:
    """What the database says, in one line: the next ones may show the row."""
    return str(getattr(error, "orig", error)).partition("\n")[0]


def reconnect(connection: sa.Connection, error: Exception, pause: float) -> None:
    """Drop the connection: it may be broken. After a pause, the next statement gets a new one."""
    connection.invalidate()
    connection.rollback()
    complain(error)
    time.sleep(pause)


def repeat(connection: sa.Connection, statement: Callable[[Querier], T]) -> T:
    """Send a statement, and send it again until the database carries it out.

    The line may be broken, the server read-only after a failover, a right missing: most of it
    passes, and none of it is the task's fault. Raises DBAPIError if it is hopeless.

    If a try arrived and only its answer was lost, the statement is carried out twice. So it must
    be one that changes nothing the second time.
    """
    pause = pauses()
    while True:
        try:
            return statement(Querier(connection))
        except DBAPIError as error:
            if hopeless(error):
                raise
            reconnect(connection, error, next(pause))


def hopeless(error: DBAPIError) -> bool:
    """The value itself cannot be stored: no such character, no JSON, too complex."""
    return sqlstate(error) in HOPELESS


def sqlstate(error: Exception) -> str:
    return getattr(getattr(error, "orig", None), "sqlstate", None) or ""
