"""Exercise 1: a task that says "later" waits, and no attempt is used up."""

from datetime import timedelta

import pytest

from shared.processes import wait_until
from shared.testing import task_row, wait_for_status, working


@pytest.mark.parametrize("max_attempts", [2, 2**31 - 1])
def test_1_later(lesson, db, max_attempts):
    runs = []

    @lesson.tasks.task
    def busy(_):
        runs.append(1)
        if len(runs) == 8:
            return "sent"
        raise lesson.tasks.Later(timedelta(hours=1) if len(runs) == 7 else timedelta(0))

    with db.autocommit.connect() as connection:
        id = lesson.tasks.enqueue(connection, "busy", None, max_attempts=max_attempts)
        with working(lesson.worker.Worker(db, "w")):
            wait_until(
                lambda: (task_row(db, id).status, len(runs)) in (("waiting", 7), ("failed", 2)),
                "the seventh run said: in an hour",
            )
        task = task_row(db, id)
        assert task.status == "waiting", task.error
        assert timedelta(minutes=59) < task.run_at - task.started_at < timedelta(minutes=61)
        assert task.attempt == 7, "attempts never go down: the fence needs their numbers"
        connection.exec_driver_sql("update tasks set run_at = clock_timestamp()")
        with working(lesson.worker.Worker(db, "w")):
            task = wait_for_status(db, id, "failed", "succeeded")
    assert (task.status, task.output) == ("succeeded", "sent")
