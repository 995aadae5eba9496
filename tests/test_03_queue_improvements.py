"""Lesson 03: a queue that survives its workers, and refuses what the dead still want to say."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta

import psycopg
import pytest
import sqlalchemy as sa

from faults import chaos
from shared.database import open_database
from shared.processes import WorkerProcess, wait_until, worker_processes
from shared.testing import task_row, wait_for_status, waiting_for_a_lock, working

MINUTE = timedelta(minutes=1)
ENDED = ("succeeded", "failed")


def enqueue(lesson, db, name="nothing", input=None, **options):
    with db.autocommit.connect() as connection:
        return lesson.tasks.enqueue(connection, name, input, **options)


def execute(db, statement, *parameters):
    """One statement, committed; its rows, if it returns any."""
    with db.connect(autocommit=True) as connection:
        cursor = connection.execute(statement, parameters)
        return cursor.fetchall() if cursor.description else []


def status_of(db, id):
    """Without the row's timestamps, which Python may not be able to read."""
    return execute(db, "select status from tasks where id = %s", id)[0][0]


def count(db, *statuses):
    return execute(db, "select count(*) from tasks where status = any (%s)", list(statuses))[0][0]


def wait_for_progress(db, tasks):
    """Until more have succeeded than now, or all of them."""
    done = count(db, "succeeded")
    wait_until(lambda: count(db, "succeeded") >= min(done + 1, tasks), "tasks succeed")


@contextmanager
def queries(lesson, db):
    with db.autocommit.connect() as connection:
        # What should not wait, and waits, fails instead of hanging for ever.
        connection.exec_driver_sql("set statement_timeout = '5s'")
        yield lesson.queries.Querier(connection)


def register(lesson, db, name="w", lease=MINUTE):
    with queries(lesson, db) as queue:
        return queue.register_worker(name=name, lease=lease)


def claim(lesson, db, worker_id, at_most=1):
    with queries(lesson, db) as queue:
        tasks = queue.claim_tasks(
            worker_id=worker_id, queue="default", at_most=at_most, limited=False
        )
        return [(task.id, task.attempt) for task in tasks]


def take_back(lesson, db):
    """What any worker does in its upkeep; the ids of the tasks that were taken back."""
    with queries(lesson, db) as queue:
        list(queue.bury_workers())
        return [task.id for task in queue.take_back_tasks()]


def lease_runs_out(db):
    """Move the database's clock: for the workers that are registered now."""
    execute(db, "update workers set alive_until = clock_timestamp() - interval '1 s'")


# The fence


WRITES = {
    "success": lambda queue, **run: queue.succeed_task(output="1", **run),
    "failure": lambda queue, **run: queue.fail_task(error="late", **run),
    "retry": lambda queue, **run: queue.retry_task(error="late", delay=timedelta(0), **run),
}


def lost_attempt(lesson, db, id):
    """Attempt 1, by a worker whose lease has run out. The task is queued again."""
    lost = register(lesson, db, "slow")
    assert claim(lesson, db, lost) == [(id, 1)]
    lease_runs_out(db)
    assert take_back(lesson, db) == [id]
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
    assert take_back(lesson, db) == [id]
    assert claim(lesson, db, worker) == [(id, 2)]
    with queries(lesson, db) as queue:
        assert WRITES[write](queue, id=id, attempt=1) == 0
        assert task_row(db, id).status == "running"
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
            assert take_back(lesson, db) == []  # at once: it does not wait for the row
            one.commit()
            assert take_back(lesson, db) == []
            assert task_row(db, id).status == "succeeded"
        else:
            list(queue.bury_workers())
            assert [task.id for task in queue.take_back_tasks()] == [id]

            def succeed():
                with queries(lesson, db) as late:
                    return late.succeed_task(id=id, attempt=1, output="1")

            late = thread.submit(succeed)
            wait_until(lambda: late.done() or waiting_for_a_lock(db), "the late result is there")
            one.commit()
            assert late.result(timeout=20) == 0
            assert task_row(db, id).status == "queued"


def test_a_stopped_process_that_wakes_up_is_refused(lesson, db):
    """SIGSTOP for longer than the lease, another takes over, SIGCONT."""
    id = enqueue(lesson, db, "sleep", 1)
    with worker_processes(lesson.path, "slow", options=("--lease", "1")) as (slow,):
        wait_for_status(db, id, "running")
        slow.pause()
        with worker_processes(lesson.path, "quick"):
            wait_until(lambda: task_row(db, id).attempt == 2, "the other has taken over")
            slow.resume()
            wait_until(
                lambda: "not ours any more" in slow.output(), "the zombie is refused", seconds=10
            )
            assert wait_for_status(db, id, *ENDED).attempt == 2
            wait_until(lambda: "registers anew" in slow.output(), "it knows what happened")
        # And it is well again; the other one is gone.
        later = enqueue(lesson, db, "divide", [6, 3])
        assert wait_for_status(db, later, *ENDED).output == 2


# The lease


def test_a_heartbeat_extends_the_lease(lesson, db):
    worker = register(lesson, db, lease=timedelta(seconds=30))
    lease_runs_out(db)
    with queries(lesson, db) as queue:
        assert queue.heartbeat(id=worker, lease=MINUTE) == 1
        assert list(queue.bury_workers()) == []


def test_the_heartbeat_of_a_buried_worker_is_refused(lesson, db):
    worker = register(lesson, db, "slow")
    lease_runs_out(db)
    with queries(lesson, db) as queue:
        assert [dead.name for dead in queue.bury_workers()] == ["slow"]
        assert queue.heartbeat(id=worker, lease=MINUTE) == 0
        assert list(queue.list_workers()) == []


@pytest.mark.parametrize("first", ["heartbeat", "bury"])
def test_a_heartbeat_and_a_burial_at_the_same_moment(lesson, db, first):
    """Whoever has the row's lock first decides: alive or buried, and never both."""
    worker = register(lesson, db)
    lease_runs_out(db)

    def beat(queue):
        return queue.heartbeat(id=worker, lease=MINUTE)

    def bury(queue):
        return len(list(queue.bury_workers()))

    def second():
        with queries(lesson, db) as queue:
            return (bury if first == "heartbeat" else beat)(queue)

    with db.engine.connect() as one, ThreadPoolExecutor(1) as thread:
        assert (beat if first == "heartbeat" else bury)(lesson.queries.Querier(one)) == 1
        other = thread.submit(second)
        wait_until(lambda: other.done() or waiting_for_a_lock(db), "the second is there")
        one.commit()
        assert other.result(timeout=20) == 0
    assert execute(db, "select count(*) from workers")[0][0] == (first == "heartbeat")


def test_heartbeats_and_burials_in_many_rounds(lesson, db):
    """Real concurrency: what a heartbeat says, 1 or 0, is what has become of the worker."""
    together = threading.Barrier(2, timeout=30)
    ids = [register(lesson, db) for _ in range(200)]

    def burials():
        with queries(lesson, db) as queue:
            for _ in ids:
                together.wait()
                list(queue.bury_workers())
                together.wait()

    said = {}
    with ThreadPoolExecutor(1) as thread, queries(lesson, db) as queue:
        other = thread.submit(burials)
        for id in ids:
            execute(db, "update workers set alive_until = '-infinity' where id = %s", id)
            together.wait()
            said[id] = queue.heartbeat(id=id, lease=MINUTE)
            together.wait()
        other.result(timeout=30)
    alive = {id for (id,) in execute(db, "select id from workers")}
    assert {id for id, changed in said.items() if changed == 1} == alive


def test_a_buried_worker_claims_nothing_until_it_registers_anew(lesson, db):
    """Else it would burn an attempt of every task in the queue: others take each back at once."""
    id = enqueue(lesson, db)
    worker = register(lesson, db)
    lease_runs_out(db)
    take_back(lesson, db)
    assert claim(lesson, db, worker) == []
    assert task_row(db, id).attempt == 0
    assert claim(lesson, db, register(lesson, db)) == [(id, 1)]


def test_the_heartbeat_waits_for_nothing_that_the_upkeep_waits_for(lesson, db):
    def lease():
        return execute(db, "select alive_until from workers where alive_until > clock_timestamp()")

    with working(lesson.worker.Worker(db, "w", lease=timedelta(seconds=1))):
        upkeep_rounds(lesson, db, 1)
        with db.connect() as holder:
            holder.execute("lock table tasks")
            wait_until(lambda: waiting_for_a_lock(db), "the upkeep waits")
            for _ in range(3):
                before = lease()
                wait_until(lambda before=before: lease() > before, "it is renewed", 5)


def test_a_worker_that_was_buried_registers_anew_and_goes_on(lesson, db):
    with working(lesson.worker.Worker(db, "w", lease=timedelta(seconds=2))):
        wait_until(lambda: execute(db, "select id from workers"), "it has registered")
        before = execute(db, "delete from workers returning id")
        id = enqueue(lesson, db, "divide", [6, 3])
        wait_for_status(db, id, "succeeded")
        assert execute(db, "select id from workers") > before
    assert execute(db, "select * from workers") == [], "and it has unregistered"


def test_a_clock_that_is_wrong_harms_nobody(lesson, db, monkeypatch):
    """A worker whose clock is an hour ahead does not take its neighbour for dead."""
    id = enqueue(lesson, db)
    neighbour = register(lesson, db, "neighbour")
    assert claim(lesson, db, neighbour) == [(id, 1)]
    later = enqueue(lesson, db, delay=MINUTE, start_timeout=MINUTE)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600)
    rounds = []

    @lesson.tasks.task
    def note(_):
        rounds.append(1)

    with working(lesson.worker.Worker(db, "ahead")):
        upkeep_rounds(lesson, db, 3)
        assert [row[0] for row in execute(db, "select name from workers order by id")] == [
            "neighbour",
            "ahead",
        ]
    assert (task_row(db, id).status, task_row(db, id).attempt) == ("running", 1)
    assert status_of(db, later) == "waiting"


def upkeep_rounds(lesson, db, rounds):
    """Wait until a worker's upkeep has gone round so often: each round wakes what is due."""
    for _ in range(rounds):
        id = enqueue(lesson, db, delay=timedelta(0), queue="nobodys")
        wait_until(lambda id=id: task_row(db, id).status == "queued", "a round of upkeep")


def test_two_workers_may_have_one_name(lesson, db):
    first = enqueue(lesson, db)
    worker, other = register(lesson, db, "twin"), register(lesson, db, "twin")
    assert claim(lesson, db, worker) == [(first, 1)]
    execute(db, "update workers set alive_until = '-infinity' where id = %s", other)
    assert take_back(lesson, db) == []
    assert task_row(db, first).worker_id == worker
    execute(db, "update workers set alive_until = '-infinity' where id = %s", worker)
    assert take_back(lesson, db) == [first]


# Taking back


def test_what_a_dead_worker_ran_is_queued_again_or_has_failed(lesson, db):
    again = enqueue(lesson, db)
    last = enqueue(lesson, db, max_attempts=1)
    well = enqueue(lesson, db)
    worker = register(lesson, db)
    claim(lesson, db, worker, at_most=2)
    lease_runs_out(db)
    assert claim(lesson, db, register(lesson, db, "well")) == [(well, 1)]
    assert sorted(take_back(lesson, db)) == [again, last]
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
    together = threading.Barrier(takers + 1, timeout=60)
    taken = Counter()

    def taker():
        with queries(lesson, db) as queue:
            mine = []
            for _ in range(rounds):
                together.wait()
                mine += [(task.id, task.attempt) for task in queue.take_back_tasks()]
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
            taken.update(future.result(timeout=60))
    assert set(taken.values()) == {1}, "once"
    assert len(taken) == rounds * tasks, "each"


SLOW_CLOCK = """
create function clock_timestamp() returns timestamptz language plpgsql as $$
begin
    perform pg_advisory_xact_lock_shared(hashtextextended('slow clock', 0));
    return pg_catalog.clock_timestamp();
end $$
"""


def test_what_was_lost_when_looked_at_may_be_well_when_it_is_locked(lesson, db):
    """One looks, and is slow. Another takes the task back meanwhile, and a third one claims it."""
    lost, alive = lost_and_well(lesson, db)

    def meanwhile():
        assert take_back(lesson, db) == [lost]
        assert claim(lesson, db, alive) == [(lost, 2)]

    assert slow_take_back(lesson, db, meanwhile) == []
    assert (task_row(db, lost).status, task_row(db, lost).attempt) == ("running", 2)


@pytest.mark.parametrize("write", WRITES)
def test_what_was_lost_when_looked_at_may_have_ended_when_it_is_locked(lesson, db, write):
    """One looks, and is slow. The worker that was taken for dead is not, and ends the attempt."""
    lost, _ = lost_and_well(lesson, db)

    def meanwhile():
        with queries(lesson, db) as queue:
            assert WRITES[write](queue, id=lost, attempt=1) == 1

    assert slow_take_back(lesson, db, meanwhile) == []
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


def slow_take_back(lesson, db, meanwhile):
    """The ids that are taken back by one who has looked before `meanwhile`, and locks after it."""
    execute(db, SLOW_CLOCK)  # in the tests' own schema

    def slow_taker():
        with db.engine.connect() as connection:
            connection.exec_driver_sql(
                "select set_config('search_path', current_schema() || ', pg_catalog', false)"
            )
            tasks = list(lesson.queries.Querier(connection).take_back_tasks())
            connection.commit()
            return [task.id for task in tasks]

    with ThreadPoolExecutor(1) as thread, db.connect(autocommit=True) as holder:
        holder.execute("select pg_advisory_lock(hashtextextended('slow clock', 0))")
        slow = thread.submit(slow_taker)
        wait_until(lambda: slow.done() or waiting_for_a_lock(db), "the slow one has looked")
        assert not slow.done()
        meanwhile()
        holder.execute("select pg_advisory_unlock_all()")
        return slow.result(timeout=20)


def test_taking_back_waits_for_nobody(lesson, db):
    first, second = enqueue(lesson, db), enqueue(lesson, db)
    claim(lesson, db, register(lesson, db), at_most=2)
    lease_runs_out(db)
    with db.connect() as holder:
        holder.execute("select from tasks where id = %s for update", (first,))
        assert take_back(lesson, db) == [second]
        holder.rollback()
    assert take_back(lesson, db) == [first]


def test_burying_waits_for_nobody(lesson, db):
    held, other = register(lesson, db, "held"), register(lesson, db, "other")
    lease_runs_out(db)
    with db.connect() as holder, queries(lesson, db) as queue:
        holder.execute("select from workers where id = %s for update", (held,))
        assert [dead.id for dead in queue.bury_workers()] == [other]


def test_a_killed_workers_tasks_finish_on_another_within_the_lease_and_a_second(lesson, db):
    """50 tasks at once. Measured with the database's clock."""
    lease, tasks = 2, 50
    with db.engine.begin() as connection:
        for n in range(tasks):
            lesson.tasks.enqueue(connection, "slow_once", f"{n}")
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
    assert seconds < lease + 1 + slack(), "lease 2 s, upkeep at most 0.6 s later, poll 0.1 s"


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
            worker = WorkerProcess(lesson.path, "phoenix", "--lease", "1")
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
        supervisor.result(timeout=30)
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
        changed = queue.take_back_lost_claims(
            worker_id=worker, known_ids=[known], older_than=MINUTE
        )
    assert changed == 1
    assert [task_row(db, id).status for id in ids] == ["queued", "running", "running", "running"]
    assert task_row(db, lost).error is None


def test_a_worker_finds_its_own_lost_claims(lesson, db):
    """The rows of a claim that was committed, and of which the worker has never heard."""
    released = threading.Event()

    @lesson.tasks.task
    def hold(_):
        released.wait(30)

    held = enqueue(lesson, db, "hold")
    worker = lesson.worker.Worker(db, "w", lease=timedelta(seconds=1))
    try:
        with working(worker):
            wait_for_status(db, held, "running")
            with db.connect() as connection:  # in one transaction: the worker must not claim it
                (lost,) = connection.execute(
                    "insert into tasks (name, input, status, attempt, worker_id, started_at)"
                    " values ('nothing', 'null', 'running', 1, %s,"
                    " clock_timestamp() - interval '1 hour') returning id",
                    (worker._id,),
                ).fetchone()
            execute(db, "update tasks set started_at = '2020-01-01' where id = %s", held)
            assert wait_for_status(db, lost, "succeeded").attempt == 2
            assert task_row(db, held).attempt == 1, "this one it knows"
            released.set()
            wait_for_status(db, held, "succeeded")
    finally:
        released.set()


# Timeouts


def test_a_late_result_of_a_timed_out_task_is_refused_and_its_slot_is_busy_until_then(lesson, db):
    released, began = threading.Event(), []

    @lesson.tasks.task
    def endless(_):
        began.append("endless")
        released.wait(30)
        return "late"

    id = enqueue(lesson, db, "endless", max_attempts=1, timeout=timedelta(seconds=0.2))
    worker = lesson.worker.Worker(db, "w", slots=1)
    try:
        with working(worker):
            assert "Timeout" in wait_for_status(db, id, "failed").error
            behind = enqueue(lesson, db, "divide", [6, 3])
            upkeep_rounds(lesson, db, 2)
            assert task_row(db, behind).status == "queued", "the thread cannot be stopped"
            released.set()
            wait_for_status(db, behind, "succeeded")
    finally:
        released.set()
    assert began == ["endless"]
    assert (task_row(db, id).status, task_row(db, id).output) == ("failed", None)


def test_a_timed_out_task_is_tried_again(lesson, db):
    runs = []

    @lesson.tasks.task
    def slow_at_first(_):
        runs.append(1)
        if len(runs) == 1:
            released.wait(30)
        return len(runs)

    released = threading.Event()
    id = enqueue(lesson, db, "slow_at_first", timeout=timedelta(seconds=0.3))
    try:
        with working(lesson.worker.Worker(db, "w", slots=2)):
            task = wait_for_status(db, id, *ENDED)
            released.set()
    finally:
        released.set()
    assert (task.status, task.output, task.attempt) == ("succeeded", 2, 2)
    assert task_row(db, id) == task, "the late result of attempt 1 changed nothing"


def test_a_timeout_counts_from_the_start_of_the_attempt(lesson, db):
    id = enqueue(lesson, db, timeout=timedelta(seconds=30))
    execute(db, "update tasks set created_at = created_at - interval '1 hour', run_at = created_at")
    claim(lesson, db, register(lesson, db))
    assert take_back(lesson, db) == []
    execute(db, "update tasks set started_at = started_at - interval '31 s'")
    assert take_back(lesson, db) == [id]


@pytest.mark.parametrize("status", ["queued", "waiting"])
def test_a_task_that_was_not_started_in_time_fails(lesson, db, status):
    delay = MINUTE if status == "waiting" else None
    late, other = (enqueue(lesson, db, start_timeout=MINUTE, delay=delay) for _ in range(2))
    execute(
        db, "update tasks set start_by = clock_timestamp() - interval '1 s' where id = %s", late
    )
    with queries(lesson, db) as queue:
        assert queue.expire_tasks() == 1
        assert queue.expire_tasks() == 0
    assert task_row(db, late).status == "failed"
    assert "not started in time" in task_row(db, late).error
    assert task_row(db, other).status == status


def test_a_task_that_was_started_in_time_may_wait_for_its_next_attempt(lesson, db):
    """start_timeout is about the first attempt."""
    id = enqueue(lesson, db, start_timeout=MINUTE)
    claim(lesson, db, register(lesson, db))
    with queries(lesson, db) as queue:
        queue.retry_task(id=id, attempt=1, delay=MINUTE, error="x")
        execute(db, "update tasks set start_by = clock_timestamp() - interval '1 hour'")
        assert queue.expire_tasks() == 0
    assert task_row(db, id).status == "waiting"


def test_the_start_timeout_counts_from_the_end_of_the_delay(lesson, db):
    id = enqueue(lesson, db, delay=2 * MINUTE, start_timeout=MINUTE)
    task = task_row(db, id)
    assert timedelta(seconds=59) < task.start_by - task.run_at < timedelta(seconds=61)


def test_a_delay_counts_from_the_enqueue_and_not_from_the_transactions_beginning(lesson, db):
    with db.engine.begin() as connection:
        (now,) = connection.exec_driver_sql("select clock_timestamp()").one()
        id = lesson.tasks.enqueue(connection, "nothing", None, delay=MINUTE, start_timeout=MINUTE)
    task = task_row(db, id)
    assert task.run_at > now + MINUTE
    assert task.start_by > now + 2 * MINUTE


# Retries


@pytest.mark.parametrize("attempt", [1, 2, 3, 5, 10, 12, 13, 14, 100, 311, 1024, 10_000])
def test_backoff_is_full_jitter_below_a_cap(lesson, attempt):
    cap = min(timedelta(seconds=2 ** min(attempt - 1, 40)), timedelta(hours=1))
    waits = [lesson.worker.backoff(attempt) for _ in range(1000)]
    assert all(timedelta(0) <= wait <= cap for wait in waits)
    # Over all of it: an eighth has about 125 of the 1,000.
    eighths = Counter(int(wait / cap * 8) for wait in waits)
    assert all(eighths[n] > 0 for n in range(8))
    assert 0.4 < sum(waits, timedelta(0)) / 1000 / cap < 0.6


def test_a_failed_task_is_tried_again_until_it_succeeds(lesson, db, monkeypatch):
    monkeypatch.setattr(lesson.worker, "backoff", lambda _: timedelta(0))
    id = enqueue(lesson, db, "flaky", 3)
    with working(lesson.worker.Worker(db, "w")):
        task = wait_for_status(db, id, *ENDED)
    assert (task.status, task.attempt, task.output) == ("succeeded", 4, "an answer")
    assert task.error is None


def test_the_largest_number_of_attempts_ends_it(lesson, db, monkeypatch):
    monkeypatch.setattr(lesson.worker, "backoff", lambda _: timedelta(0))
    id = enqueue(lesson, db, "flaky", 99, max_attempts=3)
    with working(lesson.worker.Worker(db, "w")):
        task = wait_for_status(db, id, *ENDED)
    assert (task.status, task.attempt) == ("failed", 3)
    assert lesson.app.outside.effects() == ["flaky 99"] * 3


def test_between_two_attempts_a_task_waits_for_its_backoff(lesson, db, monkeypatch):
    monkeypatch.setattr(lesson.worker, "backoff", lambda _: timedelta(hours=1))
    id = enqueue(lesson, db, "flaky", 1)
    with working(lesson.worker.Worker(db, "w")):
        task = wait_for_status(db, id, "waiting")
        assert task.error == "ConnectionError: no answer"
        upkeep_rounds(lesson, db, 2)
        assert task_row(db, id).status == "waiting"
        execute(db, "update tasks set run_at = clock_timestamp() where id = %s", id)
        assert wait_for_status(db, id, *ENDED).status == "succeeded"


def test_ten_thousand_attempts(lesson, db):
    """One more failure, and the last one."""
    id = enqueue(lesson, db, "flaky", 10**6, max_attempts=10_000)
    execute(db, "update tasks set attempt = 9998")
    with working(lesson.worker.Worker(db, "w")):
        task = wait_for_status(db, id, "waiting")
        assert task.attempt == 9999
        assert task.run_at - task.started_at < timedelta(hours=1, minutes=1)
        execute(db, "update tasks set run_at = clock_timestamp() where id = %s", id)
        assert wait_for_status(db, id, *ENDED).status == "failed"
    assert task_row(db, id).attempt == 10_000


def test_an_error_that_is_not_retryable_ends_it_at_once(lesson, db):
    id = enqueue(lesson, db, "hopeless", max_attempts=10)
    with working(lesson.worker.Worker(db, "w")):
        task = wait_for_status(db, id, *ENDED)
    assert (task.status, task.attempt) == ("failed", 1)
    assert task.error == "NonRetryableError: there is no such address"


class Unreadable(Exception):
    def __str__(self):
        raise RuntimeError("no message for you")


ERRORS = {
    "an error": (ValueError("no such order"), "ValueError: no such order"),
    "NUL": (ValueError("NUL \0"), "ValueError: NUL \\x00"),
    "half a surrogate": (ValueError("\ud800"), "ValueError: \\ud800"),
    "a megabyte": (ValueError("x" * 1_000_000), "ValueError: xxx"),
    "unreadable": (Unreadable(), "Unreadable, and its message cannot be read"),
    "sys.exit": (SystemExit(1), "SystemExit: 1"),
    "Ctrl-C": (KeyboardInterrupt(), "KeyboardInterrupt: "),
}


@pytest.mark.parametrize("way", ["last attempt", "retry", "not retryable"])
@pytest.mark.parametrize("raised", ERRORS)
def test_what_the_function_raises_ends_that_attempt_alone(lesson, db, raised, way):
    error, stored = ERRORS[raised]
    if way == "not retryable":
        if isinstance(error, Unreadable):
            error = type("Unreadable", (Unreadable, lesson.tasks.NonRetryableError), {})()
        else:
            error = lesson.tasks.NonRetryableError(*error.args)
            stored = re.sub(r"^\w+", "NonRetryableError", stored)

    @lesson.tasks.task
    def fail(_):
        raise error

    bad = enqueue(lesson, db, "fail", max_attempts=1 if way == "last attempt" else 2)
    good = enqueue(lesson, db, "divide", [6, 3])
    with working(lesson.worker.Worker(db, "w", slots=1)):
        wait_for_status(db, good, "succeeded")
        wait_until(lambda: task_row(db, bad).error is not None, "its error is stored")
        task = task_row(db, bad)
    if way != "retry":
        assert (task.status, task.attempt) == ("failed", 1)
    assert task.error.startswith(stored)
    assert len(task.error) <= 10_000


def test_an_output_that_is_not_json_fails_the_attempt(lesson, db):
    @lesson.tasks.task
    def odd(_):
        return {1, 2}

    id = enqueue(lesson, db, "odd", max_attempts=1)
    with working(lesson.worker.Worker(db, "w")):
        task = wait_for_status(db, id, *ENDED)
    assert task.status == "failed"
    assert "not JSON" in task.error


def test_an_output_that_postgres_refuses_fails_the_attempt(lesson, db, monkeypatch):
    """A later Python may let nest deeper than Postgres; that is no lost connection."""
    monkeypatch.setattr(lesson.worker, "to_json", lambda _: "[" * 100_000 + "]" * 100_000)
    id = enqueue(lesson, db, "divide", [6, 3], max_attempts=1)
    with working(lesson.worker.Worker(db, "w")):
        task = wait_for_status(db, id, *ENDED)
    assert task.status == "failed"
    assert "stack depth" in task.error


def test_a_name_that_this_worker_does_not_know_is_tried_again(lesson, db, monkeypatch):
    """During a deployment, another worker may know it."""
    monkeypatch.setattr(lesson.worker, "backoff", lambda _: timedelta(0))
    (id,) = execute(
        db,
        "insert into tasks (name, input, max_attempts)"
        " values ('from_the_next_release', '1', 2) returning id",
    )[0]
    with working(lesson.worker.Worker(db, "w")):
        task = wait_for_status(db, id, *ENDED)
    assert (task.status, task.attempt) == ("failed", 2)
    assert "knows no task 'from_the_next_release'" in task.error


POISON = {
    "5,000 levels": ("input", "[" * 5000 + "]" * 5000),
    "5,000 digits": ("input", "1" * 5000),
    "NUL": ("input", '"\\u0000"'),
    "run_at": ("run_at", "infinity"),
    "run_at in the year 100,000": ("run_at", "100000-01-01"),
    "start_by": ("start_by", "infinity"),
    "started_at": ("started_at", "infinity"),
    "started_at of old": ("started_at", "-infinity"),
    "created_at": ("created_at", "infinity"),
    "timeout": ("timeout", "3650 days"),
}


@pytest.mark.parametrize("status", ["queued", "waiting", "running"])
def test_rows_that_python_cannot_read_harm_nobody_else(lesson, db, status):
    """Not through our door. Nothing that a worker does for others may stumble over them."""
    bad = []
    for column, value in POISON.values():
        bad.append(enqueue(lesson, db, "divide", [6, 3], max_attempts=1))
        execute(
            db,
            "update tasks set status = %s, run_at = clock_timestamp(), timeout = '1 hour',"
            " started_at = clock_timestamp(), attempt = 1, worker_id = 0 where id = %s",
            status,
            bad[-1],
        )
        execute(db, f"update tasks set {column} = %s where id = %s", value, bad[-1])  # noqa: S608
    good = enqueue(lesson, db, "divide", [6, 3])
    waiting = enqueue(lesson, db, "divide", [6, 3], delay=timedelta(0))
    shown = run_verb(lesson, "status")
    assert (shown.returncode, shown.stderr) == (0, "")
    with working(lesson.worker.Worker(db, "w")):
        wait_for_status(db, good, "succeeded")
        wait_for_status(db, waiting, "succeeded")
        for id in bad:
            wait_until(
                lambda id=id: (
                    status_of(db, id) in ENDED
                    or (status == "waiting" and status_of(db, id) == "waiting")
                ),
                "it has failed or succeeded, or waits for a time that never comes",
            )
        upkeep_rounds(lesson, db, 1)


@pytest.mark.parametrize("timeout", ["3651 days", "-1 s", "100000 years"])
def test_the_table_refuses_a_timeout_that_would_break_the_arithmetic(lesson, db, timeout):
    enqueue(lesson, db)
    with pytest.raises(psycopg.errors.CheckViolation):
        execute(db, "update tasks set timeout = %s", timeout)


# Priority and delay


def test_higher_goes_first_and_the_oldest_among_equals(lesson, db):
    low, first, second, high = (enqueue(lesson, db, priority=p) for p in (-5, 0, 0, 7))
    worker = register(lesson, db)
    assert claim(lesson, db, worker) == [(high, 1)]
    assert claim(lesson, db, worker) == [(first, 1)]
    assert claim(lesson, db, worker) == [(second, 1)]
    assert claim(lesson, db, worker) == [(low, 1)]


def test_a_batch_is_started_in_order(lesson, db):
    """`update ... returning` gives no order; the dispatcher sorts."""
    began = []

    @lesson.tasks.task
    def note(n):
        began.append(n)

    with db.engine.begin() as connection:
        for n in range(30):
            lesson.tasks.enqueue(connection, "note", n, priority=n % 3)
    wanted = sorted(range(30), key=lambda n: (-(n % 3), n))
    worker = lesson.worker.Worker(db, "w", slots=30)
    with db.autocommit.connect() as connection:
        worker._register(connection)
    with db.autocommit.connect() as connection:
        connection.exec_driver_sql("set enable_indexscan = off; set enable_bitmapscan = off")
        assert [json.loads(task.input) for task in worker._claim(connection, 30)] == wanted
    execute(db, "update tasks set status = 'queued'")
    with working(lesson.worker.Worker(db, "w", slots=1)):
        wait_until(lambda: len(began) == 30, "all have run")
    assert began == wanted


def test_a_low_priority_starves_as_long_as_higher_ones_keep_coming(lesson, db):
    """No fairness is promised, and here is none."""
    low = enqueue(lesson, db, priority=0)
    worker = register(lesson, db)
    for _ in range(50):
        high = [enqueue(lesson, db, priority=1) for _ in range(2)]
        assert [id for id, _ in claim(lesson, db, worker, at_most=2)] == high
    assert task_row(db, low).attempt == 0
    assert claim(lesson, db, worker, at_most=2) == [(low, 1)]


def test_a_delayed_task_waits_for_its_time(lesson, db):
    id = enqueue(lesson, db, "divide", [6, 3], delay=timedelta(hours=1), priority=100)
    with working(lesson.worker.Worker(db, "w")):
        upkeep_rounds(lesson, db, 2)
        task = task_row(db, id)
        assert (task.status, task.attempt) == ("waiting", 0)
        execute(db, "update tasks set run_at = clock_timestamp() where id = %s", id)
        assert wait_for_status(db, id, "succeeded").attempt == 1
    assert timedelta(minutes=59) < task.run_at - task.created_at < timedelta(minutes=61)


def test_waking_and_expiring_wait_for_nobody(lesson, db):
    ids = [enqueue(lesson, db, delay=timedelta(0), start_timeout=MINUTE) for _ in range(4)]
    execute(db, "update tasks set start_by = '-infinity'")
    with db.connect() as holder, queries(lesson, db) as queue:
        holder.execute("select from tasks where id = any (%s) for update", (ids[:2],))
        assert queue.wake_tasks() == 2
        assert queue.expire_tasks() == 2
    assert [status_of(db, id) for id in ids] == ["waiting"] * 2 + ["failed"] * 2


# Idempotency keys


def test_the_same_key_again_returns_the_first_task(lesson, db):
    first = enqueue(lesson, db, "divide", [6, 3], idempotency_key="order 7")
    assert enqueue(lesson, db, "divide", [6, 3], idempotency_key="order 7") == first
    with working(lesson.worker.Worker(db, "w")):
        wait_for_status(db, first, "succeeded")
    assert enqueue(lesson, db, "divide", [6, 3], idempotency_key="order 7") == first, "for good"
    assert enqueue(lesson, db, "divide", [6, 3]) != first
    assert enqueue(lesson, db, "divide", [6, 3], idempotency_key="order 8") != first
    assert enqueue(lesson, db, "nothing", [6, 3], idempotency_key="order 7") != first
    assert count(db, "queued", "succeeded") == 4


@pytest.mark.parametrize(
    ("first", "second"),
    [([6, 3], [6, 2]), (1, True), (0, False), ({"a": 1}, {"a": 1, "b": 2}), (None, 0), (1, "1")],
)
def test_a_key_that_was_used_for_another_input_is_refused(lesson, db, first, second):
    id = enqueue(lesson, db, "nothing", first, idempotency_key="k")
    with pytest.raises(lesson.tasks.BadInput, match=f"another input: task {id}"):
        enqueue(lesson, db, "nothing", second, idempotency_key="k")
    assert count(db, "queued") == 1


def test_the_order_of_an_inputs_keys_does_not_matter(lesson, db):
    id = enqueue(lesson, db, "nothing", {"a": 1, "b": 2}, idempotency_key="k")
    assert enqueue(lesson, db, "nothing", {"b": 2, "a": 1}, idempotency_key="k") == id


def test_sixteen_enqueues_at_once_make_one_task(lesson, db):
    start = threading.Barrier(16, timeout=30)

    def click():
        with db.autocommit.connect() as connection:
            for n in range(20):
                start.wait()
                yield lesson.tasks.enqueue(
                    connection, "divide", [n, 1], idempotency_key=f"order {n}"
                )

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda _: list(click()), range(16)))
    assert len({tuple(ids) for ids in answers}) == 1, "16 equal ids, in each of 20 rounds"
    assert len(set(answers[0])) == count(db, "queued") == 20


def test_the_key_of_a_rolled_back_enqueue_is_free_again(lesson, db):
    with db.engine.connect() as connection:
        first = lesson.tasks.enqueue(connection, "divide", [6, 3], idempotency_key="k")
        connection.rollback()
    second = enqueue(lesson, db, "divide", [1, 1], idempotency_key="k")
    assert second != first
    assert count(db, "queued") == 1


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_the_key_of_an_open_transaction_makes_the_second_wait(lesson, db, end):
    with db.engine.connect() as connection, ThreadPoolExecutor(1) as thread:
        first = lesson.tasks.enqueue(connection, "divide", [6, 3], idempotency_key="k")
        second = thread.submit(enqueue, lesson, db, "divide", [6, 3], idempotency_key="k")
        wait_until(lambda: second.done() or waiting_for_a_lock(db), "the second enqueue is there")
        assert not second.done()
        getattr(connection, end)()
        assert (second.result(timeout=20) == first) == (end == "commit")
    assert count(db, "queued") == 1


def test_a_key_that_a_transaction_cannot_see_is_an_error_and_no_second_task(lesson, db):
    engine = db.engine.execution_options(isolation_level="REPEATABLE READ")
    with engine.connect() as connection:
        connection.exec_driver_sql("select 1 from tasks").all()  # takes the snapshot
        enqueue(lesson, db, "divide", [6, 3], idempotency_key="k")
        with pytest.raises(sa.exc.OperationalError, match="could not serialize"):
            lesson.tasks.enqueue(connection, "divide", [6, 3], idempotency_key="k")
    assert count(db, "queued") == 1


# At the door


DAYS = timedelta(days=1)
BAD_OPTIONS = {
    "priority: a fraction": ({"priority": 1.5}, "priority is a whole number"),
    "priority: True": ({"priority": True}, "priority is a whole number"),
    "priority: text": ({"priority": "high"}, "priority is a whole number"),
    "priority: None": ({"priority": None}, "priority is a whole number"),
    "priority: NaN": ({"priority": float("nan")}, "priority is a whole number"),
    "priority: too high": ({"priority": 2**31}, "priority is a whole number from -2,147,483,647"),
    "priority: too low": ({"priority": -(2**31)}, "priority is a whole number"),
    "delay: negative": ({"delay": timedelta(seconds=-1)}, "delay is a timedelta from 0 to 3,650"),
    "delay: NaN": ({"delay": float("nan")}, "delay is a timedelta"),
    "delay: a number": ({"delay": 5}, "delay is a timedelta"),
    "delay: 10,000 years": ({"delay": 3_652_500 * DAYS}, "delay is a timedelta from 0 to 3,650"),
    "delay: as long as can be": ({"delay": timedelta.max}, "delay is a timedelta"),
    "timeout: negative": ({"timeout": -DAYS}, "timeout is a timedelta"),
    "timeout: a number": ({"timeout": 1.0}, "timeout is a timedelta"),
    "timeout: too long": ({"timeout": 3651 * DAYS}, "timeout is a timedelta"),
    "start_timeout: negative": ({"start_timeout": -DAYS}, "start_timeout is a timedelta"),
    "start_timeout: too long": ({"start_timeout": 3651 * DAYS}, "start_timeout is a timedelta"),
    "max_attempts: 0": ({"max_attempts": 0}, "max_attempts is a whole number from 1"),
    "max_attempts: negative": ({"max_attempts": -1}, "max_attempts is a whole number from 1"),
    "max_attempts: True": ({"max_attempts": True}, "max_attempts is a whole number"),
    "max_attempts: None": ({"max_attempts": None}, "max_attempts is a whole number"),
    "max_attempts: too many": ({"max_attempts": 2**31}, "max_attempts is a whole number"),
    "key: empty": ({"idempotency_key": ""}, "1 to 200 printable ASCII"),
    "key: too long": ({"idempotency_key": "x" * 201}, "1 to 200 printable ASCII"),
    "key: not ASCII": ({"idempotency_key": "Zoë"}, "1 to 200 printable ASCII"),
    "key: NUL": ({"idempotency_key": "a\0"}, "1 to 200 printable ASCII"),
    "key: a line break": ({"idempotency_key": "a\n"}, "1 to 200 printable ASCII"),
    "key: a number": ({"idempotency_key": 7}, "1 to 200 printable ASCII"),
    "queue: empty": ({"queue": ""}, "a queue is named"),
}


@pytest.mark.parametrize("bad", BAD_OPTIONS)
def test_a_bad_option_is_refused_at_the_door(lesson, db, bad):
    options, why = BAD_OPTIONS[bad]
    with pytest.raises(lesson.tasks.BadInput, match=why):
        enqueue(lesson, db, "divide", [6, 3], **options)
    assert execute(db, "select * from tasks") == []


def test_the_widest_options_are_good(lesson, db):
    most = 2**31 - 1
    long = 3650 * DAYS
    for priority in (most, -most):
        id = enqueue(
            lesson,
            db,
            "divide",
            [6, 3],
            priority=priority,
            delay=long,
            start_timeout=long,
            timeout=long,
            max_attempts=most,
            idempotency_key=f"{priority:~>200}",
        )
        execute(db, "update tasks set run_at = clock_timestamp() where id = %s", id)
    with working(lesson.worker.Worker(db, "w")):
        wait_until(lambda: count(db, "succeeded") == 2, "both have run")
        upkeep_rounds(lesson, db, 1)


# Many at once


def enqueue_many(lesson, db, name, inputs, **options):
    with db.autocommit.connect() as connection:
        return lesson.tasks.enqueue_many(connection, name, inputs, **options)


def test_many_are_enqueued_in_the_order_of_their_inputs(lesson, db):
    enqueue(lesson, db, "divide", [1, 1])
    inputs = [{"number": n, "text": 'é "\\, {} \n'} for n in range(3000)]
    ids = enqueue_many(lesson, db, "nothing", (input for input in inputs))
    assert ids == sorted(set(ids))
    found = execute(db, "select id, input from tasks where name = 'nothing' order by id")
    assert found == list(zip(ids, inputs, strict=True))


def test_what_many_inputs_were_is_what_the_function_gets(lesson, db, monkeypatch):
    inputs = [None, True, 1, 1.0, 1e300, 2**70, "", "null", "NULL", '"', "{}", [], {}, [[]], "a,b"]
    monkeypatch.setitem(lesson.tasks.registry, "echo", repr)
    ids = enqueue_many(lesson, db, "echo", inputs)
    with working(lesson.worker.Worker(db, "w")):
        wait_until(lambda: count(db, "succeeded") == len(inputs), "all have run")
    assert [task_row(db, id).output for id in ids] == [repr(input) for input in inputs]


def test_many_have_the_options_of_one(lesson, db):
    options = {
        "queue": "reports",
        "priority": 7,
        "delay": MINUTE,
        "start_timeout": 2 * MINUTE,
        "timeout": 3 * MINUTE,
        "max_attempts": 9,
    }
    one = enqueue(lesson, db, "divide", [6, 3], **options)
    many = enqueue_many(lesson, db, "divide", [[6, 3]], **options)
    plain = enqueue(lesson, db, "divide", [6, 3]), *enqueue_many(lesson, db, "divide", [[6, 3]])
    for first, second in ((one, *many), plain):
        of_first, of_second = (
            execute(
                db,
                "select queue, name, cast(input as text), status, priority, max_attempts, timeout,"
                " date_trunc('minute', run_at - created_at + interval '1 s'), attempt,"
                " date_trunc('minute', start_by - created_at + interval '1 s'), idempotency_key"
                " from tasks where id = %s",
                id,
            )
            for id in (first, second)
        )
        assert of_first == of_second


def test_many_without_inputs_are_none(lesson, db):
    assert enqueue_many(lesson, db, "divide", []) == []
    assert execute(db, "select * from tasks") == []


def test_many_take_part_in_the_callers_transaction(lesson, db):
    with db.engine.connect() as connection:
        assert len(lesson.tasks.enqueue_many(connection, "divide", [[6, 3]] * 10)) == 10
        assert execute(db, "select * from tasks") == []
        connection.rollback()
    assert execute(db, "select * from tasks") == []


@pytest.mark.parametrize(
    ("name", "inputs", "why"),
    [
        ("divided", [[6, 3]], "no task 'divided'"),
        ("divide", [[6, 3], [1, float("nan")], [1, 1]], r"inputs\[1\]: not JSON"),
        ("divide", [[6, 3], (1, 2)], r"inputs\[1\]: JSON would change it"),
        ("divide", "[6, 3]", "inputs is a list with an input for each task, not '\\[6, 3\\]'"),
        ("divide", {"order": 1}, "inputs is a list with an input for each task, not {'order': 1}"),
        ("divide", ["x" * 999_000] * 51, "51 inputs with 50,949,102 characters .* in parts"),
    ],
)
def test_one_that_is_bad_among_many_writes_none(lesson, db, name, inputs, why):
    with pytest.raises(lesson.tasks.BadInput, match=why):
        enqueue_many(lesson, db, name, inputs)
    assert execute(db, "select * from tasks") == []


@pytest.mark.parametrize("bad", [bad for bad in BAD_OPTIONS if not bad.startswith("key")])
def test_a_bad_option_of_many_is_refused_at_the_door(lesson, db, bad):
    options, why = BAD_OPTIONS[bad]
    with pytest.raises(lesson.tasks.BadInput, match=why):
        enqueue_many(lesson, db, "divide", [[6, 3]], **options)
    assert execute(db, "select * from tasks") == []


# A limit whose holder stands still


def test_a_worker_that_stands_still_in_its_claim_does_not_keep_the_limit(lesson, db, monkeypatch):
    with db.engine.begin() as connection:
        lesson.tasks.limit_queue(connection, "default", 1)
    stands, goes_on = threading.Event(), threading.Event()
    count_running = lesson.queries.Querier.count_running

    def stand_still(self, **queue):
        if not stands.is_set():
            stands.set()
            assert goes_on.wait(60)
        return count_running(self, **queue)

    monkeypatch.setattr(lesson.queries.Querier, "count_running", stand_still)
    with working(lesson.worker.Worker(db, "slow")):
        assert stands.wait(20), "it holds the lock on the limit"
        try:
            enqueue(lesson, db, "nothing")
            with working(lesson.worker.Worker(db, "quick")):
                wait_until(lambda: count(db, "succeeded") == 1, "the other one claims", seconds=15)
        finally:
            goes_on.set()
        enqueue(lesson, db, "nothing")
        wait_until(lambda: count(db, "succeeded") == 2, "and the first one has recovered")


# Stopping


def test_a_stop_under_load_loses_nothing(lesson, db):
    """SIGTERM for one of two, then for the other; a third one finishes the rest."""
    tasks = 1000
    with db.engine.begin() as connection:
        for order in range(tasks):
            lesson.tasks.enqueue(connection, "send_receipt", order)
    with worker_processes(lesson.path, "a", "b", options=("--slots", "2")) as (a, b):
        for worker in (a, b):
            wait_for_progress(db, tasks)
            worker.signal(signal.SIGTERM)
            wait_until(lambda worker=worker: worker.exit_status is not None, "it has ended")
            assert worker.exit_status == 0
            assert "0 tasks abandoned" in worker.output()
            assert "Traceback" not in worker.output()
        assert count(db, "running") == 0
        assert execute(db, "select * from workers") == []
    with worker_processes(lesson.path, "c"):
        wait_until(lambda: count(db, "succeeded") == tasks, "all receipts are sent")
    effects = Counter(effect.split(" by ")[0] for effect in lesson.app.outside.effects())
    assert effects == {f"receipt {order}": 1 for order in range(tasks)}
    assert execute(db, "select max(attempt) from tasks") == [(1,)]


def test_a_worker_that_drains_stays_alive(lesson, db):
    """Its task takes longer than the lease, and another worker watches."""
    with (
        worker_processes(lesson.path, "b", options=("--queue", "other")),
        worker_processes(lesson.path, "a", options=("--lease", "2")) as (worker,),
    ):
        id = enqueue(lesson, db, "sleep", 5)
        wait_for_status(db, id, "running")
        worker.signal(signal.SIGTERM)
        wait_until(lambda: worker.exit_status is not None, "it has ended")
        assert worker.exit_status == 0
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
        wait_until(lambda: worker.exit_status is not None, "it has ended", seconds=10)
        assert worker.exit_status == 0
        assert "1 tasks abandoned" in worker.output()
        with worker_processes(lesson.path, "b"):
            assert wait_for_status(db, id, *ENDED, seconds=20).attempt == 2


def test_two_signals_in_a_row_are_two(lesson, db):
    """Signals of one kind that come at once may be merged; two kinds are not."""
    id = enqueue(lesson, db, "slow_once", "x")
    with worker_processes(lesson.path, "a", options=("--grace", "600")) as (worker,):
        wait_for_status(db, id, "running")
        worker.signal(signal.SIGTERM)
        worker.signal(signal.SIGINT)
        wait_until(lambda: worker.exit_status is not None, "it has ended", seconds=10)
    assert take_back(lesson, db) == [id]


def test_the_grace_period_ends_the_wait(lesson, db):
    id = enqueue(lesson, db, "slow_once", "x")
    options = ("--grace", "0.5", "--lease", "600")
    with worker_processes(lesson.path, "a", options=options) as (worker,):
        wait_for_status(db, id, "running")
        worker.signal(signal.SIGTERM)
        wait_until(lambda: worker.exit_status is not None, "it has ended", seconds=10)
        assert worker.exit_status == 0
    assert take_back(lesson, db) == [id]
    assert (task_row(db, id).status, task_row(db, id).attempt) == ("queued", 1)


def test_a_worker_that_breaks_says_so_and_leaves_its_task_to_others(lesson, db):
    """An error in the engine itself, here in what it does with the result."""
    id = enqueue(lesson, db, "divide", [6, 3])
    worker = lesson.worker.Worker(db, "w", grace=timedelta(seconds=0.2))
    worker._persist = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        worker.run()
    assert take_back(lesson, db) == [id]
    assert task_row(db, id).status == "queued"


# Connections


CUT = {
    "terminate": "select pg_terminate_backend(pid) from pg_stat_activity"
    " where application_name = %s",
    "cancel": "select pg_cancel_backend(pid) from pg_stat_activity where application_name = %s",
}


@pytest.mark.parametrize("cut", CUT)
def test_a_worker_whose_connections_are_cut_goes_on_by_itself(lesson, db, cut):
    """Again and again, under load. Each result is stored, and committed."""
    tasks = 1000
    with db.engine.begin() as connection:
        for order in range(tasks):
            lesson.tasks.enqueue(connection, "send_receipt", order, max_attempts=1000)
    cuts = 0
    with (
        worker_processes(lesson.path, "a", options=("--lease", "5")) as (worker,),
        db.connect(autocommit=True) as saboteur,
    ):
        victim = f"{db.schema} {worker.pid}"
        while count(db, "succeeded") < tasks:
            assert worker.exit_status is None, worker.output()
            if cuts < 20:
                saboteur.execute(CUT[cut], (victim,))
                cuts += 1
                wait_for_progress(db, tasks)
            else:
                time.sleep(0.02)
        assert worker.stop() == 0
        assert "must stop" not in worker.output()
        assert execute(
            db, "select count(*) from pg_stat_activity where application_name = %s", victim
        ) == [(0,)]
    assert cuts >= 5, "the machine may be so busy that all is done before the twentieth"
    effects = Counter(effect.split(" by ")[0] for effect in lesson.app.outside.effects())
    assert set(effects) == {f"receipt {order}" for order in range(tasks)}
    assert execute(db, "select * from workers") == []
    # A task ran once, unless its claim's answer was lost or its worker was taken for dead.
    attempts = execute(db, "select sum(attempt)::int from tasks")[0][0]
    assert effects.total() <= attempts


def test_every_loop_of_a_worker_commits_after_a_reconnect(lesson, db):
    """A connection that is made again must not come back with a transaction that nobody ends."""
    runs = threading.Event()
    released = threading.Event()

    @lesson.tasks.task
    def hold(_):
        runs.set()
        released.wait(30)
        return "kept"

    id = enqueue(lesson, db, "hold")
    lease = timedelta(seconds=4)
    try:
        with working(lesson.worker.Worker(db, "w", slots=1, lease=lease)):
            assert runs.wait(20)
            execute(
                db,
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where application_name = current_setting('application_name')"
                " and pid <> pg_backend_pid()"
                # The lock that keeps other test runs from dropping these tables.
                " and pid not in (select pid from pg_locks where locktype = 'advisory')",
            )
            before = alive_until(db)
            wait_until(lambda: alive_until(db) > before, "a heartbeat is committed")
            upkeep_rounds(lesson, db, 2)
            released.set()
            assert wait_for_status(db, id, *ENDED).output == "kept"
            later = enqueue(lesson, db, "divide", [6, 3])
            assert wait_for_status(db, later, *ENDED).output == 2
    finally:
        released.set()
    assert execute(
        db,
        "select count(*) from pg_stat_activity where state like 'idle in transaction%%'"
        " and application_name = current_setting('application_name')",
    ) == [(0,)]


def alive_until(db):
    rows = execute(db, "select alive_until from workers")
    return rows[0][0] if rows else None


@pytest.fixture
def own_server():
    """An embedded server that is this test's own, and may be shut down."""
    if os.environ.get("DATABASE_URL"):
        pytest.skip("DATABASE_URL is set")
    with chaos.own_server() as own:
        yield own


def test_a_worker_goes_on_when_its_server_restarts(lesson, own_server, tmp_path, monkeypatch):
    """Immediate shutdown, a pause without any server, a new start; twice, under load."""
    monkeypatch.setenv("LESSON_SCHEMA", "test_restart")
    monkeypatch.setenv("LESSON_OUTSIDE", str(tmp_path / "outside.log"))
    tasks = 600
    with open_database(lesson.path, reset=True) as db:
        with db.engine.begin() as connection:
            for order in range(tasks):
                lesson.tasks.enqueue(connection, "send_receipt", order, max_attempts=100)
        with worker_processes(lesson.path, "a", options=("--lease", "5")) as (worker,):
            for _ in range(2):
                wait_for_progress(db, tasks)
                restart(own_server)
            wait_until(lambda: count(db, "succeeded") == tasks, "all receipts are sent")
            assert worker.stop() == 0
            assert "must stop" not in worker.output()
        effects = Counter(effect.split(" by ")[0] for effect in lesson.app.outside.effects())
        assert set(effects) == {f"receipt {order}" for order in range(tasks)}
        assert execute(db, "select * from workers") == []


def test_a_worker_can_be_stopped_while_there_is_no_server(
    lesson, own_server, tmp_path, monkeypatch
):
    monkeypatch.setenv("LESSON_SCHEMA", "test_restart")
    monkeypatch.setenv("LESSON_OUTSIDE", str(tmp_path / "outside.log"))
    with open_database(lesson.path, reset=True) as db:
        id = enqueue(lesson, db, "work", 0.5)
        with worker_processes(lesson.path, "a", options=("--grace", "2")) as (worker,):
            wait_for_status(db, id, "running")
            shut_down(own_server)
            worker.signal(signal.SIGTERM)
            wait_until(lambda: worker.exit_status is not None, "it has ended", seconds=20)
            assert worker.exit_status == 0, worker.output()
        with own_server.alone():
            own_server.start()
        lease_runs_out(db)
        assert take_back(lesson, db) == [id]


def shut_down(own):
    """At once, without telling the clients goodbye; wait until the last process is gone."""
    pid = int((own.data / "postmaster.pid").read_text().split()[0])
    os.kill(pid, signal.SIGQUIT)
    with (own.home / "running").open("a") as running:
        wait_until(lambda: own.lock(running), "the server is gone")


def restart(own):
    shut_down(own)
    with own.alone():
        own.start()


# What the queries touch


def test_the_queries_read_few_rows_in_a_big_table(lesson, db):
    """100,000 finished, waiting and queued tasks each; 10 that are due, 10 that are running."""
    worker = register(lesson, db, lease=timedelta(hours=1))
    execute(
        db,
        "insert into tasks (name, input, status, output, run_at, start_by, attempt)"
        " select 'nothing', 'null', status, case when status = 'succeeded' then json 'null' end,"
        " clock_timestamp() + interval '1 day', clock_timestamp() + interval '2 days',"
        " (status = 'succeeded')::int"
        " from generate_series(1, 100000), unnest(array['succeeded', 'waiting', 'queued']) status",
    )
    execute(db, "update tasks set run_at = '-infinity' where status = 'waiting' and id <= 30")
    execute(db, "update tasks set start_by = '-infinity' where status = 'waiting' and id >= 299970")
    execute(
        db,
        "update tasks set status = 'running', attempt = 1, worker_id = 0,"
        " started_at = clock_timestamp() where status = 'queued' and id < 30",
    )
    execute(db, "vacuum analyze tasks")
    all_of = lesson.queries
    touched = {}
    for name, sql, parameters in [
        (
            "claim",
            all_of.CLAIM_TASKS,
            {"p1": worker, "p2": "default", "p3": False, "p4": 10},
        ),
        ("wake", all_of.WAKE_TASKS, {}),
        ("expire", all_of.EXPIRE_TASKS, {}),
        ("take back", all_of.TAKE_BACK_TASKS, {}),
        (
            "lost claims",
            all_of.TAKE_BACK_LOST_CLAIMS,
            {"p1": worker, "p2": [], "p3": timedelta(minutes=1)},
        ),
        ("count", all_of.COUNT_RUNNING, {"p1": "default"}),
    ]:
        with db.autocommit.connect() as connection:
            plan = connection.execute(
                sa.text(f"explain (analyze, buffers, format json) {sql}"), parameters
            ).scalar_one()[0]["Plan"]
        nodes = list(walk(plan))
        scans = {node["Node Type"] for node in nodes if node.get("Relation Name") == "tasks"}
        assert "Seq Scan" not in scans, (name, scans)
        rows = max(
            (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
            for node in nodes
        )
        touched[name] = (rows, plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])
    print(touched)
    assert all(rows <= 40 for rows, _ in touched.values()), touched
    # Each changed row costs some pages of each of five indexes.
    assert all(pages < 2000 for _, pages in touched.values()), touched


def walk(plan):
    yield plan
    for child in plan.get("Plans", []):
        yield from walk(child)


# The verbs


def run_verb(lesson, *arguments):
    return subprocess.run(
        [sys.executable, "main.py", *arguments],
        cwd=lesson.path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_verb_enqueue_takes_the_options(lesson, db):
    done = run_verb(
        lesson,
        *("enqueue", "divide", "[6, 3]", "--priority", "7", "--delay", "60", "--timeout", "5"),
        *("--max-attempts", "3", "--key", "order 7"),
    )
    assert (done.returncode, done.stderr) == (0, "")
    ((id,),) = execute(db, "select id from tasks")
    task = task_row(db, id)
    assert (task.status, task.priority, task.max_attempts) == ("waiting", 7, 3)
    assert (task.timeout, task.idempotency_key) == (timedelta(seconds=5), "order 7")
    again = run_verb(lesson, "enqueue", "divide", "[6, 2]", "--key", "order 7")
    assert "another input" in again.stderr
    assert "Traceback" not in again.stderr


def test_the_verb_status_shows_attempts_and_workers(lesson, db):
    enqueue(lesson, db, "divide", [6, 0], max_attempts=3)
    claim(lesson, db, register(lesson, db, "ada"))
    shown = run_verb(lesson, "status").stdout
    assert "1 of 3" in shown
    assert "1 running" in shown
    assert "workers: ada (1)" in shown
