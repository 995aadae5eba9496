"""Lesson 03: a worker is alive for as long as it renews its lease, by the database's clock."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from shared.processes import wait_until, within
from shared.testing import task_row, wait_for_status, waiting_for_a_lock, working
from tests.helpers import (
    MINUTE,
    claim,
    do_chores,
    drop_workers,
    enqueue,
    execute,
    lease_of,
    lease_runs_out,
    one_by_one,
    queries,
    register,
    registered,
    status_of,
    submitted,
    take_back,
    upkeep_rounds,
)


def test_a_heartbeat_extends_the_lease(lesson, db):
    worker = register(lesson, db, lease=timedelta(seconds=30))
    lease_runs_out(db)
    with queries(lesson, db) as queue:
        assert queue.heartbeat(id=worker, lease=MINUTE) == 1
        assert list(queue.bury_workers(worker_id=0)) == []


def test_the_heartbeat_of_a_buried_worker_is_refused(lesson, db):
    worker = register(lesson, db, "slow")
    lease_runs_out(db)
    with queries(lesson, db) as queue:
        assert [dead.name for dead in queue.bury_workers(worker_id=0)] == ["slow"]
        assert queue.heartbeat(id=worker, lease=MINUTE) == 0
        assert list(queue.list_workers()) == []


def test_a_worker_that_has_slept_longer_than_its_lease_buries_others_and_not_itself(lesson, db):
    """It would take back, and run twice, what its own threads are at."""
    register(lesson, db, "dead")
    worker = registered(lesson, db)
    lease_runs_out(db)
    with queries(lesson, db) as queue:
        worker.lease.bury_others(queue)
        assert [alive.id for alive in queue.list_workers()] == [worker.lease.worker_id]


@pytest.mark.parametrize("first", ["heartbeat", "bury"])
def test_a_heartbeat_and_a_burial_at_the_same_moment(lesson, db, first):
    """Whoever has the row's lock first decides: alive or buried, and never both."""
    worker = register(lesson, db)
    lease_runs_out(db)

    def beat(queue):
        return queue.heartbeat(id=worker, lease=MINUTE)

    def bury(queue):
        return len(list(queue.bury_workers(worker_id=0)))

    def second():
        with queries(lesson, db) as queue:
            return (bury if first == "heartbeat" else beat)(queue)

    with db.engine.connect() as one, ThreadPoolExecutor(1) as thread:
        assert (beat if first == "heartbeat" else bury)(lesson.queries.Querier(one)) == 1
        other = submitted(db, thread, second)
        one.commit()
        assert other.result(timeout=within(20)) == 0
    assert execute(db, "select count(*) from workers")[0][0] == (first == "heartbeat")


def test_heartbeats_and_burials_in_many_rounds(lesson, db):
    """Real concurrency: what a heartbeat says, 1 or 0, is what has become of the worker."""
    together = threading.Barrier(2, timeout=within(30))
    ids = [register(lesson, db) for _ in range(200)]

    def burials():
        with queries(lesson, db) as queue:
            for _ in ids:
                together.wait()
                list(queue.bury_workers(worker_id=0))
                together.wait()

    said = {}
    with ThreadPoolExecutor(1) as thread, queries(lesson, db) as queue:
        other = thread.submit(burials)
        for id in ids:
            execute(db, "update workers set alive_until = '-infinity' where id = %s", id)
            together.wait()
            said[id] = queue.heartbeat(id=id, lease=MINUTE)
            together.wait()
        other.result(timeout=within(30))
    alive = {id for (id,) in execute(db, "select id from workers")}
    assert {id for id, changed in said.items() if changed == 1} == alive


def test_a_buried_worker_claims_nothing_until_it_registers_anew(lesson, db):
    """Else it would burn an attempt of every task in the queue: others take each back at once."""
    id = enqueue(lesson, db)
    worker = register(lesson, db)
    lease_runs_out(db)
    take_back(lesson, db)
    assert claim(lesson, db, worker) == []
    assert task_row(db, id).attempt == 0
    assert claim(lesson, db, register(lesson, db)) == [(id, 1)]


def test_the_heartbeat_waits_for_nothing_that_the_upkeep_waits_for(lesson, db):
    def lease():
        return execute(db, "select alive_until from workers where alive_until > clock_timestamp()")

    with working(lesson.worker.Worker(db, "w", lease=timedelta(seconds=1))):
        upkeep_rounds(lesson, db, 1)
        with db.connect() as holder:
            holder.execute("lock table tasks")
            wait_until(lambda: waiting_for_a_lock(db), "the upkeep waits")
            for _ in range(3):
                before = lease()
                wait_until(lambda before=before: lease() > before, "it is renewed", 5)


def test_a_worker_that_was_buried_registers_anew_and_goes_on(lesson, db):
    with working(lesson.worker.Worker(db, "w", lease=timedelta(seconds=2))):
        wait_until(lambda: execute(db, "select id from workers"), "it has registered")
        before = execute(db, "delete from workers returning id")
        id = enqueue(lesson, db, "divide", [6, 3])
        wait_for_status(db, id, "succeeded")
        assert execute(db, "select id from workers") > before
    assert execute(db, "select * from workers") == [], "and it has unregistered"


def test_a_clock_that_is_wrong_harms_nobody(lesson, db, monkeypatch):
    """A worker whose clock is an hour ahead does not take its neighbour for dead."""
    id = enqueue(lesson, db)
    neighbour = register(lesson, db, "neighbour")
    assert claim(lesson, db, neighbour) == [(id, 1)]
    later = enqueue(lesson, db, delay=MINUTE)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600)
    rounds = []

    @lesson.tasks.task
    def note(_):
        rounds.append(1)

    with working(lesson.worker.Worker(db, "ahead")):
        upkeep_rounds(lesson, db, 3)
        assert [row[0] for row in execute(db, "select name from workers order by id")] == [
            "neighbour",
            "ahead",
        ]
    assert (task_row(db, id).status, task_row(db, id).attempt) == ("running", 1)
    assert status_of(db, later) == "waiting"


def test_two_workers_may_have_one_name(lesson, db):
    first = enqueue(lesson, db)
    worker, other = register(lesson, db, "twin"), register(lesson, db, "twin")
    assert claim(lesson, db, worker) == [(first, 1)]
    execute(db, "update workers set alive_until = '-infinity' where id = %s", other)
    assert take_back(lesson, db) == {}
    assert task_row(db, first).worker_id == worker
    execute(db, "update workers set alive_until = '-infinity' where id = %s", worker)
    assert take_back(lesson, db) == {first: "queued"}


# The lease and the chores, without a worker


def test_a_lease_is_renewed_or_registered_anew(lesson, db):
    lease = lease_of(lesson)
    with queries(lesson, db) as queue:
        lease.register(queue)
        first = lease.worker_id
        lease_runs_out(db)
        lease.renew(queue)
        assert lease.worker_id == first
        assert list(queue.bury_workers(worker_id=0)) == []
        drop_workers(db)
        lease.renew(queue)
        assert [worker.id for worker in queue.list_workers()] == [lease.worker_id] != [first]


def test_a_lease_that_ends_leaves_no_row_and_gives_back_what_does_not_run(lesson, db):
    still_runs, refused = enqueue(lesson, db), enqueue(lesson, db)
    lease = lease_of(lesson)
    with queries(lesson, db) as queue:
        lease.register(queue)
        claim(lesson, db, lease.worker_id, at_most=2)
        lease.end(db, {(still_runs, 1)})
        assert list(queue.list_workers()) == []
    assert [status_of(db, id) for id in (still_runs, refused)] == ["running", "queued"]


def test_the_chores_wake_what_is_due_and_take_back_what_is_lost(lesson, db):
    lost = enqueue(lesson, db)
    claim(lesson, db, register(lesson, db))
    drop_workers(db)
    due = enqueue(lesson, db, delay=timedelta(0))
    with queries(lesson, db) as queue:
        do_chores(lesson, queue)
    assert [status_of(db, id) for id in (lost, due)] == ["queued", "queued"]


def test_a_loop_goes_on_after_an_error_of_the_database(lesson, db):
    ended, turns = threading.Event(), []

    def work(queue):
        turns.append(1)
        if len(turns) == 1:
            queue._conn.exec_driver_sql("select 1 / 0")
        ended.set()

    with db.autocommit.connect() as connection:
        lesson.connection.keep_doing(work, connection, lambda: 0, until=ended)
    assert len(turns) == 2


BAD_WORKERS = {
    "lease: none": ({"lease": None}, "lease is a timedelta from 0:00:00.01"),
    "lease: nothing": ({"lease": timedelta(0)}, "lease is a timedelta from 0:00:00.01"),
    "lease: negative": ({"lease": timedelta(-1)}, "lease is a timedelta"),
    "lease: a number": ({"lease": 10}, "lease is a timedelta"),
    "grace: none": ({"grace": None}, "grace is a timedelta from 0 to"),
    "name: none": ({"name": None}, "a worker is named with 1 to 100 printable characters"),
    "name: empty": ({"name": ""}, "a worker is named with 1 to 100 printable characters"),
    "name: NUL": ({"name": "a\0"}, "a worker is named with 1 to 100 printable characters"),
    "name: half a surrogate": ({"name": "\ud800"}, "a worker is named with 1 to 100 printable"),
    "name: too long": ({"name": "x" * 101}, "a worker is named with 1 to 100 printable characters"),
}


@one_by_one("bad", BAD_WORKERS)
def test_a_worker_that_could_not_live_is_refused(lesson, db, bad):
    options, why = BAD_WORKERS[bad]
    with pytest.raises(lesson.inputs.BadInput, match=why):
        lesson.worker.Worker(db, **{"name": "w", **options})
