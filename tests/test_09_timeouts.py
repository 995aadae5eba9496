"""Lesson 09: a wait has an end, and what was first is the same in every run."""

from datetime import timedelta

import pytest

from shared.processes import working
from shared.testing import task_row, wait_for_status
from tests.helpers import (
    attempt,
    by_hand,
    claim_one,
    define,
    enqueue,
    finish,
    log_of,
    new_task,
    program,
    queries,
)
from tests.test_09_sleep import HOUR, asleep, due_now, ring

WAITS = {
    "gather": lambda ctx, child: ctx.gather(child, timeout=HOUR)[0],
    "result": lambda ctx, child: ctx.result(child, timeout=HOUR),
    "as_completed": lambda ctx, child: ctx.result(next(ctx.as_completed(child, timeout=HOUR))),
}


@pytest.mark.parametrize("first", ["the clock", "the child"])
@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS.keys())
def test_the_order_of_completions_decides_in_every_run(lesson, db, wait, first):
    """Both are complete when the task runs again."""
    double = define(lesson).double
    id = new_task(lesson, db)
    asleep(lesson, db, id, lambda ctx: wait(ctx, ctx.spawn(double, 1)))
    child = claim_one(lesson, db)
    due_now(db)
    for who in [first, *({"the clock", "the child"} - {first})]:
        ring(lesson, db) if who == "the clock" else finish(lesson, db, child, "2")
        assert task_row(db, id).status == "queued", "the first has woken it"
    for _ in range(2):
        with attempt(lesson, db, id) as (ctx, _):
            spawned = ctx.spawn(double, 1)
            if first == "the child":
                assert wait(ctx, spawned) == 2
            else:
                with pytest.raises(lesson.errors.WaitTimeout, match="not within"):
                    wait(ctx, spawned)
                assert ctx.result(spawned) == 2, "it is there all the same"
            ctx.step(lambda key: key)


def test_a_deadline_wakes_however_many_are_missing(lesson, db):
    double = define(lesson).double
    id = new_task(lesson, db)
    asleep(
        lesson, db, id, lambda ctx: ctx.gather(*(ctx.spawn(double, 1) for _ in "123"), timeout=HOUR)
    )
    finish(lesson, db, claim_one(lesson, db))
    assert task_row(db, id).status == "waiting"
    due_now(db)
    assert ring(lesson, db) == 1
    assert task_row(db, id).status == "queued"


def test_a_deadline_of_a_wait_that_is_over_wakes_nobody(lesson, db):
    double = define(lesson).double
    id = new_task(lesson, db)
    asleep(lesson, db, id, lambda ctx: ctx.result(ctx.spawn(double, 1), timeout=HOUR))
    finish(lesson, db, claim_one(lesson, db), "2")

    def goes_on(ctx):
        assert ctx.result(ctx.spawn(double, 1), timeout=HOUR) == 2
        ctx.run(double, 2)

    asleep(lesson, db, id, goes_on)
    due_now(db)
    assert ring(lesson, db) == 1
    assert task_row(db, id).status == "waiting"
    finish(lesson, db, claim_one(lesson, db), "4")
    assert task_row(db, id).status == "queued"


def test_what_completes_while_a_failed_task_waits_does_not_cut_its_pause_short(lesson, db):
    double = define(lesson).double
    id = new_task(lesson, db)
    asleep(lesson, db, id, lambda ctx: ctx.gather(ctx.spawn(double, 1), timeout=HOUR))
    child = claim_one(lesson, db)
    with attempt(lesson, db, id) as (_, queue):
        assert queue.retry_task(id=id, attempt=task_row(db, id).attempt, delay=HOUR, error="E: x")
    due_now(db)
    assert ring(lesson, db) == 1
    finish(lesson, db, child)
    assert task_row(db, id).status == "waiting"


def test_a_timer_and_a_child_and_whichever_is_first(lesson, db):
    double = define(lesson).double

    def race(ctx, seconds):
        nap, child = ctx.timer(timedelta(seconds=seconds)), ctx.spawn(double, 21)
        return [ctx.result(pending) for pending in ctx.as_completed(nap, child)]

    program(lesson, race)
    with working(lesson.worker.Worker(db, "w")):
        id = enqueue(lesson, db, "program", 1)
        assert wait_for_status(db, id, "succeeded").output == [42, None]


def test_a_retry_gives_a_wait_that_has_timed_out_all_of_its_time_again(lesson, db):
    """If that was why the task has failed. What it has gone on from stays."""
    double = define(lesson).double
    id = new_task(lesson, db)

    def two_waits(ctx):
        child = ctx.spawn(double, 1)
        with pytest.raises(lesson.errors.WaitTimeout):
            ctx.result(child, timeout=HOUR)
        ctx.result(child, timeout=HOUR)

    asleep(lesson, db, id, lambda ctx: ctx.result(ctx.spawn(double, 1), timeout=HOUR))
    for _ in range(2):
        due_now(db)
        assert ring(lesson, db) == 1
        if len(log_of(db, id)) == 2:
            asleep(lesson, db, id, two_waits)
    with attempt(lesson, db, id) as (ctx, queue):
        with pytest.raises(lesson.errors.WaitTimeout):
            two_waits(ctx)
        assert queue.fail_task(id=id, attempt=task_row(db, id).attempt, error="WaitTimeout: ...")
    before = log_of(db, id)
    by_hand(lesson, db, "retry", id)
    _, settled, again = log_of(db, id)
    assert settled == before[1]
    assert (again.completion, again.error) == (None, None)
    lasts = again.due_at - again.recorded_at
    assert abs(lasts - HOUR) < timedelta(seconds=1), "the next retry asks for that"
    assert again.due_at > before[2].due_at + HOUR / 2
    asleep(lesson, db, id, two_waits)


def test_a_timeout_that_nobody_catches_fails_the_task_at_once(lesson, db):
    """As the failure of a child does: trying again would come to the same."""
    double = define(lesson).double
    now = timedelta(0)

    def impatient(ctx, _):
        ctx.result(ctx.spawn(double, 1, queue="nobodys"), timeout=now)

    program(lesson, impatient, "impatient")
    with working(lesson.worker.Worker(db, "w")):
        row = wait_for_status(db, enqueue(lesson, db, "impatient"), "failed")
    assert row.error == "WaitTimeout: timeout: not within 0.0 s"
    assert row.attempt == 2


def test_a_fork_keeps_a_timeout_as_an_answer(lesson, db):
    double = define(lesson).double
    id = new_task(lesson, db)
    wait = WAITS["result"]
    asleep(lesson, db, id, lambda ctx: wait(ctx, ctx.spawn(double, 1)))
    due_now(db)
    ring(lesson, db)
    claim_one(lesson, db, id)
    claim_one(lesson, db)  # its child
    with db.engine.begin() as connection:
        fork = lesson.control.fork(connection, id, 2)
    with attempt(lesson, db, fork) as (ctx, _), pytest.raises(lesson.errors.WaitTimeout):
        wait(ctx, ctx.spawn(double, 1))


def test_a_gather_of_nothing_waits_for_nothing(lesson, db):
    id = new_task(lesson, db)
    with attempt(lesson, db, id) as (ctx, _):
        assert ctx.gather(timeout=HOUR) == []
        assert list(ctx.as_completed(timeout=HOUR)) == []
    with queries(lesson, db) as queue:
        assert list(queue.complete_due_entries(at_most=10, skip=0)) == []
