"""Lesson 01: each task goes to one worker, none is lost, and a bad one fails alone."""

import signal
import subprocess
import sys
import threading
from collections import Counter

import psycopg
import pytest

from shared.processes import WorkerProcess, wait_until, worker_processes
from shared.testing import task_row, wait_for_status, waiting_for_a_lock, working


def enqueue(lesson, db, name, input):
    with db.autocommit.connect() as connection:
        return lesson.tasks.enqueue(connection, name, input)


def count(db, status):
    with db.connect() as connection:
        return connection.execute(
            "select count(*) from tasks where status = %s", (status,)
        ).fetchone()[0]


# Enqueue


def test_an_enqueued_task_waits_in_the_queue(lesson, db):
    id = enqueue(lesson, db, "divide", [6, 3])
    task = task_row(db, id)
    assert (task.name, task.input, task.status) == ("divide", [6, 3], "queued")


def test_an_enqueue_commits_with_the_callers_transaction(lesson, db):
    with db.engine.connect() as connection:
        id = lesson.tasks.enqueue(connection, "divide", [6, 3])
        assert count(db, "queued") == 0, "not committed, so nobody else sees it"
        connection.commit()
    assert task_row(db, id).status == "queued"


def test_an_enqueue_rolls_back_with_the_callers_transaction(lesson, db):
    with db.engine.connect() as connection:
        lesson.tasks.enqueue(connection, "divide", [6, 3])
        connection.rollback()
    assert count(db, "queued") == 0


def test_ids_grow_beyond_32_bits(lesson, db):
    with db.connect(autocommit=True) as connection:
        connection.execute(f"alter table tasks alter column id restart with {2**31}")
    id = enqueue(lesson, db, "divide", [6, 3])
    assert id == 2**31
    with working(lesson.worker.Worker(db, "w")):
        assert wait_for_status(db, id, "succeeded").output == 2


def deep(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


BAD_INPUTS = {
    "NaN": (float("nan"), "not JSON"),
    "infinity": (float("inf"), "not JSON"),
    "a set": ({"a": {1, 2}}, "not JSON"),
    "bytes": (b"bytes", "not JSON"),
    "half a surrogate": ("\ud800", "not JSON"),
    "5,000 digits": (10**5000, "not JSON"),
    "100,000 levels": (deep(100_000), "not JSON"),
    "NUL": ("NUL: \0", "NUL"),
    "NUL in a key": ({"NUL \0": 1}, "NUL"),
    "too large": ("x" * 1_000_001, "1,000,003 bytes"),
    "a tuple": ((1, 2), "tuples"),
    "a number as a key": ({1: 2}, "keys"),
}


@pytest.mark.parametrize("bad", BAD_INPUTS)
def test_bad_input_is_refused_at_the_door(lesson, db, bad):
    input, why = BAD_INPUTS[bad]
    with pytest.raises(lesson.tasks.BadInput, match=why):
        enqueue(lesson, db, "divide", input)
    assert count(db, "queued") == 0


@pytest.mark.parametrize(
    "input",
    [
        None,
        True,
        0,
        -1.5,
        1e300,
        2**200,
        "",
        "\\u0000 is six characters",
        "Zoë 🎉",
        [],
        {"a": [{}]},
    ],
)
def test_good_input_reaches_the_task_unchanged(lesson, db, input):
    got = []

    @lesson.tasks.task
    def keep(value):
        got.append(value)
        return value

    id = enqueue(lesson, db, "keep", input)
    with working(lesson.worker.Worker(db, "w")):
        task = wait_for_status(db, id, "succeeded")
    assert got == [input]
    assert task.output == input


@pytest.mark.parametrize("name", ["send_recipt", "", "os.system", "divide\0"])
def test_an_unknown_name_is_refused_at_the_door(lesson, db, name):
    with pytest.raises(lesson.tasks.BadInput, match="no task"):
        enqueue(lesson, db, name, 1)


def test_two_functions_cannot_have_one_name(lesson):
    def divide(numbers):
        return numbers

    with pytest.raises(lesson.tasks.BadInput, match="already"):
        lesson.tasks.task(divide)


# Claim


@pytest.mark.until(2, why="a claim takes several tasks at once")
def test_the_oldest_task_is_claimed_first(lesson, db):
    ids = [enqueue(lesson, db, "divide", [n, 1]) for n in range(3)]
    with db.autocommit.connect() as connection:
        queue = lesson.queries.Querier(connection)
        assert [queue.claim_task().id for _ in ids] == ids
        assert queue.claim_task() is None


@pytest.mark.until(2, why="a claim takes several tasks at once")
def test_a_claim_does_not_wait_for_another_claim(lesson, db):
    first, second = (enqueue(lesson, db, "divide", [n, 1]) for n in range(2))
    with db.engine.connect() as one, db.engine.connect() as other:
        assert lesson.queries.Querier(one).claim_task().id == first  # and holds the row's lock
        other.exec_driver_sql("set statement_timeout = '2s'")
        assert lesson.queries.Querier(other).claim_task().id == second


@pytest.mark.until(2, why="a claim takes several tasks at once")
def test_two_claims_at_the_same_time_take_two_tasks(lesson, db):
    """The second claim starts while the first is not committed, and ends after it is."""
    first, second = (enqueue(lesson, db, "divide", [n, 1]) for n in range(2))
    claimed = []

    def claim():
        with db.autocommit.connect() as connection:
            claimed.append(lesson.queries.Querier(connection).claim_task().id)

    with db.engine.connect() as one:
        claimed.append(lesson.queries.Querier(one).claim_task().id)
        other = threading.Thread(target=claim)
        other.start()
        wait_until(lambda: len(claimed) == 2 or waiting_for_a_lock(db), "the second claim is there")
        one.commit()
        other.join()
    assert sorted(claimed) == [first, second]


# Run


def test_what_the_function_returns_is_stored(lesson, db):
    id = enqueue(lesson, db, "divide", [6, 3])
    with working(lesson.worker.Worker(db, "w")):
        task = wait_for_status(db, id, "succeeded", "failed")
    assert (task.status, task.output, task.error) == ("succeeded", 2, None)


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
}


@pytest.mark.parametrize("raised", ERRORS)
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
    with db.connect(autocommit=True) as connection:  # not through our door
        bad = connection.execute(
            "insert into tasks (name, input) values ('os.system', '\"ls\"') returning id"
        ).fetchone()[0]
    good = enqueue(lesson, db, "divide", [6, 3])
    with working(lesson.worker.Worker(db, "w")):
        wait_for_status(db, good, "succeeded")
    assert task_row(db, bad).status == "failed"
    assert "knows no task 'os.system'" in task_row(db, bad).error


@pytest.mark.until(3, why="what a run writes names its attempt")
@pytest.mark.parametrize("end", ["succeeded", "failed", "queued"])
def test_a_task_that_is_not_running_cannot_be_finished(lesson, db, end):
    id = enqueue(lesson, db, "divide", [6, 3])
    with db.autocommit.connect() as connection:
        queue = lesson.queries.Querier(connection)
        if end != "queued":
            set_running(db, id)
        if end == "succeeded":
            assert queue.succeed_task(id=id, output="1") == 1
        if end == "failed":
            assert queue.fail_task(id=id, error="first") == 1
        before = task_row(db, id)
        assert queue.succeed_task(id=id, output="2") == 0
        assert queue.fail_task(id=id, error="second") == 0
    assert task_row(db, id) == before


def set_running(db, id):
    with db.connect(autocommit=True) as connection:
        connection.execute("update tasks set status = 'running' where id = %s", (id,))


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
def test_the_table_refuses_a_row_that_contradicts_itself(lesson, db, change):
    id = enqueue(lesson, db, "divide", [6, 3])
    with db.connect() as connection, pytest.raises(psycopg.errors.CheckViolation):
        connection.execute(f"update tasks set {change} where id = %s", (id,))  # noqa: S608


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
    with db.engine.begin() as connection:
        for order in range(400):
            lesson.tasks.enqueue(connection, "send_receipt", order)
    with worker_processes(lesson.path, "a", "b"):
        wait_until(lambda: count(db, "succeeded") == 400, "all tasks succeeded")
    effects = Counter(effect.split(" by ")[0] for effect in lesson.app.outside.effects())
    assert effects == {f"receipt {order}": 1 for order in range(400)}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_worker_after_the_task_at_hand(lesson, db, number):
    # With a second slot it could claim the later task before it gets the signal.
    one_slot = ("--slots", "1") if lesson.number >= 2 else ()
    id = enqueue(lesson, db, "sleep", 1)
    worker = WorkerProcess(lesson.path, "a", *one_slot)
    try:
        wait_for_status(db, id, "running")
        later = enqueue(lesson, db, "divide", [6, 3])
        worker.signal(number)
        wait_until(lambda: worker.exit_status is not None, "the worker has ended")
        assert worker.exit_status == 0
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


def test_the_verbs_enqueue_and_status(lesson, db):
    done = run_verb(lesson, "enqueue", "divide", "[6, 3]")
    assert (done.returncode, done.stderr) == (0, "")
    assert count(db, "queued") == 1
    shown = run_verb(lesson, "status")
    assert "divide" in shown.stdout
    assert "1 queued" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("divide", "[6, 3"), "JSON"),
        (("dvide", "[6, 3]"), "no task 'dvide'"),
        (("divide", "NaN"), "JSON"),
    ],
)
def test_the_verb_enqueue_says_what_is_wrong(lesson, db, arguments, says):
    done = run_verb(lesson, "enqueue", *arguments)
    assert done.returncode != 0
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert count(db, "queued") == 0
