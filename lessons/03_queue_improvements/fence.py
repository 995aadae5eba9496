"""The fence: a run can write only as long as its task is still in that run's attempt."""

from collections.abc import Callable
from typing import Any, TypeVar

import sqlalchemy as sa

from connection import hopeless, reason, repeat
from db.queries import ClaimTasksRow, Querier

T = TypeVar("T")


class Interrupted(BaseException):
    """The run ends here, and writes no more.

    Not an Exception: an `except Exception` must not take it for a failure of the task.
    """


class LostTask(Interrupted):
    """The task is another attempt's now, or it has ended. Nothing may be written."""


class Refused(Interrupted):
    """The database refuses what the run has to write. The task is given back, at no attempt."""


class Hopeless(Interrupted):
    """Every run would come to the same: the task fails, with this sentence."""


class Fence:
    """Everything that a run writes goes through here, and names the task and the attempt.

    What goes wrong here is never an error of the task's function. It holds only if the database
    never forgets a claim: a backup that is restored gives the same attempt out again.
    """

    def __init__(self, connection: sa.Connection, task: ClaimTasksRow) -> None:
        self.task = task
        self._connection = connection

    def send(self, statement: Callable[[Querier], T]) -> T:
        """Raises Refused, or Hopeless."""
        try:
            return repeat(self._connection, statement)
        except Exception as error:
            if hopeless(error):
                raise Hopeless(
                    f"Postgres cannot store this, or read it: {reason(error)}"
                ) from error
            raise Refused(f"task {self.task.id}: {reason(error)}") from error

    def write(self, statement: Callable[..., T], **values: Any) -> T:
        """Send a statement, such as Querier.succeed_task. Raises LostTask if it changes nothing."""
        id, attempt = self.task.id, self.task.attempt
        changed = self.send(lambda queries: statement(queries, id=id, attempt=attempt, **values))
        if not changed:
            raise LostTask(f"task {id} is not running in attempt {attempt} any more")
        return changed
