"""Lesson 07: a cancelled task ends at once and its children after it; nothing deadlocks."""

import logging
import random
import time
from datetime import timedelta

import pytest
from sqlalchemy.exc import OperationalError

from shared.processes import wait_until, within
from shared.testing import task_row, working
from tests.helpers import (
    ALL,
    ENDED,
    by_hand,
    claim_one,
    context,
    define,
    drop_workers,
    enqueue,
    execute,
    finish,
    hurry,
    in_threads,
    log_of,
    one_by_one,
    queries,
    several,
    spawn,
    statuses,
    suspended,
    upkeep_rounds,
)

# Cancel


def test_a_cancelled_task_takes_its_children_and_theirs_along(lesson, db):
    define(lesson)
    id = enqueue(lesson, db, "run_run_double", 1)
    for name in ("run_double", "double"):
        task = claim_one(lesson, db)
        with context(lesson, db, task) as ctx, pytest.raises(lesson.event_log.Suspended):
            ctx.run(getattr(define(lesson), name), 1)
    grandchild = claim_one(lesson, db)
    with queries(lesson, db) as queue:
        assert queue.cancel_task(id=id) == 1
        while list(queue.cancel_orphans(**ALL)):
            pass
    assert statuses(db) == {"cancelled": 3}
    assert finish(lesson, db, grandchild) == 0, "its result comes too late"
    assert statuses(db) == {"cancelled": 3}


def test_cancelling_orphans_waits_for_nobody(lesson, db):
    id, children = suspended(lesson, db, 3)
    with db.connect() as holder, queries(lesson, db) as queue:
        queue.cancel_task(id=id)
        holder.execute("select from tasks where id = %s for update", (children[0],))
        assert len(list(queue.cancel_orphans(**ALL))) == 2
        assert len(list(queue.cancel_orphans(**ALL))) == 0
        holder.rollback()
        assert len(list(queue.cancel_orphans(**ALL))) == 1


def test_a_worker_cancels_orphans_in_its_upkeep(lesson, db):
    id, _ = suspended(lesson, db, 3)
    execute(db, "insert into queue_limits values ('default', 0)")
    with queries(lesson, db) as queue:
        queue.cancel_task(id=id)
    with working(lesson.worker.Worker(db, "w")):
        wait_until(lambda: statuses(db) == {"cancelled": 4}, "all are cancelled")


def test_a_cancelled_task_that_runs_loses_its_writes(lesson, db):
    double = define(lesson).double
    id = enqueue(lesson, db, "run_double")
    task = claim_one(lesson, db, id)
    with context(lesson, db, task) as ctx, queries(lesson, db) as queue:
        queue.cancel_task(id=id)
        with pytest.raises(lesson.fence.LostTask):
            ctx.run(double, 1)
    assert statuses(db) == {"cancelled": 1}


@pytest.mark.parametrize("end", ENDED)
def test_what_has_ended_cannot_be_cancelled(lesson, db, end):
    define(lesson)
    id = enqueue(lesson, db, "double", 1)
    task = claim_one(lesson, db, id)
    with queries(lesson, db) as queue:
        if end == "succeeded":
            finish(lesson, db, task)
        elif end == "failed":
            queue.fail_task(id=id, attempt=1, error="E: no")
        else:
            queue.cancel_task(id=id)
        before = task_row(db, id)
        assert before.status == end
        assert queue.cancel_task(id=id) == 0
    assert task_row(db, id) == before


def test_a_parent_hears_that_its_child_was_cancelled(lesson, db):
    id, (child,) = suspended(lesson, db)
    with queries(lesson, db) as queue:
        assert queue.cancel_task(id=child) == 1
    (entry,) = log_of(db, id)
    assert (entry.error["type"], entry.completion) == ("Cancelled", 1)
    assert task_row(db, id).status == "queued"


# Locks


def test_the_orphans_of_a_task_that_somebody_holds_wait_and_nobody_else(lesson, db):
    """A psql that was left open with a lock on one parent's row."""
    families = [suspended(lesson, db, 2) for _ in range(3)]
    held, _ = families[0]
    for id, _ in families:
        by_hand(lesson, db, "cancel", id)
    with db.connect() as holder, queries(lesson, db) as queue:
        holder.execute("select from tasks where id = %s for update", (held,))
        for _ in range(2):
            lesson.upkeep.cancel_orphans(queue)
            left = execute(db, "select distinct parent_id from tasks where status = 'queued'")
            assert left == [(held,)]
        holder.rollback()
        lesson.upkeep.cancel_orphans(queue)
    assert statuses(db) == {"cancelled": 9}


@pytest.mark.parametrize("which", ["parent", "child"])
def test_a_row_that_somebody_holds_keeps_no_worker_from_anything_else(lesson, db, which):
    """Of a cancelled task, and of one whose child has died for good."""
    hurry(lesson, upkeep=0.05)
    rows = {}
    for kind in ("died", "cancelled"):
        for whose in ("held", "other"):
            id, (child,) = suspended(lesson, db)
            rows[kind, whose] = {"parent": id, "child": child}
            execute(db, "update tasks set max_attempts = 1 where id = %s", child)
            if kind == "died":
                claim_one(lesson, db, child)
            else:
                by_hand(lesson, db, "cancel", id)
    execute(db, "insert into queue_limits values ('default', 0)")
    drop_workers(db)

    def became():
        return {key: task_row(db, row["child"]).status for key, row in rows.items()}

    ends = {"cancelled": "cancelled", "died": "failed"}
    with db.connect() as holder, working(lesson.worker.Worker(db, "w")):
        ids = [rows[kind, "held"][which] for kind in ends]
        holder.execute("select from tasks where id = any (%s) for update", (ids,))
        others = [(kind, "other") for kind in ends]
        wait_until(lambda: [became()[key] for key in others] == [*ends.values()], "others end")
        upkeep_rounds(lesson, db, 3)
        assert became()["cancelled", "held"] == "queued"
        assert became()["died", "held"] == "running"
        holder.rollback()
        wait_until(lambda: became() == {key: ends[key[0]] for key in rows}, "all have ended")


def test_what_was_cancelled_long_ago_costs_nothing(lesson, db):
    """However many there are, and however many children are alive."""
    execute(
        db,
        "insert into tasks (name, input, status, attempt, parent_id, parent_position)"
        " select 'double', '1', case when n <= 3000 then 'cancelled' else 'queued' end, 1,"
        " case when n > 3000 then n - 2000 end, 1 from generate_series(1, 5000) as n",
    )
    execute(
        db, "update tasks set status = 'waiting', awaits = '{1}' where id between 1001 and 3000"
    )
    # Without statistics, the planner reads all of the table for each of the 1,000.
    execute(db, "analyze tasks")
    with queries(lesson, db) as queue:
        lesson.upkeep.cancel_orphans(queue)
        # Somebody else's snapshot may keep the old versions for a moment.
        wait_until(lambda: swept(lesson, db), "no row is looked at")
        id = suspended(lesson, db)[0]
        by_hand(lesson, db, "cancel", id)
        lesson.upkeep.cancel_orphans(queue)
    assert statuses(db)["cancelled"] == 1002


def swept(lesson, db):
    execute(db, "vacuum analyze tasks")
    return rows_read(lesson, db) == 0


def rows_read(lesson, db):
    """How many rows the two statements of `cancel_orphans` look at; rolled back."""
    with db.connect() as connection:
        connection.execute("set local track_counts = on")
        plans = [
            connection.execute(f"explain (analyze, format json) {text}").fetchone()[0][0]["Plan"]
            for text in (
                lesson.queries.CANCEL_ORPHANS.replace(":p1", "0").replace(":p2", "1000"),
                lesson.queries.MARK_SWEPT,
            )
        ]
        connection.rollback()

    def scanned(plan):
        own = plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)
        below = sum(scanned(child) for child in plan.get("Plans", []))
        return below + (own * plan["Actual Loops"] if "Scan" in plan["Node Type"] else 0)

    return sum(scanned(plan) for plan in plans)


def test_a_task_that_was_swept_is_swept_again_when_it_is_cancelled_again(lesson, db):
    id, (child,) = suspended(lesson, db)
    with queries(lesson, db) as queue:
        for _ in range(2):
            by_hand(lesson, db, "cancel", id)
            lesson.upkeep.cancel_orphans(queue)
            assert [task_row(db, one).status for one in (id, child)] == ["cancelled"] * 2
            assert task_row(db, id).swept
            by_hand(lesson, db, "retry", id)
            assert [task_row(db, one).status for one in (id, child)] == ["queued"] * 2


def test_a_task_that_was_swept_and_replayed_is_swept_again(lesson, db):
    id, _ = suspended(lesson, db)
    by_hand(lesson, db, "cancel", id)
    with queries(lesson, db) as queue:
        lesson.upkeep.cancel_orphans(queue)
        by_hand(lesson, db, "replay", id)
        child = spawn(queue, claim_one(lesson, db, id))
        by_hand(lesson, db, "cancel", id)
        lesson.upkeep.cancel_orphans(queue)
    assert task_row(db, child).status == "cancelled"


def test_a_task_is_not_swept_while_a_child_is_alive_that_was_passed_over(lesson, db):
    id, (child,) = suspended(lesson, db)
    by_hand(lesson, db, "cancel", id)
    with db.connect() as holder, queries(lesson, db) as queue:
        holder.execute("select from tasks where id = %s for update", (child,))
        lesson.upkeep.cancel_orphans(queue)
        assert not task_row(db, id).swept
        holder.rollback()
        lesson.upkeep.cancel_orphans(queue)
    assert task_row(db, id).swept
    assert task_row(db, child).status == "cancelled"


def test_nothing_deadlocks_while_everything_ends_at_once(lesson, db, caplog):
    """Trees of tasks, two workers, and people who cancel, retry, replay and kill without pause."""
    double, refuse = define(lesson).double, define(lesson).refuse

    @lesson.context.durable
    def tree(ctx, depth):
        children = [ctx.spawn(double, n) for n in range(3)]
        if depth:
            children += [ctx.spawn(tree, depth - 1, max_attempts=1) for _ in range(2)]
        ctx.spawn(refuse, 1)
        ctx.gather(*children)
        return depth

    hurry(lesson, upkeep=0.02, first_backoff=timedelta(seconds=0.01))
    for _ in range(6):
        enqueue(lesson, db, "tree", 2, max_attempts=50)
    end = time.monotonic() + 5
    caplog.set_level(logging.WARNING)
    deadlocks: list[str] = []
    most = 0

    def meddle(seed):
        nonlocal most
        dice = random.Random(seed)
        while time.monotonic() < end or (most <= 100 and time.monotonic() < end + within(60)):
            ((most,),) = execute(db, "select max(id) from tasks")
            try:
                with db.engine.begin() as connection:
                    action = dice.choice([cancel, retry, replay, kill, more])
                    action(connection, dice.randint(max(1, most - 60), most))
            except lesson.inputs.BadInput:
                pass
            except OperationalError as error:
                deadlocks.append(str(error))

    def cancel(connection, id):
        lesson.queries.Querier(connection).cancel_task(id=id)

    def kill(connection, _):
        connection.exec_driver_sql("delete from workers")

    def more(connection, _):
        lesson.tasks.enqueue(connection, "tree", 2, max_attempts=50)

    retry, replay = lesson.control.retry, lesson.control.replay
    a, b = (lesson.worker.Worker(db, name, slots=6) for name in "ab")
    live = "select id from tasks where status in ('queued', 'running', 'waiting')"
    with working(a), working(b):
        in_threads(*(lambda seed=seed: meddle(seed) for seed in range(4)))
        with queries(lesson, db) as queue:
            for (id,) in execute(db, f"{live} and parent_id is null order by id"):
                queue.cancel_task(id=id)
        wait_until(lambda: not execute(db, live), "everything has ended", 60)
    deadlocks += [r.getMessage() for r in caplog.records if "deadlock" in r.getMessage()]
    assert deadlocks == []
    assert execute(db, "select count(*) > 100 from tasks") == [(True,)]


@pytest.mark.parametrize("ended", ["succeeded", "failed"])
def test_what_lives_below_a_child_that_has_ended_is_cancelled_too(lesson, db, ended):
    """Three levels down, through two that ended by themselves; but nothing of another tree."""
    root, child, grandchild, living, other = several(lesson, db, 5)
    for parent, below in ((root, child), (child, grandchild), (grandchild, living)):
        execute(
            db, "update tasks set parent_id = %s, parent_position = 1 where id = %s", parent, below
        )
    execute(
        db,
        "update tasks set status = %s, attempt = 1, error = %s, output = %s where id = any (%s)",
        ended,
        "E: no" if ended == "failed" else None,
        "1" if ended == "succeeded" else None,
        [child, grandchild],
    )
    by_hand(lesson, db, "cancel", root)
    with queries(lesson, db) as queue:
        lesson.upkeep.cancel_orphans(queue)
    assert task_row(db, living).status == "cancelled"
    assert task_row(db, other).status == "queued"
    assert task_row(db, root).swept


def test_a_cancelled_task_is_not_swept_while_anything_below_it_is_alive(lesson, db):
    root, child, living = several(lesson, db, 3)
    execute(db, "update tasks set parent_id = id - 1, parent_position = 1 where id > %s", root)
    execute(db, "update tasks set status = 'failed', attempt = 1, error = 'E' where id = %s", child)
    by_hand(lesson, db, "cancel", root)
    with db.connect() as holder, queries(lesson, db) as queue:
        holder.execute("select from tasks where id = %s for update", (living,))
        lesson.upkeep.cancel_orphans(queue)
        assert not task_row(db, root).swept
        holder.rollback()
        lesson.upkeep.cancel_orphans(queue)
    assert task_row(db, living).status == "cancelled"


@one_by_one("verb", ["cancel", "retry", "replay"])
@one_by_one("id", ["7", None, 1.0, True, 0, 2**63])
def test_what_is_no_id_is_refused(lesson, db, verb, id):
    with pytest.raises(lesson.inputs.BadInput, match="a task's id is a whole number"):
        by_hand(lesson, db, verb, id)
