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
    ENDED,
    claim_one,
    context,
    define,
    drop_workers,
    enqueue,
    execute,
    finish,
    hurry,
    in_threads,
    queries,
    statuses,
    suspended,
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
        while queue.cancel_orphans():
            pass
    assert statuses(db) == {"cancelled": 3}
    assert finish(lesson, db, grandchild) == 0, "its result comes too late"
    assert statuses(db) == {"cancelled": 3}


def test_cancelling_orphans_waits_for_nobody(lesson, db):
    id, children = suspended(lesson, db, 3)
    with db.connect() as holder, queries(lesson, db) as queue:
        queue.cancel_task(id=id)
        holder.execute("select from tasks where id = %s for update", (children[0],))
        assert queue.cancel_orphans() == 2
        assert queue.cancel_orphans() == 0
        holder.rollback()
        assert queue.cancel_orphans() == 1


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
            ctx.spawn(double, 1)
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


# Locks


def test_one_statement_ends_the_children_of_one_parent_only(lesson, db):
    """It holds their rows while it waits for the parents': two such statements could deadlock."""
    families = [suspended(lesson, db, 2) for _ in range(2)]
    children = [child for _, both in families for child in both]
    execute(db, "update tasks set max_attempts = 1 where id = any (%s)", children)
    for child in children:
        claim_one(lesson, db, child)
    drop_workers(db)
    with queries(lesson, db) as queue:
        assert list(queue.take_back_tasks()) == []
        for _ in children:
            assert len(list(queue.fail_lost_child())) == 1
        assert list(queue.fail_lost_child()) == []
        assert statuses(db) == {"failed": 4, "queued": 2}
        execute(db, "truncate tasks, event_log")
        families = [suspended(lesson, db, 2) for _ in range(2)]
        for id, _ in families:
            queue.cancel_task(id=id)
        assert queue.cancel_orphans() == 2
        left = [{task_row(db, child).status for child in both} for _, both in families]
        assert sorted(left, key=str) == [{"cancelled"}, {"queued"}]
        assert (queue.cancel_orphans(), queue.cancel_orphans()) == (2, 0)


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
