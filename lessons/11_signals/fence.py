"""The fence: a run can write only as long as its task is still in that run's attempt."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import sqlalchemy as sa

from connection import hopeless, reason, repeat
from db.queries import ClaimTasksRow, Querier
from inputs import describe

T = TypeVar("T")


class Interrupted(BaseException):
    """The run ends here, and writes no more.

    Not an Exception: an `except Exception` in the function must not swallow it.
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
        self._interrupted: Interrupted | None = None

    def send(self, statement: Callable[[Querier], T]) -> T:
        """Raises Refused, or Hopeless."""
        try:
            return repeat(self._connection, statement)
        except Exception as error:
            if hopeless(error):
                self.interrupt(Hopeless(f"Postgres cannot store this, or read it: {reason(error)}"))
            self.interrupt(Refused(f"task {self.task.id}: {reason(error)}"))

    def write(self, statement: Callable[..., T], **values: Any) -> T:
        """Send a statement, such as Querier.succeed_task. Raises LostTask if it changes nothing."""
        # A try whose connection broke may have been on its way in the server, and this one has
        # waited for it. But it saw the tables as they were before. So once more.
        for _ in range(2):
            if changed := self.try_to_write(statement, **values):
                return changed
        self.lost()

    def try_to_write(self, statement: Callable[..., T], **values: Any) -> T:
        """Send a statement; if it changes nothing (falsy), the task is not always lost."""
        id, attempt = self.task.id, self.task.attempt
        return self.send(lambda queries: statement(queries, id=id, attempt=attempt, **values))

    def lost(self) -> NoReturn:
        id, attempt = self.task.id, self.task.attempt
        row = self.send(lambda queries: queries.get_task(id=id))
        if row is not None and (row.status, row.attempt) == ("running", attempt):
            self.interrupt(Hopeless(f"the log of task {id} is not as its run has left it"))
        self.interrupt(LostTask(f"task {id} is not running in attempt {attempt} any more"))

    def interrupt(self, why: Interrupted) -> NoReturn:
        self._interrupted = why
        raise why

    @contextmanager
    def engine(self) -> Iterator[None]:
        """What goes wrong in here is the engine's failure, and must not pass for the function's."""
        try:
            yield
        except Exception as error:
            self.interrupt(Hopeless(describe(error)))

    def check(self) -> None:
        """Raises what has interrupted the run: a bare `except:` may have swallowed it."""
        if self._interrupted:
            raise self._interrupted
