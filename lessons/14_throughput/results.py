"""What tasks have returned, until it is stored: many results share a statement, and its commit."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import sqlalchemy as sa

from db.queries import ClaimTasksRow
from writer import MAX_GROUP_CHARACTERS, together

# So often a result goes with a group that passes over it; then it is stored alone. Not at once: the
# children of one parent would get in each other's way, and never find together again.
MAX_TRIES = 20
PAUSE_SECONDS = 0.005


@dataclass
class Result:
    task: ClaimTasksRow
    output: str  # JSON
    tries: int = 0


class Results:
    """stored: called with each task whose result is stored. alone: called with each result that
    needs a statement of its own, which will wait, or say why.
    """

    def __init__(
        self, stored: Callable[[ClaimTasksRow], None], alone: Callable[[Result], None]
    ) -> None:
        self._stored = stored
        self._alone = alone
        self._waiting: deque[Result] = deque()
        self.added = threading.Event()

    def add(self, task: ClaimTasksRow, output: str) -> None:
        self._waiting.append(Result(task, output))
        self.added.set()

    def keep_storing(self, connection: sa.Connection, until: threading.Event) -> None:
        """Whoever sets `until` sets `added` afterwards."""
        with connection:
            while not until.is_set():
                self.added.wait()
                self.added.clear()
                if self.store(connection):
                    time.sleep(PAUSE_SECONDS)
                    self.added.set()

    def store(self, connection: sa.Connection) -> bool:
        """All that was added so far. True: some were passed over, and are to be tried again."""
        results = [self._waiting.popleft() for _ in range(len(self._waiting))]
        passed_over = False
        stored = store_together(connection, results)
        for result in results:
            result.tries += 1
            long = len(result.output) > MAX_GROUP_CHARACTERS
            if stored is not None and (result.task.id, result.task.attempt) in stored:
                self._stored(result.task)
            elif stored is None or long or result.tries == MAX_TRIES:
                self._alone(result)
            else:
                self._waiting.append(result)
                passed_over = True
        return passed_over


def store_together(connection: sa.Connection, results: list[Result]) -> set[tuple[int, int]] | None:
    """The runs whose results are stored now; None if the statement was refused."""
    rows = [
        f'{{"id": {result.task.id}, "attempt": {result.task.attempt}, "output": {result.output}}}'
        for result in results
        if len(result.output) <= MAX_GROUP_CHARACTERS
    ]
    if not rows:
        return set()
    text = f"[{','.join(rows)}]"
    stored = together(connection, lambda queries: queries.succeed_tasks(results=text))
    return None if stored is None else {(row.id, row.attempt) for row in stored}
