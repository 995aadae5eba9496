"""What a durable function calls."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from errors import FinalStepError, StepError, error_entry, final
from event_log import Entry, EventLog
from events import Events
from fence import Fence
from inputs import BadInput, Json, canonical, check_function, to_json
from tasks import is_task, register

P = ParamSpec("P")
R = TypeVar("R")

STEP_RULE = "a step is ctx.step(f, x), not ctx.step(f(x)), and f is a def f(key, x)"


def durable(function: Callable[["Context", Any], R]) -> Callable[["Context", Any], R]:
    """Register a durable task: a function that takes a context and one JSON value."""
    rule = "a durable task is a def that takes a context and one JSON value"
    register(check_function(function, rule, None, None), function, durable=True)
    return function


class Context(Events):
    """What a durable task does its steps with. It belongs to one run.

    The function may run many times, from the beginning each time. Steps that are in the log are
    answered from it. So the code outside of steps has to do the same every time, and must have no
    effects of its own.
    """

    def __init__(self, fence: Fence) -> None:
        self._task = fence.task
        self._fence = fence
        self._log = EventLog(fence)
        self._asked = Counter[str]()

    def step(
        self, function: Callable[Concatenate[str, P], R], /, *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Return what `function(key, *args, **kwargs)` returns; called if the log has no answer.

        key: an idempotency key, the same whenever this step of this task is tried. The step may run
        twice, if the worker dies between doing it and recording it; another system that is given
        the key can tell. Arguments and result are JSON. Raises StepError if the step fails, and
        FinalBadInput if it cannot be called so.
        """
        # First: a step that is refused takes no position.
        with final():
            if is_task(function):
                raise BadInput(f"{function.__name__} is a task, and no step: {STEP_RULE}")
            name = check_function(function, STEP_RULE, "key", *args, **kwargs)
            input = to_json([list(args), kwargs])
        self._log.check()
        with self._fence.engine():
            entry = self._log.next("step", name, input)
            key = self._key(name, input)
        if entry is None:
            # A copy: what a step does to its arguments must not reach the function. A later run
            # does not call the step, would find them unchanged, and might ask for something else.
            args, kwargs = json.loads(input)
            entry = self._do(name, input, lambda: function(key, *args, **kwargs))
        if entry.error is None:
            return cast(R, entry.output)
        self._log.told(entry)
        raise (FinalStepError if entry.error["final"] else StepError)(entry.name, entry.error)

    def end(self, returned: bool = True) -> None:
        self._log.end(returned)

    def _key(self, name: str, input: str) -> str:
        """Made of the log, the step, and how many equal steps came before: not of its position.

        So a different step never gets this key, not even if it comes to stand in its place; and
        this one keeps its key if a step is put before it.
        """
        step = f"{name} {canonical(json.loads(input))}"
        self._asked[step] += 1
        digest = hashlib.sha256(f"{self._asked[step]} {step}".encode()).hexdigest()
        return f"{self._task.log_id}/{digest[:16]}"

    def _do(self, name: str, input: str, call: Callable[[], Json]) -> Entry:
        """Do the step and record it. Between the two is the gap in which it may be lost."""
        output = error = None
        self._log.in_step = True
        try:
            output = call()
        except BaseException as raised:  # even sys.exit(), and what asyncio raises
            error = error_entry(raised)
        finally:
            self._log.in_step = False
        with self._fence.engine():
            # As in the log: the function gets what it will get in every later run.
            try:
                output = json.loads(to_json(output))
            except BadInput as refused:  # and would be again, if the step were done again
                output, error = None, {**error_entry(refused), "final": True}
            entry = Entry(
                position=self._log.position,
                kind="step",
                name=name,
                input=json.loads(input),
                output=output,
                error=error,
                settled=False,
                completion=None,
            )
            self._log.record(entry)
        return entry
