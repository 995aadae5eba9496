"""Durable tasks: functions whose finished steps are recorded, and never run again."""

import inspect
import json
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from types import FunctionType
from typing import (
    Any,
    Concatenate,
    Generic,
    NoReturn,
    ParamSpec,
    TypedDict,
    TypeVar,
    Unpack,
    cast,
    overload,
)

import sqlalchemy as sa

from db.queries import ClaimTasksRow, LoadCompletionsRow, LoadLogRow, Querier
from tasks import (
    BadInput,
    Json,
    NonRetryableError,
    check_options,
    describe,
    registry,
    to_json,
)

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class SpawnOptions(TypedDict, total=False):
    """As for `enqueue`."""

    queue: str
    priority: int
    max_attempts: int
    timeout: timedelta | None


DEFAULTS: SpawnOptions = {"queue": "default", "priority": 0, "max_attempts": 5, "timeout": None}

# Runs a statement, and runs it again for as long as the database cannot be reached.
Persist = Callable[[Callable[[], Any]], Any]

durable_names: set[str] = set()


class Interrupted(BaseException):
    """The run ends here, whatever the function would do next.

    Not an Exception: an `except Exception` in the function must not swallow it.
    """


class LostTask(Interrupted):
    """The fence: the task is another attempt's now, or it has ended. Nothing may be written."""


class Suspended(Interrupted):
    """The task waits for children, and has no slot meanwhile. It will be run again from its log."""


class NonDeterminismError(Interrupted):
    """The function asks for something else than what its log has recorded."""


class StepInStep(NonRetryableError):
    """A step's function has called `step`."""


class StepError(Exception):
    """A step has failed. It is the same in the run in which it did and in every later one.

    step: its name. type: of what it raised. traceback: where it did, for people.
    """

    def __init__(self, step: str, error: dict[str, Any]) -> None:
        super().__init__(f"{step}: {error['error']}")
        self.step = step
        self.type: str = error["type"]
        self.traceback: str = error["traceback"]


class FinalStepError(StepError, NonRetryableError):
    """A step has failed, and said that trying again is of no use."""


class ChildError(FinalStepError):
    """A child task has failed for good, or was cancelled."""


def durable(function: Callable[["Context", T], R]) -> Callable[["Context", T], R]:
    """Register a durable task: a function that takes a context and one JSON value."""
    if function.__name__ in registry:
        raise BadInput(f"there is a task {function.__name__!r} already: give it another name")
    registry[function.__name__] = function
    durable_names.add(function.__name__)
    return function


@dataclass(frozen=True)
class Child(Generic[R]):
    """A child task that was spawned: what `gather` and `as_completed` wait for."""

    position: int


class Context:
    """What a durable task does its steps with. It belongs to one run.

    The function may run many times, from the beginning each time. Steps that are in the log are
    answered from it. So what is outside of steps has to do the same every time, and must have no
    effects of its own.
    """

    def __init__(self, queue: Querier, task: ClaimTasksRow, persist: Persist) -> None:
        self._queue = queue
        self._task = task
        self._persist = persist
        self._position = 0
        self._in_step = False
        self._interrupted: Interrupted | None = None
        # The children whose failure the function has been told, and that failure.
        self._failures: dict[int, dict[str, Any]] = {}
        self._log: list[LoadLogRow] = []
        if task.attempt > 1:  # the first has nothing to load
            self._log = persist(lambda: list(queue.load_log(task_id=task.id)))
        # An error at the end: nothing has been done since that depends on it. Try the step again,
        # unless it said that this is of no use.
        if self._open_error():
            del self._log[-1]
        self._completions = max([task.completions, *(entry.completion or 0 for entry in self._log)])

    def step(
        self, function: Callable[Concatenate[str, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Return what `function(key, *args, **kwargs)` returns, and call it only if need be.

        key: an idempotency key, the same whenever this step of this task is tried. The step may run
        twice, if the worker dies between doing it and recording it; another system that is given
        the key can tell. Arguments and result are JSON. Raises StepError if the step fails.
        """
        # First: a step that is refused takes no position.
        name, input = function.__name__, to_json([list(args), kwargs])
        self._next()
        if self._position > len(self._log):
            self._settle_error()
            # A copy: what a step does to its arguments must not reach the function. It would not in
            # a later run, which does not call the step, and what is asked next would differ.
            args, kwargs = json.loads(input)
            self._log.append(self._do(name, input, lambda key: function(key, *args, **kwargs)))
        else:
            self._compare("step", name, json.loads(input))
        entry = self._log[self._position - 1]
        if entry.error is None:
            return cast(R, entry.output)
        raise (FinalStepError if entry.error["final"] else StepError)(entry.name, entry.error)

    @overload
    def spawn(
        self, function: Callable[["Context", T], R], input: T, **options: Unpack[SpawnOptions]
    ) -> Child[R]: ...

    @overload
    def spawn(
        self, function: Callable[[T], R], input: T, **options: Unpack[SpawnOptions]
    ) -> Child[R]: ...

    def spawn(
        self, function: Callable[..., Any], input: Json, **options: Unpack[SpawnOptions]
    ) -> Child[Any]:
        """Start a child task, and do not wait for it. Raises BadInput.

        function: registered with `task` or `durable`. The log entry and the child's row are written
        in one statement: there is never one without the other.
        """
        name, text = function.__name__, to_json(input)
        if registry.get(name) is not function:
            raise BadInput(f"{name} is not registered: put @task or @durable above it")
        chosen: SpawnOptions = {**DEFAULTS, **options}
        check_options(**chosen)
        self._next()
        if self._position > len(self._log):
            self._settle_error()
            self._log.append(self._spawn(name, text, chosen))
        else:
            self._compare("child", name, input)
        return Child(self._position)

    def gather(self, *children: Child[R]) -> list[R]:
        """Wait until all these children have ended; what they returned, in the order given.

        Raises ChildError for the first of them, in that order, that did not succeed.
        """
        positions = sorted({child.position for child in children})
        self._wait(positions, enough=len(positions))
        return [self.result(child) for child in children]

    def as_completed(self, *children: Child[R]) -> Iterator[Child[R]]:
        """The children, each as soon as it has ended. Their order is recorded with their ends."""
        left = sorted({child.position for child in children})
        while left:
            self._wait(left, enough=1)
            ended = [p for p in left if self._log[p - 1].completion]
            first = min(ended, key=lambda p: self._log[p - 1].completion or 0)
            left.remove(first)
            if error := self._log[first - 1].error:
                self._failures[first] = error
            yield Child(first)

    def result(self, child: Child[R]) -> R:
        """Wait until the child has ended; what it returned. Raises ChildError."""
        self._wait([child.position], enough=1)
        entry = self._log[child.position - 1]
        if entry.error is None:
            return cast(R, entry.output)
        self._failures[child.position] = entry.error
        raise ChildError(entry.name, entry.error)

    @overload
    def run(
        self, function: Callable[["Context", T], R], input: T, **options: Unpack[SpawnOptions]
    ) -> R: ...

    @overload
    def run(self, function: Callable[[T], R], input: T, **options: Unpack[SpawnOptions]) -> R: ...

    def run(
        self, function: Callable[..., Any], input: Json, **options: Unpack[SpawnOptions]
    ) -> Any:
        """Spawn a child task and wait for its result."""
        return self.result(self.spawn(function, input, **options))

    def _next(self) -> None:
        """Move to the next position of the log."""
        self._check()
        self._position += 1

    def _check(self) -> None:
        if self._interrupted:  # a bare `except:` in the function has swallowed it
            raise self._interrupted
        if self._in_step:
            raise StepInStep("a step cannot do steps: they would not be done when it is replayed")

    def _spawn(self, name: str, input: str, options: SpawnOptions) -> LoadLogRow:
        child_id = self._persist(
            lambda: self._queue.spawn_child(
                task_id=self._task.id,
                attempt=self._task.attempt,
                position=self._position,
                name=name,
                input=input,
                **options,
            )
        )
        if child_id is None:
            self._interrupt(LostTask(lost(self._task)))
        return LoadLogRow(
            position=self._position,
            kind="child",
            name=name,
            input=json.loads(input),
            output=None,
            error=None,
            completion=None,
        )

    def _wait(self, positions: list[int], enough: int) -> None:
        """Return when `enough` of these children have ended. Until then, suspend."""
        self._check()
        while True:
            awaited = [p for p in positions if not self._log[p - 1].completion]
            missing = enough - (len(positions) - len(awaited))
            if missing <= 0:
                return
            self._settle_error()
            suspend = partial(
                self._queue.suspend_task,
                id=self._task.id,
                attempt=self._task.attempt,
                completions=self._completions,
                awaits=awaited,
                wake_after=missing,
            )
            if self._persist(suspend):
                self._interrupt(Suspended(f"waits for {missing} of {len(awaited)} children"))
            # A child has ended since we looked, or the task is not ours any more.
            if not self._load_completions():
                self._interrupt(LostTask(lost(self._task)))

    def _load_completions(self) -> int:
        """Read the ends of children that this run does not know of yet; how many there were."""
        news: list[LoadCompletionsRow] = self._persist(
            lambda: list(
                self._queue.load_completions(
                    task_id=self._task.id, after_completion=self._completions
                )
            )
        )
        for row in news:
            entry = self._log[row.position - 1]
            entry.output, entry.error, entry.completion = row.output, row.error, row.completion
            self._completions = max(self._completions, row.completion or 0)
        return len(news)

    def _interrupt(self, interrupted: Interrupted) -> NoReturn:
        self._interrupted = interrupted
        raise interrupted

    def end(self, returned: bool = True) -> None:
        """The function has ended. Raises NonDeterminismError if it returned and its log goes on.

        What has interrupted the run is raised again, whatever the function has made of it: a bare
        `except:` may have swallowed it, or raised another error instead.
        """
        if self._interrupted:
            raise self._interrupted
        if returned and self._position < len(self._log):
            self._position += 1
            self._compare("return", self._task.name, None)

    def _compare(self, kind: str, name: str, input: Json) -> None:
        """Is the entry at this position the answer to this question?"""
        entry = self._log[self._position - 1]
        asked = (kind, name, canonical(input))
        recorded = (entry.kind, entry.name, canonical(entry.input))
        if asked != recorded:
            place = returned_from(self._task.name) if kind == "return" else called_from()
            advice = ADVICE.format(id=self._task.id)
            self._interrupted = NonDeterminismError(
                f"{explain(self._position, recorded, asked)}\n{place}\n{advice}"
            )
            raise self._interrupted

    def _open_error(self) -> dict[str, Any] | None:
        """The error at the end of the log, if its step may be tried again."""
        error = self._log[-1].error if self._log else None
        return None if error is None or error["final"] or error.get("settled") else error

    def _settle_error(self) -> None:
        """The function goes on after an error: from here on, no run tries that step again.

        This is written before the next step is done. Otherwise, after a crash in that one's gap,
        the failed step might succeed, and the function do something else with that one's key.
        """
        if error := self._open_error():
            error["settled"] = True
            last = self._log[-1]
            self._record(last.position, last.name, to_json(last.input), None, to_json(error))
        told = [p for p, error in self._failures.items() if "settled" not in error]
        if told:
            settle = partial(self._queue.settle_children, positions=told)
            if not self._persist(lambda: settle(task_id=self._task.id, attempt=self._task.attempt)):
                self._interrupt(LostTask(lost(self._task)))
            self._failures.clear()

    def _do(self, name: str, input: str, call: Callable[[str], Json]) -> LoadLogRow:
        """Do the step and record it. Between the two is the gap in which it may be lost."""
        key = f"{self._task.log_id}/{self._position}"
        output = error = None
        self._in_step = True
        try:
            output = to_json(call(key))
        except BaseException as raised:  # also sys.exit(), and what asyncio raises
            error = to_json(error_entry(raised))
        finally:
            self._in_step = False
        self._record(self._position, name, input, output, error)
        # Read back what was written: the function gets what it will get in every later run.
        return LoadLogRow(
            position=self._position,
            kind="step",
            name=name,
            input=json.loads(input),
            output=json.loads(output or "null"),
            error=json.loads(error or "null"),
            completion=None,
        )

    def _record(
        self, position: int, name: str, input: str, output: str | None, error: str | None
    ) -> None:
        recorded = self._persist(
            lambda: self._queue.record_step(
                task_id=self._task.id,
                attempt=self._task.attempt,
                position=position,
                kind="step",
                name=name,
                input=input,
                output=output,
                error=error,
            )
        )
        if recorded == 0:
            self._interrupt(LostTask(lost(self._task)))


def lost(task: ClaimTasksRow) -> str:
    return f"task {task.id} is not in attempt {task.attempt} any more"


def retry(connection: sa.Connection, id: int) -> None:
    """Give a failed or cancelled task one more attempt. Its log is kept; failed children too.

    In the caller's transaction, which must roll back on BadInput: the task has not failed. Rows
    are locked from the child to the parent, as everywhere, and a child before its log entry.
    """
    queries = Querier(connection)
    task = queries.get_task(id=id)
    if task is None or task.status not in ("failed", "cancelled"):
        raise BadInput(f"task {id} has not failed")
    for child in list(queries.list_failed_children(task_id=id)):
        try:
            retry(connection, child.child_id)
            queries.reopen_child(task_id=id, position=child.position)
        except BadInput:  # it has been retried by hand, and has perhaps succeeded
            queries.tell_again(id=child.child_id)  # tells nothing yet, but locks it
            queries.reopen_child(task_id=id, position=child.position)
            queries.tell_again(id=child.child_id)
    if queries.revive_task(id=id) == 0:
        raise BadInput(f"task {id} is being retried")
    queries.drop_last_error(task_id=id)


def replay(connection: sa.Connection, id: int) -> None:
    """Run a task that has ended again, from an empty log. Its steps get new idempotency keys.

    In the caller's transaction, which must roll back on BadInput: the task has not ended. Children
    of the old run that have not ended are cancelled.
    """
    queries = Querier(connection)
    queries.detach_children(parent_id=id)
    queries.delete_log(task_id=id)
    if queries.replay_task(id=id) == 0:
        raise BadInput(f"task {id} has not ended")


def canonical(value: Json) -> str:
    """The same text for the same JSON, in whatever order the keys of a dict are.

    As text, because in Python 1 == 1.0 == True. In ASCII, because some characters look alike.
    """
    return json.dumps(value, sort_keys=True)


COLUMN = 36  # characters, in the message below
ADVICE = """\
In this run no step was done, and nothing recorded. Either the code was edited while the task was
under way: put it back as it was, `python main.py retry {id}`, and give the new code a new name. Or
the function does not do the same every time (a clock, a random number, the order of a set): let a
step do that, and use what it returns."""


def explain(position: int, recorded: tuple[str, ...], asked: tuple[str, ...]) -> str:
    """Recorded and asked side by side, with a mark where they differ. Its length is bounded."""
    lines = [
        f"at position {position}, the function does not do what its log has recorded",
        f"           {'recorded':{COLUMN + 2}}  asked for now",
    ]
    for title, was, now in zip(("kind", "name", "input"), recorded, asked, strict=True):
        mark = " " if was == now else "≠"
        left, right = excerpt(was, now), excerpt(now, was)
        lines.append(f"  {mark} {title:6} {left:{COLUMN + 2}}  {right}".rstrip())
    return "\n".join(lines)


def excerpt(text: str, other: str) -> str:
    """What fits into a column; of a long text, the place where the two begin to differ."""
    pairs = enumerate(zip(text, other, strict=False))
    differ = next((n for n, (a, b) in pairs if a != b), min(len(text), len(other)))
    long = max(len(text), len(other)) > COLUMN
    start = max(0, differ - COLUMN // 3) if long and text != other else 0
    cut = text[start : start + COLUMN]
    cut = "".join(c if c.isprintable() else "?" for c in cut)  # a name can hold a line feed
    return ("…" if start else "") + cut + ("…" if text[start + COLUMN :] else "")


def called_from() -> str:
    """The line of the user's code that asks: the innermost frame outside of this file.

    Written as in a traceback: terminals and editors make a link of that.
    """
    frame = next(f for f in reversed(traceback.extract_stack()) if f.filename != __file__)
    line = (frame.line or "")[:100]
    return f'  File "{frame.filename}", line {frame.lineno}, in {frame.name}\n    {line}'


def returned_from(name: str) -> str:
    """Where the function stands that has returned."""
    code = cast(FunctionType, inspect.unwrap(registry[name])).__code__
    return f'  File "{code.co_filename}", line {code.co_firstlineno}, in {name}\n    has returned'


def error_entry(error: BaseException) -> dict[str, Any]:
    """What the log keeps of an error."""
    lines = "".join(traceback.format_tb(error.__traceback__)[-3:])
    return {
        "type": type(error).__name__,
        "error": describe(error),
        "traceback": lines.encode(errors="backslashreplace").decode()[-2000:],
        "final": isinstance(error, NonRetryableError),
    }
