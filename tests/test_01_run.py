"""Lesson 01: each task goes to one worker, none is lost, and a bad one fails alone."""

import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from shared.processes import WorkerProcess, wait_until, within, worker_processes
from shared.testing import task_row, wait_for_status, working
from tests.helpers import (
    ERRORS,
    count,
    each_once,
    enqueue,
    enqueue_all,
    execute,
    has_ended,
    patiently,
    queries,
    receipts,
    submitted,
)

# Claim


@pytest.mark.until(2, why="a claim takes several tasks at once")
def test_the_oldest_task_is_claimed_first(lesson, db):
    ids = [enqueue(lesson, db, "divide", [n, 1]) for n in range(3)]
    with queries(lesson, db) as queue:
        assert [queue.claim_task().id for _ in ids] == ids
        assert queue.claim_task() is None


@pytest.mark.until(2, why="a claim takes several tasks at once")
def test_a_claim_does_not_wait_for_another_claim(lesson, db):
    first, second = (enqueue(lesson, db, "divide", [n, 1]) for n in range(2))
    with db.engine.connect() as one, db.engine.connect() as other:
        assert lesson.queries.Querier(one).claim_task().id == first  # and holds the row's lock
        patiently(other, 2)
        assert lesson.queries.Querier(other).claim_task().id == second


@pytest.mark.until(2, why="a claim takes several tasks at once")
def test_two_claims_at_the_same_time_take_two_tasks(lesson, db):
    """The second claim starts while the first is not committed, and ends after it is."""
    first, second = (enqueue(lesson, db, "divide", [n, 1]) for n in range(2))

    def claim():
        with db.autocommit.connect() as connection:
            return lesson.queries.Querier(connection).claim_task().id

    with db.engine.connect() as one, ThreadPoolExecutor(1) as thread:
        claimed = lesson.queries.Querier(one).claim_task().id
        other = submitted(db, thread, claim)
        one.commit()
        assert sorted([claimed, other.result(timeout=within(20))]) == [first, second]


# Run


@pytest.mark.until(2, why="a run repeats what the database refuses, and takes a connection")
def test_a_run_stores_what_the_function_returns(lesson, db):
    id = enqueue(lesson, db, "divide", [6, 3])
    with queries(lesson, db) as queue:
        lesson.run.run_task(queue, queue.claim_task())
    task = task_row(db, id)
    assert (task.status, task.output, task.error) == ("succeeded", 2, None)


@pytest.mark.until(2, why="a run repeats what the database refuses, and takes a connection")
@pytest.mark.parametrize(
    ("name", "input", "why"),
    [
        ("divide", [6, 0], "ZeroDivisionError: division by zero"),
        ("divide", [1e300, 1e-300], "not JSON"),
        ("divide", "a", "ValueError"),
        ("os.system", "ls", "knows no task 'os.system'"),
    ],
)
def test_a_run_stores_why_it_failed(lesson, db, name, input, why):
    insert = "insert into tasks (name, input) values (%s, %s) returning id"
    ((id,),) = execute(db, insert, name, json.dumps(input))  # not through our door
    with queries(lesson, db) as queue:
        lesson.run.run_task(queue, queue.claim_task())
    task = task_row(db, id)
    assert task.status == "failed"
    assert why in task.error


def test_what_the_function_returns_is_stored(lesson, db):
    id = enqueue(lesson, db, "divide", [6, 3])
    with working(lesson.worker.Worker(db, "w")):
        task = wait_for_status(db, id, "succeeded", "failed")
    assert (task.status, task.output, task.error) == ("succeeded", 2, None)


@pytest.mark.parametrize("raised", [name for name in ERRORS if name != "Ctrl-C"])
@pytest.mark.until(3, why="a failed task is tried again")
def test_what_the_function_raises_fails_that_task_alone(lesson, db, raised):
    error, stored = ERRORS[raised]

    @lesson.tasks.task
    def fail(_):
        raise error

    bad = enqueue(lesson, db, "fail", None)
    good = enqueue(lesson, db, "divide", [6, 3])
    with working(lesson.worker.Worker(db, "w")):
        wait_for_status(db, good, "succeeded")
    task = task_row(db, bad)
    assert task.status == "failed"
    assert task.error.startswith(stored)
    assert len(task.error) <= 10_000


@pytest.mark.until(3, why="a failed task is tried again")
def test_an_output_that_is_not_json_fails_the_task(lesson, db):
    @lesson.tasks.task
    def odd(_):
        return {1, 2}

    id = enqueue(lesson, db, "odd", None)
    with working(lesson.worker.Worker(db, "w")):
        task = wait_for_status(db, id, "succeeded", "failed")
    assert task.status == "failed"
    assert "not JSON" in task.error


@pytest.mark.until(3, why="a failed task is tried again")
def test_a_row_with_an_unknown_name_fails_alone(lesson, db):
    ((bad,),) = execute(  # not through our door
        db, "insert into tasks (name, input) values ('os.system', '\"ls\"') returning id"
    )
    good = enqueue(lesson, db, "divide", [6, 3])
    with working(lesson.worker.Worker(db, "w")):
        wait_for_status(db, good, "succeeded")
    assert task_row(db, bad).status == "failed"
    assert "knows no task 'os.system'" in task_row(db, bad).error


@pytest.mark.until(3, why="what a run writes names its attempt")
@pytest.mark.parametrize("end", ["succeeded", "failed", "queued"])
def test_a_task_that_is_not_running_cannot_be_finished(lesson, db, end):
    id = enqueue(lesson, db, "divide", [6, 3])
    with queries(lesson, db) as queue:
        if end != "queued":
            execute(db, "update tasks set status = 'running' where id = %s", id)
        if end == "succeeded":
            assert queue.succeed_task(id=id, output="1") == 1
        if end == "failed":
            assert queue.fail_task(id=id, error="first") == 1
        before = task_row(db, id)
        assert queue.succeed_task(id=id, output="2") == 0
        assert queue.fail_task(id=id, error="second") == 0
    assert task_row(db, id) == before


@pytest.mark.parametrize(
    "change",
    [
        "status = 'done'",
        "status = 'succeeded'",
        "status = 'failed'",
        "output = '1'",
        "error = 'x'",
    ],
)
def test_the_table_refuses_a_row_that_contradicts_itself(db, change):
    ((id,),) = execute(db, "insert into tasks (name, input) values ('a', '1') returning id")
    with pytest.raises(psycopg.errors.CheckViolation):
        execute(db, f"update tasks set {change} where id = %s", id)  # noqa: S608


def test_a_claim_is_committed_before_the_function_is_called(lesson, db):
    """Others see the task as running, and no lock is held on its row while the function runs."""
    seen = []

    @lesson.tasks.task
    def look(_):
        with db.connect(autocommit=True) as connection:
            try:
                query = "select status from tasks for update nowait"
                seen.append(connection.execute(query).fetchall())
            except psycopg.errors.LockNotAvailable as error:
                seen.append(error)

    id = enqueue(lesson, db, "look", None)
    with working(lesson.worker.Worker(db, "w")):
        wait_until(lambda: seen, "it has looked, or could not")
        assert seen[0] == [("running",)]
        wait_for_status(db, id, "succeeded")


# Worker processes


def test_two_workers_run_each_task_once_and_lose_none(lesson, db):
    enqueue_all(lesson, db, "send_receipt", range(400))
    with worker_processes(lesson.path, "a", "b"):
        wait_until(lambda: count(db, "succeeded") == 400, "all tasks succeeded")
    assert receipts(lesson) == each_once(400)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_worker_after_the_task_at_hand(lesson, db, number):
    # With a second slot it could claim the later task before it gets the signal.
    one_slot = ("--slots", "1") if lesson.number >= 2 else ()
    id = enqueue(lesson, db, "sleep", within(1))
    worker = WorkerProcess(lesson.path, "a", *one_slot)
    try:
        wait_for_status(db, id, "running")
        later = enqueue(lesson, db, "divide", [6, 3])
        worker.signal(number)
        assert has_ended(worker) == 0
    finally:
        worker.kill()
    assert task_row(db, id).status == "succeeded"
    assert task_row(db, later).status == "queued"
    assert "Traceback" not in worker.output()


@pytest.mark.until(3, why="another worker takes the task over")
def test_a_killed_worker_leaves_its_task_running(lesson, db):
    id = enqueue(lesson, db, "sleep", 60)
    with worker_processes(lesson.path, "a") as (worker,):
        wait_for_status(db, id, "running")
        worker.kill()
    with worker_processes(lesson.path, "b"):
        wait_for_status(db, enqueue(lesson, db, "divide", [6, 3]), "succeeded")
    assert task_row(db, id).status == "running"


def test_a_worker_ends_when_the_process_that_started_it_is_gone(lesson, db):
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time, pathlib, shared.processes as processes\n"
            "worker = processes.WorkerProcess(pathlib.Path(sys.argv[1]), 'a')\n"
            "print(worker.pid, flush=True)\n"
            "time.sleep(60)",
            str(lesson.path),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    wait_for_status(db, enqueue(lesson, db, "divide", [6, 3]), "succeeded")
    parent.kill()
    parent.wait()
    wait_until(lambda: gone(child), "the worker is gone too")


def gone(pid):
    """No such process, or one that has ended and that nobody has waited for yet."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
