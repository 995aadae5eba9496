"""Exercise 3: a claim that finds the limit locked claims nothing, and does not wait."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from shared.processes import wait_until
from shared.testing import working


def backend(connection):
    return connection.scalar(sa.text("select pg_backend_pid()"))


def test_3_no_line(lesson, db):
    with db.autocommit.connect() as connection:
        for _ in range(6):
            lesson.tasks.enqueue(connection, "nothing", None)
        lesson.claim.limit_queue(connection, "default", 4)
    with (
        db.engine.connect() as holder,
        db.autocommit.connect() as other,
        ThreadPoolExecutor(1) as thread,
    ):
        before = backend(other)
        holder.exec_driver_sql("select * from queue_limits for update")
        claim = thread.submit(lesson.claim.claim, db, other, "default", 10)
        try:
            wait_until(claim.done, "the claim does not wait", seconds=5)
        finally:
            holder.rollback()
        assert claim.result() == [], "somebody else counts"
        assert len(lesson.claim.claim(db, other, "default", 10)) == 4
        assert backend(other) == before, "a locked limit is no lost connection"


def test_3_other_errors_are_not_swallowed(lesson, db):
    with db.connect(autocommit=True) as connection:
        connection.execute("alter table queue_limits rename to gone")
    with db.autocommit.connect() as connection, pytest.raises(sa.exc.ProgrammingError):
        lesson.claim.claim(db, connection, "default", 10)


def test_3_a_worker_can_be_stopped_while_the_limit_is_locked(lesson, db):
    with db.autocommit.connect() as connection:
        lesson.claim.limit_queue(connection, "default", 4)
    worker = lesson.worker.Worker(db, "w")
    with db.engine.connect() as holder, ThreadPoolExecutor(1) as thread:
        holder.exec_driver_sql("select * from queue_limits for update")
        run = thread.submit(worker.run)
        worker.stop()
        try:
            wait_until(run.done, "the worker has stopped", seconds=5)
        finally:
            holder.rollback()


def test_3_the_limit_still_holds(lesson, db):
    with db.engine.begin() as connection:
        for _ in range(30):
            lesson.tasks.enqueue(connection, "work", 0.01)
        lesson.claim.limit_queue(connection, "default", 3)
    with working(lesson.worker.Worker(db, "a")), working(lesson.worker.Worker(db, "b")):
        wait_until(lambda: len(lesson.app.outside.effects()) == 60, "30 tasks have run")
    most = now = 0
    for effect in lesson.app.outside.effects():
        now += 1 if effect.startswith("start") else -1
        most = max(most, now)
    assert most <= 3
