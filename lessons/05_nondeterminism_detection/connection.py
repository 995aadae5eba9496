"""A worker's connections: remade when they break; what was not carried out is sent again."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from threading import Event
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from db.queries import Querier

QUIET_SECONDS = 10
HOPELESS = ("22021", "22P02", "22P05", "54000", "54001")
MAX_REFUSALS = 7  # with the pauses between them, about 6 s
MAX_PASSED_OVER = 100

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

    The line may be broken, the server read-only after a failover, a right missing: most of that
    passes, and none of it is the task's fault. Raises the error if it is hopeless, or if a
    database that can be reached has refused for some seconds.

    If a try arrived and only its answer was lost, the statement is carried out twice. So it must
    be one that changes nothing the second time.
    """
    pause = pauses()
    refusals = 0
    while True:
        try:
            return statement(Querier(connection))
        except DBAPIError as error:
            refusals += not unreachable(error)
            if hopeless(error) or refusals == MAX_REFUSALS:
                raise
            reconnect(connection, error, next(pause))


def all_but_refused(statement: Callable[..., Iterable[T]], at_most: int = 1000) -> list[T]:
    """What the statement returns. It changes at_most rows, after the first `skip` of them.

    If one row is refused, by somebody's trigger or a CHECK that came later, so is the whole
    statement. Then the rows are changed one by one, and those that are refused are passed over.
    Raises the error if nothing could be changed.
    """
    try:
        return list(statement(at_most=at_most, skip=0))
    except DBAPIError as error:
        if unreachable(error):
            raise
        # If it is refused for no rows at all, no row is to blame: that error is raised.
        list(statement(at_most=0, skip=0))
        complain(error)
        changed: list[T] = []
        skip = 0
        while len(changed) < at_most and skip < MAX_PASSED_OVER:
            try:
                found = list(statement(at_most=1, skip=skip))
            except DBAPIError as again:
                if unreachable(again):
                    raise
                skip += 1
                continue
            if not found:
                break
            changed += found
        if not changed:
            raise
        return changed


def unreachable(error: DBAPIError) -> bool:
    """The line is broken (08), the server full (53), stopping or starting (57P)."""
    state = sqlstate(error)
    # Invalidated: the line broke with the answer, whatever that says.
    return (
        error.connection_invalidated
        or state.startswith(("08", "53", "57P"))
        or (not state and isinstance(error, OperationalError | InterfaceError))
    )


def hopeless(error: Exception) -> bool:
    """The value itself cannot be stored, or read: no such character, no JSON, too complex."""
    return isinstance(error, ValueError | RecursionError) or sqlstate(error) in HOPELESS


def sqlstate(error: Exception) -> str:
    return getattr(getattr(error, "orig", None), "sqlstate", None) or ""


def keep_doing(
    work: Callable[[Querier], None],
    connection: sa.Connection,
    pause: Callable[[], float],
    *,
    until: Event,
) -> None:
    """Again and again, with a pause of `pause()` seconds; after an error, with growing pauses."""
    seconds, refused = pause(), pauses()
    while not until.wait(seconds):
        try:
            work(Querier(connection))
            seconds, refused = pause(), pauses()
        except DBAPIError as error:
            reconnect(connection, error, 0)
            seconds = next(refused)
