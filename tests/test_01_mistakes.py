"""Lesson 01: what cannot be a task is refused when it is registered, with what to write instead."""

import functools

import pytest

from tests.helpers import enqueue, one_by_one


def plain(input):
    return input


async def coroutine(_input):
    return 1


def generator(_input):
    yield 1


async def async_generator(_input):
    yield 1


class Callable:
    def __call__(self, input):
        return input


def nothing():
    pass


def two(_first, _second):
    pass


def keyword(_input, *, other):
    return other


NO_TASKS = {
    "a lambda": (lambda input: input, "def"),
    "a partial": (functools.partial(plain), "def"),
    "a callable object": (Callable(), "def"),
    "no function": (5, "def"),
    "a name": ("plain", "def"),
    "called already": (plain(None), "def"),
    "async": (coroutine, "async"),
    "a generator": (generator, "generator"),
    "an async generator": (async_generator, "async"),
    "no parameter": (nothing, "takes one JSON value"),
    "two parameters": (two, "takes one JSON value"),
    "a keyword that must be given": (keyword, "takes one JSON value"),
}


@one_by_one(("function", "why"), NO_TASKS.values())
def test_what_cannot_be_a_task_is_refused_when_it_is_registered(lesson, function, why):
    before = dict(lesson.tasks.registry)
    with pytest.raises(lesson.inputs.BadInput, match=why):
        lesson.tasks.task(function)
    assert lesson.tasks.registry == before


def with_default(input, _times=1):
    return input


def with_any(*inputs):
    return list(inputs)


@functools.wraps(two)
def wrapped(input):
    """What a decorator makes: it looks like `two`, and takes one value."""
    return input


TASKS = [with_default, with_any, wrapped, functools.lru_cache(plain), Callable().__call__]


@pytest.mark.parametrize("function", TASKS)
def test_what_can_be_called_with_one_value_is_a_task(lesson, function):
    assert lesson.tasks.task(function) is function
    assert function.__name__ in lesson.tasks.registry


LATE = {
    "a coroutine": (lambda: coroutine(1), "asyncio.run"),
    "a generator": (lambda: generator(1), "list"),
    "an async generator": (lambda: async_generator(1), "asyncio.run"),
}


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize(("value", "hint"), LATE.values(), ids=LATE.keys())
def test_what_nobody_would_run_is_no_output_and_no_input(lesson, value, hint):
    with pytest.raises(lesson.inputs.BadInput, match=f"not JSON: .*{hint}"):
        lesson.inputs.to_json([value()])


@pytest.mark.parametrize("name", [plain, None, 1, ["a"], {"a": 1}])
def test_a_task_is_enqueued_by_its_name(lesson, db, name):
    with pytest.raises(lesson.inputs.BadInput, match="there is no task"):
        enqueue(lesson, db, name, 1)
