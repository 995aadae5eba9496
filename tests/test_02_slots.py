"""Lesson 02: a worker claims what it can run, in one statement."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from shared.processes import wait_until, within
from shared.testing import task_row, wait_for_status, working
from tests.helpers import (
    claim_as,
    claim_ids,
    count,
    execute,
    patiently,
    registered,
    several,
    submitted,
)

# Claims in batches


def test_a_claim_takes_the_oldest_tasks_and_none_twice(lesson, db):
    ids = several(lesson, db, 10)
    with db.autocommit.connect() as connection:
        assert sorted(claim_ids(lesson, connection, 4)) == ids[:4]
        assert sorted(claim_ids(lesson, connection, 0)) == []
        assert sorted(claim_ids(lesson, connection, 100)) == ids[4:]
        assert claim_ids(lesson, connection, 100) == []


def test_claimed_tasks_are_begun_in_their_order(lesson, db):
    ids = several(lesson, db, 10)
    for id in reversed(ids):  # now the table has them the other way round
        execute(db, "update tasks set input = 'true' where id = %s", id)
    with db.autocommit.connect() as connection:
        connection.exec_driver_sql("set enable_indexscan = off; set enable_bitmapscan = off")
        tasks = claim_as(lesson, db, registered(lesson, db), connection, 10)
    assert [task.id for task in tasks] == ids


def test_a_batch_does_not_wait_for_another_batch(lesson, db):
    ids = several(lesson, db, 6)
    with db.engine.connect() as one, db.engine.connect() as other:
        assert sorted(claim_ids(lesson, one, 3)) == ids[:3]  # and holds the rows' locks
        patiently(other, 2)
        assert sorted(claim_ids(lesson, other, 3)) == ids[3:]


def test_two_batches_at_the_same_time_share_no_task(lesson, db):
    """The second claim starts while the first is not committed, and ends after it is."""
    ids = several(lesson, db, 6)

    def claim_too():
        with db.autocommit.connect() as connection:
            return claim_ids(lesson, connection, 3)

    with db.engine.connect() as one, ThreadPoolExecutor(1) as thread:
        first = claim_ids(lesson, one, 3)
        other = submitted(db, thread, claim_too)
        one.commit()
        assert sorted(first + other.result(timeout=within(20))) == ids


def test_many_batches_at_once_take_every_task_once(lesson, db):
    ids = several(lesson, db, 400)

    def claimer(_):
        mine = []
        with db.autocommit.connect() as connection:
            start.wait()
            while got := claim_ids(lesson, connection, 7):
                mine += got
        return mine

    start = threading.Barrier(8, timeout=within(60))
    with ThreadPoolExecutor(8) as threads:
        claimed = [id for mine in threads.map(claimer, range(8)) for id in mine]
    # One that finds all the rest locked goes home early; but nobody gets what another has.
    assert len(claimed) == len(set(claimed))
    assert set(claimed) <= set(ids)


# A connection of a worker


def test_a_statement_is_sent_again_until_the_database_carries_it_out(lesson, db):
    tries = []

    def statement(queries):
        tries.append(queries)
        if len(tries) < 3:
            queries._conn.exec_driver_sql("select pg_terminate_backend(pg_backend_pid())")
        return queries.count_running(queue="default")

    with db.autocommit.connect() as connection:
        assert lesson.connection.repeat(connection, statement) == 0
    assert len(tries) == 3


def test_what_can_never_be_stored_is_not_sent_again(lesson, db):
    tries = []

    def statement(queries):
        tries.append(queries)
        queries._conn.exec_driver_sql("select cast('[' as json)")

    with db.autocommit.connect() as connection, pytest.raises(sa.exc.DBAPIError, match="json"):
        lesson.connection.repeat(connection, statement)
    assert len(tries) == 1


def test_a_worker_that_is_to_stop_waits_for_no_database(lesson):
    nowhere = sa.create_engine("postgresql+psycopg://127.0.0.1:1/nothing")
    with pytest.raises(lesson.connection.Stopped):
        lesson.connection.connect(nowhere, lambda: True)


# Slots


def test_a_worker_never_has_more_tasks_than_slots(lesson, db):
    """Also while tasks end so fast that slots become free during a claim."""
    seen = []

    @lesson.tasks.task
    def look(_):
        seen.append(count(db, "running"))

    ids = several(lesson, db, 150, name="look")
    with working(lesson.worker.Worker(db, "w", slots=3)):
        wait_until(lambda: count(db, "succeeded") == len(ids), "all tasks have succeeded")
    assert len(seen) == len(ids)
    assert max(seen) <= 3


def test_all_slots_run_at_the_same_time(lesson, db):
    everybody = threading.Barrier(4, timeout=within(20))

    @lesson.tasks.task
    def meet(_):
        everybody.wait()

    ids = several(lesson, db, 8, name="meet")
    with working(lesson.worker.Worker(db, "w", slots=4)):
        for id in ids:
            assert wait_for_status(db, id, "succeeded", "failed").status == "succeeded"


def test_a_busy_worker_leaves_tasks_to_its_neighbour(lesson, db):
    release = threading.Event()

    @lesson.tasks.task
    def hold(_):
        release.wait(within(20))

    held = several(lesson, db, 2, name="hold")
    try:
        with working(lesson.worker.Worker(db, "busy", slots=2)):
            for id in held:
                wait_for_status(db, id, "running")
            (later,) = several(lesson, db, 1)
            with working(lesson.worker.Worker(db, "neighbour", slots=1)):
                wait_for_status(db, later, "succeeded")
            assert count(db, "running") == 2
            release.set()
    finally:
        release.set()


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
def test_whatever_a_task_raises_takes_no_slot_along(lesson, db, error):
    @lesson.tasks.task
    def fail(_):
        raise error("no more")

    (bad,) = several(lesson, db, 1, name="fail")
    (good,) = several(lesson, db, 1)
    with working(lesson.worker.Worker(db, "w", slots=1)):
        wait_for_status(db, good, "succeeded")
        wait_until(lambda: task_row(db, bad).error is not None, "the error is stored")
    assert task_row(db, bad).error == f"{error.__name__}: no more"


def test_a_slot_stores_a_result_when_the_database_takes_it(lesson, db):
    """It tries again, whatever the database says, and its neighbours work meanwhile."""

    @lesson.tasks.task
    def spoil(_):
        execute(
            db, "alter table tasks add constraint refused check (output is null or name <> 'spoil')"
        )

    (bad,) = several(lesson, db, 1, name="spoil")
    with working(lesson.worker.Worker(db, "w", slots=2)):
        wait_until(lambda: has_constraint(db), "the task has run")
        (later,) = several(lesson, db, 1)
        assert wait_for_status(db, later, "succeeded")
        assert task_row(db, bad).status == "running"
        execute(db, "alter table tasks drop constraint refused")
        assert wait_for_status(db, bad, "succeeded")


CHECK = "check (output is null or name <> 'spoil')"


def has_constraint(db):
    return execute(db, "select 1 from pg_constraint where conname = 'refused' and"
                       " connamespace = %s::regnamespace", db.schema)  # fmt: skip
