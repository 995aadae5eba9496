"""Lesson 03: what the database refuses is never the task's fault, and never the worker's end."""

import logging
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import timedelta

import psycopg
import pytest
import sqlalchemy as sa
from psycopg.conninfo import make_conninfo

from shared.processes import wait_until, within
from shared.testing import task_row, wait_for_status, working
from tests.helpers import (
    ENDED,
    REFUSALS,
    count,
    enqueue,
    execute,
    few_connections,
    hurry,
    id_of,
    refusing,
    several,
)

PAID = "new.name = 'pay' and new.status = 'succeeded'"


def attempts_that_count(db, id):
    row = task_row(db, id)
    return row.attempt - row.uncounted


@pytest.mark.parametrize("sqlstate", REFUSALS)
def test_a_result_that_is_refused_is_stored_when_the_database_takes_it(lesson, db, sqlstate):
    """Whatever it says. Meanwhile, the worker runs other tasks."""
    runs = []

    @lesson.tasks.task
    def pay(_):
        runs.append(1)
        return "paid"

    with working(lesson.worker.Worker(db, "w")):
        with refusing(db, "tasks", PAID, sqlstate) as tries:
            id = enqueue(lesson, db, "pay", max_attempts=1)
            wait_until(lambda: tries() >= 2, "the result has been refused twice")
            other = enqueue(lesson, db)
            assert wait_for_status(db, other, *ENDED).status == "succeeded"
        assert wait_for_status(db, id, *ENDED).output == "paid"
    assert attempts_that_count(db, id) == 1
    assert len(runs) == 1


def test_a_line_that_breaks_with_the_answer_is_no_refusal(lesson):
    """A statement is cancelled while the server stops: the next one needs a new connection."""
    cancelled = psycopg.errors.QueryCanceled("canceling statement due to user request")
    tries = []

    def statement(**_):
        tries.append(1)
        raise sa.exc.OperationalError("select", None, cancelled, connection_invalidated=True)

    with pytest.raises(sa.exc.OperationalError):
        lesson.connection.all_but_refused(statement)
    assert len(tries) == 1


def test_a_result_that_is_refused_for_long_gives_its_slot_back(lesson, db):
    """The task runs again, and again as long as that is so; none of these attempts counts."""
    lesson.connection.MAX_REFUSALS = 2
    runs = []

    @lesson.tasks.task
    def pay(_):
        runs.append(1)
        return "paid"

    lease = timedelta(seconds=within(0.5))
    with working(lesson.worker.Worker(db, "w", slots=1, lease=lease)):
        with refusing(db, "tasks", PAID, "42501"):
            id = enqueue(lesson, db, "pay", max_attempts=1)
            wait_until(lambda: len(runs) >= 3, "the task has run three times")
            other = enqueue(lesson, db, priority=1)
            assert wait_for_status(db, other, *ENDED).status == "succeeded"
        assert wait_for_status(db, id, *ENDED).output == "paid"
    assert attempts_that_count(db, id) == 1


@pytest.mark.parametrize("sqlstate", ["54001", "22P05", "22021"])
def test_a_result_that_can_never_be_stored_fails_its_own_task(lesson, db, sqlstate):
    with (
        working(lesson.worker.Worker(db, "w")),
        refusing(db, "tasks", "new.status = 'succeeded'", sqlstate),
    ):
        id = enqueue(lesson, db)
        row = wait_for_status(db, id, *ENDED)
        assert row.error.startswith("Hopeless: Postgres cannot store this, or read it: refused")
        assert row.attempt == 1


@pytest.mark.parametrize("sqlstate", REFUSALS)
def test_a_worker_lives_on_when_its_own_statements_are_refused(lesson, db, sqlstate):
    """Its registration, its heartbeats, its claims."""
    lease = timedelta(seconds=within(2))
    with working_late(db, sqlstate, lesson.worker.Worker(db, "w", lease=lease)):
        with (
            refusing(db, "workers", "true", sqlstate) as heartbeats,
            refusing(db, "tasks", "new.status = 'running'", sqlstate) as claims,
        ):
            id = enqueue(lesson, db)
            wait_until(lambda: claims() >= 2, "its claims are refused")
            wait_until(lambda: heartbeats() >= 2, "its heartbeats are refused")
        assert wait_for_status(db, id, *ENDED).status == "succeeded"


@contextmanager
def working_late(db, sqlstate, worker):
    """A worker that could not register at first."""
    with ExitStack() as stack:
        with refusing(db, "workers", "true", sqlstate) as tries:
            stack.enter_context(working(worker))
            wait_until(lambda: tries() >= 2, "it cannot register")
        wait_until(lambda: execute(db, "select * from workers"), "it has registered")
        yield


def test_a_chore_that_is_refused_does_not_keep_the_others(lesson, db):
    """One task cannot be woken. Lost tasks are taken back all the same."""
    hurry(lesson, upkeep=0.05)
    lost = enqueue(lesson, db, queue="elsewhere")
    with working(lesson.worker.Worker(db, "w")):
        with refusing(db, "tasks", "new.priority = 7 and new.status = 'queued'") as tries:
            waits = enqueue(lesson, db, delay=timedelta(0), queue="elsewhere", priority=7)
            wait_until(lambda: tries() >= 2, "it cannot be woken")
            execute(
                db,
                "update tasks set status = 'running', worker_id = 0, attempt = 1,"
                " started_at = clock_timestamp() where id = %s",
                lost,
            )
            assert wait_for_status(db, lost, "queued").error.startswith("WorkerDied")
        wait_for_status(db, waits, "queued")


@pytest.mark.until(14, why="slots share connections")
def test_more_slots_than_connections(lesson, db, caplog):
    """It is said, not a thousand times, and the worker runs with what there is."""
    with few_connections(db, 8) as few:
        ids, running = several(lesson, db, 100, "send_receipt", 7), []

        def all_done():
            running.append(count(db, "running"))
            return count(db, "succeeded") == len(ids)

        with caplog.at_level(logging.WARNING), working(lesson.worker.Worker(few, "w", slots=40)):
            wait_until(all_done, "all is done")
        told = [record for record in caplog.records if "too many connections" in record.message]
        assert 1 <= len(told) <= 3
        assert max(running) <= 8, "what has no slot is left to others"


def test_a_worker_that_is_stopped_while_it_waits_for_connections_ends_quietly(lesson, db):
    nowhere = replace(db, conninfo=make_conninfo(db.conninfo, user="nobody_of_this_name"))
    worker = lesson.worker.Worker(nowhere, "w")
    with working(worker):
        wait_until(lambda: threading.active_count() > 1, "it tries to connect")


def test_an_idle_worker_looks_with_one_statement(lesson, db):
    """Also in a queue with a limit, and in one that is full."""
    hurry(lesson, poll=0.01)
    with db.autocommit.connect() as connection:
        lesson.claim.limit_queue(connection, "full", 0)
    several(lesson, db, 3, queue="full")
    for queue in ("default", "full"):
        statements = []

        def note(_connection, _cursor, statement, *_, to=statements):
            to.append(statement)

        with working(lesson.worker.Worker(db, "w", queue=queue)):
            for engine in (db.engine, db.autocommit):
                sa.event.listen(engine, "before_cursor_execute", note)
            wait_until(lambda: sum("found" in s for s in statements) >= 20, "20 looks")  # noqa: B023
            for engine in (db.engine, db.autocommit):
                sa.event.remove(engine, "before_cursor_execute", note)
        assert not any("limited" in s or "max_running\n" in s for s in statements)
        assert not any("'running', attempt" in s for s in statements), "no claim"


class Unspeakable(Exception):
    def __str__(self):
        raise SystemExit


def test_an_error_whose_message_ends_the_process_ends_no_worker(lesson, db):
    @lesson.tasks.task
    def fails(_):
        raise Unspeakable

    id = enqueue(lesson, db, "fails", max_attempts=1)
    with working(lesson.worker.Worker(db, "w")):
        assert wait_for_status(db, id, *ENDED).error.startswith("Unspeakable, and its message")


def test_a_refused_run_is_given_back_by_a_worker_that_leaves(lesson, db):
    """And not taken for one that has died with its worker: that would cost an attempt."""
    lesson.connection.MAX_REFUSALS = 2
    worker = lesson.worker.Worker(db, "w", lease=timedelta(hours=1))
    runs = []

    @lesson.tasks.task
    def pay(_):
        runs.append(1)

    with refusing(db, "tasks", PAID), working(worker):
        id = enqueue(lesson, db, "pay", max_attempts=1)
        wait_until(lambda: runs and not worker._running, "its result was refused")
    assert (task_row(db, id).status, attempts_that_count(db, id)) == ("queued", 0)


@pytest.mark.parametrize("sqlstate", ["22012", "22001"])
def test_a_mistake_in_somebodys_trigger_is_not_hopeless(lesson, db, sqlstate):
    with working(lesson.worker.Worker(db, "w")):
        with refusing(db, "tasks", PAID, sqlstate) as tries:
            lesson.tasks.task(pay)
            id = enqueue(lesson, db, "pay")
            wait_until(lambda: tries() >= 2, "it is sent again")
        assert wait_for_status(db, id, *ENDED).status == "succeeded"


def pay(_):
    return None


def test_one_task_that_is_refused_does_not_keep_the_others_from_being_claimed(lesson, db):
    """The first in the queue, and one in its midst; also within a limit, in the right order."""
    for queue, limit in (("default", None), ("limited", 1)):
        if limit:
            with db.autocommit.connect() as connection:
                lesson.claim.limit_queue(connection, queue, limit)
        bad = [enqueue(lesson, db, queue=queue, priority=n) for n in (9, 5)]
        low = several(lesson, db, 30, queue=queue)
        high = several(lesson, db, 30, queue=queue, priority=7)
        refuse = f"new.id in ({bad[0]}, {bad[1]}) and new.status = 'running'"
        with refusing(db, "tasks", refuse):
            with working(lesson.worker.Worker(db, "w", queue=queue, slots=4)):
                for id in low:
                    assert wait_for_status(db, id, *ENDED).status == "succeeded"
            assert {task_row(db, id).status for id in bad} == {"queued"}
        started = [task_row(db, id).started_at for id in [*high, *low]]
        assert max(started[:30]) < min(started[30:])
        with working(lesson.worker.Worker(db, "w", queue=queue)):
            for id in bad:
                assert wait_for_status(db, id, *ENDED).attempt == 1


def test_one_task_that_is_refused_does_not_keep_the_chores_from_the_others(lesson, db):
    """A CHECK that came later, and that old rows violate: whatever changes them is refused."""
    hurry(lesson, upkeep=0.05)
    ids = several(lesson, db, 6, queue="elsewhere")
    bad_wait, bad_lost, bad_mine, waits, lost, mine = ids
    worker = lesson.worker.Worker(db, "w", lease=timedelta(seconds=within(1)))
    with working(worker):
        wait_until(lambda: worker.lease.worker_id, "it has registered")
        with db.connect() as connection:
            since = "now() - interval '1 day' + id * interval '1s'"
            connection.execute(
                f"update tasks set status = 'waiting', run_at = {since} where id = any (%s)",  # noqa: S608
                ([bad_wait, waits],),
            )
            for worker_id, runs in ((0, [bad_lost, lost]), (id_of(worker), [bad_mine, mine])):
                connection.execute(
                    "update tasks set status = 'running', worker_id = %s, attempt = 1,"  # noqa: S608
                    f" started_at = {since} where id = any (%s)",
                    (worker_id, runs),
                )
            connection.execute("update tasks set priority = 7 where id = any (%s)", (ids[:3],))
            connection.execute("alter table tasks add check (priority < 7) not valid")
            connection.commit()
        for id in (waits, lost, mine):
            wait_for_status(db, id, "queued")
        bad = [task_row(db, id).status for id in (bad_wait, bad_lost, bad_mine)]
        assert bad == ["waiting", "running", "running"]
