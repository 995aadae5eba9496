"""Lesson 08: an idle worker asks one question where there were six, and misses no answer."""

from collections import Counter
from datetime import timedelta

import pytest
import sqlalchemy as sa

from bench.growth import buffers, scans
from shared.processes import wait_until, working
from shared.testing import wait_for_status
from tests.helpers import (
    MINUTE,
    by_hand,
    claim,
    due_chores,
    enqueue,
    execute,
    hurry,
    lease_runs_out,
    queries,
    register,
    rests,
)


def due(lesson, db, worker_id=0):
    with queries(lesson, db) as queue:
        return due_chores(queue, worker_id)


def test_nothing_is_due(lesson, db):
    """What will be due later is not, and what runs well is left alone."""
    enqueue(lesson, db, timeout=MINUTE)
    enqueue(lesson, db, delay=MINUTE)
    claim(lesson, db, register(lesson, db))
    assert due(lesson, db) == []


def test_each_chore_that_has_something_to_do_is_named(lesson, db):
    me, other = register(lesson, db), register(lesson, db)
    enqueue(lesson, db, timeout=timedelta(0))
    claim(lesson, db, me)
    assert due(lesson, db) == ["take back"], "its run took too long"
    assert due(lesson, db, me) == ["give back", "take back"]
    assert due(lesson, db, other) == ["take back"]
    execute(db, "update tasks set timeout = null")
    assert due(lesson, db) == []
    lease_runs_out(db)
    assert due(lesson, db) == ["bury", "take back"], "both in one round"
    execute(db, "delete from workers")
    assert due(lesson, db) == ["take back"]
    execute(db, "delete from tasks")
    enqueue(lesson, db, delay=timedelta(0))
    assert due(lesson, db) == ["wake"]
    execute(db, "delete from tasks")
    by_hand(lesson, db, "cancel", enqueue(lesson, db))
    assert due(lesson, db) == ["cancel"]
    with queries(lesson, db) as queue:
        lesson.upkeep.cancel_orphans(queue)
    assert due(lesson, db) == []


def test_a_worker_whose_own_lease_has_run_out_is_not_for_itself_to_bury(lesson, db):
    me = register(lesson, db)
    lease_runs_out(db)
    assert due(lesson, db, me) == []


def test_an_idle_worker_asks_seldom(lesson, db):
    hurry(lesson, seldom=3.0)
    asked = Counter()

    def note(_connection, _cursor, statement, *_):
        asked[statement.split()[2]] += 1

    worker = lesson.worker.Worker(db, "w")
    with working(worker):
        rests(db, worker)
        sa.event.listen(db.autocommit, "before_cursor_execute", note)
        wait_until(lambda: asked["look_for_chores"] >= 5, "five rounds of upkeep")
        sa.event.remove(db.autocommit, "before_cursor_execute", note)
    assert asked["look_for_work"] <= 2, asked
    assert asked.keys() <= {"look_for_chores", "look_for_work", "heartbeat", "send_hint"}, asked


def test_a_look_that_is_refused_does_not_end_the_upkeep(lesson, db, monkeypatch):
    hurry(lesson, upkeep=0.05)
    real = lesson.queries.Querier.look_for_chores

    def refused(self, **values):
        self._conn.exec_driver_sql("select 1 / 0")
        yield from real(self, **values)

    monkeypatch.setattr(lesson.queries.Querier, "look_for_chores", refused)
    with working(lesson.worker.Worker(db, "w")):
        wait_for_status(db, enqueue(lesson, db, delay=timedelta(0)), "succeeded")


def test_of_two_chores_the_second_is_done_although_the_first_is_refused(lesson, db):
    """The first one in each round."""

    def refused(queries):
        queries._conn.exec_driver_sql("select 1 / 0")

    upkeep = lesson.upkeep.Upkeep({"bury": refused, "wake": lesson.upkeep.wake}, 0.05)
    id = enqueue(lesson, db, delay=timedelta(0))
    register(lesson, db, lease=timedelta(0))
    with queries(lesson, db) as queue:
        upkeep.next(queue, 0)
        assert upkeep.pause() == 0
        with pytest.raises(sa.exc.DBAPIError):
            upkeep.next(queue, 0)
        upkeep.next(queue, 0)
        assert upkeep.pause() > 0
    wait_for_status(db, id, "queued")


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
def test_the_look_reads_few_pages_in_a_big_table(lesson, db, mode):
    execute(
        db,
        "insert into tasks (name, input, status, output, run_at, attempt, error, swept)"
        " select 'nothing', 'null', status, case when status = 'succeeded' then json 'null' end,"
        " clock_timestamp() + interval '1 day', (status = 'succeeded')::int, null,"
        " status = 'cancelled' from generate_series(1, 20000),"
        " unnest(array['succeeded', 'waiting', 'queued', 'cancelled']) status",
    )
    execute(db, "vacuum analyze tasks")
    text = lesson.queries.LOOK_FOR_CHORES.replace(":p1", "$1").replace("\\:", ":")
    with db.connect() as connection:
        connection.execute(f"set plan_cache_mode = {mode}")
        connection.execute(f"prepare look (bigint) as {text}")
        plan = connection.execute("explain (analyze, buffers, format json) execute look(1)")
        plan = plan.fetchone()[0][0]["Plan"]
    read = [scan for scan in scans(plan) if scan.get("Relation Name") == "tasks"]
    assert "Seq Scan" not in {scan["Node Type"] for scan in read}
    assert buffers(plan) < 30
