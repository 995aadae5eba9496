"""Lesson 06: a task waits without a slot, and no wake-up is lost."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from shared.processes import wait_until, within
from shared.testing import task_row, wait_for_status, working
from tests.helpers import (
    ALL,
    ENDED,
    claim_one,
    context,
    define,
    drop_workers,
    enqueue,
    enqueue_all,
    execute,
    finish,
    in_threads,
    log_of,
    queries,
    spawned,
    statuses,
    submitted,
    suspend,
    suspended,
    take_back,
)

# Waiting and waking


def test_a_waiting_task_has_no_slot(lesson, db):
    """One slot is enough for three levels."""
    define(lesson)
    id = enqueue(lesson, db, "run_run_double", 21)
    with working(lesson.worker.Worker(db, "w", slots=1)):
        assert wait_for_status(db, id, "succeeded", "failed").output == 42
    assert task_row(db, id).attempt == 2


def test_a_child_that_ends_just_before_its_parent_suspends_is_not_missed(lesson, db):
    double = define(lesson).double
    id = enqueue(lesson, db, "run_double", 1)
    with context(lesson, db, claim_one(lesson, db)) as ctx:
        child = ctx.spawn(double, 1)
        spawned(ctx)
        # The run does not know of this end yet.
        assert finish(lesson, db, claim_one(lesson, db), "2") == 1
        with queries(lesson, db) as queue:
            nothing = suspend(queue, id)
        assert nothing == 0
        assert ctx.result(child) == 2
    assert task_row(db, id).status == "running"


def test_a_child_that_ends_just_after_its_parent_has_suspended_wakes_it(lesson, db):
    id, _ = suspended(lesson, db)
    assert task_row(db, id).status == "waiting"
    assert finish(lesson, db, claim_one(lesson, db)) == 1
    assert task_row(db, id).status == "queued"


@pytest.mark.parametrize("first", ["child", "parent"])
def test_of_an_end_and_a_suspension_at_the_same_moment_the_second_sees_the_first(lesson, db, first):
    """The first holds its transaction open; the second has begun, and waits for it."""
    double = define(lesson).double
    id = enqueue(lesson, db, "run_double", 1)
    with context(lesson, db, claim_one(lesson, db)) as ctx:
        ctx.spawn(double, 1)
    child = claim_one(lesson, db)
    results: dict[str, int] = {}

    def end(queue):
        results["child"] = queue.succeed_task(id=child.id, attempt=1, output="2")

    def wait(queue):
        results["parent"] = suspend(queue, id)

    one, two = (end, wait) if first == "child" else (wait, end)

    def do_second():
        with queries(lesson, db) as queue:
            two(queue)

    with db.engine.connect() as connection, ThreadPoolExecutor(1) as thread:
        one(lesson.queries.Querier(connection))
        second = submitted(db, thread, do_second)
        assert not second.done(), "it waits for the first"
        connection.commit()
        second.result(timeout=within(20))
    assert results["child"] == 1
    assert results["parent"] == (first == "parent")
    assert task_row(db, id).status == ("queued" if first == "parent" else "running")
    assert task_row(db, id).completions == 1


def test_two_children_that_end_at_the_same_moment_are_counted_one_after_the_other(lesson, db):
    id, _ = suspended(lesson, db, 2)
    one, two = claim_one(lesson, db), claim_one(lesson, db)
    with ThreadPoolExecutor(1) as thread, db.engine.connect() as connection:
        assert lesson.queries.Querier(connection).succeed_task(id=one.id, attempt=1, output="1")
        second = submitted(db, thread, finish, lesson, db, two)
        connection.commit()
        assert second.result(timeout=within(20)) == 1
    assert (task_row(db, id).completions, task_row(db, id).status) == (2, "queued")
    assert [entry.completion for entry in log_of(db, id)] == [1, 2]


def test_no_wake_up_is_lost_in_two_thousand_races(lesson, db):
    pairs = 2000
    execute(db, "insert into workers (name, alive_until) values ('w', now() + interval '1 h')")
    execute(
        db,
        "insert into tasks (name, input, status, attempt, worker_id, started_at)"
        " select 'p', '0', 'running', 1, 1, now() from generate_series(1, %s)",
        pairs,
    )
    execute(
        db,
        "insert into tasks (name, input, status, attempt, worker_id, started_at,"
        " parent_id, parent_position) select 'c', '0', 'running', 1, 1, now(), id, 1 from tasks",
    )
    execute(
        db,
        "insert into event_log (task_id, position, kind, name, input, child_id, attempt)"
        " select parent_id, 1, 'child', 'c', '0', id, 1 from tasks where name = 'c'",
    )
    ids = execute(db, "select parent_id, id from tasks where name = 'c' order by id")
    barrier = threading.Barrier(2, timeout=within(30))
    refused: list[int] = []

    def suspend_all():
        dice = random.Random(1)
        with queries(lesson, db) as queue:
            for parent, _ in ids:
                barrier.wait()
                spin(dice)
                if not suspend(queue, parent):
                    refused.append(parent)

    def end():
        dice = random.Random(2)
        with queries(lesson, db) as queue:
            for _, child in ids:
                barrier.wait()
                spin(dice)
                assert queue.succeed_task(id=child, attempt=1, output="1") == 1

    in_threads(suspend_all, end)
    rows = execute(db, "select id, status, completions from tasks where name = 'p'")
    assert {completions for *_, completions in rows} == {1}
    # Refused, it still runs and looks again. Not refused, it has been woken.
    assert {id for id, status, _ in rows if status == "running"} == set(refused)
    assert {status for _, status, _ in rows} <= {"running", "queued"}


def spin(dice):
    end = time.perf_counter() + dice.random() * 0.0005
    while time.perf_counter() < end:
        pass


def test_many_tiny_parents_and_children_on_many_slots_all_finish(lesson, db):
    double = define(lesson).double

    @lesson.context.durable
    def parent(ctx, n):
        total = sum(ctx.gather(*(ctx.spawn(double, i) for i in range(3))))
        return total + ctx.run(double, n)

    enqueue_all(lesson, db, "parent", range(150))
    a, b = (lesson.worker.Worker(db, name, slots=8) for name in "ab")
    with working(a), working(b):
        wait_until(lambda: set(statuses(db)) == {"succeeded"}, "all have finished", 60)
    outputs = execute(
        db, "select input::text::int, output::text::int from tasks where name = 'parent'"
    )
    assert all(output == 6 + 2 * n for n, output in outputs)


def test_a_gather_is_woken_once_and_not_for_each_child(lesson, db):
    id, children = suspended(lesson, db, 50)
    for n, child in enumerate(children):
        assert task_row(db, id).status == "waiting", f"after {n} of 50"
        assert finish(lesson, db, claim_one(lesson, db, child)) == 1
    row = task_row(db, id)
    assert (row.status, row.completions, row.attempt) == ("queued", 50, 1)


def test_as_completed_is_woken_by_the_first(lesson, db):
    double = define(lesson).double
    id = enqueue(lesson, db, "run_double")
    with context(lesson, db, claim_one(lesson, db)) as ctx:
        children = [ctx.spawn(double, n) for n in range(3)]
        with pytest.raises(lesson.event_log.Suspended):
            next(ctx.as_completed(*children))
    finish(lesson, db, claim_one(lesson, db))
    assert task_row(db, id).status == "queued"


def test_as_completed_gives_the_children_in_the_order_of_their_ends(lesson, db):
    """Also in a run in which all have ended when it asks."""
    double = define(lesson).double
    id, _ = suspended(lesson, db, 3)
    for task in reversed([claim_one(lesson, db) for _ in range(3)]):
        finish(lesson, db, task)
    with context(lesson, db, claim_one(lesson, db, id)) as ctx:
        children = [ctx.spawn(double, n) for n in range(3)]
        assert [child.position for child in ctx.as_completed(*children)] == [3, 2, 1]


def test_the_end_of_a_child_that_nobody_waits_for_wakes_nobody(lesson, db):
    double = define(lesson).double
    id = enqueue(lesson, db, "run_double")
    with context(lesson, db, claim_one(lesson, db)) as ctx:
        ctx.spawn(double, 1)
        awaited = ctx.spawn(double, 2)
        with pytest.raises(lesson.event_log.Suspended):
            ctx.result(awaited)
    finish(lesson, db, claim_one(lesson, db))
    assert task_row(db, id).status == "waiting"
    finish(lesson, db, claim_one(lesson, db))
    assert task_row(db, id).status == "queued"


def test_the_same_child_twice_counts_once(lesson, db):
    double = define(lesson).double

    @lesson.context.durable
    def twice(ctx, n):
        child = ctx.spawn(double, n)
        return [ctx.gather(child, child), [c.position for c in ctx.as_completed(child, child)]]

    id = enqueue(lesson, db, "twice", 4)
    with working(lesson.worker.Worker(db, "w")):
        assert wait_for_status(db, id, *ENDED).output == [[8, 8], [1]]


def test_waiting_for_nothing_does_not_wait(lesson, db):
    @lesson.context.durable
    def empty(ctx, _):
        return [ctx.gather(), list(ctx.as_completed())]

    id = enqueue(lesson, db, "empty")
    with working(lesson.worker.Worker(db, "w")):
        assert wait_for_status(db, id, *ENDED).output == [[], []]


def test_what_waits_for_children_is_not_woken_by_the_clock(lesson, db):
    """It was delayed once, and its run_at is long past."""
    define(lesson)
    id = enqueue(lesson, db, "run_double", 1, delay=timedelta(0))
    with queries(lesson, db) as queue:
        assert len(list(queue.wake_tasks(**ALL))) == 1
    task = claim_one(lesson, db, id)
    with context(lesson, db, task) as ctx, pytest.raises(lesson.event_log.Suspended):
        ctx.run(define(lesson).double, 1)
    with queries(lesson, db) as queue:
        assert list(queue.wake_tasks(**ALL)) == []
    assert task_row(db, id).status == "waiting"


def test_suspensions_do_not_use_up_attempts(lesson, db):
    double = define(lesson).double
    failures: list[int] = []

    @lesson.context.durable
    def patient(ctx, _):
        found = [ctx.run(double, n) for n in range(6)]
        if not failures:
            failures.append(1)
            raise ValueError("once")
        return found

    id = enqueue(lesson, db, "patient", max_attempts=2)
    with working(lesson.worker.Worker(db, "w")):
        row = wait_for_status(db, id, *ENDED)
    assert (row.status, row.output) == ("succeeded", [0, 2, 4, 6, 8, 10])
    assert row.attempt - row.uncounted == 2


def test_deaths_before_a_wait_do_not_count_after_it(lesson, db):
    """max_attempts bounds what goes wrong without progress, however long a task lives."""
    id, children = suspended(lesson, db, n=3)
    execute(db, "update tasks set max_attempts = 2 where id = %s", id)
    for waits, child in enumerate(children):
        finish(lesson, db, claim_one(lesson, db, child), str(2 * waits))
        if waits == len(children) - 1:
            break
        execute(db, "update tasks set status = 'queued' where id = %s", id)  # it may look sooner
        claim_one(lesson, db, id)
        drop_workers(db)
        assert take_back(lesson, db) == {id: "queued"}
        with context(lesson, db, claim_one(lesson, db, id)) as ctx:
            pending = [ctx.spawn(define(lesson).double, i) for i in range(3)]
            with pytest.raises(lesson.event_log.Suspended):
                ctx.gather(*pending)
    assert claim_one(lesson, db, id).max_attempts == 2


def test_a_death_after_suspensions_is_not_the_last_attempt(lesson, db):
    id, (child,) = suspended(lesson, db)
    finish(lesson, db, claim_one(lesson, db, child), "0")
    execute(db, "update tasks set max_attempts = 1 where id = %s", id)
    assert claim_one(lesson, db, id).attempt == 2
    drop_workers(db)
    assert take_back(lesson, db) == {id: "failed"}  # attempt 2, but only 1 that counts
    id, (child,) = suspended(lesson, db)
    finish(lesson, db, claim_one(lesson, db, child), "0")
    execute(db, "update tasks set max_attempts = 2 where id = %s", id)
    claim_one(lesson, db, id)
    drop_workers(db)
    assert take_back(lesson, db) == {id: "queued"}


def test_a_step_that_failed_before_a_wait_is_not_tried_again_after_it(lesson, db):
    """The function has gone on from the failure, and waits because of it."""
    double = define(lesson).double
    tries: list[str] = []

    def fails(key):
        tries.append(key)
        raise ValueError("no")

    @lesson.context.durable
    def cautious(ctx, n):
        child = ctx.spawn(double, n)
        try:
            ctx.step(fails)
        except lesson.errors.StepError:
            return ctx.result(child)

    id = enqueue(lesson, db, "cautious", 3)
    with working(lesson.worker.Worker(db, "w", slots=1)):
        assert wait_for_status(db, id, *ENDED).output == 6
    assert len(tries) == 1


# Cancel


def test_a_child_that_ends_after_its_parent_harms_nothing(lesson, db):
    double = define(lesson).double
    id = enqueue(lesson, db, "run_double")
    task = claim_one(lesson, db, id)
    with context(lesson, db, task) as ctx:
        ctx.spawn(double, 1)
    finish(lesson, db, task, '"done"')
    child = claim_one(lesson, db)
    assert finish(lesson, db, child, "2") == 1
    row = task_row(db, id)
    assert (row.status, row.output) == ("succeeded", "done")
    execute(db, "delete from tasks where id = %s", id)  # nor does one without a parent
    execute(db, "update tasks set status = 'running', output = null where id = %s", child.id)
    assert finish(lesson, db, child, "3") == 1
