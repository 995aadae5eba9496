"""The fence: a run can write only as long as its task is in its attempt."""

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from connection import repeat
from db.queries import ClaimTasksRow


class LostTask(BaseException):
    """The task is another attempt's now, or it has ended. Nothing may be written.

    Not an Exception: an `except Exception` must not take it for a failure of the task.
    """


class Fence:
    """All that a run writes goes through here, and names the task and the attempt.

    It holds only if the database never forgets a claim: a backup that is restored gives the same
    attempt out again.
    """

    def __init__(self, connection: sa.Connection, task: ClaimTasksRow) -> None:
        self.task = task
        self._connection = connection

    def write(self, statement: Callable[..., int], **values: Any) -> None:
        """Send a statement, such as Querier.succeed_task. Raises LostTask if it was refused."""
        id, attempt = self.task.id, self.task.attempt
        changed = repeat(
            self._connection,
            lambda queries: statement(queries, id=id, attempt=attempt, **values),
        )
        if not changed:
            raise LostTask(f"task {id} is not running in attempt {attempt} any more")
