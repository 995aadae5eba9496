"""How the runs of a worker write: each statement on a connection that is lent, or in a group."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from queue import Empty, LifoQueue
from typing import TypeVar

import sqlalchemy as sa

from connection import connect, reconnect, repeat
from db.queries import ClaimTasksRow, LoadLogRow, Querier
from group import Group, Run
from inputs import as_text

MAX_GROUP_CHARACTERS = 10_000  # of a row; what is longer is written alone

T = TypeVar("T")


class Lender:
    """So many connections, for any number of threads. Each is made when it is first needed."""

    def __init__(self, engine: sa.Engine, count: int) -> None:
        self._engine = engine
        # The last one in is the first one out, so that no more are made than are needed.
        self._free: LifoQueue[sa.Connection | None] = LifoQueue()
        for _ in range(count):
            self._free.put(None)

    @contextmanager
    def lent(self) -> Iterator[sa.Connection]:
        """A connection that nobody else has meanwhile; waits until one is free."""
        connection = self._free.get()
        try:
            connection = connection or connect(self._engine, give_up=lambda: False)
            yield connection
        finally:
            self._free.put(connection)

    def close(self) -> None:
        """Those that are not lent. A run that is abandoned may still borrow one, which is made."""
        free: list[sa.Connection | None] = []
        with suppress(Empty):
            while True:
                free.append(self._free.get_nowait())
        for connection in free:
            if connection:
                connection.close()
            self._free.put(None)


class Writer:
    """What all runs of a worker share. connections: for what is written alone."""

    def __init__(self, engine: sa.Engine, connections: int) -> None:
        self._alone = Lender(engine, connections)
        # Of their own: groups must not wait for runs that wait for a locked row.
        self._together = Lender(engine, 1)
        self._steps = Group(self._record_steps)

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
        with self._together.lent() as connection:
            recorded = together(connection, lambda queries: queries.record_steps(steps=rows))
            return {(row.task_id, row.attempt) for row in recorded}

    def close(self) -> None:
        self._alone.close()
        self._together.close()


def store_results(connection: sa.Connection, results: list[tuple[ClaimTasksRow, str]]) -> set[Run]:
    """Of these tasks and their outputs, those that are stored now."""
    rows = ",".join(
        f'{{"id": {task.id}, "attempt": {task.attempt}, "output": {output}}}'
        for task, output in results
        if len(output) <= MAX_GROUP_CHARACTERS
    )
    stored = together(connection, lambda queries: queries.succeed_tasks(results=f"[{rows}]"))
    return {(row.id, row.attempt) for row in stored}


def together(connection: sa.Connection, statement: Callable[[Querier], Iterable[T]]) -> list[T]:
    """What it returns: the runs that it has written for. Nothing after an error.

    One row may be poison for all others, so the error says nothing about any of them.
    """
    try:
        return list(statement(Querier(connection)))
    except Exception as error:
        reconnect(connection, error, 0)
        return []
