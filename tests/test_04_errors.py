"""Lesson 04: a step that fails is recorded, and tried again while nothing depends on it."""

# ruff: noqa: ARG001, ARG005  a step takes a key and a program an input, used or not

import asyncio

import pytest

from tests.helpers import (
    ERRORS,
    Killed,
    attempt,
    dies,
    enqueue,
    log_of,
    new_task,
    program,
    run_once,
)


def failing(error):
    def failing_step(key):
        raise error

    return failing_step


def seen(error):
    return type(error).__name__, str(error), error.step, error.type, error.traceback


@pytest.mark.parametrize("final", [False, True])
def test_an_error_is_the_same_in_the_run_in_which_it_happened_and_later(lesson, db, final):
    kind = lesson.tasks.NonRetryableError if final else ValueError
    id, errors = new_task(lesson, db), []
    for _ in range(3):
        with attempt(lesson, db, id) as (ctx, _):
            try:
                ctx.step(failing(kind("card declined")))
            except lesson.errors.StepError as error:
                errors.append(error)
            ctx.step(lambda key: "cancelled")
    assert len({seen(error) for error in errors}) == 1
    assert errors[0].type == kind.__name__
    assert str(errors[0]) == f"failing_step: {kind.__name__}: card declined"
    assert "raise error" in errors[0].traceback
    assert isinstance(errors[2], lesson.tasks.NonRetryableError) == final
    assert [row.attempt for row in log_of(db, id)] == [1, 1], "recorded once, in attempt 1"


def fails_so_often(times, calls):
    def step(key):
        calls.append(key)
        if len(calls) <= times:
            raise ConnectionError("the bank does not answer")
        return "charged"

    return step


def test_an_error_at_the_end_of_the_log_is_tried_again(lesson, db):
    calls = []
    step = fails_so_often(2, calls)
    program(lesson, lambda ctx, input: [ctx.step(lambda key: 1), ctx.step(step)])
    id = enqueue(lesson, db, "program")
    assert run_once(lesson, db, id).status == "waiting"
    assert "the bank does not answer" in log_of(db, id)[1].error["error"], (
        "it can be seen meanwhile"
    )
    assert run_once(lesson, db, id).status == "waiting"
    task = run_once(lesson, db, id)
    assert (task.status, task.output) == ("succeeded", [1, "charged"])
    assert len(calls) == 3
    assert len(set(calls)) == 1, "with the same key"
    assert [(row.output, row.attempt) for row in log_of(db, id)] == [(1, 1), ("charged", 3)]


def test_a_final_error_is_not_tried_again(lesson, db):
    calls = []

    def step(key):
        calls.append(key)
        raise lesson.tasks.NonRetryableError("the card is stolen")

    program(lesson, lambda ctx, input: ctx.step(step))
    id = enqueue(lesson, db, "program")
    with attempt(lesson, db, id) as (ctx, queue):
        dies(queue, "after the record")
        with pytest.raises(Killed):
            ctx.step(step)
    task = run_once(lesson, db, id)
    assert task.status == "failed"
    assert "the card is stolen" in task.error
    assert len(calls) == 1


def test_an_error_after_which_the_function_has_gone_on_is_its_answer_for_ever(lesson, db):
    calls, again = [], []

    def function(ctx, input):
        try:
            return ctx.step(fails_so_often(1, calls))
        except lesson.errors.StepError as error:
            ctx.step(lambda key: None)
            ctx.step(fails_so_often(1, again))
            return error.type

    program(lesson, function)
    id = enqueue(lesson, db, "program")
    assert run_once(lesson, db, id).status == "waiting"
    assert run_once(lesson, db, id).output == "ConnectionError"
    assert (len(calls), len(again)) == (1, 2)


def test_once_the_next_step_has_begun_an_error_is_not_tried_again(lesson, db):
    """Killed in the gap of that next step. Would the first succeed now, two ways were gone."""
    id, calls, keys = new_task(lesson, db), [], []

    def function(ctx):
        try:
            ctx.step(fails_so_often(1, calls))
        except lesson.errors.StepError:
            return ctx.step(lambda key: keys.append(("cancel", key)))
        return ctx.step(lambda key: keys.append(("confirm", key)))

    with attempt(lesson, db, id) as (ctx, queue):
        dies(queue, "before the record", position=2)
        with pytest.raises(Killed):
            function(ctx)
    with attempt(lesson, db, id) as (ctx, _):
        function(ctx)
    assert len(calls) == 1
    assert [what for what, _ in keys] == ["cancel", "cancel"]
    assert len(set(keys)) == 1, "both with one key"


POISON = {
    "nul": ValueError("a\0b"),
    "half a surrogate": ValueError("\ud800"),
    "megabytes": ValueError("x" * 5_000_000),
    "exit": SystemExit(3),
    "cancelled": asyncio.CancelledError(),
    "group": ExceptionGroup("several", [ValueError("\0")]),
}


@pytest.mark.parametrize(("error", "message"), ERRORS.values(), ids=ERRORS)
def test_the_log_keeps_of_an_error_what_can_be_stored(lesson, error, message):
    entry = lesson.errors.error_entry(error)
    lesson.inputs.to_json(entry)
    assert entry["type"] == type(error).__name__
    assert entry["error"].startswith(message)
    told = lesson.errors.StepError("pay", entry)
    assert (told.step, told.type) == ("pay", type(error).__name__)
    assert str(told).startswith(f"pay: {message}")


def test_what_a_context_refuses_is_refused_for_good(lesson):
    with pytest.raises(lesson.tasks.NonRetryableError, match="no step"), lesson.errors.final():
        raise lesson.inputs.BadInput("no step")
    with pytest.raises(ValueError, match="its own"), lesson.errors.final():
        raise ValueError("its own")


@pytest.mark.parametrize("final", [False, True])
def test_an_error_is_final_if_it_says_so(lesson, final):
    kind = lesson.tasks.NonRetryableError if final else ValueError
    assert lesson.errors.error_entry(kind("no"))["final"] == final


class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError("no")


@pytest.mark.parametrize("error", [*POISON.values(), Unspeakable()], ids=[*POISON, "no message"])
def test_any_error_can_be_recorded(lesson, db, error):
    id, again = new_task(lesson, db), []
    for _ in range(2):
        with attempt(lesson, db, id) as (ctx, _):
            with pytest.raises(lesson.errors.StepError) as raised:
                ctx.step(failing(error))
            again.append(seen(raised.value))
            ctx.step(lambda key: "the function goes on")
    assert again[0] == again[1]
    assert again[0][3] == type(error).__name__
    assert len(again[0][1]) < 11_000


def test_the_traceback_is_short_and_ends_where_it_happened(lesson, db):
    def deep(n):
        if n == 0:
            raise ValueError("at the bottom")
        deep(n - 1)

    def deep_step(key):
        deep(500)

    id = new_task(lesson, db)
    with attempt(lesson, db, id) as (ctx, _), pytest.raises(lesson.errors.StepError) as raised:
        ctx.step(deep_step)
    assert len(raised.value.traceback) <= 2000
    assert raised.value.traceback.rstrip().endswith('raise ValueError("at the bottom")')


def test_a_step_in_a_step_is_refused(lesson, db):
    inner = []

    def function(ctx, input):
        ctx.step(lambda key: ctx.step(lambda key: inner.append(key)))

    program(lesson, function)
    id = enqueue(lesson, db, "program")
    task = run_once(lesson, db, id)
    assert task.status == "failed", "and not tried again: it is a mistake in the code"
    assert "StepInStep" in task.error
    assert inner == []
