"""Signals: what a task waits for, and what a person or another program sends to it."""

import json
import re
from datetime import timedelta
from functools import partial

import sqlalchemy as sa

from children import Pending
from control import check_id
from db.queries import Querier
from errors import final
from inputs import (
    MAX_ERROR_CHARACTERS,
    BadInput,
    Json,
    canonical,
    check_duration,
    check_key,
    storable,
    to_json,
)
from timers import Timers


class Signals(Timers):
    """The part of a Context that has to do with messages to its task."""

    def signal(self, name: str, *, timeout: timedelta | None = None) -> Pending[Json]:
        """Wait for a message of this name, but not yet: as with a child that was spawned.

        It takes the next message that no other signal has taken, even if the function never asks
        for that. timeout: after which the clock answers; a message that comes later is for the next
        signal of this name.
        """
        return self._open_wait("signal", name, timeout)

    def receive(self, name: str, *, timeout: timedelta | None = None) -> Json:
        """Wait for a message; its payload. Raises SignalError, WaitTimeout."""
        return self.result(self.signal(name, timeout=timeout))

    def _open_wait(self, kind: str, name: str, timeout: timedelta | None) -> Pending[Json]:
        with final():
            check_topic(name)
            if timeout is not None:
                check_duration("timeout", timeout)
        self._log.check()
        with self._fence.engine():
            input = to_json(None if timeout is None else timeout.total_seconds())
            write = partial(Querier.open_wait, kind=kind)
            position = self._log.open(kind, name, input, write, duration=timeout)
        return Pending(position, self._log.run)


def send(
    connection: sa.Connection, id: int, name: str, payload: Json = None, *, key: str | None = None
) -> None:
    """Send a message to a task, which receives it now or when it asks. Raises BadInput.

    It is one INSERT on the caller's connection, and counts when the caller's transaction commits.
    Until then it holds the task's row: send to several tasks in the order of their ids.
    key: a second message to this task with this key is the first one.
    """
    post(connection, id, name, to_json(payload), None, key)


def send_error(
    connection: sa.Connection, id: int, name: str, error: str, *, key: str | None = None
) -> None:
    """Send a failure instead of a payload: `receive` raises SignalError. Raises BadInput."""
    check_error(error)
    post(connection, id, name, "null", storable(error, MAX_ERROR_CHARACTERS), key)


def post(
    connection: sa.Connection, id: int, name: str, payload: str, error: str | None, key: str | None
) -> None:
    check_id(id)
    check_topic(name)
    check_key(key)
    queries = Querier(connection)
    message = queries.send_message(task_id=id, name=name, payload=payload, error=error, key=key)
    if message is not None:
        return
    first = queries.find_message(task_id=id, key=key) if key else None
    if first is None:
        raise BadInput(f"task {id} has ended, or never was: nobody would read the message")
    sent = (name, canonical(json.loads(payload)), error)
    if (first.name, canonical(first.payload), first.error) != sent:
        raise BadInput(f"the key {key!r} was used for another message to task {id}")


def put_off(connection: sa.Connection, id: int, name: str) -> None:
    """Let all open signals of this name begin their timeouts again: whoever will send is at work.

    Raises BadInput if there is none with a timeout, perhaps not any more: the work may be in vain.
    """
    check_id(id)
    check_topic(name)
    if Querier(connection).put_off(task_id=id, name=name) == 0:
        raise BadInput(f"task {id} has no signal {name!r} that is open and has a timeout")


def check_error(error: object) -> None:
    if not isinstance(error, str) or not error:
        raise BadInput(f"an error is sent as a text that is not empty, not {error!r:.50}")


def check_topic(name: object) -> None:
    if not (isinstance(name, str) and re.fullmatch(r"[ -~]{1,200}", name)):
        raise BadInput(
            "a message or an event is named with 1 to 200 printable ASCII characters, "
            f"not {name!r:.50}"
        )
