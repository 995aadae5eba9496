"""Durable tasks: functions whose finished steps are recorded, and never run again."""

import inspect
import json
import traceback
from collections.abc import Callable
from types import FunctionType
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from db.queries import ClaimTasksRow, LoadLogRow, Querier
from tasks import BadInput, Json, NonRetryableError, describe, registry, to_json

P = ParamSpec("P")
R = TypeVar("R")

# Runs a statement, and runs it again for as long as the database cannot be reached.
Persist = Callable[[Callable[[], Any]], Any]

durable_names: set[str] = set()


class Interrupted(BaseException):
    """The run ends here, whatever the function would do next.

    Not an Exception: an `except Exception` in the function must not swallow it.
    """


class LostTask(Interrupted):
    """The fence: the task is another attempt's now, or it has ended. Nothing may be written."""


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


def durable(function: Callable[["Context", Any], R]) -> Callable[["Context", Any], R]:
    """Register a durable task: a function that takes a context and one JSON value."""
    if function.__name__ in registry:
        raise BadInput(f"there is a task {function.__name__!r} already: give it another name")
    registry[function.__name__] = function
    durable_names.add(function.__name__)
    return function


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
        self._log: list[LoadLogRow] = []
        if task.attempt > 1:  # the first has nothing to load
            self._log = persist(lambda: list(queue.load_log(task_id=task.id)))
        # An error at the end: nothing has been done since that depends on it. Try the step again,
        # unless it said that this is of no use.
        if self._open_error():
            del self._log[-1]

    def step(
        self, function: Callable[Concatenate[str, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Return what `function(key, *args, **kwargs)` returns, and call it only if need be.

        key: an idempotency key, the same whenever this step of this task is tried. The step may run
        twice, if the worker dies between doing it and recording it; another system that is given
        the key can tell. Arguments and result are JSON. Raises StepError if the step fails.
        """
        if self._interrupted:  # a bare `except:` in the function has swallowed it
            raise self._interrupted
        if self._in_step:
            raise StepInStep("a step cannot do steps: they would not be done when it is replayed")
        # First: a step that is refused takes no position.
        name, input = function.__name__, to_json([list(args), kwargs])
        self._position += 1
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
            self._interrupted = LostTask(
                f"task {self._task.id} is not in attempt {self._task.attempt} any more"
            )
            raise self._interrupted


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
