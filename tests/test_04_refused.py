"""Lesson 04: a failure of the engine is never the function's error, and leaves the log whole."""

# ruff: noqa: ARG001  a step takes a key and a program an input, used or not

from datetime import timedelta

import pytest

from shared.processes import wait_until, within
from shared.testing import task_row, wait_for_status, working
from tests.helpers import (
    ENDED,
    REFUSALS,
    attempt,
    break_record,
    claim_one,
    enqueue,
    execute,
    log_of,
    new_task,
    program,
    queries,
    record,
    recording,
    refusing,
    run_once,
)

keys = []  # of what has been done, and what


@pytest.fixture(autouse=True)
def nothing_done():
    keys.clear()


def charge(key):
    keys.append(("charge", key))
    return "charged"


def refund(key):
    keys.append(("refund", key))


def ship(key):
    keys.append(("ship", key))
    return "shipped"


def buy(ctx, _):
    try:
        ctx.step(charge)
    except Exception:
        ctx.step(refund)
        raise
    return ctx.step(ship)


def stubborn(ctx, _):
    try:
        ctx.step(charge)
    except:  # noqa: E722
        try:
            ctx.step(refund)
        except:  # noqa: E722
            return "swallowed"
    return ctx.step(ship)


def done(what):
    """The keys under which it has been done: one, however often it was done."""
    return {key for name, key in keys if name == what}


PROGRAMS = [buy, stubborn]
IN_THE_LOG = "new.name = 'charge'"


@pytest.mark.parametrize("sqlstate", REFUSALS)
def test_a_step_that_cannot_be_recorded_is_recorded_later(lesson, db, sqlstate):
    program(lesson, buy, "buy")
    with working(lesson.worker.Worker(db, "w")):
        with refusing(db, "event_log", IN_THE_LOG, sqlstate) as tries:
            id = enqueue(lesson, db, "buy", max_attempts=1)
            wait_until(lambda: tries() >= 2, "the record has been refused twice")
        row = wait_for_status(db, id, *ENDED)
    assert (row.status, row.output) == ("succeeded", "shipped")
    assert row.attempt - row.uncounted == 1
    assert [(entry.position, entry.name) for entry in log_of(db, id)] == [
        (1, "charge"),
        (2, "ship"),
    ]
    assert (len(done("charge")), len(done("refund")), len(done("ship"))) == (1, 0, 1)


@pytest.mark.parametrize("function", PROGRAMS)
def test_a_refusal_that_lasts_interrupts_the_run_whatever_it_catches(lesson, db, function):
    """The step is done again in the next run, with its key, and no attempt is used up."""
    lesson.connection.MAX_REFUSALS = 2
    program(lesson, function, "buy")
    worker = lesson.worker.Worker(db, "w", lease=timedelta(seconds=within(0.5)))
    with working(worker):
        with refusing(db, "event_log", IN_THE_LOG):
            id = enqueue(lesson, db, "buy", max_attempts=1)
            wait_until(lambda: task_row(db, id).attempt >= 3, "it has run twice")
            assert log_of(db, id) == []
        row = wait_for_status(db, id, *ENDED)
    assert (row.status, row.output) == ("succeeded", "shipped")
    assert row.attempt - row.uncounted == 1
    assert [(entry.position, entry.name) for entry in log_of(db, id)] == [
        (1, "charge"),
        (2, "ship"),
    ]
    assert (len(done("charge")), len(done("refund")), len(done("ship"))) == (1, 0, 1)


@pytest.mark.parametrize("function", PROGRAMS)
@pytest.mark.parametrize("sqlstate", ["54001", "22P05", "22021"])
def test_a_step_that_can_never_be_recorded_fails_its_task(lesson, db, function, sqlstate):
    program(lesson, function, "buy")
    id = enqueue(lesson, db, "buy")
    with refusing(db, "event_log", IN_THE_LOG, sqlstate):
        row = run_once(lesson, db, id)
    assert row.status == "failed"
    assert row.error == "Hopeless: Postgres cannot store this, or read it: refused"
    assert log_of(db, id) == []
    assert [name for name, _ in keys] == ["charge"]


def test_an_interrupted_run_records_nothing_more(lesson, db):
    lesson.connection.MAX_REFUSALS = 1
    id = new_task(lesson, db)
    with attempt(lesson, db, id) as (ctx, _):
        with refusing(db, "event_log", "true"), pytest.raises(lesson.fence.Refused):
            ctx.step(charge)
        with pytest.raises(lesson.fence.Refused):
            ctx.step(ship)
    assert log_of(db, id) == []
    assert done("ship") == set()


class EngineError(Exception):
    """A fault of the engine, or of a library."""


def test_any_other_error_while_recording_interrupts_the_run_too(lesson, db):
    id = new_task(lesson, db)

    def fault(*_):
        raise EngineError("a fault")

    with attempt(lesson, db, id) as (ctx, queue):
        recording(queue, fault)
        with pytest.raises(lesson.fence.Refused, match="a fault"):
            ctx.step(charge)


def test_a_settlement_that_is_refused_interrupts_the_run(lesson, db):
    """It is written before the next step is done."""
    lesson.connection.MAX_REFUSALS = 1
    id = new_task(lesson, db)

    def fails(key):
        raise ValueError

    with attempt(lesson, db, id) as (ctx, _):
        with pytest.raises(lesson.errors.StepError):
            ctx.step(fails)
        with refusing(db, "event_log", "new.settled"), pytest.raises(lesson.fence.Refused):
            ctx.step(ship)
    assert done("ship") == set()


@pytest.mark.parametrize("position", [2, 3, 100])
def test_nothing_is_recorded_behind_a_hole(lesson, db, position):
    id = new_task(lesson, db)
    task = claim_one(lesson, db, id)
    with queries(lesson, db) as queue:
        assert record(queue, id, task.attempt, position=position) == 0
        assert record(queue, id, task.attempt, position=1) == 1
        assert record(queue, id, task.attempt, position=1) == 1, "again"
        assert record(queue, id, task.attempt, position=2) == 1
        assert record(queue, id, task.attempt, position=1) == 0, "below the end"
    assert [entry.position for entry in log_of(db, id)] == [1, 2]


def test_a_log_with_a_hole_is_not_read(lesson, db):
    """Somebody has deleted an entry: what follows would be read one position too early."""
    id = new_task(lesson, db)
    task = claim_one(lesson, db, id)
    with queries(lesson, db) as queue:
        for position in (1, 2, 3):
            record(queue, id, task.attempt, position=position)
    execute(db, "delete from event_log where task_id = %s and position = 2", id)
    row = run_once(lesson, db, id)
    assert row.status == "failed"
    assert f"the log of task {id} has no entry at position 2" in row.error


class Sly(dict):
    """A dict, until one looks at it."""

    def items(self):
        raise RuntimeError("not now")


def nested(levels):
    value = 1
    for _ in range(levels):
        value = [value]
    return value


UNSTORABLE = {
    "a class that raises": lambda: Sly(a=1),
    "too deep": lambda: nested(201),
    "as deep as Python can": lambda: nested(900),
}


@pytest.mark.parametrize("output", UNSTORABLE)
def test_an_output_that_is_no_json_is_the_steps_error_and_is_recorded(lesson, db, output):
    def pay(key):
        keys.append(("pay", key))
        return UNSTORABLE[output]()

    def program_(ctx, _):
        try:
            ctx.step(pay)
        except lesson.errors.StepError:
            return "told"

    program(lesson, program_, "program")
    id = enqueue(lesson, db, "program")
    assert run_once(lesson, db, id).output == "told"
    assert [entry.error["final"] for entry in log_of(db, id)] == [True]
    assert len(done("pay")) == 1


def test_what_is_as_deep_as_it_may_be_is_read_again(lesson, db):
    id = new_task(lesson, db)
    with attempt(lesson, db, id) as (ctx, _):
        assert ctx.step(deep, nested(150)) == nested(200)
    with attempt(lesson, db, id) as (ctx, _):
        assert ctx.step(deep, nested(150)) == nested(200)


def deep(key, value):
    return nested(200)


def test_an_error_that_cannot_be_described_is_recorded(lesson, db):
    """Its name is a megabyte, its message ends the process."""

    def says(_):
        raise SystemExit

    error = type("E" * 1_100_000, (Exception,), {"__str__": says})

    def fails(key):
        raise error

    id = new_task(lesson, db)
    with attempt(lesson, db, id) as (ctx, _), pytest.raises(lesson.errors.StepError):
        ctx.step(fails)
    assert [entry.error["type"] for entry in log_of(db, id)] == ["E" * 200]


def test_a_fault_of_the_engine_after_a_step_ends_the_run(lesson, db):
    """Whatever it is, and wherever it comes from: the function must not take it for its own."""

    def fault(*_):
        raise MemoryError

    program(lesson, buy, "buy")
    id = enqueue(lesson, db, "buy")
    break_record(lesson, fault)
    row = run_once(lesson, db, id)
    assert row.status == "failed"
    assert row.error.startswith("Hopeless: MemoryError")
    assert [name for name, _ in keys] == ["charge"]


def test_a_log_that_others_have_changed_is_no_lost_task(lesson, db):
    """Another entry stands where the run would write: given back, it would come here for ever."""
    id = new_task(lesson, db)
    with attempt(lesson, db, id) as (ctx, queue):
        for position in (1, 2):
            record(queue, id, 1, position=position)
        with pytest.raises(lesson.fence.Hopeless, match="not as its run has left it"):
            ctx.step(charge)
