"""Lesson 04: what a durable function asks for by mistake is refused once, and nothing is done."""

import functools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from shared.testing import task_row
from tests.helpers import attempt, enqueue, log_of, new_task, program, run_once


def step(_key, *args, **kwargs):
    return [list(args), kwargs]


def one(_key, n):
    return n


def keyed(key, n=0):
    return [key, n]


async def coroutine(_key):
    return 1


def generator(_key):
    yield 1


async def async_generator(_key):
    yield 1


def one_value(input):
    return input


class Callable:
    def __call__(self, _key):
        return 1


@pytest.mark.parametrize("function", [one_value, lambda _ctx, _input: 1, functools.partial(step)])
def test_what_cannot_be_a_durable_task_is_refused_when_it_is_registered(lesson, function):
    with pytest.raises(lesson.inputs.BadInput, match="def"):
        lesson.context.durable(function)


@pytest.mark.parametrize("function", [coroutine, generator, async_generator])
def test_a_durable_task_returns_when_it_is_done(lesson, function):
    with pytest.raises(lesson.inputs.BadInput, match=r"async|generator"):
        lesson.context.durable(function)


MISTAKES = {
    "called already": (lambda ctx: ctx.step(one("key", 1)), r"not ctx\.step\(f\(x\)\)"),
    "a name": (lambda ctx: ctx.step("step", 1), r"ctx\.step\(f, x\)"),
    "nothing": (lambda ctx: ctx.step(None), r"ctx\.step\(f, x\)"),
    "a partial": (lambda ctx: ctx.step(functools.partial(step)), "def"),
    "a callable object": (lambda ctx: ctx.step(Callable()), "def"),
    "async": (lambda ctx: ctx.step(coroutine), "async"),
    "a generator": (lambda ctx: ctx.step(generator), "generator"),
    "an async generator": (lambda ctx: ctx.step(async_generator), "async"),
    "too few": (lambda ctx: ctx.step(one), "missing a required argument"),
    "too many": (lambda ctx: ctx.step(one, 1, 2), "too many"),
    "a keyword that it has not": (lambda ctx: ctx.step(one, 1, m=2), "unexpected keyword"),
    "the key": (lambda ctx: ctx.step(keyed, key="mine"), "multiple values for argument 'key'"),
    "no JSON": (lambda ctx: ctx.step(one, {1}), "not JSON: a value of type set"),
    "a task": (lambda ctx: ctx.step(ctx.a_task), "is a task"),
}


@pytest.mark.parametrize(("mistake", "why"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_step_that_cannot_be_is_refused_once_and_takes_no_position(lesson, db, mistake, why):
    id = new_task(lesson, db)
    with attempt(lesson, db, id) as (ctx, _):
        ctx.a_task = lesson.tasks.task(lambda_named("a_task"))
        with pytest.raises(lesson.inputs.BadInput, match=why):
            mistake(ctx)
        assert log_of(db, id) == []
        assert ctx.step(step, 1) == [[1], {}]
    assert [(entry.position, entry.name) for entry in log_of(db, id)] == [(1, "step")]


def lambda_named(name):
    def function(_):
        raise AssertionError("not called")

    function.__name__ = name
    return function


def test_a_mistake_is_not_tried_again(lesson, db):
    program(lesson, lambda ctx, _input: ctx.step(one(1, 2)))
    id = enqueue(lesson, db, "program")
    row = run_once(lesson, db, id)
    assert (row.status, row.attempt) == ("failed", 1)
    assert "BadInput: 2 is no function with a name: a step is ctx.step(f, x)" in row.error


def test_a_functions_own_bad_input_is_tried_again(lesson, db):
    def function(_ctx, _input):
        raise lesson.inputs.BadInput("the key was used for another input")

    program(lesson, function)
    id = enqueue(lesson, db, "program")
    assert run_once(lesson, db, id).status == "waiting"


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize("late", [lambda: coroutine(1), lambda: generator(1), lambda: {1}])
def test_a_step_whose_result_cannot_be_kept_is_not_done_again(lesson, db, late):
    calls = []

    def returns(_key):
        calls.append(1)
        return late()

    program(lesson, lambda ctx, _input: ctx.step(returns))
    id = enqueue(lesson, db, "program")
    row = run_once(lesson, db, id)
    assert (row.status, calls) == ("failed", [1])
    assert "not JSON" in row.error


@pytest.mark.parametrize("name", ["function", "self", "key", "name", "input", "args", "rule"])
def test_a_steps_keywords_have_any_name(lesson, db, name):
    with attempt(lesson, db, new_task(lesson, db)) as (ctx, _):
        assert ctx.step(step, **{name: 1}) == [[], {name: 1}]


def test_another_thread_is_refused_and_the_run_goes_on(lesson, db):
    id = new_task(lesson, db)
    with attempt(lesson, db, id) as (ctx, _), ThreadPoolExecutor(1) as threads:
        ctx.step(step, 1)
        with pytest.raises(lesson.inputs.BadInput, match="thread"):
            threads.submit(ctx.step, step, 2).result()
        ctx.step(step, 3)
    assert [(entry.position, entry.input) for entry in log_of(db, id)] == [
        (1, [[1], {}]),
        (2, [[3], {}]),
    ]


def test_steps_from_several_threads_fail_the_task_once(lesson, db):
    def function(ctx, _input):
        with ThreadPoolExecutor(4) as threads:
            return list(threads.map(lambda n: ctx.step(step, n), range(4)))

    program(lesson, function)
    id = enqueue(lesson, db, "program")
    row = run_once(lesson, db, id)
    assert (row.status, row.attempt, log_of(db, id)) == ("failed", 1, [])
    assert "let a step start threads" in row.error


def test_a_step_may_start_threads(lesson, db):
    def threaded(_key, n):
        got = []
        threads = [threading.Thread(target=got.append, args=(i,)) for i in range(n)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sorted(got)

    with attempt(lesson, db, new_task(lesson, db)) as (ctx, _):
        assert ctx.step(threaded, 3) == [0, 1, 2]


# Keys


def test_a_key_does_not_depend_on_the_order_of_a_dict(lesson, db):
    keys = []
    id = new_task(lesson, db)
    for order in ({"a": 1, "b": 2}, {"b": 2, "a": 1}):
        with attempt(lesson, db, id) as (ctx, _), pytest.raises(lesson.errors.StepError):
            ctx.step(failing(keys), order)
    assert len(keys) == 2
    assert len(set(keys)) == 1


def failing(keys):
    def fails(key, _order):
        keys.append(key)
        raise ConnectionError

    return fails


def test_a_key_can_be_given_to_anybody(lesson, db):
    """Short, and of ASCII: it fits into a header, and is a task's idempotency key."""

    def größe(key, text):
        return key if text else None

    with attempt(lesson, db, new_task(lesson, db)) as (ctx, _):
        key = ctx.step(größe, "ü" * 10_000)
    lesson.inputs.check_key(key)
    assert len(key) < 60


def test_a_plain_task_can_ask_for_its_key(lesson, db):
    keys = []

    @lesson.tasks.task
    def charge(fails):
        keys.append(lesson.tasks.task_key())
        if len(keys) <= fails:
            raise ConnectionError

    first = enqueue(lesson, db, "charge", 1)
    run_once(lesson, db, first)
    assert run_once(lesson, db, first).status == "succeeded"
    run_once(lesson, db, enqueue(lesson, db, "charge", 1))
    assert keys[0] == keys[1] == str(task_row(db, first).log_id)
    assert keys[2] != keys[0]


def test_a_durable_function_that_returns_its_context_fails_at_once(lesson, db):
    program(lesson, lambda ctx, _input: ctx)
    row = run_once(lesson, db, enqueue(lesson, db, "program"))
    assert (row.status, row.attempt) == ("failed", 1)
    assert "not JSON: a value of type Context: it is for this run alone" in row.error


def test_the_key_of_a_task_is_known_only_in_its_function(lesson, db):
    """A thread that it starts has none either: once, and with a sentence."""
    with pytest.raises(lesson.tasks.NonRetryableError, match="while a worker runs it"):
        lesson.tasks.task_key()

    @lesson.tasks.task
    def in_a_thread(_):
        with ThreadPoolExecutor(1) as thread:
            thread.submit(lesson.tasks.task_key).result()

    row = run_once(lesson, db, enqueue(lesson, db, "in_a_thread"))
    assert (row.status, row.attempt) == ("failed", 1)
    assert "hand the key over" in row.error
