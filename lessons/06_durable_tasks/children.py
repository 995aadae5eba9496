"""Child tasks: what a context starts them with, and waits for them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, Unpack, cast

from db.queries import ClaimTasksRow, Querier
from errors import FinalStepError
from event_log import EventLog
from inputs import BadInput, to_json
from tasks import TaskOptions, check_options, registry

T = TypeVar("T")
R = TypeVar("R")
Function = Callable[[T], R] | Callable[[Any, T], R]  # Any: the Context of a durable task


class ChildError(FinalStepError):
    """A child task has failed for good."""

    def __init__(self, child: str, error: dict[str, Any]) -> None:
        # A child that failed because of its own child tells of that: the path, and the cause. The
        # middle of a long path is left out, so that the cause is not cut off.
        path, cause = [child], error["error"]
        if error["type"] == "ChildError":
            below, _, cause = cause.removeprefix("ChildError: ").partition(": ")
            path += below.split(" > ")
        if len(path) > 4:
            path[2:-2] = ["…"]
        super().__init__(" > ".join(path), {**error, "error": cause})
        self.step = child


@dataclass(frozen=True)
class Pending(Generic[R]):
    """An entry that somebody else completes: what `gather` and `as_completed` wait for."""

    position: int


class Children:
    """The part of a Context that has to do with child tasks."""

    _task: ClaimTasksRow
    _log: EventLog

    def spawn(
        self, function: Function[T, R], input: T, **options: Unpack[TaskOptions]
    ) -> Pending[R]:
        """Start a child task, and do not wait for it. Raises BadInput.

        function: registered with `task` or `durable`. options: as of `enqueue`, but that the queue
        is the parent's. The log entry and the child's row are written in one statement: there is
        never one without the other.
        """
        name, text = function.__name__, to_json(input)
        if name not in registry or registry[name].function is not function:
            raise BadInput(f"{name} is not registered: put @task or @durable above it")
        options.setdefault("queue", self._task.queue)
        chosen = check_options(**options)
        return Pending(self._log.open("child", name, text, Querier.spawn_child, **chosen))

    def run(self, function: Function[T, R], input: T, **options: Unpack[TaskOptions]) -> R:
        """Spawn a child task and wait for its result."""
        return self.result(self.spawn(function, input, **options))

    def result(self, pending: Pending[R]) -> R:
        """Wait until the child has ended; what it returned. Raises ChildError."""
        entry = self._log.wait([pending.position], enough=1)[0]
        if entry.error is None:
            return cast(R, entry.output)
        self._log.told(entry)
        raise ChildError(entry.name, entry.error)

    def gather(self, *pending: Pending[R]) -> list[R]:
        """Wait until all these children have ended; what they returned, in the order given.

        Raises ChildError for the first of them, in that order, that did not succeed.
        """
        positions = sorted({one.position for one in pending})
        self._log.wait(positions, enough=len(positions))
        return [self.result(one) for one in pending]

    def as_completed(self, *pending: Pending[R]) -> Iterator[Pending[R]]:
        """The children, each as soon as it has ended. Their order is recorded with their ends."""
        left = sorted({one.position for one in pending})
        while left:
            first = self._log.wait(left, enough=1)[0]
            left.remove(first.position)
            if first.error:
                self._log.told(first)
            yield Pending(first.position)
