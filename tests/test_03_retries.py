"""Lesson 03: an attempt that fails or takes too long is made again; nobody else is harmed."""

import re
import threading
from collections import Counter
from datetime import timedelta

import psycopg
import pytest

from shared.processes import wait_until, within
from shared.testing import task_row, wait_for_status, working
from tests.helpers import (
    ENDED,
    ERRORS,
    MINUTE,
    Unreadable,
    claim,
    enqueue,
    execute,
    one_by_one,
    register,
    retry_after,
    run_verb,
    status_of,
    take_back,
    upkeep_rounds,
)

# Timeouts


def test_a_late_result_of_a_timed_out_task_is_refused_and_its_slot_is_busy_until_then(lesson, db):
    released, began = threading.Event(), []

    @lesson.tasks.task
    def endless(_):
        began.append("endless")
        released.wait(within(30))
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
            released.wait(within(30))
        return len(runs)

    released = threading.Event()
    id = enqueue(lesson, db, "slow_at_first", timeout=timedelta(seconds=within(0.3)))
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
    assert take_back(lesson, db) == {}
    execute(db, "update tasks set started_at = started_at - interval '31 s'")
    assert take_back(lesson, db) == {id: "queued"}


def test_a_delay_counts_from_the_enqueue_and_not_from_the_transactions_beginning(lesson, db):
    with db.engine.begin() as connection:
        (now,) = connection.exec_driver_sql("select clock_timestamp()").one()
        id = lesson.tasks.enqueue(connection, "nothing", None, delay=MINUTE)
    task = task_row(db, id)
    assert task.run_at > now + MINUTE


# Retries


@one_by_one("attempt", [1, 2, 3, 5, 10, 12, 13, 14, 100, 311, 1024, 10_000])
def test_backoff_is_full_jitter_below_a_cap(lesson, attempt):
    cap = min(timedelta(seconds=2 ** min(attempt - 1, 40)), timedelta(hours=1))
    waits = [lesson.timing.Timing().backoff(attempt) for _ in range(1000)]
    assert all(timedelta(0) <= wait <= cap for wait in waits)
    # Over all of it: an eighth has about 125 of the 1,000.
    eighths = Counter(int(wait / cap * 8) for wait in waits)
    assert all(eighths[n] > 0 for n in range(8))
    assert 0.4 < sum(waits, timedelta(0)) / 1000 / cap < 0.6


def test_a_failed_task_is_tried_again_until_it_succeeds(lesson, db):
    retry_after(lesson, timedelta(0))
    id = enqueue(lesson, db, "flaky", 3)
    with working(lesson.worker.Worker(db, "w")):
        task = wait_for_status(db, id, *ENDED)
    assert (task.status, task.attempt, task.output) == ("succeeded", 4, "an answer")
    assert task.error is None


def test_the_largest_number_of_attempts_ends_it(lesson, db):
    retry_after(lesson, timedelta(0))
    id = enqueue(lesson, db, "flaky", 99, max_attempts=3)
    with working(lesson.worker.Worker(db, "w")):
        task = wait_for_status(db, id, *ENDED)
    assert (task.status, task.attempt) == ("failed", 3)
    assert lesson.app.outside.effects() == ["flaky 99"] * 3


def test_between_two_attempts_a_task_waits_for_its_backoff(lesson, db):
    retry_after(lesson, timedelta(hours=1))
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


def test_an_output_that_is_not_json_fails_the_task_at_once(lesson, db):
    @lesson.tasks.task
    def odd(_):
        return {1, 2}

    id = enqueue(lesson, db, "odd")
    with working(lesson.worker.Worker(db, "w")):
        task = wait_for_status(db, id, *ENDED)
    assert (task.status, task.attempt) == ("failed", 1)
    assert "not JSON" in task.error


def test_an_output_that_postgres_refuses_fails_the_attempt(lesson, db, monkeypatch):
    """A later Python may let nest deeper than Postgres; that is no lost connection."""
    monkeypatch.setattr(lesson.run, "to_json", lambda _: "[" * 100_000 + "]" * 100_000)
    id = enqueue(lesson, db, "divide", [6, 3], max_attempts=1)
    with working(lesson.worker.Worker(db, "w")):
        task = wait_for_status(db, id, *ENDED)
    assert task.status == "failed"
    assert "stack depth" in task.error


@pytest.mark.until(13, why="it is parked, and waits for code that knows it")
def test_a_name_that_this_worker_does_not_know_is_tried_again(lesson, db):
    """During a deployment, another worker may know it."""
    retry_after(lesson, timedelta(0))
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
