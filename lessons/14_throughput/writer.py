"""How the runs of a worker write: each statement on a connection that is lent, or in a group."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from queue import PriorityQueue
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from connection import complain, connect, pauses, reconnect, repeat
from db.queries import ClaimTasksRow, LoadLogRow, Querier
from group import Group, Run
from inputs import as_text

MAX_GROUP_CHARACTERS = 10_000  # of a row; what is longer is written alone

T = TypeVar("T")


class Lender:
    """So many connections, for any number of threads. Each is made when it is first needed."""

    def __init__(self, engine: sa.Engine, count: int) -> None:
        self._engine = engine
        # By number: those that are made first, so that no more are made than are needed.
        self._free: PriorityQueue[tuple[bool, int, sa.Connection | None]] = PriorityQueue()
        for number in range(count):
            self._free.put((True, number, None))

    @contextmanager
    def lent(self) -> Iterator[sa.Connection]:
        """A connection that nobody else has meanwhile; waits until one is free, or can be made."""
        pause = pauses()
        while True:
            _, number, connection = self._free.get()
            try:
                connection = connection or self._engine.connect()
                break
            except DBAPIError as error:  # the server is full: perhaps one is given back
                self._free.put((True, number, None))
                complain(error)
                time.sleep(next(pause))
        try:
            yield connection
        finally:
            self._free.put((False, number, connection))

    def open(self, give_up: Callable[[], bool]) -> None:
        """Make the first one now. Raises Stopped."""
        _, number, _ = self._free.get()
        self._free.put((False, number, connect(self._engine, give_up)))

    def close(self) -> None:
        """When none is lent any more."""
        while not self._free.empty():
            _, _, connection = self._free.get()
            if connection:
                connection.close()


class Writer:
    """What all runs of a worker share. connections: for what is written alone."""

    def __init__(self, engine: sa.Engine, connections: int) -> None:
        self._engine = engine
        self._alone = Lender(engine, connections)
        self._steps = Group(self._record_steps)

    def open(self, give_up: Callable[[], bool]) -> None:
        """Raises Stopped. What no run can do without is made before a task is claimed."""
        # Of their own: a group must not wait for runs that wait for a locked row.
        self._together = connect(self._engine, give_up)
        self._alone.open(give_up)

    def send(self, statement: Callable[[Querier], T]) -> T:
        """Send it until the database carries it out. Raises what `repeat` raises."""
        with self._alone.lent() as connection:
            return repeat(connection, statement)

    def record(self, task: ClaimTasksRow, entry: LoadLogRow) -> bool:
        """Record a step in a group. False: it is not recorded; alone, it will be, or say why."""
        row = {"task_id": task.id, "attempt": task.attempt, "position": entry.position}
        text = as_text({**row, "name": entry.name, "input": entry.input, "output": entry.output})
        return len(text) <= MAX_GROUP_CHARACTERS and self._steps.write(
            (task.id, task.attempt), text
        )

    def _record_steps(self, rows: str) -> set[Run]:
        recorded = together(self._together, lambda queries: queries.record_steps(steps=rows))
        return {(row.task_id, row.attempt) for row in recorded or []}

    def close(self) -> None:
        """When no run is left."""
        self._alone.close()
        self._together.close()


def together(
    connection: sa.Connection, statement: Callable[[Querier], Iterable[T]]
) -> list[T] | None:
    """What it returns: the runs that it has written for. None after an error.

    One row may be poison for all others, so the error says nothing about any of them.
    """
    try:
        return list(statement(Querier(connection)))
    except Exception as error:
        reconnect(connection, error, 0)
        return None
