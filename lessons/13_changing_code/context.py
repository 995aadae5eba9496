"""What a durable function calls."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Concatenate, ParamSpec, TypeVar

import sqlalchemy as sa

from db.queries import Querier
from errors import AtMostOnceError, FinalStepError, StepError, begun, error_entry, final
from event_log import Entry, EventLog, columns
from fence import Fence, Interrupted
from inputs import BadInput, Json, canonical, check_function, to_json
from patches import Patches
from tasks import is_task, register
from transactions import Work, commit

P = ParamSpec("P")
R = TypeVar("R")

RULES = {
    "step": "a step is ctx.step(f, x), not ctx.step(f(x)), and f is a def f(key, x)",
    "once": "write ctx.at_most_once(f, x), not ctx.at_most_once(f(x)); f is a def f(key, x)",
    "transaction": "write ctx.transaction(f, x), not ctx.transaction(f(x)); "
    "f is a def f(connection, x)",
}


def durable(function: Callable[["Context", Any], R]) -> Callable[["Context", Any], R]:
    """Register a durable task: a function that takes a context and one JSON value."""
    rule = "a durable task is a def that takes a context and one JSON value"
    register(check_function(function, rule, None, None), function, kind="durable")
    return function


class Context(Patches):
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
        return self._answer("step", function, args, kwargs)

    def at_most_once(
        self, function: Callable[Concatenate[str, P], R], /, *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """A step that no run begins a second time, for what must not be repeated and takes no key.

        That it begins is recorded before it does. If the worker dies before it has recorded how it
        ended, then nobody knows whether it was done: AtMostOnceError, in every later run. Whatever
        it raises is that error as well, and final: a timeout does not say that nothing was done.
        """
        return self._answer("once", function, args, kwargs)

    def transaction(
        self,
        function: Callable[Concatenate[sa.Connection, P], R],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """A step `function(connection, *args, **kwargs)` that works in this database, exactly once.

        connection: in a transaction. When the function has returned, its work is committed together
        with the record that it is done; so it must neither commit nor roll back, must take less
        than 5 s between two statements, and must have no effects elsewhere, because it is called
        again if its transaction cannot be committed. Raises StepError, and then nothing was done.
        """
        return self._answer("transaction", function, args, kwargs)

    def end(self, returned: bool = True) -> None:
        self._log.end(returned)

    def _answer(self, kind: str, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        # First: a step that is refused takes no position.
        with final():
            if is_task(function):
                raise BadInput(f"{function.__name__} is a task, and no step: {RULES[kind]}")
            name = check_function(function, RULES[kind], "key", *args, **kwargs)
            input = to_json([list(args), kwargs])
        self._log.check()
        with self._fence.engine():
            entry = self._log.next(kind, name, input)
            key = self._key(name, input)

        def call(given: Any) -> Json:
            # A copy: what a step does to its arguments must not reach the function. A later run
            # does not call the step, would find them unchanged, and might ask for something else.
            args, kwargs = json.loads(input)
            return function(given, *args, **kwargs)

        if entry is None:
            new = Entry(self._log.position, kind, name, json.loads(input), None, None, False, None)
            if kind == "transaction":
                entry = self._commit(new, call)
            else:
                entry = self._do(new, lambda: call(key))
        if entry.error is None:
            return entry.output
        self._log.told(entry)
        if kind == "once":
            raise AtMostOnceError(entry.name, entry.error)
        raise (FinalStepError if entry.error["final"] else StepError)(entry.name, entry.error)

    def _key(self, name: str, input: str) -> str:
        """Made of the log, the step, and how many equal steps came before: not of its position.

        So a different step never gets this key, not even if it comes to stand in its place; and
        this one keeps its key if a step is put before it.
        """
        step = f"{name} {canonical(json.loads(input))}"
        self._asked[step] += 1
        digest = hashlib.sha256(f"{self._asked[step]} {step}".encode()).hexdigest()
        return f"{self._task.log_id}/{digest[:16]}"

    def _do(self, entry: Entry, call: Callable[[], Json]) -> Entry:
        """Do the step and record it. Between the two is the gap in which it may be lost."""
        output = error = None
        if entry.kind == "once":
            with self._fence.engine():
                self._log.record_first(replace(entry, error=begun(self._task.attempt)))
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
            if error and entry.kind == "once":
                error["final"] = True
            entry = replace(entry, output=output, error=error)
            self._log.record(entry)
        return entry

    def _commit(self, entry: Entry, work: Work) -> Entry:
        """Do the work and record it in one transaction. Between the two is no gap."""
        output = error = None
        self._log.in_step = True
        try:
            output = commit(self._fence, work, Querier.record_first, **columns(entry))
        except Interrupted:
            raise
        except BaseException as raised:
            error = error_entry(raised)
        finally:
            self._log.in_step = False
        with self._fence.engine():
            if error:
                entry = self._log.record_first(replace(entry, error=error))
            elif output is None:
                entry = self._log.look_up(entry)
            else:
                entry = replace(entry, output=json.loads(output))
            self._log.append(entry)
        return entry
