"""The line between a worker and its database: cut, half-open, slow; and a database that is full."""

import os
from contextlib import contextmanager
from datetime import timedelta

import psycopg
import pytest

from faults.nursery import Nursery, is_alive
from faults.proxy import Proxy
from shared.database import open_database
from shared.processes import WorkerProcess, wait_until, within, worker_processes
from shared.testing import task_row, wait_for_status, working
from tests.helpers import (
    count,
    each_once,
    enqueue,
    enqueue_all,
    execute,
    receipts,
)

TASKS = 200


@pytest.fixture
def line(postgres):
    proxy = Proxy(postgres, before_commit=lambda _: False, after_commit=lambda _: False)
    with proxy.running():
        yield proxy


@contextmanager
def worker_behind(line, lesson, monkeypatch, *options):
    """A worker process that reaches the database through this line only."""
    with monkeypatch.context() as patch:
        patch.setenv("DATABASE_URL", line.url)
        worker = WorkerProcess(lesson.path, "behind", *options)
    try:
        wait_until(worker.has_started, "the worker has started")
        yield worker
    finally:
        line.thaw()
        worker.stop()


def orders(lesson, db, tasks):
    return enqueue_all(lesson, db, "send_receipt", range(tasks), max_attempts=1000)


def test_a_line_that_is_cut_again_and_again(lesson, db, line, monkeypatch):
    orders(lesson, db, TASKS)
    with worker_behind(line, lesson, monkeypatch, "--lease", "5") as worker:
        for done in range(0, TASKS, 20):
            wait_until(lambda done=done: count(db, "succeeded") >= done, "it goes on", 60)
            line.cut()
        wait_until(lambda: count(db, "succeeded") == TASKS, "all have succeeded", 60)
        assert worker.stop() == 0, worker.output()
        assert "must stop" not in worker.output()
    assert receipts(lesson).keys() == each_once(TASKS).keys()


def test_a_half_open_line_loses_nothing_but_time(lesson, db, line, monkeypatch):
    """Nothing comes through, and nobody is told. Another worker does the rest, and the first one's
    writes, which arrive after that, come to nothing."""
    id = enqueue(lesson, db, "work", 0.3, max_attempts=1000)
    options = ("--lease", "2", "--slots", "1")
    with worker_behind(line, lesson, monkeypatch, *options) as worker:
        wait_for_status(db, id, "running")
        line.freeze()
        with worker_processes(lesson.path, "other", options=options):
            assert wait_for_status(db, id, "succeeded").attempt > 1
            before = task_row(db, id)
        line.thaw()
        wait_until(lambda: "void" in worker.output(), "its result was refused")
        assert task_row(db, id) == before
        later = enqueue(lesson, db)
        wait_for_status(db, later, "succeeded")
        assert worker.stop() == 0, worker.output()


def test_a_slow_line_is_slow_and_no_more(lesson, db, line, monkeypatch):
    ids = orders(lesson, db, 10)
    line.delay = 0.1
    with worker_behind(line, lesson, monkeypatch, "--lease", f"{within(3)}"):
        wait_until(lambda: count(db, "succeeded") == 10, "all have succeeded")
    assert {task_row(db, id).attempt for id in ids} == {1}, "nobody took the worker for dead"


def test_locked_tables_and_an_old_snapshot_only_delay(lesson, db):
    """Heartbeats touch no task: the lease is shorter than the lock, and nobody is buried."""
    ids = orders(lesson, db, 20)
    with db.connect() as reader, db.connect() as locker:
        reader.execute("set transaction isolation level repeatable read")
        reader.execute("select count(*) from tasks")
        locker.execute("lock table tasks in exclusive mode")
        lease = timedelta(seconds=within(3))
        with working(lesson.worker.Worker(db, "w", lease=lease)):
            wait_until(lambda: outlived(db, lease), "it outlives its first lease")
            locker.rollback()
            wait_until(lambda: count(db, "succeeded") == 20, "all have succeeded")
            reader.rollback()
    assert {task_row(db, id).attempt for id in ids} == {1}


def outlived(db, lease):
    """The worker has lived for longer than its first lease, because it has renewed it."""
    return execute(db, "select 1 from workers where clock_timestamp() > created_at + %s", lease)


def test_a_database_without_a_free_connection(lesson, db, monkeypatch):
    """A worker that loses its connections and gets no new ones says why, and waits."""
    orders(lesson, db, TASKS)
    role = f"test_full_{os.getpid()}"
    with db.connect(autocommit=True) as admin:
        admin.execute(f"create role {role} login connection limit 20")
        try:
            admin.execute(f"grant all on schema {db.schema} to {role}")
            admin.execute(f"grant all on all tables in schema {db.schema} to {role}")
            url = psycopg.conninfo.make_conninfo(os.environ.get("DATABASE_URL") or "", user=role)
            if not os.environ.get("DATABASE_URL"):
                info = psycopg.conninfo.conninfo_to_dict(db.conninfo)
                url = psycopg.conninfo.make_conninfo(
                    host=info["host"], port=info["port"], user=role, dbname="postgres"
                )
            full_house(lesson, db, admin, role, url, monkeypatch)
        finally:
            wait_until(lambda: not sessions(admin, role), "the worker's sessions have ended")
            admin.execute(f"drop owned by {role}")
            admin.execute(f"drop role {role}")


def full_house(lesson, db, admin, role, url, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("DATABASE_URL", url)
        worker = WorkerProcess(lesson.path, "w", "--slots", "4", "--lease", "5")
    try:
        wait_until(lambda: count(db, "succeeded") > 10, "it works")
        admin.execute(f"alter role {role} connection limit 0")
        admin.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where usename = %s", (role,)
        )
        wait_until(lambda: "too many connections" in worker.output(), "it is told why")
        assert worker.exit_status is None, worker.output()
        admin.execute(f"alter role {role} connection limit 20")
        wait_until(lambda: count(db, "succeeded") == TASKS, "all have succeeded")
    finally:
        assert worker.stop() == 0, worker.output()
    assert receipts(lesson).keys() == each_once(TASKS).keys()


def sessions(admin, role):
    return admin.execute(
        "select count(*) from pg_stat_activity where usename = %s", (role,)
    ).fetchone()[0]


def test_thirty_workers_that_start_at_once(lesson, own_server, tmp_path):
    """Each task is run once, and nobody is taken for dead. On a server that has room for them."""
    with open_database(lesson.path, reset=True) as db:
        tasks = orders(lesson, db, 300)
        options = ("--slots", "1", "--lease", f"{within(10)}")
        with Nursery(lesson.path) as nursery:
            pids = [
                nursery.worker(f"w{n}", own_server.url, tmp_path / f"w{n}.log", *options)
                for n in range(30)
            ]
            wait_until(lambda: count(db, "succeeded") == len(tasks), "all have succeeded", 60)
            assert all(is_alive(pid) for pid in pids)
        assert {task_row(db, id).attempt for id in tasks} == {1}
    assert receipts(lesson) == each_once(300)
