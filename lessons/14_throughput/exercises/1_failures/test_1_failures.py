"""Exercise 1: ends of both kinds share a statement."""

import logging
import threading
from collections import Counter
from contextlib import contextmanager
from datetime import timedelta

import pytest
import sqlalchemy as sa

from shared.processes import wait_until, within
from shared.testing import kept, task_row, wait_for_status, waiting_for_a_lock, working

ODD = ['"', "\\t", "ä\n%s :name", "NUL \0", "\ud800", '"' * 9_000]  # escaped, the last is long


@pytest.fixture
def go(lesson):
    """Until it is set, tasks wait. Then an even number is returned, and an odd one raised."""
    opened = threading.Event()

    @lesson.tasks.task
    def end(n):
        assert opened.wait(within(20))
        if n % 2:
            raise lesson.tasks.NonRetryableError(n)
        return n

    return opened


def enqueue(lesson, db, name, inputs, **options):
    with db.engine.begin() as connection:
        return [lesson.tasks.enqueue(connection, name, value, **options) for value in inputs]


def execute(db, statement, *parameters):
    with kept(db) as connection:
        cursor = connection.execute(statement, parameters)
        return cursor.fetchall() if cursor.description else []


def statuses(db):
    return Counter(dict(execute(db, "select status, count(*) from tasks group by status")))


@contextmanager
def writes():
    """The statements that change tasks."""
    noted = []

    def note(_connection, _cursor, statement, *_):
        if "update tasks\n" in statement:
            noted.append(statement)

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        yield noted
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)


def test_1_ends_of_both_kinds_share_a_statement(lesson, db, go):
    ids = enqueue(lesson, db, "end", range(100), max_attempts=1)
    with writes() as noted, working(lesson.worker.Worker(db, "w", slots=100)):
        wait_until(lambda: statuses(db) == {"running": 100}, "all run")
        go.set()
        wait_until(lambda: statuses(db) == {"succeeded": 50, "failed": 50}, "all have ended")
    assert len(noted) < 40, "for 50 outputs and 50 errors"
    for n, id in enumerate(ids):
        row = task_row(db, id)
        error = f"NonRetryableError: {n}" if n % 2 else None
        assert (row.output, row.error) == (None if n % 2 else n, error)


def test_1_an_error_is_stored_as_it_is(lesson, db):
    errors = [lesson.tasks.NonRetryableError(text) for text in ODD]

    @lesson.tasks.task
    def odd(n):
        raise errors[n]

    ids = enqueue(lesson, db, "odd", range(len(errors)))
    with working(lesson.worker.Worker(db, "w", slots=1)):  # each is a group of its own
        stored = [wait_for_status(db, id, "failed").error for id in ids]
    assert stored == [lesson.inputs.describe(error) for error in errors]


def test_1_an_attempt_that_is_not_the_last_is_no_end(lesson, db):
    runs = []

    @lesson.tasks.task
    def stubborn(n):
        runs.append(n)
        raise ValueError(runs.count(n))

    ids = enqueue(lesson, db, "stubborn", range(5), max_attempts=3)
    timing = lesson.timing.Timing(first_backoff=timedelta(0))
    with working(lesson.worker.Worker(db, "w", timing=timing)):
        rows = [wait_for_status(db, id, "failed") for id in ids]
    assert {(row.attempt, row.error) for row in rows} == {(3, "ValueError: 3")}


def test_1_each_row_has_a_fence(lesson, db):
    """The worker runs two attempts of each task. One returns, the other fails, both at once."""
    go, begun = threading.Event(), Counter()

    @lesson.tasks.task
    def end_twice(n):
        begun[n] += 1
        attempt = begun[n]
        assert go.wait(within(20))
        if (n + attempt) % 2:
            raise lesson.tasks.NonRetryableError(attempt)
        return attempt

    *ids, cancelled = enqueue(lesson, db, "end_twice", range(9))
    with working(lesson.worker.Worker(db, "w", slots=20)):
        wait_until(lambda: begun.total() == 9, "all run")
        execute(db, "update tasks set status = 'cancelled' where id = %s", cancelled)
        execute(db, "update tasks set status = 'queued' where id = any (%s)", ids)
        wait_until(lambda: begun.total() == 17, "all but the cancelled one run again")
        go.set()
    for n, id in enumerate(ids):
        row = task_row(db, id)
        end = ("failed", None, "NonRetryableError: 2") if n % 2 else ("succeeded", 2, None)
        assert (row.status, row.output, row.error) == end, "that of the second attempt"
    row = task_row(db, cancelled)
    assert (row.status, row.output, row.error) == ("cancelled", None, None)


def test_1_nothing_is_acknowledged_before_the_commit(lesson, db, go, caplog):
    caplog.set_level(logging.INFO, "worker")
    ids = enqueue(lesson, db, "end", [1, 3, 5, 7, 9])
    with working(lesson.worker.Worker(db, "w", slots=2)), db.connect() as psql:
        wait_until(lambda: statuses(db) == {"running": 2, "queued": 3}, "two run")
        psql.execute("select from tasks where id = any (%s) for update", (ids[:2],))
        go.set()
        wait_until(lambda: waiting_for_a_lock(db) == 2, "each waits for psql, alone")
        assert statuses(db) == {"running": 2, "queued": 3}, "they hold their slots"
        assert "failed" not in caplog.text
        psql.rollback()
        wait_until(lambda: statuses(db) == {"failed": 5}, "all have ended")
    for n, id in enumerate(ids):
        assert task_row(db, id).attempt == 1
        assert caplog.messages.count(f"task {id} failed: NonRetryableError: {2 * n + 1}") == 1


def test_1_one_row_that_is_refused_keeps_no_other_from_being_stored(lesson, db, go):
    execute(db, "alter table tasks add constraint no_seven check (error not like '%% 7')")
    lesson.connection.MAX_REFUSALS = 2
    ids = enqueue(lesson, db, "end", range(10))
    with working(lesson.worker.Worker(db, "w")):
        go.set()
        wait_until(lambda: statuses(db)["succeeded"] == 5, "outputs are stored")
        wait_until(lambda: statuses(db)["failed"] == 4, "all other errors are stored")
    assert task_row(db, ids[7]).status not in ("succeeded", "failed")


def test_1_parents_are_told_and_nobody_waits_for_a_parent_that_is_held(lesson, db, go):
    @lesson.context.durable
    def parent(ctx, _):
        answers = []
        for child in [ctx.spawn(lesson.tasks.registry["end"].function, n) for n in range(6)]:
            try:
                answers.append(ctx.result(child))
            except lesson.errors.StepError as error:
                answers.append(str(error))
        return answers

    (id,) = enqueue(lesson, db, "parent", [None])
    with working(lesson.worker.Worker(db, "w", slots=20)), db.connect() as psql:
        wait_for_status(db, id, "waiting")
        enqueue(lesson, db, "end", range(10))
        wait_until(lambda: statuses(db) == {"waiting": 1, "running": 16}, "all of these run")
        psql.execute("select from tasks where id = %s for update", (id,))
        go.set()
        ended = {"waiting": 1, "running": 6, "succeeded": 5, "failed": 5}
        wait_until(lambda: statuses(db) == ended, "those without a parent have ended")
        psql.rollback()
        answers = wait_for_status(db, id, "succeeded", "failed").output
    assert answers == [n if n % 2 == 0 else f"end: NonRetryableError: {n}" for n in range(6)]
