"""Random programs for the durable engine: how they are run, and how they end if all goes well."""

from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from hypothesis import strategies as st

from shared.testing import Lesson

# A program is a list of operations, in JSON. The durable task `program` does one after the other.
NUMBER = st.integers(1, 9)
SIMPLE = (
    st.tuples(st.just("step"), NUMBER)
    | st.tuples(st.just("flaky"), NUMBER, st.integers(1, 2))  # fails so often, and is tried again
    | st.tuples(st.just("caught"), NUMBER, st.booleans())  # fails always; whether that is final
    | st.tuples(st.just("double"), NUMBER)  # a child that is not durable
    | st.tuples(st.just("flaky child"), NUMBER, st.integers(1, 2))
)
# Fails once, and would succeed if it were tried again. What is done next says which it was.
EITHER = st.tuples(st.sampled_from(["either", "either child"]), NUMBER)
FAIL = ("fail",)


# From lesson 09 on. Days: the model's time goes in such steps.
NAP = st.tuples(st.just("sleep"), st.integers(0, 3))
# From lesson 11 on. Names of messages and of events, and for how long to wait.
NAMES = st.sampled_from("ab")
ANSWER = st.tuples(
    st.sampled_from(["signal", "event"]), NAMES, st.none() | st.integers(0, 2)
) | st.tuples(st.just("first"), NAMES, st.integers(0, 2))
# From lesson 12 on.
PAY = st.tuples(st.sampled_from(["transaction", "once"]), NUMBER)


def programs(operations: Any, least: int, most: int) -> Any:
    """So many operations; one program in six fails in the end."""
    ends = st.sampled_from([[], [], [], [], [], [FAIL]])
    start = st.lists(operations, min_size=least, max_size=most)
    return st.builds(lambda start, end: start + end, start, ends)


def nested(operations: Any, timed: bool) -> Any:
    program = programs(operations, 1, 2)
    found = (
        operations
        | st.tuples(st.sampled_from(["run", "broken"]), program)
        | st.tuples(st.sampled_from(["gather", "race"]), st.lists(program, min_size=2, max_size=3))
        | st.tuples(st.just("around"), program, program)
    )
    patient = st.tuples(st.sampled_from(["patient", "alarm"]), program, st.integers(0, 1))
    return found | patient | patient if timed else found


def all_programs(timed: bool, answered: bool, paid: bool) -> Any:
    """Of a lesson whose tasks can sleep, and do not wait for ever; wait for messages; and pay."""
    short = EITHER | NAP if timed else EITHER
    short = short | ANSWER if answered else short
    short = short | PAY | PAY if paid else short
    return programs(short, 2, 4) | programs(nested(nested(SIMPLE | short, timed), timed), 2, 4)


def define_program(lesson: Lesson, effects: list[tuple[str, str, int]]) -> None:
    """The interpreter, and what it calls. effects: key, name, number of each outside effect."""
    durable, errors, tasks = lesson.context, lesson.errors, lesson.tasks
    often = {"max_attempts": 1_000_000}

    def act(key, number):
        effects.append((key, "act", number))
        return number

    def flaky(key, number, fails):
        effects.append((key, "flaky", number))
        if effects.count((key, "flaky", number)) <= fails:
            raise ConnectionError("no answer")
        return number

    def refuse(key, number, final):
        effects.append((key, "refuse", number))
        raise (tasks.NonRetryableError if final else ValueError)("refused")

    def book(key, number):
        effects.append((key, "book", number))

    def pay(connection, number):
        connection.exec_driver_sql("insert into model_ledger values (%s)", (number,))
        return number

    @tasks.task
    def double(number):
        return 2 * number

    @tasks.task
    def flaky_child(input):
        name, fails = f"flaky child {input}", input[1]
        effects.append(("", name, 0))
        if effects.count(("", name, 0)) <= fails:
            raise ConnectionError("no answer")
        return input[0]

    @tasks.task
    def moody_child(number):
        effects.append(("", "moody child", number))
        if effects.count(("", "moody child", number)) == 1:
            raise tasks.NonRetryableError("not today")

    @durable.durable
    def program(ctx, operations):
        return [operation(ctx, *each) for each in operations]

    def operation(ctx, kind, *arguments):
        if kind == "step":
            return ctx.step(act, *arguments)
        if kind == "flaky":
            return ctx.step(flaky, *arguments)
        if kind == "transaction":
            return ctx.transaction(pay, *arguments)
        if kind == "once":
            with suppress(errors.AtMostOnceError):
                ctx.at_most_once(book, *arguments)
            return "done"
        if kind == "double":
            return ctx.run(double, *arguments, **often)
        if kind == "flaky child":
            return ctx.run(flaky_child, list(arguments), **often)
        if kind == "run":
            return ctx.run(program, *arguments, **often)
        if kind == "fail":
            raise tasks.NonRetryableError("as the program says")
        if kind in ("either", "either child"):
            (number,) = arguments
            try:
                if kind == "either":
                    ctx.step(flaky, number, 1)
                else:
                    ctx.run(moody_child, number, **often)
            except errors.StepError:
                number += 10
            ctx.step(act, number)
            return "done"
        if kind == "around":
            child = ctx.spawn(program, arguments[0], **often)
            return [program(ctx, arguments[1]), ctx.result(child)]
        if kind == "sleep":
            return ctx.sleep(timedelta(days=arguments[0]))
        if kind in ("patient", "alarm"):
            return timed(ctx, kind, *arguments)
        if kind in ("signal", "event", "first"):
            return answered(ctx, kind, *arguments)
        try:
            if kind == "caught":
                return ctx.step(refuse, *arguments)
            if kind == "broken":
                return ctx.run(program, *arguments, **often)
            children = [ctx.spawn(program, each, **often) for each in arguments[0]]
            if kind == "gather":
                return ctx.gather(*children)
        except errors.StepError as error:
            return type(error).__name__
        # race: what is done next depends on who was first
        results = []
        for child in ctx.as_completed(*children):
            try:
                results.append(ctx.result(child))
            except lesson.children.ChildError:
                results.append("ChildError")
            ctx.step(act, children.index(child))
        return sorted(results, key=str)

    def timed(ctx, kind, operations, days):
        """What is done next depends on whether the child was first, or the clock."""
        child, duration = ctx.spawn(program, operations, **often), timedelta(days=days)
        if kind == "alarm":
            nap = ctx.timer(duration)
            first = next(ctx.as_completed(nap, child))
            ctx.step(act, [nap, child].index(first))
            ctx.result(nap)
        else:
            try:
                ctx.gather(child, timeout=duration)
                ctx.step(act, 1)
            except errors.WaitTimeout:
                ctx.step(act, 0)
            except lesson.children.ChildError:
                ctx.step(act, 1)
        return ctx.result(child)

    def answered(ctx, kind, name, days):
        """What is done next depends on what has come, and on whether the clock was first."""
        duration = None if days is None else timedelta(days=days)
        if kind == "first":
            waits = [ctx.signal(name), ctx.timer(duration)]
            ctx.step(act, waits.index(ctx.first_of(*waits)))
            ctx.gather(*waits)
            return "done"
        try:
            payload = ctx.result(getattr(ctx, kind)(name, timeout=duration))
        except errors.WaitTimeout:
            payload = 0
        ctx.step(act, payload)
        return "done"


class Failure(Exception):
    """The program ends with an error; its type is the message."""


@dataclass
class Expected:
    """How a program ends if nothing goes wrong, and what its log holds then."""

    outcome: Any = None  # what it returns, or the type of the error
    failed: bool = False
    log: Any = None  # of each position: kind, name, and of a child that is a program, its Expected


def interpret(operations: Any) -> Expected:
    expected = Expected(log=[])
    try:
        expected.outcome = [interpret_one(expected.log, *each) for each in operations]
    except Failure as failure:
        expected.failed, expected.outcome = True, str(failure)
    return expected


def interpret_one(log: Any, kind: str, *arguments: Any) -> Any:
    def child(operations: Any) -> Any:
        expected = interpret(operations)
        log.append(("child", "program", expected))
        return expected

    def result(expected: Expected, caught: bool) -> Any:
        if not expected.failed:
            return expected.outcome
        if caught:
            return "ChildError"
        raise Failure("ChildError")

    if kind in ("step", "flaky", "caught"):
        name = {"step": "act", "flaky": "flaky", "caught": "refuse"}[kind]
        log.append(("step", name, None))
        if kind == "caught":
            return "FinalStepError" if arguments[1] else "StepError"
        return arguments[0]
    if kind in ("transaction", "once"):
        log.append((kind, "pay" if kind == "transaction" else "book", None))
        return arguments[0] if kind == "transaction" else "done"
    if kind == "double":
        log.append(("child", "double", None))
        return 2 * arguments[0]
    if kind == "flaky child":
        log.append(("child", "flaky_child", None))
        return arguments[0]
    if kind == "fail":
        raise Failure("NonRetryableError")
    if kind in ("either", "either child"):
        log.append(("step", "flaky", None) if kind == "either" else ("child", "moody_child", None))
        log.append(("step", "act", None))
        return "done"
    if kind == "sleep":
        log.append(("timer", "sleep", None))
        return None
    if kind in ("signal", "event", "first"):
        log.append(("event" if kind == "event" else "signal", arguments[0], None))
        log.extend([("timer", "sleep", None)] * (kind == "first"))
        log.append(("step", "act", None))
        return "done"
    if kind in ("patient", "alarm"):
        spawned = child(arguments[0])
        log.append(("timer", "timeout" if kind == "patient" else "sleep", None))
        log.append(("step", "act", None))
        return result(spawned, caught=False)
    if kind in ("run", "broken"):
        return result(child(*arguments), caught=kind == "broken")
    if kind == "around":
        spawned = child(arguments[0])
        inner = [interpret_one(log, *each) for each in arguments[1]]
        return [inner, result(spawned, caught=False)]
    children = [child(each) for each in arguments[0]]
    if kind == "gather":
        failed = any(each.failed for each in children)
        return "ChildError" if failed else [each.outcome for each in children]
    log.extend([("step", "act", None)] * len(children))
    return sorted((result(each, caught=True) for each in children), key=str)
