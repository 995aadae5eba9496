"""Lesson 03: what a dead worker ran is taken back, once, and nothing else is."""

import os
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from shared.processes import WorkerProcess, wait_until, within, worker_processes
from shared.testing import task_row, wait_for_status, working
from tests.helpers import (
    ALL,
    ENDED,
    MINUTE,
    WRITES,
    claim,
    count,
    enqueue,
    enqueue_all,
    execute,
    id_of,
    lease_runs_out,
    looks_before_and_locks_after,
    queries,
    register,
    take_back,
)


def test_what_a_dead_worker_ran_is_queued_again_or_has_failed(lesson, db):
    again = enqueue(lesson, db)
    last = enqueue(lesson, db, max_attempts=1)
    well = enqueue(lesson, db)
    worker = register(lesson, db)
    claim(lesson, db, worker, at_most=2)
    lease_runs_out(db)
    assert claim(lesson, db, register(lesson, db, "well")) == [(well, 1)]
    assert take_back(lesson, db) == {again: "queued", last: "failed"}
    assert task_row(db, again).status == "queued"
    assert task_row(db, last).status == "failed"
    assert "WorkerDied" in task_row(db, last).error
    assert task_row(db, well).status == "running"


def test_two_that_take_back_at_once_do_it_once(lesson, db):
    """Many rounds, real connections. What is taken back is claimed at once, as in real life."""
    rounds, tasks, takers = 40, 20, 3
    alive = register(lesson, db, "alive", lease=timedelta(hours=1))
    for _ in range(tasks):
        enqueue(lesson, db, max_attempts=10 * rounds)
    together = threading.Barrier(takers + 1, timeout=within(60))
    taken = Counter()

    def taker():
        with queries(lesson, db) as queue:
            mine = []
            for _ in range(rounds):
                together.wait()
                mine += [(task.id, task.attempt) for task in queue.take_back_tasks(**ALL)]
                together.wait()
            return mine

    with ThreadPoolExecutor(takers) as threads:
        futures = [threads.submit(taker) for _ in range(takers)]
        for _ in range(rounds):
            dead = register(lesson, db, "dead")
            assert len(claim(lesson, db, dead, at_most=tasks)) == tasks
            execute(db, "delete from workers where id = %s", dead)
            together.wait()
            claimed = []
            while len(claimed) < tasks:
                claimed += claim(lesson, db, alive, at_most=tasks)
            together.wait()
            # Nobody has taken a task from the worker that is alive.
            assert count(db, "running") == tasks
            execute(db, "update tasks set status = 'queued'")
        for future in futures:
            taken.update(future.result(timeout=within(60)))
    assert set(taken.values()) == {1}, "once"
    assert len(taken) == rounds * tasks, "each"


def test_what_was_lost_when_looked_at_may_be_well_when_it_is_locked(lesson, db):
    """One looks, and is slow. Another takes the task back meanwhile, and a third one claims it."""
    lost, alive = lost_and_well(lesson, db)

    def meanwhile():
        assert take_back(lesson, db) == {lost: "queued"}
        assert claim(lesson, db, alive) == [(lost, 2)]

    assert looks_before_and_locks_after(lesson, db, "take_back_tasks", meanwhile) == []
    assert (task_row(db, lost).status, task_row(db, lost).attempt) == ("running", 2)


@pytest.mark.parametrize("write", WRITES)
def test_what_was_lost_when_looked_at_may_have_ended_when_it_is_locked(lesson, db, write):
    """One looks, and is slow. The worker that was taken for dead is not, and ends the attempt."""
    lost, _ = lost_and_well(lesson, db)

    def meanwhile():
        with queries(lesson, db) as queue:
            assert WRITES[write](queue, id=lost, attempt=1) == 1

    assert looks_before_and_locks_after(lesson, db, "take_back_tasks", meanwhile) == []
    ended = {"success": "succeeded", "failure": "failed", "retry": "waiting"}[write]
    assert task_row(db, lost).status == ended


def lost_and_well(lesson, db):
    """Two running tasks. The id of the one whose worker is dead, and that of the other's worker."""
    with_timeout = enqueue(lesson, db, timeout=timedelta(hours=1))
    lost = enqueue(lesson, db)
    dead, alive = register(lesson, db, "dead"), register(lesson, db, "alive")
    assert claim(lesson, db, alive) == [(with_timeout, 1)]
    assert claim(lesson, db, dead) == [(lost, 1)]
    execute(db, "delete from workers where id = %s", dead)
    return lost, alive


def test_taking_back_waits_for_nobody(lesson, db):
    first, second = enqueue(lesson, db), enqueue(lesson, db)
    claim(lesson, db, register(lesson, db), at_most=2)
    lease_runs_out(db)
    with db.connect() as holder:
        holder.execute("select from tasks where id = %s for update", (first,))
        assert take_back(lesson, db) == {second: "queued"}
        holder.rollback()
    assert take_back(lesson, db) == {first: "queued"}


def test_burying_waits_for_nobody(lesson, db):
    held, other = register(lesson, db, "held"), register(lesson, db, "other")
    lease_runs_out(db)
    with db.connect() as holder, queries(lesson, db) as queue:
        holder.execute("select from workers where id = %s for update", (held,))
        assert [dead.id for dead in queue.bury_workers(worker_id=0)] == [other]


def test_a_killed_workers_tasks_finish_on_another_within_the_lease_and_a_second(lesson, db):
    """50 tasks at once. Measured with the database's clock."""
    lease, tasks = within(2), 50
    enqueue_all(lesson, db, "slow_once", [f"{n}" for n in range(tasks)])
    options = ("--lease", str(lease), "--slots", str(tasks))
    with worker_processes(lesson.path, "dies", options=options) as (dies,):
        wait_until(
            lambda: len(set(lesson.app.outside.effects())) == tasks, "all tasks are under way"
        )
        with worker_processes(lesson.path, "lives", options=("--slots", str(tasks))):
            killed = execute(db, "select clock_timestamp()")[0][0]
            dies.kill()
            wait_until(lambda: count(db, "succeeded") == tasks, "all have succeeded")
    (last, attempts), *_ = execute(db, "select max(started_at), min(attempt) from tasks")
    seconds = (last - killed).total_seconds()
    print(f"the last task of the killed worker was begun anew after {seconds:.2f} s")
    assert attempts == 2
    assert seconds < lease + within(1 + slack()), "upkeep at most 0.6 s later, poll 0.1 s"


def slack():
    """More seconds on a machine whose processors have more to do than they can."""
    return 3 if os.getloadavg()[0] > (os.cpu_count() or 1) else 0.5


def test_a_task_that_kills_its_workers_fails_in_the_end_and_alone(lesson, db):
    poison = enqueue(lesson, db, "crash", max_attempts=3)
    neighbours = [enqueue(lesson, db, "divide", [n, 1]) for n in range(20)]
    stop = threading.Event()

    def restart_for_ever():
        """What systemd or Kubernetes does."""
        while not stop.is_set():
            worker = WorkerProcess(lesson.path, "phoenix", "--lease", f"{within(1)}")
            while worker.exit_status is None and not stop.wait(0.05):
                pass
            worker.stop()

    with ThreadPoolExecutor(1) as thread:
        supervisor = thread.submit(restart_for_ever)
        try:
            for id in [poison, *neighbours]:
                wait_for_status(db, id, *ENDED, seconds=60)
        finally:
            stop.set()
        supervisor.result(timeout=within(30))
    assert (task_row(db, poison).status, task_row(db, poison).attempt) == ("failed", 3)
    assert "WorkerDied" in task_row(db, poison).error
    assert lesson.app.outside.effects().count("crash") == 3
    assert {task_row(db, id).status for id in neighbours} == {"succeeded"}


def test_a_claim_whose_answer_was_lost_is_taken_back_and_no_other(lesson, db):
    ids = [enqueue(lesson, db) for _ in range(4)]
    lost, known, young, others = ids
    worker, other = register(lesson, db), register(lesson, db)
    assert len(claim(lesson, db, worker, at_most=3)) == 3
    assert claim(lesson, db, other) == [(others, 1)]
    execute(
        db,
        "update tasks set started_at = started_at - interval '1 hour' where id <> %s",
        young,
    )
    with queries(lesson, db) as queue:
        given_back = list(
            queue.give_back_tasks(
                worker_id=worker, running=[f"{known}/1"], older_than=MINUTE, **ALL
            )
        )
    assert [(task.id, task.attempt) for task in given_back] == [(lost, 1)]
    assert [task_row(db, id).status for id in ids] == ["queued", "running", "running", "running"]
    assert task_row(db, lost).error is None
    assert task_row(db, lost).uncounted == 1


def test_a_claim_whose_answer_was_lost_is_taken_back_beside_an_older_attempt(lesson, db):
    """A run that hangs, of an attempt that was taken back, is not the attempt that was claimed."""
    id, worker = enqueue(lesson, db), register(lesson, db)
    claim(lesson, db, worker)
    execute(db, "update tasks set status = 'queued' where id = %s", id)
    assert claim(lesson, db, worker) == [(id, 2)]
    with queries(lesson, db) as queue:
        given_back = list(
            queue.give_back_tasks(
                worker_id=worker, running=[f"{id}/1"], older_than=timedelta(0), **ALL
            )
        )
    assert [task.attempt for task in given_back] == [2]
    assert task_row(db, id).status == "queued"


def test_a_row_that_somebody_holds_keeps_no_other_from_being_given_back(lesson, db):
    ids, worker = [enqueue(lesson, db) for _ in range(2)], register(lesson, db)
    claim(lesson, db, worker, at_most=2)
    with db.connect() as holder, queries(lesson, db) as queue:
        holder.execute("select from tasks where id = %s for update", (ids[0],))
        given_back = queue.give_back_tasks(
            worker_id=worker, running=[], older_than=timedelta(0), **ALL
        )
        assert [task.id for task in given_back] == [ids[1]]


def test_a_worker_finds_its_own_lost_claims(lesson, db):
    """The rows of a claim that was committed, and of which the worker has never heard."""
    released = threading.Event()

    @lesson.tasks.task
    def hold(_):
        released.wait(within(30))

    held = enqueue(lesson, db, "hold")
    worker = lesson.worker.Worker(db, "w", lease=timedelta(seconds=within(1)))
    try:
        with working(worker):
            wait_for_status(db, held, "running")
            with db.connect() as connection:  # in one transaction: the worker must not claim it
                (lost,) = connection.execute(
                    "insert into tasks (name, input, status, attempt, worker_id, started_at)"
                    " values ('nothing', 'null', 'running', 1, %s,"
                    " clock_timestamp() - interval '1 hour') returning id",
                    (id_of(worker),),
                ).fetchone()
            execute(db, "update tasks set started_at = '2020-01-01' where id = %s", held)
            assert wait_for_status(db, lost, "succeeded").attempt == 2
            assert task_row(db, held).attempt == 1, "this one it knows"
            released.set()
            wait_for_status(db, held, "succeeded")
    finally:
        released.set()
