"""Lesson 03: a worker whose connections break goes on by itself, and keeps nobody waiting."""

import os
import signal
import threading
import time
from datetime import timedelta

import pytest

from shared.database import open_database
from shared.processes import wait_until, within, worker_processes
from shared.testing import wait_for_status, working
from tests.helpers import (
    ENDED,
    count,
    each_once,
    enqueue,
    enqueue_all,
    execute,
    has_ended,
    lease_runs_out,
    receipts,
    take_back,
    upkeep_rounds,
    wait_for_progress,
)

# A limit whose holder stands still


def test_a_worker_that_stands_still_in_its_claim_does_not_keep_the_limit(lesson, db, monkeypatch):
    with db.engine.begin() as connection:
        lesson.claim.limit_queue(connection, "default", 1)
    stands, goes_on = threading.Event(), threading.Event()
    count_running = lesson.queries.Querier.count_running

    def stand_still(self, **queue):
        if not stands.is_set():
            stands.set()
            assert goes_on.wait(within(60))
        return count_running(self, **queue)

    monkeypatch.setattr(lesson.queries.Querier, "count_running", stand_still)
    enqueue(lesson, db, "nothing")
    with working(lesson.worker.Worker(db, "slow")):
        assert stands.wait(within(20)), "it holds the lock on the limit"
        try:
            with working(lesson.worker.Worker(db, "quick")):
                wait_until(lambda: count(db, "succeeded") == 1, "the other one claims", seconds=15)
        finally:
            goes_on.set()
        enqueue(lesson, db, "nothing")
        wait_until(lambda: count(db, "succeeded") == 2, "and the first one has recovered")


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
    enqueue_all(lesson, db, "send_receipt", range(tasks), max_attempts=1000)
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
        sessions = "select from pg_stat_activity where application_name = %s"
        wait_until(lambda: saboteur.execute(sessions, (victim,)).rowcount == 0, "none is left")
    assert cuts >= 5, "the machine may be so busy that all is done before the twentieth"
    effects = receipts(lesson)
    assert effects.keys() == each_once(tasks).keys()
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
        released.wait(within(30))
        return "kept"

    id = enqueue(lesson, db, "hold")
    lease = timedelta(seconds=within(4))
    try:
        with working(lesson.worker.Worker(db, "w", slots=1, lease=lease)):
            assert runs.wait(within(20))
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


def test_a_worker_goes_on_when_its_server_restarts(lesson, own_server):
    """Immediate shutdown, a pause without any server, a new start; twice, under load."""
    tasks = 600
    with open_database(lesson.path, reset=True) as db:
        enqueue_all(lesson, db, "send_receipt", range(tasks), max_attempts=100)
        with worker_processes(lesson.path, "a", options=("--lease", "5")) as (worker,):
            for _ in range(2):
                wait_for_progress(db, tasks)
                restart(own_server)
            wait_until(lambda: count(db, "succeeded") == tasks, "all receipts are sent")
            assert worker.stop() == 0
            assert "must stop" not in worker.output()
        assert receipts(lesson).keys() == each_once(tasks).keys()
        assert execute(db, "select * from workers") == []


def test_a_worker_can_be_stopped_while_there_is_no_server(lesson, own_server):
    with open_database(lesson.path, reset=True) as db:
        id = enqueue(lesson, db, "work", within(0.5))
        with worker_processes(lesson.path, "a", options=("--grace", "2")) as (worker,):
            wait_for_status(db, id, "running")
            shut_down(own_server)
            worker.signal(signal.SIGTERM)
            assert has_ended(worker, 20) == 0, worker.output()
        with own_server.alone():
            own_server.start()
        lease_runs_out(db)
        assert take_back(lesson, db) == {id: "queued"}


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
