"""What a durable function calls."""

import json
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from children import Children
from errors import FinalStepError, StepError, error_entry
from event_log import Entry, EventLog
from fence import Fence
from inputs import Json, to_json
from tasks import register

P = ParamSpec("P")
R = TypeVar("R")


def durable(function: Callable[["Context", Any], R]) -> Callable[["Context", Any], R]:
    """Register a durable task: a function that takes a context and one JSON value."""
    register(function, durable=True)
    return function


class Context(Children):
    """What a durable task does its steps with. It belongs to one run.

    The function may run many times, from the beginning each time. Steps that are in the log are
    answered from it. So what is outside of steps has to do the same every time, and must have no
    effects of its own.
    """

    def __init__(self, fence: Fence) -> None:
        self._task = fence.task
        self._log = EventLog(fence)

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
        entry = self._log.next("step", name, input)
        if entry is None:
            # A copy: what a step does to its arguments must not reach the function. It would not in
            # a later run, which does not call the step, and what is asked next would differ.
            args, kwargs = json.loads(input)
            entry = self._do(name, input, lambda key: function(key, *args, **kwargs))
        if entry.error is None:
            return cast(R, entry.output)
        self._log.told(entry)
        raise (FinalStepError if entry.error["final"] else StepError)(entry.name, entry.error)

    def end(self, returned: bool = True) -> None:
        self._log.end(returned)

    def _do(self, name: str, input: str, call: Callable[[str], Json]) -> Entry:
        """Do the step and record it. Between the two is the gap in which it may be lost."""
        key = f"{self._task.log_id}/{self._log.position}"
        output = error = None
        self._log.in_step = True
        try:
            output = json.loads(to_json(call(key)))
        except BaseException as raised:  # also sys.exit(), and what asyncio raises
            error = error_entry(raised)
        finally:
            self._log.in_step = False
        # As in the log: the function gets what it will get in every later run.
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
