"""Lesson 03: one run, without a worker. What its function does decides what is stored."""

from datetime import timedelta

from tests.helpers import claim_one, enqueue, execute, refusing, retry_after, run_claimed


def test_what_the_function_returns_is_stored(lesson, db):
    id = enqueue(lesson, db, "divide", [6, 3])
    row = run_claimed(lesson, db, claim_one(lesson, db, id))
    assert (row.status, row.output, row.error) == ("succeeded", 2, None)


def test_what_the_function_raises_is_tried_again_until_the_last_attempt(lesson, db):
    retry_after(lesson, timedelta(hours=1))
    id = enqueue(lesson, db, "divide", [6, 0], max_attempts=2)
    row = run_claimed(lesson, db, claim_one(lesson, db, id))
    assert (row.status, row.attempt) == ("waiting", 1)
    assert row.run_at - row.started_at > timedelta(minutes=59)
    execute(db, "update tasks set status = 'queued'")
    row = run_claimed(lesson, db, claim_one(lesson, db, id))
    assert (row.status, row.attempt) == ("failed", 2)
    assert row.error.startswith("ZeroDivisionError")


def test_what_is_not_retryable_fails_in_its_first_attempt(lesson, db):
    id = enqueue(lesson, db, "hopeless")
    row = run_claimed(lesson, db, claim_one(lesson, db, id))
    assert (row.status, row.attempt) == ("failed", 1)


def test_the_run_of_an_old_attempt_stores_nothing_and_says_so(lesson, db, caplog):
    id = enqueue(lesson, db, "divide", [6, 3])
    old = claim_one(lesson, db, id)
    execute(db, "update tasks set status = 'queued'")
    claim_one(lesson, db, id)
    row = run_claimed(lesson, db, old)
    assert (row.status, row.attempt) == ("running", 2)
    assert f"task {id} is not running in attempt 1 any more: void" in caplog.text


def test_a_run_whose_result_is_refused_ends_and_leaves_its_task_running(lesson, db, caplog):
    """For GiveBackTasks: the row says that it runs, and only its worker knows better."""
    lesson.connection.MAX_REFUSALS = 2
    id = enqueue(lesson, db, "divide", [6, 3])
    with refusing(db, "tasks", "new.status = 'succeeded'", "42501"):
        row = run_claimed(lesson, db, claim_one(lesson, db, id))
    assert (row.status, row.attempt, row.error) == ("running", 1, None)
    assert f"task {id}: refused: void" in caplog.text
