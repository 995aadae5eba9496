"""Exercise 2: a worker claims more tasks than it has slots for."""

from threading import Event

import pytest

from shared.processes import wait_until
from shared.testing import task_row, wait_for_status, working


def test_2_prefetch(lesson, db):
    go_on = Event()
    begun = []

    @lesson.tasks.task
    def hold(n):
        begun.append(n)
        assert go_on.wait(30)

    worker = lesson.worker.Worker
    with pytest.raises(lesson.inputs.BadInput):
        worker(db, "w", prefetch=-1)
    with db.autocommit.connect() as connection:
        ids = [lesson.tasks.enqueue(connection, "hold", n) for n in range(10)]

    def running():
        return sum(task_row(db, id).status == "running" for id in ids)

    with working(worker(db, "w", slots=2, prefetch=3)):
        wait_until(lambda: running() == 5, "two run, and three have been claimed ahead", 10)
        wait_until(lambda: len(begun) == 2, "both slots are busy")
        with working(worker(db, "x", slots=1)):
            wait_until(lambda: running() == 6, "by default, nothing is claimed ahead", 10)
            go_on.set()
            for id in ids:
                assert wait_for_status(db, id, "succeeded", "failed").status == "succeeded"
    assert sorted(begun) == list(range(10)), "each has run once"
