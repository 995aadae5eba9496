"""Hints: who hears that something has happened need not look all the time.

A hint is never more than that. It may come late, twice, or not at all, and whoever waits for one
looks from time to time even so.
"""

import logging
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from threading import Event
from typing import Any

import psycopg
from psycopg import sql

from connection import pauses, reason
from control import check_id
from db.queries import Querier
from inputs import BadInput, Json, check_duration
from shared.database import Database
from timing import Timing

LOOK_SECONDS = 1.0  # of a client that waits
AN_EVENT = "an event"  # no queue has a name with a space
SLICE_SECONDS = 0.1  # after which a thread that hears nothing sees whether it should end

log = logging.getLogger("worker")


class Deaf(Exception):
    """What is sent to this connection does not arrive."""


class TaskError(Exception):
    """The task that was waited for has failed, or was cancelled."""


def listening(db: Database) -> psycopg.Connection[Any]:
    """A new connection that listens. Not from the pool: it would go on listening there."""
    connection = db.connect(autocommit=True)
    connection.execute(sql.SQL("listen {}").format(sql.Identifier(db.schema)))
    return connection


def hear(connection: psycopg.Connection[Any], seconds: float) -> list[str]:
    """The next hints, as soon as one is there; none after so many seconds."""
    # All of them at once: psycopg locks the connection while the generator is open.
    return [hint.payload for hint in connection.notifies(timeout=seconds, stop_after=1)]


class Listener:
    """A worker's thread that listens, and tells the worker of each hint that concerns it.

    hints: what to call for each payload; the queue's name, or that of AN_EVENT.
    hears: it gets what the worker sends to itself. Only then may the worker look less often: a
    connection can be dead, or lead to a pooler that passes nothing on, and show no error.
    """

    def __init__(self, db: Database, hints: dict[str, Callable[[], None]], timing: Timing) -> None:
        self.hears = False
        self._db = db
        self._hints = hints
        self._seconds = timing.probe
        self._probe = f"probe {uuid.uuid4()}"
        self._next_probe = 0.0

    def run(self, until: Event) -> None:
        pause, said = pauses(), ""
        while not until.is_set():
            try:
                with listening(self._db) as connection:
                    # Listen first, then look: nothing can come in between unnoticed.
                    for hint in self._hints.values():
                        hint()
                    self._listen(connection, until)
                    return
            except (psycopg.Error, Deaf) as error:
                if self.hears:
                    pause, said = pauses(), ""
                if reason(error) != said:  # once, and not with every try
                    log.warning("no hints, so the worker looks often: %s", reason(error))
                self.hears, said = False, reason(error)
            until.wait(next(pause))

    def _listen(self, connection: psycopg.Connection[Any], until: Event) -> None:
        """Raises Deaf."""
        heard = time.monotonic()
        self._next_probe = heard
        while not until.is_set():
            hints = hear(connection, SLICE_SECONDS)
            if self._probe in hints:
                heard, self.hears = time.monotonic(), True
            for payload in self._hints.keys() & hints:
                self._hints[payload]()
            if time.monotonic() - heard > 2 * self._seconds:
                raise Deaf("nothing comes through, not even what it sends to itself")

    def probe(self, queries: Querier) -> None:
        """Send something to oneself, if it is time: from another connection than the one above.

        The upkeep does it, not the heart: NOTIFY can wait for other transactions' commits.
        """
        if time.monotonic() >= self._next_probe:
            self._next_probe = time.monotonic() + self._seconds
            queries.send_hint(payload=self._probe)


def wait_for_result(db: Database, id: int, timeout: timedelta) -> Json:
    """What the task has returned, as soon as it has ended. On connections of its own.

    Raises TaskError if it has failed or was cancelled, TimeoutError if it has not ended in time,
    BadInput if there is no such task; an error of the database if a connection breaks.
    """
    check_id(id)
    check_duration("timeout", timeout)
    end = time.monotonic() + timeout.total_seconds()
    with listening(db) as listener, db.autocommit.connect() as connection:
        queries = Querier(connection)
        while True:
            # In this order. An end after the mark is told; an end before it is seen here.
            queries.watch_task(id=id)
            task = queries.get_task(id=id)
            if task is None:
                raise BadInput(f"there is no task {id}")
            if task.status == "succeeded":
                return task.output
            if task.status in ("failed", "cancelled"):
                raise TaskError(f"task {id} {task.status}: {task.error or 'by hand'}")
            # Without a mark, as somebody held the row, there is perhaps no hint: look again soon.
            look = time.monotonic() + (LOOK_SECONDS if task.watched else SLICE_SECONDS)
            while (seconds := min(look, end) - time.monotonic()) > 0:
                if f"end of {id}" in hear(listener, seconds):
                    break
            if time.monotonic() >= end:
                raise TimeoutError(f"task {id} is still {task.status}")
