"""Lesson 04: a recorded step is never run again; the log answers."""

# ruff: noqa: ARG001, ARG005  a step takes a key and a program an input, used or not

import json
from contextlib import contextmanager

import pytest
import sqlalchemy as sa

from shared.testing import task_row, wait_for_status, working
from tests.helpers import (
    Killed,
    ask,
    attempt,
    claim_one,
    claimed,
    dies,
    enqueue,
    execute,
    log_of,
    new_task,
    program,
    record,
    registered,
    run_next,
    run_once,
)

ERROR = {"type": "E", "error": "E: no", "traceback": "", "final": False}

# Answers from the log


@pytest.mark.parametrize("when", ["before the record", "after the record"])
def test_a_step_is_done_again_only_if_it_was_not_recorded(lesson, db, when):
    id, keys = new_task(lesson, db), []
    with attempt(lesson, db, id) as (ctx, queue):
        dies(queue, when)
        with pytest.raises(Killed):
            ctx.step(lambda key: keys.append(key))
    for _ in range(3):
        with attempt(lesson, db, id) as (ctx, _):
            assert ctx.step(lambda key: keys.append(key)) is None
    assert len(keys) == (2 if when == "before the record" else 1)
    assert len(set(keys)) == 1, "the same key at every try"


def test_a_recorded_step_is_never_run_again(lesson, db):
    id, calls = new_task(lesson, db), []

    def step(key, n):
        calls.append(n)
        return n * n

    for run in range(3):
        with attempt(lesson, db, id) as (ctx, _):
            assert [ctx.step(step, n) for n in range(run + 3)] == [n * n for n in range(run + 3)]
    assert calls == [0, 1, 2, 3, 4]


def test_every_step_of_every_task_has_a_key_of_its_own(lesson, db):
    keys = []
    for _ in range(2):
        with attempt(lesson, db, new_task(lesson, db)) as (ctx, _):
            for _ in range(3):
                ctx.step(lambda key: keys.append(key))
    assert len(set(keys)) == 6


def test_keys_do_not_come_back_with_the_ids(lesson, db):
    """Tables are made anew, ids begin at 1 again, and the bank still remembers the old keys."""
    keys = []
    for _ in range(2):
        execute(db, "truncate tasks restart identity cascade")
        execute(db, "truncate event_log")
        with attempt(lesson, db, new_task(lesson, db)) as (ctx, _):
            ctx.step(lambda key: keys.append(key))
    assert len(set(keys)) == 2


def test_a_long_log_is_answered_in_order(lesson, db):
    id = new_task(lesson, db)
    for _ in range(2):
        with attempt(lesson, db, id) as (ctx, _):
            assert [ctx.step(lambda key, n: n, n) for n in range(200)] == list(range(200))
    assert {row.attempt for row in log_of(db, id)} == {1}


VALUES = [
    None,
    0,
    -0.0,
    1e300,
    0.1,
    10**30,
    True,
    "",
    "☃ \U0001f600 \\u0000 \\",
    [],
    {"b": 1, "a": [1, 1.0, True, None, {"ä": {}}]},
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_what_a_step_returns_is_what_the_log_answers(lesson, db, value):
    """The same type, and the same order of keys: as Python writes it."""
    id = new_task(lesson, db)
    for _ in range(2):
        with attempt(lesson, db, id) as (ctx, _):
            assert repr(ctx.step(lambda key: value)) == repr(value)
    assert log_of(db, id)[0].attempt == 1


NOT_JSON = {
    "tuple": (1, 2),
    "set": {1},
    "nan": float("nan"),
    "infinity": [float("inf")],
    "nul": "a\0b",
    "half a surrogate": "\ud800",
    "keys": {1: "a"},
    "digits": 10**5000,
    "large": "x" * 1_000_001,
}


@pytest.mark.parametrize("value", NOT_JSON.values(), ids=NOT_JSON.keys())
def test_what_would_come_back_changed_is_a_step_that_fails(lesson, db, value):
    id = new_task(lesson, db)
    with attempt(lesson, db, id) as (ctx, _):
        with pytest.raises(lesson.errors.StepError, match=r"BadInput: .*(JSON|NUL)") as raised:
            ctx.step(lambda key: value)
        assert raised.value.type == "BadInput"
    (row,) = log_of(db, id)
    assert row.output is None
    assert row.error["type"] == "BadInput"


@pytest.mark.parametrize("value", NOT_JSON.values(), ids=NOT_JSON.keys())
def test_arguments_that_are_not_json_are_refused_before_anything_is_done(lesson, db, value):
    """And take no position: the steps after them are where they are in every run."""
    id, calls = new_task(lesson, db), []
    for _ in range(2):
        with attempt(lesson, db, id) as (ctx, _):
            with pytest.raises(lesson.inputs.BadInput):
                ctx.step(lambda key, value: calls.append(value), value)
            with pytest.raises(lesson.inputs.BadInput):
                ctx.step(lambda key, value: calls.append(value), value=value)
            assert ctx.step(lambda key: "first") == "first"
    assert calls == []
    assert [row.position for row in log_of(db, id)] == [1]


def test_what_a_step_does_to_its_arguments_does_not_reach_the_function(lesson, db):
    """In a later run the step is not called, and the function would see something else."""
    id, order = new_task(lesson, db), {"items": [1]}
    with attempt(lesson, db, id) as (ctx, _):
        ctx.step(lambda key, order: order["items"].append(2), order)
    assert order == {"items": [1]}


def test_arguments_are_in_the_log_for_people_to_read(lesson, db):
    id = new_task(lesson, db)
    with attempt(lesson, db, id) as (ctx, _):
        ctx.step(lambda key, a, b: None, 1, b=[2])
    assert execute(db, "select input from event_log where task_id = %s", id) == [
        ([[1], {"b": [2]}],)
    ]


def test_a_log_that_cannot_be_read_fails_its_own_task_only(lesson, db):
    program(lesson, lambda ctx, input: ctx.step(lambda key: 1))
    id = enqueue(lesson, db, "program")
    with attempt(lesson, db, id) as (ctx, _):
        ctx.step(lambda key: 1)
    execute(db, "update event_log set output = cast(%s as json)", "1" * 5000)
    row = run_once(lesson, db, id)
    assert row.status == "failed"
    assert row.error.startswith("Hopeless: Postgres cannot store this, or read it: ")
    assert "digits" in row.error


# The log itself


def test_the_log_is_empty_and_every_task_has_an_id_for_it(lesson, db):
    ids = {claim_one(lesson, db, new_task(lesson, db)).log_id for _ in range(3)}
    assert len(ids) == 3
    assert execute(db, "select from event_log") == []


@pytest.mark.parametrize("recorded", [0, 1, 3])
def test_the_log_answers_up_to_its_end(lesson, db, recorded):
    id = new_task(lesson, db)
    with claimed(lesson, db, id) as (_, queue):
        for position in range(1, recorded + 1):
            record(queue, id, 1, position=position, output=str(position))
    with claimed(lesson, db, id) as (fence, _):
        log = lesson.event_log.EventLog(fence)
        assert [ask(log).output for _ in range(recorded)] == [*range(1, recorded + 1)]
        assert ask(log) is None


@pytest.mark.parametrize("final", [False, True])
def test_an_error_at_the_end_is_an_answer_only_if_it_is_final(lesson, db, final):
    id = new_task(lesson, db)
    with claimed(lesson, db, id) as (_, queue):
        record(queue, id, 1, output=None, error=json.dumps({**ERROR, "final": final}))
    with claimed(lesson, db, id) as (fence, _):
        assert (ask(lesson.event_log.EventLog(fence)) is not None) == final


def test_an_error_is_settled_when_the_function_goes_on(lesson, db):
    id = new_task(lesson, db)
    with claimed(lesson, db, id) as (fence, queue):
        log = lesson.event_log.EventLog(fence)
        assert ask(log) is None
        record(queue, id, 1, output=None, error=json.dumps(ERROR))
        log.told(*queue.load_log(task_id=id))
        assert not log_of(db, id)[0].settled
        assert ask(log) is None
    assert log_of(db, id)[0].settled


def test_a_log_with_a_hole_is_hopeless(lesson, db):
    id = new_task(lesson, db)
    with claimed(lesson, db, id) as (_, queue):
        for position in (1, 2):
            record(queue, id, 1, position=position)
    execute(db, "delete from event_log where position = 1")
    hopeless = pytest.raises(lesson.fence.Hopeless, match="no entry at position 1")
    with claimed(lesson, db, id) as (fence, _), hopeless:
        lesson.event_log.EventLog(fence)


# In a queue


def test_a_durable_task_is_registered_once(lesson):
    program(lesson, lambda ctx, input: None)
    with pytest.raises(lesson.inputs.BadInput, match="already"):
        program(lesson, lambda ctx, input: None)


def test_a_function_without_steps_is_a_task_like_any_other(lesson, db):
    program(lesson, lambda ctx, input: input * 2)
    id = enqueue(lesson, db, "program", 4)
    assert run_once(lesson, db, id).output == 8
    assert log_of(db, id) == []


def test_durable_and_other_tasks_share_the_slots_of_a_worker(lesson, db):
    program(lesson, lambda ctx, input: [ctx.step(lambda key, n: n, n) for n in range(input)])
    durable = [enqueue(lesson, db, "program", n) for n in range(20)]
    other = [enqueue(lesson, db, "divide", [n, 1]) for n in range(20)]
    with working(lesson.worker.Worker(db, "w", slots=4)):
        for n in range(20):
            assert wait_for_status(db, durable[n], "succeeded", "failed").output == list(range(n))
            assert wait_for_status(db, other[n], "succeeded", "failed").output == n


@contextmanager
def counted(*engines):
    statements = []

    def count(connection, cursor, statement, *_):
        statements.append(statement)

    for engine in engines:
        sa.event.listen(engine, "before_cursor_execute", count)
    try:
        yield statements
    finally:
        for engine in engines:
            sa.event.remove(engine, "before_cursor_execute", count)


def test_ten_steps_cost_twelve_statements_and_their_replay_three(lesson, db):
    """One to claim, one for each step, one to finish; the log is loaded with one."""
    program(lesson, lambda ctx, input: [ctx.step(lambda key, n: n, n) for n in range(10)])
    id = enqueue(lesson, db, "program")
    worker = registered(lesson, db)
    with db.autocommit.connect() as slot, db.autocommit.connect() as dispatcher:
        for most in (12, 3):
            with counted(db.autocommit, db.engine) as statements:
                assert run_next(lesson, db, worker, slot, dispatcher) == id
            assert len(statements) <= most, statements
            assert task_row(db, id).output == list(range(10))
            execute(db, "update tasks set status = 'queued', output = null where id = %s", id)


@pytest.mark.parametrize(
    "error",
    ['"no"', "{}", '[]', '{"type": "E", "error": "no", "final": false}',
     '{"type": "E", "error": 7, "traceback": "", "final": true}',
     '{"type": "E", "error": "no", "traceback": "", "final": "yes"}'],
)  # fmt: skip
def test_an_error_that_was_edited_by_hand_fails_its_task_at_once(lesson, db, error):
    calls = []

    def pay(_key):
        calls.append(1)

    program(lesson, lambda ctx, _input: ctx.step(pay))
    id = enqueue(lesson, db, "program")
    with attempt(lesson, db, id) as (_, queue):
        record(queue, id, 1, output=None, error=error)
    row = run_once(lesson, db, id)
    assert (row.status, row.attempt, calls) == ("failed", 2, [])
    assert (
        f"the error at position 1 of the log of task {id} is not as a run records it" in row.error
    )
