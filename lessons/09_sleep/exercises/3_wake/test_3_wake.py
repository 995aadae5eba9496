"""Exercise 3: a hand ends a sleep; whatever else a task waits for, it leaves alone."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from shared.processes import wait_until
from shared.testing import task_row, wait_for_status, waiting_for_a_lock, working

DAY = timedelta(days=1)


def test_3_wake(lesson, db):
    @lesson.tasks.task
    def child(_):
        pass

    @lesson.context.durable
    def sleeper(ctx, naps):
        for _ in range(naps):
            ctx.sleep(DAY)
        return "awake"

    @lesson.context.durable
    def parent(ctx, _):
        ctx.timer(DAY)
        ctx.result(ctx.spawn(child, None, queue="nobodys"), timeout=DAY)

    def wake(id):
        with db.engine.begin() as connection:
            lesson.control.wake(connection, id)

    assert hasattr(lesson.control, "wake"), "control.wake is yours to write"
    with db.autocommit.connect() as connection:
        id = lesson.tasks.enqueue(connection, "sleeper", 2)
        other = lesson.tasks.enqueue(connection, "parent", None)
        later = lesson.tasks.enqueue(connection, "sleeper", 1, delay=DAY)
    with working(lesson.worker.Worker(db, "w")), ThreadPoolExecutor(2) as threads:
        for each in (id, other):
            wait_for_status(db, each, "waiting")
        wake(id)
        wait_until(lambda: task_row(db, id).attempt == 2, "it runs again")
        wait_for_status(db, id, "waiting")
        assert task_row(db, id).awaits == [2], "the second sleep is a whole one"
        for wrong in (other, later, 10**9):
            with pytest.raises(lesson.inputs.BadInput):
                wake(wrong)
        assert task_row(db, other).completions == 0
        with db.connect() as holder:
            holder.execute("select from tasks where id = %s for update", (id,))
            both = [threads.submit(wake, id) for _ in range(2)]
            wait_until(lambda: waiting_for_a_lock(db) == 2, "both hands wait for the row")
            holder.rollback()
        refused = [hand.exception() for hand in both]
        assert sorted(type(error).__name__ for error in refused) == ["BadInput", "NoneType"]
        row = wait_for_status(db, id, "succeeded", "failed")
        assert (row.output, row.completions) == ("awake", 2)
        with pytest.raises(lesson.inputs.BadInput):
            wake(id)
    with db.connect() as connection:
        query = "select output, error, due_at > now() from event_log where task_id = %s"
        assert connection.execute(query, (id,)).fetchall() == 2 * [(None, None, True)]
