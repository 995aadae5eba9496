"""Exercise 2: a deadline whose wait is over is closed, and what was first stays first."""

import threading
from datetime import timedelta

import pytest

from shared.testing import wait_for_status, working

MONTH = timedelta(days=30)
WAITS = {
    "result": lambda ctx, one, two: [ctx.result(one, timeout=MONTH), ctx.result(two)],
    "gather": lambda ctx, one, two: ctx.gather(one, two, timeout=MONTH),
    "as_completed": lambda ctx, one, two: sorted(
        ctx.result(each) for each in ctx.as_completed(one, two, timeout=MONTH)
    ),
}


def timers(db, id):
    """What is known of a task's timers: whether they are open, and why they are not."""
    query = "select completion is null, error from event_log where task_id = %s and kind = 'timer'"
    with db.connect() as connection:
        return connection.execute(query, (id,)).fetchall()


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS.keys())
def test_2_a_wait_that_is_over_leaves_no_open_timer(lesson, db, wait):
    @lesson.tasks.task
    def echo(value):
        return value

    @lesson.context.durable
    def waits(ctx, _):
        found = wait(ctx, ctx.spawn(echo, 1), ctx.spawn(echo, 2))
        ctx.sleep(timedelta(seconds=0.05))  # it suspends after the wait, and runs it again
        return found

    with db.autocommit.connect() as connection:
        id = lesson.tasks.enqueue(connection, "waits", None)
    with working(lesson.worker.Worker(db, "w")):
        row = wait_for_status(db, id, "succeeded", "failed")
    assert (row.status, row.output) == ("succeeded", [1, 2]), row.error
    assert timers(db, id) == [(False, None), (False, None)]
    assert row.completions == 4, "each entry is completed once"


def test_2_the_deadline_of_a_loop_holds_until_its_end(lesson, db):
    over = threading.Event()

    @lesson.tasks.task
    def slow(seconds):
        over.wait(seconds)
        return seconds

    @lesson.context.durable
    def loop(ctx, _):
        first = None
        try:
            pending = ctx.spawn(slow, 0), ctx.spawn(slow, 60)
            for one in ctx.as_completed(*pending, timeout=timedelta(seconds=0.5)):
                first = ctx.result(one)
        except lesson.errors.WaitTimeout:
            return [first, "in time no other"]

    with db.autocommit.connect() as connection:
        id = lesson.tasks.enqueue(connection, "loop", None)
    with working(lesson.worker.Worker(db, "w")):
        row = wait_for_status(db, id, "succeeded", "failed", seconds=10)
        over.set()
    assert (row.status, row.output) == ("succeeded", [0, "in time no other"]), row.error
    ((is_open, error),) = timers(db, id)
    assert not is_open
    assert error["type"] == "WaitTimeout"
    assert row.completions == 2


def test_2_a_failure_that_is_retried_is_waited_for_again(lesson, db):
    tries = []

    @lesson.tasks.task
    def works_later(_):
        tries.append(1)
        if len(tries) == 1:
            raise lesson.tasks.NonRetryableError("not yet")

    @lesson.context.durable
    def waits_for_it(ctx, _):
        return ctx.gather(ctx.spawn(works_later, None), timeout=MONTH)

    with db.autocommit.connect() as connection:
        id = lesson.tasks.enqueue(connection, "waits_for_it", None)
    with working(lesson.worker.Worker(db, "w")):
        wait_for_status(db, id, "failed")
        with db.engine.begin() as connection:
            lesson.control.retry(connection, id)
        row = wait_for_status(db, id, "succeeded", "failed", seconds=10)
    assert (row.status, row.output) == ("succeeded", [None]), row.error
    assert timers(db, id) == [(False, None)]
