"""Child tasks: what a context starts them with, and waits for them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar, Unpack, cast

from db.queries import ClaimTasksRow, Querier
from errors import FinalBadInput, FinalStepError, SignalError, WaitTimeout, final
from event_log import EventLog
from fence import Fence
from inputs import BadInput, Json, check_duration, to_json
from tasks import TaskOptions, check_options, is_task

T = TypeVar("T")
R = TypeVar("R")
Function = Callable[[T], R] | Callable[[Any, T], R]  # Any: the Context of a durable task

SPAWN_RULE = "write spawn(f, input), where f is a function with @task or @durable above it"


class ChildError(FinalStepError):
    """A child task has failed for good, or was cancelled."""

    def __init__(self, child: str, error: dict[str, Any]) -> None:
        # A child that failed because of its own child says so: the path, and the cause. The middle
        # of a long path is left out, so that the cause is not cut off.
        path, cause = [child], error["error"]
        if error["type"] == "ChildError":
            below, _, cause = cause.removeprefix("ChildError: ").partition(": ")
            path += below.split(" > ")
        if len(path) > 4:
            path[2:-2] = ["…"]
        super().__init__(" > ".join(path), {**error, "error": cause})
        self.step = child


def failure(kind: str, name: str, error: dict[str, Any]) -> FinalStepError:
    """The error of an entry that somebody else has completed, as the function sees it."""
    if kind == "child":
        return ChildError(name, error)
    return (WaitTimeout if error["type"] == "WaitTimeout" else SignalError)(name, error)


@dataclass(frozen=True)
class Pending(Generic[R]):
    """An entry that somebody else completes: what `gather` and `as_completed` wait for.

    run: the task and the attempt that it belongs to.
    """

    position: int
    run: tuple[int, int]


class Children:
    """The part of a Context that has to do with child tasks."""

    _task: ClaimTasksRow
    _fence: Fence
    _log: EventLog

    def spawn(
        self, function: Function[T, R], input: T, **options: Unpack[TaskOptions]
    ) -> Pending[R]:
        """Start a child task, and do not wait for it. Raises FinalBadInput.

        function: registered with `task` or `durable`. options: as for `enqueue`; the queue, if
        none is given, is the parent's. Log entry and child row are written in one statement: there
        is never one without the other.
        """
        with final():  # before anything else: a child that is refused takes no position
            if not is_task(function):
                raise BadInput(f"{function!r:.50} is not registered: {SPAWN_RULE}")
            options.setdefault("queue", self._task.queue)
            name, text, chosen = function.__name__, to_json(input), check_options(**options)
        self._log.check()
        with self._fence.engine():
            position = self._log.spawn(name, text, chosen)
        return Pending(position, self._log.run)

    def run(self, function: Function[T, R], input: T, **options: Unpack[TaskOptions]) -> R:
        """Spawn a child task and wait for its result."""
        return self.result(self.spawn(function, input, **options))

    def result(self, pending: Pending[R], *, timeout: timedelta | None = None) -> R:
        """Wait for this one: what the child returned, or the message said.

        Raises ChildError, SignalError, WaitTimeout.
        """
        positions = self._positions([pending])
        entry = self._log.wait(positions, enough=1, deadline=self._deadline(timeout))[0]
        if entry.error is None:
            return cast(R, entry.output)
        self._log.told(entry)
        raise failure(entry.kind, entry.name, entry.error)

    def gather(self, *pending: Pending[R], timeout: timedelta | None = None) -> list[R]:
        """Wait until all these children have ended; what they returned, in the order given.

        Raises ChildError for the first of them, in that order, that did not succeed; WaitTimeout if
        they have not all ended in time.
        """
        positions = self._positions(pending)
        self._log.wait(positions, enough=len(positions), deadline=self._deadline(timeout))
        return [self.result(one) for one in pending]

    def as_completed(
        self, *pending: Pending[R], timeout: timedelta | None = None
    ) -> Iterator[Pending[R]]:
        """The children, each as soon as it has ended. The order is recorded with their ends.

        Raises WaitTimeout if some have not ended in time, which begins when the first is asked for.
        """
        left = self._positions(pending)
        deadline = self._deadline(timeout)
        while left:
            ended = self._log.wait(left, enough=1, deadline=deadline)
            for entry in ended:
                if entry.error:
                    self._log.told(entry)
                yield Pending(entry.position, self._log.run)
            known = {entry.position for entry in ended}
            left = [position for position in left if position not in known]

    def first_of(self, *pending: Pending[Any], timeout: timedelta | None = None) -> Pending[Any]:
        """Wait for any of these; the one that was first, in every run. Raises WaitTimeout."""
        if not pending:
            raise FinalBadInput("first_of() waits for something: write first_of(a, b)")
        return next(self.as_completed(*pending, timeout=timeout))

    def _deadline(self, timeout: timedelta | None) -> int | None:
        """A timer that ends a wait; its position in the log. What is waited for goes on."""
        if timeout is None:
            return None
        with final():
            check_duration("timeout", timeout)
        return self._open_timer("timeout", timeout.total_seconds(), duration=timeout).position

    def _open_timer(
        self,
        name: str,
        input: Json,
        *,
        moment: datetime | None = None,
        duration: timedelta | None = None,
    ) -> Pending[None]:
        self._log.check()
        with self._fence.engine():
            position = self._log.open(
                "timer", name, to_json(input), Querier.open_timer, moment=moment, duration=duration
            )
        return Pending(position, self._log.run)

    def _positions(self, pending: Sequence[object]) -> list[int]:
        """Where they stand in the log. FinalBadInput for what this run has not spawned."""
        positions: set[int] = set()
        for one in pending:
            if not isinstance(one, Pending):
                rule = "gather(a, b) or gather(*children), with what ctx.spawn has returned"
                raise FinalBadInput(f"{one!r:.50} is no child to wait for: write {rule}")
            if one.run != self._log.run:
                raise FinalBadInput(f"{one} is of another run: wait for what this one has spawned")
            positions.add(one.position)
        return sorted(positions)
