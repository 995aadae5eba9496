"""The fence: a run can write only as long as its task is still in that run's attempt."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NoReturn, TypeVar

import sqlalchemy as sa

from connection import hopeless, reason
from db.queries import ClaimTasksRow, Querier
from inputs import describe
from writer import Writer

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


class Misfit(Interrupted):
    """This code cannot run the task, and other code may: the task waits for that."""


class Fence:
    """Everything that a run writes goes through here, and names the task and the attempt.

    What goes wrong here is never an error of the task's function. It holds only if the database
    never forgets a claim: a backup that is restored gives the same attempt out again.
    """

    def __init__(self, writer: Writer, task: ClaimTasksRow) -> None:
        self.task = task
        self.writer = writer
        self._interrupted: Interrupted | None = None

    def send(self, statement: Callable[[Querier], T]) -> T:
        """Raises Refused, or Hopeless."""
        try:
            return self.writer.send(statement)
        except Exception as error:
            self.refuse(error)

    def refuse(self, error: Exception) -> NoReturn:
        """The database has the last word."""
        if hopeless(error):
            self.interrupt(Hopeless(f"Postgres cannot store this, or read it: {reason(error)}"))
        self.interrupt(Refused(f"task {self.task.id}: {reason(error)}"))

    def begin(self) -> AbstractContextManager[sa.Connection]:
        """A transaction for the function's own work. It commits at the end of the `with`."""
        return self.writer.begin()

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

    def write_on(self, connection: sa.Connection, statement: Callable[..., T], **values: Any) -> T:
        """The same in a transaction that `begin` has begun, and once: an error ends that."""
        id, attempt = self.task.id, self.task.attempt
        return statement(Querier(connection), id=id, attempt=attempt, **values)

    def finds(self, status: str) -> bool:
        """Is the task in this attempt, and has it this status?"""
        row = self.send(lambda queries: queries.get_task(id=self.task.id))
        return row is not None and (row.status, row.attempt) == (status, self.task.attempt)

    def lost(self) -> NoReturn:
        id, attempt = self.task.id, self.task.attempt
        if self.finds("running"):
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
