"""The fence: a run can write only as long as its task is in its attempt."""

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import sqlalchemy as sa

from connection import repeat
from db.queries import ClaimTasksRow, Querier

T = TypeVar("T")


class Interrupted(BaseException):
    """The run ends here, whatever the function would do next.

    Not an Exception: an `except Exception` in the function must not swallow it.
    """


class LostTask(Interrupted):
    """The task is another attempt's now, or it has ended. Nothing may be written."""


class Fence:
    """All that a run writes goes through here, and names the task and the attempt.

    It holds only if the database never forgets a claim: a backup that is restored gives the same
    attempt out again.
    """

    def __init__(self, connection: sa.Connection, task: ClaimTasksRow) -> None:
        self.task = task
        self._connection = connection
        self._interrupted: Interrupted | None = None

    def read(self, statement: Callable[[Querier], T]) -> T:
        return repeat(self._connection, statement)

    def write(self, statement: Callable[..., T], **values: Any) -> T:
        """Send a statement, such as Querier.succeed_task. Raises LostTask if it was refused."""
        changed = self.try_to_write(statement, **values)
        if not changed:
            self.lost()
        return changed

    def try_to_write(self, statement: Callable[..., T], **values: Any) -> T:
        """What is falsy was refused: not always because the task is lost."""
        id, attempt = self.task.id, self.task.attempt
        return self.read(lambda queries: statement(queries, id=id, attempt=attempt, **values))

    def lost(self) -> NoReturn:
        id, attempt = self.task.id, self.task.attempt
        self.interrupt(LostTask(f"task {id} is not running in attempt {attempt} any more"))

    def interrupt(self, why: Interrupted) -> NoReturn:
        self._interrupted = why
        raise why

    def check(self) -> None:
        """Raises what has interrupted the run: a bare `except:` may have swallowed it."""
        if self._interrupted:
            raise self._interrupted
