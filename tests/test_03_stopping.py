"""Lesson 03: a worker that is stopped finishes what it runs, or leaves it to others."""

import signal
from datetime import timedelta

import pytest

from shared.processes import wait_until, within, worker_processes
from shared.testing import task_row, wait_for_status
from tests.helpers import (
    ENDED,
    break_store,
    count,
    each_once,
    enqueue,
    enqueue_all,
    execute,
    has_ended,
    receipts,
    take_back,
    wait_for_progress,
)


def test_a_stop_under_load_loses_nothing(lesson, db):
    """SIGTERM for one of two, then for the other; a third one finishes the rest."""
    tasks = 1000
    enqueue_all(lesson, db, "send_receipt", range(tasks))
    with worker_processes(lesson.path, "a", "b", options=("--slots", "2")) as (a, b):
        for worker in (a, b):
            wait_for_progress(db, tasks)
            worker.signal(signal.SIGTERM)
            assert has_ended(worker) == 0
            assert "0 tasks abandoned" in worker.output()
            assert "Traceback" not in worker.output()
        assert count(db, "running") == 0
        assert execute(db, "select * from workers") == []
    with worker_processes(lesson.path, "c"):
        wait_until(lambda: count(db, "succeeded") == tasks, "all receipts are sent")
    assert receipts(lesson) == each_once(tasks)
    assert execute(db, "select max(attempt) from tasks") == [(1,)]


def test_a_worker_that_drains_stays_alive(lesson, db):
    """Its task takes longer than the lease, and another worker watches."""
    with (
        worker_processes(lesson.path, "b", options=("--queue", "other")),
        worker_processes(lesson.path, "a", options=("--lease", f"{within(2)}")) as (worker,),
    ):
        id = enqueue(lesson, db, "sleep", within(5))
        wait_for_status(db, id, "running")
        worker.signal(signal.SIGTERM)
        assert has_ended(worker) == 0
    assert (task_row(db, id).status, task_row(db, id).attempt) == ("succeeded", 1)


def test_the_second_signal_does_not_wait_and_the_tasks_are_taken_back_at_once(lesson, db):
    id = enqueue(lesson, db, "slow_once", "x")
    options = ("--lease", "600", "--grace", "600")
    with worker_processes(lesson.path, "a", options=options) as (worker,):
        wait_until(lambda: bool(lesson.app.outside.effects()), "its slow attempt has begun")
        worker.signal(signal.SIGTERM)
        wait_until(
            lambda: execute(db, "select count(*) from workers") == [(1,)], "it is still there"
        )
        assert worker.exit_status is None
        worker.signal(signal.SIGINT)
        assert has_ended(worker, 10) == 0
        assert "1 tasks abandoned" in worker.output()
        with worker_processes(lesson.path, "b"):
            assert wait_for_status(db, id, *ENDED).attempt == 2


def test_two_signals_in_a_row_are_two(lesson, db):
    """Signals of one kind that come at once may be merged; two kinds are not."""
    id = enqueue(lesson, db, "slow_once", "x")
    with worker_processes(lesson.path, "a", options=("--grace", "600")) as (worker,):
        wait_for_status(db, id, "running")
        worker.signal(signal.SIGTERM)
        worker.signal(signal.SIGINT)
        has_ended(worker, 10)
    assert take_back(lesson, db) == {id: "queued"}


def test_the_grace_period_ends_the_wait(lesson, db):
    id = enqueue(lesson, db, "slow_once", "x")
    options = ("--grace", "0.5", "--lease", "600")
    with worker_processes(lesson.path, "a", options=options) as (worker,):
        wait_for_status(db, id, "running")
        worker.signal(signal.SIGTERM)
        assert has_ended(worker, 10) == 0
    assert take_back(lesson, db) == {id: "queued"}
    assert (task_row(db, id).status, task_row(db, id).attempt) == ("queued", 1)


def test_a_worker_that_breaks_says_so_and_leaves_its_task_to_others(lesson, db):
    """An error in the engine itself, here in what it does with the result."""
    id = enqueue(lesson, db, "divide", [6, 3])
    worker = lesson.worker.Worker(db, "w", grace=timedelta(seconds=0.2))
    break_store(lesson)
    with pytest.raises(ZeroDivisionError):
        worker.run()
    row = task_row(db, id)
    assert (row.status, row.attempt, row.uncounted) == ("queued", 1, 1)
