"""Lesson 03: what the dead still want to say is refused."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace

import pytest

from shared.processes import wait_until, within, worker_processes
from shared.testing import task_row, wait_for_status
from tests.helpers import (
    ALL,
    ENDED,
    WRITES,
    claim,
    enqueue,
    execute,
    finish,
    lease_runs_out,
    queries,
    register,
    submitted,
    take_back,
)


def lost_attempt(lesson, db, id):
    """Attempt 1, by a worker whose lease has run out. The task is queued again."""
    lost = register(lesson, db, "slow")
    assert claim(lesson, db, lost) == [(id, 1)]
    lease_runs_out(db)
    assert take_back(lesson, db) == {id: "queued"}
    return lost


@pytest.mark.parametrize("write", WRITES)
def test_a_zombie_is_refused_while_another_runs_its_task(lesson, db, write):
    id = enqueue(lesson, db)
    lost_attempt(lesson, db, id)
    assert claim(lesson, db, register(lesson, db, "quick")) == [(id, 2)]
    before = task_row(db, id)
    with queries(lesson, db) as queue:
        assert WRITES[write](queue, id=id, attempt=1) == 0
        assert task_row(db, id) == before
        assert queue.succeed_task(id=id, attempt=2, output="2") == 1
        assert WRITES[write](queue, id=id, attempt=1) == 0
    assert (task_row(db, id).status, task_row(db, id).output) == ("succeeded", 2)


@pytest.mark.parametrize("write", WRITES)
def test_a_zombie_is_refused_before_another_has_claimed_its_task(lesson, db, write):
    id = enqueue(lesson, db)
    lost_attempt(lesson, db, id)
    before = task_row(db, id)
    with queries(lesson, db) as queue:
        assert WRITES[write](queue, id=id, attempt=1) == 0
    assert task_row(db, id) == before


@pytest.mark.parametrize("write", WRITES)
def test_the_fence_is_the_attempt_and_not_the_worker(lesson, db, write):
    """The same worker may claim the task again while its own attempt 1 still runs."""
    id = enqueue(lesson, db, timeout=timedelta(seconds=30))
    worker = register(lesson, db)
    assert claim(lesson, db, worker) == [(id, 1)]
    execute(db, "update tasks set started_at = started_at - interval '31 s'")
    assert take_back(lesson, db) == {id: "queued"}
    assert claim(lesson, db, worker) == [(id, 2)]
    with queries(lesson, db) as queue:
        assert WRITES[write](queue, id=id, attempt=1) == 0
        assert task_row(db, id).status == "running"
        assert WRITES[write](queue, id=id, attempt=2) == 1


@pytest.mark.parametrize("write", WRITES)
def test_an_older_attempt_writes_nothing(lesson, db, write):
    id = enqueue(lesson, db)
    claim(lesson, db, register(lesson, db))
    execute(db, "update tasks set attempt = 2 where id = %s", id)
    with queries(lesson, db) as queue:
        assert WRITES[write](queue, id=id, attempt=1) == 0
        assert WRITES[write](queue, id=id, attempt=2) == 1


@pytest.mark.parametrize("end", ["succeeded", "failed", "waiting"])
@pytest.mark.parametrize("write", WRITES)
def test_terminal_is_terminal_for_the_same_attempt_too(lesson, db, end, write):
    id = enqueue(lesson, db)
    claim(lesson, db, register(lesson, db))
    first = {"succeeded": "success", "failed": "failure", "waiting": "retry"}[end]
    with queries(lesson, db) as queue:
        assert WRITES[first](queue, id=id, attempt=1) == 1
        before = task_row(db, id)
        assert before.status == end
        assert WRITES[write](queue, id=id, attempt=1) == 0
    assert task_row(db, id) == before


@pytest.mark.parametrize("order", ["zombie first", "take back first"])
def test_a_result_and_a_take_back_at_the_same_moment(lesson, db, order):
    """One of them holds the row's lock, and the other sees what has become of it."""
    id = enqueue(lesson, db)
    claim(lesson, db, register(lesson, db))
    lease_runs_out(db)
    with db.engine.connect() as one, ThreadPoolExecutor(1) as thread:
        queue = lesson.queries.Querier(one)
        if order == "zombie first":
            assert queue.succeed_task(id=id, attempt=1, output="1") == 1
            assert take_back(lesson, db) == {}  # at once: it does not wait for the row
            one.commit()
            assert take_back(lesson, db) == {}
            assert task_row(db, id).status == "succeeded"
        else:
            list(queue.bury_workers(worker_id=0))
            assert [task.id for task in queue.take_back_tasks(**ALL)] == [id]

            late = submitted(db, thread, finish, lesson, db, SimpleNamespace(id=id, attempt=1))
            one.commit()
            assert late.result(timeout=within(20)) == 0
            assert task_row(db, id).status == "queued"


def test_a_stopped_process_that_wakes_up_is_refused(lesson, db):
    """SIGSTOP for longer than the lease, another takes over, SIGCONT."""
    id = enqueue(lesson, db, "sleep", 1)
    with worker_processes(lesson.path, "slow", options=("--lease", f"{within(1)}")) as (slow,):
        wait_for_status(db, id, "running")
        slow.pause()
        with worker_processes(lesson.path, "quick"):
            wait_until(lambda: task_row(db, id).attempt == 2, "the other has taken over")
            slow.resume()
            wait_until(
                lambda: "in attempt 1 any more: void" in slow.output(),
                "the zombie is refused",
                seconds=10,
            )
            assert wait_for_status(db, id, *ENDED).attempt == 2
            wait_until(lambda: "registers again" in slow.output(), "it knows what happened")
        # And it is well again; the other one is gone.
        later = enqueue(lesson, db, "divide", [6, 3])
        assert wait_for_status(db, later, *ENDED).output == 2
