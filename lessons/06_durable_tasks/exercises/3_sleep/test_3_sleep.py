"""Exercise 3: a durable function sleeps, and nothing of it is held meanwhile."""

from datetime import timedelta

import pytest

from shared.processes import wait_until
from shared.testing import task_row, wait_for_status, working

SECOND = timedelta(seconds=1)


@pytest.fixture
def ask(lesson, db):
    """Enqueue a registered task; its id."""

    def enqueue(name, input=None, **options):
        assert hasattr(lesson.context.Context, "sleep"), "Context.sleep is yours to write"
        with db.autocommit.connect() as connection:
            return lesson.tasks.enqueue(connection, name, input, **options)

    return enqueue


def worker(lesson, db, slots=1):
    timing = lesson.timing.Timing(first_backoff=timedelta(seconds=0.01))
    return working(lesson.worker.Worker(db, "w", slots=slots, timing=timing))


def note(key):
    return key


def between(db, id, first, last):
    """The time between two entries of a log."""
    query = "select recorded_at from event_log where task_id = %s and position = %s"
    with db.connect() as connection:
        times = [connection.execute(query, (id, at)).fetchone()[0] for at in (first, last)]
    return times[1] - times[0]


def test_3_a_sleep_holds_no_slot_and_costs_no_try(lesson, db, ask):
    @lesson.tasks.task
    def quick(_):
        return "done"

    @lesson.context.durable
    def naps(ctx, _):
        for _ in range(3):
            ctx.step(note)
            ctx.sleep(SECOND)
        ctx.step(note)

    id = ask("naps", max_attempts=1)
    with worker(lesson, db):  # it has one slot
        wait_for_status(db, id, "waiting")
        wait_for_status(db, ask("quick"), "succeeded")
        assert task_row(db, id).status == "waiting", "it sleeps while the slot is used"
        row = wait_for_status(db, id, "succeeded", "failed")
    assert row.status == "succeeded", row.error
    assert all(between(db, id, at, at + 2) >= SECOND for at in (1, 3, 5))


def test_3_a_sleep_is_not_slept_again(lesson, db, ask):
    runs = []

    @lesson.context.durable
    def dies(ctx, _):
        ctx.sleep(2 * SECOND)
        runs.append(1)
        if len(runs) == 1:
            raise ValueError("run again")
        ctx.step(note)

    id = ask("dies")
    with worker(lesson, db):
        row = wait_for_status(db, id, "succeeded", "failed")
    assert (row.status, len(runs)) == ("succeeded", 2), row.error
    assert between(db, id, 1, 2) < 3.9 * SECOND, "the second run slept again"


def test_3_a_sleep_goes_on_while_no_worker_is_there(lesson, db, ask):
    @lesson.context.durable
    def sleeps(ctx, _):
        ctx.sleep(SECOND)
        return "awake"

    id = ask("sleeps")
    with worker(lesson, db):
        wait_for_status(db, id, "waiting")

    def over():
        query = "select clock_timestamp() - recorded_at from event_log where task_id = %s"
        with db.connect() as connection:
            return connection.execute(query, (id,)).fetchone()[0] > 2 * SECOND

    wait_until(over, "the time of the sleep has passed")
    assert task_row(db, id).status == "waiting"
    with worker(lesson, db):
        row = wait_for_status(db, id, "succeeded", "failed")
    assert row.output == "awake", row.error


def test_3_the_end_of_a_child_does_not_end_a_sleep(lesson, db, ask):
    @lesson.tasks.task
    def quick(_):
        return "done"

    @lesson.context.durable
    def sleeps(ctx, _):
        ctx.step(note)
        child = ctx.spawn(quick, None)
        ctx.sleep(SECOND)
        ctx.step(note)
        return ctx.result(child)

    id = ask("sleeps")
    with worker(lesson, db):
        row = wait_for_status(db, id, "succeeded", "failed")
    assert row.output == "done", row.error
    assert between(db, id, 1, 4) >= SECOND


def test_3_an_edited_sleep_is_caught(lesson, db, ask):
    seconds = [1, 2]

    @lesson.context.durable
    def edited(ctx, _):
        ctx.sleep(timedelta(seconds=seconds.pop(0)))

    id = ask("edited")
    with worker(lesson, db):
        row = wait_for_status(db, id, "succeeded", "failed")
    assert row.status == "failed"
    assert "does not do what its log has recorded" in row.error


@pytest.mark.parametrize("duration", [None, 60, timedelta(seconds=-1), timedelta(days=10**6)])
def test_3_what_is_no_duration_is_refused_and_takes_no_position(lesson, db, ask, duration):
    @lesson.context.durable
    def sleeps(ctx, _):
        with pytest.raises(lesson.errors.FinalBadInput):
            ctx.sleep(duration)
        ctx.step(note)

    id = ask("sleeps")
    with worker(lesson, db):
        row = wait_for_status(db, id, "succeeded", "failed")
    assert (row.status, row.attempt) == ("succeeded", 1), row.error
