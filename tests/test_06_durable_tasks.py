"""Lesson 06: durable tasks that spawn tasks, wait without a slot, and survive a kill anywhere."""

import json
import logging
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from shared.processes import WorkerProcess, wait_until, worker_processes
from shared.testing import task_row, wait_for_status, waiting_for_a_lock, working

MINUTE = timedelta(minutes=1)
ENDED = ("succeeded", "failed", "cancelled")
WAITING = int(os.environ.get("WAITING", "10000"))  # how many durable tasks wait at once


def enqueue(lesson, db, name, input=None, **options):
    with db.autocommit.connect() as connection:
        return lesson.tasks.enqueue(connection, name, input, **options)


def execute(db, statement, *parameters):
    """One statement, committed; its rows, if it returns any."""
    with db.connect(autocommit=True) as connection:
        cursor = connection.execute(statement, parameters)
        return cursor.fetchall() if cursor.description else []


def statuses(db):
    return Counter(status for (status,) in execute(db, "select status from tasks"))


def only(db, name):
    """The id of the only task of this name."""
    ((id,),) = execute(db, "select id from tasks where name = %s", name)
    return id


def log_of(db, id):
    return execute(
        db,
        "select position, kind, name, output, error, completion from event_log"
        " where task_id = %s order by position",
        id,
    )


@contextmanager
def queries(lesson, db):
    with db.autocommit.connect() as connection:
        # What should not wait, and waits, fails instead of hanging for ever.
        connection.exec_driver_sql("set statement_timeout = '5s'")
        yield lesson.queries.Querier(connection)


def claim(lesson, db, id=None):
    """Claim the next task, as a worker that never loses its lease."""
    with queries(lesson, db) as queue:
        worker = queue.register_worker(name="w", lease=MINUTE)
        (task,) = queue.claim_tasks(worker_id=worker, queue="default", at_most=1, limited=False)
        assert id in (None, task.id)
        return task


@contextmanager
def context(lesson, db, task):
    with queries(lesson, db) as queue:
        yield lesson.durable.Context(queue, task, lambda statement: statement())


def finish(lesson, db, task, output="null"):
    with queries(lesson, db) as queue:
        return queue.succeed_task(id=task.id, attempt=task.attempt, output=output)


def drop_workers(db):
    """All workers are dead, by this database's word."""
    execute(db, "delete from workers")


def take_back(lesson, db):
    with queries(lesson, db) as queue:
        taken = list(queue.take_back_tasks())
        while failed := list(queue.fail_lost_child()):
            taken += failed
        return {task.id: task.status for task in taken}


def define(lesson):
    """The tasks of these tests."""
    durable, tasks = lesson.durable, lesson.tasks

    @tasks.task
    def double(n):
        return 2 * n

    @tasks.task
    def refuse(_):
        raise tasks.NonRetryableError("out of stock")

    @durable.durable
    def run_double(ctx, n):
        return ctx.run(double, n)

    @durable.durable
    def run_run_double(ctx, n):
        return ctx.run(run_double, n)

    return double, refuse, run_double, run_run_double


def suspended(lesson, db, n=1):
    """A task that waits for n children of its own; its id, and theirs."""
    double = lesson.tasks.registry.get("double") or define(lesson)[0]
    id = enqueue(lesson, db, "run_double", 1, priority=1)
    with context(lesson, db, claim(lesson, db, id)) as ctx:
        children = [ctx.spawn(double, i) for i in range(n)]
        with pytest.raises(lesson.durable.Suspended):
            ctx.gather(*children)
    rows = execute(db, "select id from tasks where parent_id = %s order by id", id)
    return id, [child for (child,) in rows]


# Kill -9, everywhere


OPTIONS = ("--slots", "1", "--lease", "1")


@contextmanager
def immortal(path, workers=3):
    """Worker processes that are started again when they die. Yields a function to call often."""
    names = [f"w{n}" for n in range(workers)]
    herd = {name: WorkerProcess(path, name, *OPTIONS) for name in names}

    def look_after():
        for name, process in herd.items():
            if process.exit_status is not None:
                herd[name] = WorkerProcess(path, name, *OPTIONS)
        return True

    try:
        yield look_after
    finally:
        for process in herd.values():
            process.kill()


def finish_all(db, path, ids, workers=3, seconds=60):
    with immortal(path, workers) as look_after:
        wait_until(
            lambda: look_after() and all(task_row(db, id).status in ENDED for id in ids),
            "all have ended, whoever was killed",
            seconds,
        )


EFFECTS = ("card charged", "book reserved", "pen reserved", "confirmation sent")


def test_an_order_survives_a_kill_at_every_step_on_both_sides_of_the_effect(lesson, db):
    points = [f"{when}: {effect}" for effect in EFFECTS for when in ("before", "after")]
    orders = [
        {"id": n, "items": ["book", "pen"], "die_at": point} for n, point in enumerate(points)
    ]
    ids = [enqueue(lesson, db, "fulfil", order) for order in orders]
    finish_all(db, lesson.path, ids)
    effects = lesson.app.outside.effects()
    assert sum("the worker dies" in line for line in effects) == len(points)
    for id, order in zip(ids, orders, strict=True):
        row = task_row(db, id)
        assert (row.status, row.output) == (
            "succeeded",
            "card charged; book reserved, pen reserved",
        )
        for effect in EFFECTS:
            lines = [
                line for line in effects if line.startswith(f"order {order['id']}: {effect}, ")
            ]
            # One key: whoever charges the card can tell that it is the same charge. Twice only in
            # the gap between doing and recording.
            assert len(set(lines)) == 1, lines
            assert len(lines) == (2 if order["die_at"] == f"after: {effect}" else 1)
        kinds = [(position, name) for position, _, name, *_ in log_of(db, id)]
        assert kinds == [
            (1, "charge_card"),
            (2, "reserve"),
            (3, "reserve"),
            (4, "send_confirmation"),
        ]


NESTED = """

@durable
def top(ctx: Context, order: Order) -> list[str]:
    ctx.step(act, order, "top begins")
    children = [ctx.spawn(middle, {**order, "n": n}) for n in (1, 2)]
    found = ctx.gather(*children)
    ctx.step(act, order, "top ends")
    return found

@durable
def middle(ctx: Context, order: Order) -> str:
    ctx.step(act, order, f"middle {order['n']} begins")
    found = ctx.run(bottom, order)
    ctx.step(act, order, f"middle {order['n']} ends")
    return f"middle of {found}"

@durable
def bottom(ctx: Context, order: Order) -> str:
    ctx.step(act, order, f"bottom {order['n']} begins")
    return ctx.step(act, order, f"bottom {order['n']} ends")

def act(key: str, order: Order, what: str) -> str:
    return effect(key, what, order)

@durable
def fifty(ctx: Context, order: Order) -> list[int]:
    run = os.urandom(4).hex()
    children = [ctx.spawn(nap, [n, (n * 7) % 10 / 200]) for n in range(50)]
    seen: list[int] = []
    for child in ctx.as_completed(*children):
        seen.append(ctx.result(child))
        outside.record(f"run {run} saw {seen[-1]}")
        if len(seen) in (7, 31):
            ctx.step(act, order, f"{len(seen)} seen")
    ctx.step(act, order, "all seen")
    return seen

@task
def nap(input: list[float]) -> int:
    time.sleep(input[1])
    return int(input[0])
"""


def copy_of(lesson, tmp_path, code):
    """A copy of the lesson with more tasks in its app.py."""
    path = tmp_path / lesson.path.name
    shutil.copytree(lesson.path, path, ignore=shutil.ignore_patterns("__pycache__", "outside.log"))
    with (path / "app.py").open("a") as app:
        app.write(code)
    return path


def test_durable_tasks_three_deep_survive_kills_at_every_depth(lesson, db, tmp_path):
    path = copy_of(lesson, tmp_path, NESTED)
    lesson.tasks.registry |= {"top": None}
    points = ["before: top begins", "after: middle 1 begins", "before: bottom 2 begins"]
    points += ["after: bottom 1 ends", "before: middle 2 ends", "after: top ends"]
    ids = [enqueue(lesson, db, "top", {"id": n, "die_at": point}) for n, point in enumerate(points)]
    finish_all(db, path, ids)
    effects = lesson.app.outside.effects()
    assert sum("the worker dies" in line for line in effects) == len(points)
    for n, id in enumerate(ids):
        row = task_row(db, id)
        assert row.status == "succeeded", row.error
        assert row.output == ["middle of bottom 1 ends", "middle of bottom 2 ends"]
        lines = [line for line in effects if line.startswith(f"order {n}: ") and ", key" in line]
        assert len(set(lines)) == 10
        assert len(lines) == 10 + points[n].startswith("after")
    assert statuses(db) == {"succeeded": 5 * len(points)}


def test_fifty_children_are_seen_in_the_same_order_in_every_run(lesson, db, tmp_path):
    path = copy_of(lesson, tmp_path, NESTED)
    lesson.tasks.registry |= {"fifty": None}
    id = enqueue(lesson, db, "fifty", {"id": 1, "die_at": "before: all seen"})
    with worker_processes(path, "a", options=("--slots", "10", "--lease", "1")) as (worker,):
        wait_until(lambda: worker.exit_status is not None, "it has been killed")
    assert task_row(db, id).status == "running"
    with worker_processes(path, "b", options=("--slots", "10", "--lease", "1")):
        order = wait_for_status(db, id, "succeeded").output
    assert sorted(order) == list(range(50))
    assert order != sorted(order), "they should not have ended in the order of the spawns"
    runs: dict[str, list[int]] = {}
    for line in lesson.app.outside.effects():
        if line.startswith("run "):
            _, run, _, child = line.split()
            runs.setdefault(run, []).append(int(child))
    assert len(runs) >= 2
    assert sum(seen == order for seen in runs.values()) >= 2, "one that was killed, one that ended"
    for seen in runs.values():
        assert seen == order[: len(seen)]


# Waiting and waking


def test_a_waiting_task_has_no_slot(lesson, db):
    """One slot is enough for three levels."""
    define(lesson)
    id = enqueue(lesson, db, "run_run_double", 21)
    with working(lesson.worker.Worker(db, "w", slots=1)):
        assert wait_for_status(db, id, "succeeded", "failed").output == 42
    assert task_row(db, id).attempt == 2


def test_a_child_that_ends_just_before_its_parent_suspends_is_not_missed(lesson, db):
    double, *_ = define(lesson)
    id = enqueue(lesson, db, "run_double", 1)
    with context(lesson, db, claim(lesson, db)) as ctx:
        child = ctx.spawn(double, 1)
        # The run does not know of this end yet.
        assert finish(lesson, db, claim(lesson, db), "2") == 1
        with queries(lesson, db) as queue:
            nothing = queue.suspend_task(id=id, attempt=1, completions=0, awaits=[1], wake_after=1)
        assert nothing == 0
        assert ctx.result(child) == 2
    assert task_row(db, id).status == "running"


def test_a_child_that_ends_just_after_its_parent_has_suspended_wakes_it(lesson, db):
    id, _ = suspended(lesson, db)
    assert task_row(db, id).status == "waiting"
    assert finish(lesson, db, claim(lesson, db)) == 1
    assert task_row(db, id).status == "queued"


@pytest.mark.parametrize("first", ["child", "parent"])
def test_of_an_end_and_a_suspension_at_the_same_moment_the_second_sees_the_first(lesson, db, first):
    """The first holds its transaction open; the second has begun, and waits for it."""
    double, *_ = define(lesson)
    id = enqueue(lesson, db, "run_double", 1)
    with context(lesson, db, claim(lesson, db)) as ctx:
        ctx.spawn(double, 1)
    child = claim(lesson, db)
    results: dict[str, int] = {}

    def end(queue):
        results["child"] = queue.succeed_task(id=child.id, attempt=1, output="2")

    def suspend(queue):
        results["parent"] = queue.suspend_task(
            id=id, attempt=1, completions=0, awaits=[1], wake_after=1
        )

    one, two = (end, suspend) if first == "child" else (suspend, end)

    def do_second():
        with queries(lesson, db) as queue:
            two(queue)

    with db.engine.connect() as connection:
        one(lesson.queries.Querier(connection))
        thread = threading.Thread(target=do_second)
        thread.start()
        wait_until(lambda: waiting_for_a_lock(db), "the second waits for the first")
        connection.commit()
        thread.join()
    assert results["child"] == 1
    assert results["parent"] == (first == "parent")
    assert task_row(db, id).status == ("queued" if first == "parent" else "running")
    assert task_row(db, id).completions == 1


def test_two_children_that_end_at_the_same_moment_are_counted_one_after_the_other(lesson, db):
    id, _ = suspended(lesson, db, 2)
    one, two = claim(lesson, db), claim(lesson, db)
    with ThreadPoolExecutor(1) as thread, db.engine.connect() as connection:
        assert lesson.queries.Querier(connection).succeed_task(id=one.id, attempt=1, output="1")
        second = thread.submit(finish, lesson, db, two)
        wait_until(lambda: second.done() or waiting_for_a_lock(db), "the second end is there")
        connection.commit()
        assert second.result(timeout=20) == 1
    assert (task_row(db, id).completions, task_row(db, id).status) == (2, "queued")
    assert [completion for *_, completion in log_of(db, id)] == [1, 2]


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
    barrier = threading.Barrier(2, timeout=30)
    refused: list[int] = []

    def suspend():
        dice = random.Random(1)
        with queries(lesson, db) as queue:
            for parent, _ in ids:
                barrier.wait()
                spin(dice)
                if not queue.suspend_task(
                    id=parent, attempt=1, completions=0, awaits=[1], wake_after=1
                ):
                    refused.append(parent)

    def end():
        dice = random.Random(2)
        with queries(lesson, db) as queue:
            for _, child in ids:
                barrier.wait()
                spin(dice)
                assert queue.succeed_task(id=child, attempt=1, output="1") == 1

    in_threads(suspend, end)
    rows = execute(db, "select id, status, completions from tasks where name = 'p'")
    assert {completions for *_, completions in rows} == {1}
    # Refused, it still runs and looks again. Not refused, it has been woken.
    assert {id for id, status, _ in rows if status == "running"} == set(refused)
    assert {status for _, status, _ in rows} <= {"running", "queued"}


def spin(dice):
    end = time.perf_counter() + dice.random() * 0.0005
    while time.perf_counter() < end:
        pass


def in_threads(*functions):
    errors: list[BaseException] = []

    def guarded(function):
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors


def test_many_tiny_parents_and_children_on_many_slots_all_finish(lesson, db):
    double, *_ = define(lesson)

    @lesson.durable.durable
    def parent(ctx, n):
        total = sum(ctx.gather(*(ctx.spawn(double, i) for i in range(3))))
        return total + ctx.run(double, n)

    with db.engine.begin() as connection:
        for n in range(150):
            lesson.tasks.enqueue(connection, "parent", n)
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
        assert finish(lesson, db, claim(lesson, db, child)) == 1
    row = task_row(db, id)
    assert (row.status, row.completions, row.attempt) == ("queued", 50, 1)


def test_as_completed_is_woken_by_the_first(lesson, db):
    double, *_ = define(lesson)
    id = enqueue(lesson, db, "run_double")
    with context(lesson, db, claim(lesson, db)) as ctx:
        children = [ctx.spawn(double, n) for n in range(3)]
        with pytest.raises(lesson.durable.Suspended):
            next(ctx.as_completed(*children))
    finish(lesson, db, claim(lesson, db))
    assert task_row(db, id).status == "queued"


def test_as_completed_gives_the_children_in_the_order_of_their_ends(lesson, db):
    """Also in a run in which all have ended when it asks."""
    double = define(lesson)[0]
    id, _ = suspended(lesson, db, 3)
    for task in reversed([claim(lesson, db) for _ in range(3)]):
        finish(lesson, db, task)
    with context(lesson, db, claim(lesson, db, id)) as ctx:
        children = [ctx.spawn(double, n) for n in range(3)]
        assert [child.position for child in ctx.as_completed(*children)] == [3, 2, 1]


def test_the_end_of_a_child_that_nobody_waits_for_wakes_nobody(lesson, db):
    double, *_ = define(lesson)
    id = enqueue(lesson, db, "run_double")
    with context(lesson, db, claim(lesson, db)) as ctx:
        ctx.spawn(double, 1)
        awaited = ctx.spawn(double, 2)
        with pytest.raises(lesson.durable.Suspended):
            ctx.result(awaited)
    finish(lesson, db, claim(lesson, db))
    assert task_row(db, id).status == "waiting"
    finish(lesson, db, claim(lesson, db))
    assert task_row(db, id).status == "queued"


def test_the_same_child_twice_counts_once(lesson, db):
    double, *_ = define(lesson)

    @lesson.durable.durable
    def twice(ctx, n):
        child = ctx.spawn(double, n)
        return [ctx.gather(child, child), [c.position for c in ctx.as_completed(child, child)]]

    id = enqueue(lesson, db, "twice", 4)
    with working(lesson.worker.Worker(db, "w")):
        assert wait_for_status(db, id, *ENDED).output == [[8, 8], [1]]


def test_waiting_for_nothing_does_not_wait(lesson, db):
    @lesson.durable.durable
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
        assert queue.wake_tasks() == 1
    task = claim(lesson, db, id)
    with context(lesson, db, task) as ctx, pytest.raises(lesson.durable.Suspended):
        ctx.run(lesson.tasks.registry["double"], 1)
    with queries(lesson, db) as queue:
        assert queue.wake_tasks() == 0
    assert task_row(db, id).status == "waiting"


def test_suspensions_do_not_use_up_attempts(lesson, db):
    double, *_ = define(lesson)
    failures: list[int] = []

    @lesson.durable.durable
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
    assert row.attempt - row.suspensions == 2


def test_a_death_after_suspensions_is_not_the_last_attempt(lesson, db):
    id, (child,) = suspended(lesson, db)
    finish(lesson, db, claim(lesson, db, child), "0")
    execute(db, "update tasks set max_attempts = 1 where id = %s", id)
    assert claim(lesson, db, id).attempt == 2
    drop_workers(db)
    assert take_back(lesson, db) == {id: "failed"}  # attempt 2, but only 1 that counts
    id, (child,) = suspended(lesson, db)
    finish(lesson, db, claim(lesson, db, child), "0")
    execute(db, "update tasks set max_attempts = 2 where id = %s", id)
    claim(lesson, db, id)
    drop_workers(db)
    assert take_back(lesson, db) == {id: "queued"}


def test_a_step_that_failed_before_a_wait_is_not_tried_again_after_it(lesson, db):
    """The function has gone on from the failure, and waits because of it."""
    double, *_ = define(lesson)
    tries: list[str] = []

    def fails(key):
        tries.append(key)
        raise ValueError("no")

    @lesson.durable.durable
    def cautious(ctx, n):
        child = ctx.spawn(double, n)
        try:
            ctx.step(fails)
        except lesson.durable.StepError:
            return ctx.result(child)

    id = enqueue(lesson, db, "cautious", 3)
    with working(lesson.worker.Worker(db, "w", slots=1)):
        assert wait_for_status(db, id, *ENDED).output == 6
    assert len(tries) == 1


# Suspended is no Exception


def test_except_exception_does_not_swallow_a_suspension(lesson, db):
    double, *_ = define(lesson)
    swallowed: list[str] = []

    @lesson.durable.durable
    def careless(ctx, n):
        try:
            return ctx.run(double, n)
        except Exception as error:
            swallowed.append(repr(error))
            return "wrong"

    id = enqueue(lesson, db, "careless", 4)
    with working(lesson.worker.Worker(db, "w", slots=1)):
        row = wait_for_status(db, id, *ENDED)
    assert swallowed == []
    assert (row.status, row.output) == ("succeeded", 8)


def test_a_bare_except_does_not_keep_a_run_alive(lesson, db):
    double, *_ = define(lesson)
    swallowed: list[int] = []
    keys: list[str] = []

    @lesson.durable.durable
    def careless(ctx, n):
        try:
            return ctx.run(double, n)
        except:  # noqa: E722
            swallowed.append(n)
        ctx.step(keys.append)
        return "wrong"

    id = enqueue(lesson, db, "careless", 4)
    with working(lesson.worker.Worker(db, "w", slots=1)):
        row = wait_for_status(db, id, *ENDED)
    assert (swallowed, keys) == ([4], [])
    assert (row.status, row.output) == ("succeeded", 8)


def test_an_error_after_a_swallowed_suspension_changes_nothing(lesson, db):
    double, *_ = define(lesson)

    @lesson.durable.durable
    def careless(ctx, n):
        try:
            return ctx.run(double, n)
        except BaseException:
            raise ValueError("never seen") from None

    id = enqueue(lesson, db, "careless", 4)
    with working(lesson.worker.Worker(db, "w", slots=1)):
        row = wait_for_status(db, id, *ENDED)
    assert (row.status, row.output, row.error) == ("succeeded", 8, None)


def test_a_step_cannot_spawn_or_wait(lesson, db):
    double, *_ = define(lesson)

    @lesson.durable.durable
    def confused(ctx, how):
        child = ctx.spawn(double, 1)
        what = {"spawn": lambda _: ctx.spawn(double, 1), "wait": lambda _: ctx.result(child)}[how]
        ctx.step(what)

    ids = [enqueue(lesson, db, "confused", how) for how in ("spawn", "wait")]
    with working(lesson.worker.Worker(db, "w")):
        for id in ids:
            row = wait_for_status(db, id, *ENDED)
            assert row.status == "failed"
            assert "StepInStep" in row.error


# Children that fail


def test_a_childs_final_failure_is_raised_the_same_in_every_run(lesson, db):
    _, refuse, *_ = define(lesson)
    caught: list[tuple[str, str, str]] = []

    @lesson.durable.durable
    def handles(ctx, _):
        try:
            ctx.run(refuse, 1)
        except lesson.durable.ChildError as error:
            caught.append((error.step, error.type, str(error)))
        if len(caught) < 3:
            raise ValueError("run again")
        return "handled"

    lesson.worker.FIRST_BACKOFF = timedelta(seconds=0.01)
    id = enqueue(lesson, db, "handles")
    with working(lesson.worker.Worker(db, "w")):
        assert wait_for_status(db, id, *ENDED).output == "handled"
    expected = ("refuse", "NonRetryableError", "refuse: NonRetryableError: out of stock")
    assert caught == [expected] * 3
    assert statuses(db) == {"succeeded": 1, "failed": 1}, "the child ran once"


def test_a_failure_that_is_not_caught_fails_the_parent_at_once(lesson, db):
    _, refuse, *_ = define(lesson)

    @lesson.durable.durable
    def trusts(ctx, _):
        return ctx.run(refuse, 1)

    id = enqueue(lesson, db, "trusts")
    with working(lesson.worker.Worker(db, "w")):
        row = wait_for_status(db, id, *ENDED)
    assert (row.status, row.attempt) == ("failed", 2)
    assert row.error == "ChildError: refuse: NonRetryableError: out of stock"


def test_gather_waits_for_all_and_raises_the_first_in_its_own_order(lesson, db):
    double, refuse, *_ = define(lesson)

    @lesson.tasks.task
    def refuse_late(_):
        time.sleep(0.1)
        raise lesson.tasks.NonRetryableError("late")

    @lesson.durable.durable
    def gathers(ctx, _):
        ctx.gather(ctx.spawn(double, 1), ctx.spawn(refuse_late, 1), ctx.spawn(refuse, 1))

    id = enqueue(lesson, db, "gathers")
    with working(lesson.worker.Worker(db, "w")):
        row = wait_for_status(db, id, *ENDED)
    assert row.error == "ChildError: refuse_late: NonRetryableError: late"
    assert row.completions == 3


@pytest.mark.parametrize("end", ["dies", "times out", "is cancelled"])
def test_a_parent_hears_how_its_child_ended_whoever_ended_it(lesson, db, end):
    id, (child,) = suspended(lesson, db)
    execute(db, "update tasks set max_attempts = 1 where id = %s", child)
    if end == "is cancelled":
        with queries(lesson, db) as queue:
            assert queue.cancel_task(id=child) == 1
    else:
        claim(lesson, db, child)
        if end == "dies":
            drop_workers(db)
        else:
            execute(db, "update tasks set timeout = '0' where id = %s", child)
        assert take_back(lesson, db) == {child: "failed"}
    kind = {"dies": "WorkerDied", "times out": "Timeout", "is cancelled": "Cancelled"}[end]
    for _ in range(2):
        with context(lesson, db, claim(lesson, db, id)) as ctx:
            with pytest.raises(lesson.durable.ChildError) as caught:
                ctx.run(lesson.tasks.registry["double"], 0)
            assert caught.value.type == kind
        drop_workers(db)
        take_back(lesson, db)


# The fence


def test_of_two_runs_of_one_task_only_one_can_write(lesson, db):
    double, *_ = define(lesson)
    id = enqueue(lesson, db, "run_double", 1, max_attempts=9)
    old = claim(lesson, db, id)
    with ExitStack() as stack:
        # A run that has been refused refuses by itself from then on: one for each write.
        zombies = [stack.enter_context(context(lesson, db, old)) for _ in range(6)]
        for waits in zombies[2::3]:
            child_of_old = waits.spawn(double, 0)
        drop_workers(db)
        assert take_back(lesson, db) == {id: "queued"}
        for running in (False, True):
            if running:
                new = claim(lesson, db, id)
            before = task_row(db, id), log_of(db, id), statuses(db)
            does, spawns, waits = zombies[:3] if running else zombies[3:]
            for write in (
                lambda does=does: does.step(str),
                lambda spawns=spawns: spawns.spawn(double, 1),
                lambda waits=waits: waits.result(child_of_old),
            ):
                with pytest.raises(lesson.durable.LostTask):
                    write()
            assert finish(lesson, db, old) == 0
            assert (task_row(db, id), log_of(db, id), statuses(db)) == before
    with context(lesson, db, new) as ctx:
        child = ctx.spawn(double, 0)
        with pytest.raises(lesson.durable.Suspended):
            ctx.result(child)
    assert statuses(db) == {"waiting": 1, "queued": 1}


def test_two_worker_processes_with_the_same_task_and_one_asleep(lesson, db, tmp_path):
    """SIGSTOP in the middle of a step, a second worker, SIGCONT: each effect counts once."""
    path = copy_of(
        lesson,
        tmp_path,
        """
@durable
def sleepy(ctx: Context, order: Order) -> str:
    ctx.step(act, order)
    return ctx.run(nap, order["id"])

def act(key: str, order: Order) -> str:
    outside.record(f"acts in {os.getpid()}")
    if len(outside.effects()) == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(1)  # another thread may take the signal, and this one stop a moment later
    return str(os.getpid())

@task
def nap(id: int) -> str:
    return "done"
""",
    )
    lesson.tasks.registry |= {"sleepy": None}
    id = enqueue(lesson, db, "sleepy", {"id": 1})
    with worker_processes(path, "a", options=OPTIONS) as (a,):
        wait_until(lambda: len(lesson.app.outside.effects()) == 1, "a sleeps in its step")
        with worker_processes(path, "b", options=OPTIONS) as (b,):
            assert wait_for_status(db, id, "succeeded").output == "done"
            before = task_row(db, id), log_of(db, id)
            a.resume()
            wait_until(lambda: "not in attempt 1 any more: void" in a.output(), "a was refused")
            assert (task_row(db, id), log_of(db, id)) == before
            assert log_of(db, id)[0][3] == str(b.pid)


@pytest.mark.parametrize("write", ["spawns", "settles"])
def test_a_write_waits_for_who_is_just_taking_the_task_away(lesson, db, write):
    """`exists (...)` would look at a snapshot in which the task is still ours, and write."""
    _, refuse, *_ = define(lesson)
    id = enqueue(lesson, db, "run_double", priority=1)
    task = claim(lesson, db, id)
    with context(lesson, db, task) as ctx:
        ctx.spawn(refuse, 1)
    with queries(lesson, db) as queue:
        failed = claim(lesson, db)
        assert queue.fail_task(id=failed.id, attempt=1, error="E: no") == 1
    before = log_of(db, id), statuses(db).total()
    with ThreadPoolExecutor(1) as thread, db.engine.connect() as connection:
        drop_workers(db)
        (lost,) = lesson.queries.Querier(connection).take_back_tasks()  # not committed yet
        assert lost.id == id

        def late_write():
            with queries(lesson, db) as queue:
                if write == "spawns":
                    return spawn(queue, task, position=2)
                return queue.settle_children(task_id=id, attempt=1, positions=[1])

        late = thread.submit(late_write)
        wait_until(lambda: late.done() or waiting_for_a_lock(db), "the write is there")
        connection.commit()
        assert not late.result(timeout=20)
    assert claim(lesson, db, id).attempt == 2
    assert not late_write(), "nor does it mistake the next attempt for its own"
    assert (log_of(db, id), statuses(db).total()) == before


SLOW_CLOCK = """
create function clock_timestamp() returns timestamptz language plpgsql as $$
begin
    perform pg_advisory_xact_lock_shared(hashtextextended('slow clock', 0));
    return pg_catalog.clock_timestamp();
end $$
"""


@pytest.mark.parametrize("meanwhile", ["retried by hand", "succeeded", "failed"])
def test_a_child_that_was_lost_when_looked_at_may_be_well_when_it_is_locked(lesson, db, meanwhile):
    """One looks, and is slow."""
    _, (with_timeout, lost) = suspended(lesson, db, 2)
    execute(db, "update tasks set max_attempts = 1, timeout = '1 h' where parent_id is not null")
    with queries(lesson, db) as queue:
        alive, dead = (queue.register_worker(name="w", lease=MINUTE) for _ in range(2))
        for worker, child in ((alive, with_timeout), (dead, lost)):
            (task,) = queue.claim_tasks(worker_id=worker, queue="default", at_most=1, limited=False)
            assert task.id == child
    execute(db, "delete from workers where id = %s", dead)
    execute(db, SLOW_CLOCK)  # in the tests' own schema

    def slow_taker():
        with db.engine.connect() as connection:
            connection.exec_driver_sql(
                "select set_config('search_path', current_schema() || ', pg_catalog', false)"
            )
            tasks = list(lesson.queries.Querier(connection).fail_lost_child())
            connection.commit()
            return [task.id for task in tasks]

    with ThreadPoolExecutor(1) as thread, db.connect(autocommit=True) as holder:
        holder.execute("select pg_advisory_lock(hashtextextended('slow clock', 0))")
        slow = thread.submit(slow_taker)
        wait_until(lambda: slow.done() or waiting_for_a_lock(db), "the slow one has looked")
        assert not slow.done()
        if meanwhile == "succeeded":
            assert finish(lesson, db, task) == 1
        elif meanwhile == "failed":
            with queries(lesson, db) as queue:
                assert queue.fail_task(id=lost, attempt=1, error="E: no") == 1
        else:
            assert take_back(lesson, db) == {lost: "failed"}
            with db.engine.begin() as connection:
                lesson.durable.retry(connection, lost)
            assert claim(lesson, db, lost).attempt == 2
        before = task_row(db, lost)
        holder.execute("select pg_advisory_unlock_all()")
        assert slow.result(timeout=20) == []
    assert task_row(db, lost) == before


# Spawn


def test_ids_grow_beyond_32_bits_also_in_the_log(lesson, db):
    define(lesson)
    for table in ("tasks", "workers"):
        execute(db, f"alter table {table} alter column id restart with {2**31}")
    id = enqueue(lesson, db, "run_run_double", 21)
    with working(lesson.worker.Worker(db, "w")):
        assert wait_for_status(db, id, *ENDED).output == 42
    assert id == 2**31


def test_a_child_and_its_entry_are_written_in_one_statement(lesson, db):
    """Whether the statement commits, rolls back, or is refused: never one without the other."""
    double, *_ = define(lesson)
    id = enqueue(lesson, db, "run_double")
    task = claim(lesson, db, id)
    statements: list[str] = []
    with db.engine.connect() as connection:
        sa.event.listen(
            connection, "before_cursor_execute", lambda *args: statements.append(args[2])
        )
        ctx = lesson.durable.Context(lesson.queries.Querier(connection), task, lambda s: s())
        ctx.spawn(double, 1)
        assert len(statements) == 1
        connection.rollback()  # what a killed worker's connection does
    assert (log_of(db, id), statuses(db)) == ([], {"running": 1})
    with context(lesson, db, task) as ctx:
        ctx.spawn(double, 1)
    assert [entry[2] for entry in log_of(db, id)] == ["double"]
    assert statuses(db) == {"running": 1, "queued": 1}


def spawn(queue, task, position=1):
    return queue.spawn_child(
        task_id=task.id,
        attempt=task.attempt,
        position=position,
        queue="default",
        name="double",
        input="1",
        priority=0,
        max_attempts=5,
        timeout=None,
    )


@pytest.mark.parametrize("ended", [False, True])
def test_a_spawn_whose_answer_was_lost_is_sent_again_and_spawns_nothing(lesson, db, ended):
    define(lesson)
    id = enqueue(lesson, db, "run_double")
    task = claim(lesson, db, id)
    with queries(lesson, db) as queue:
        child = spawn(queue, task)
        if ended:
            finish(lesson, db, claim(lesson, db, child), "2")
        before = log_of(db, id)
        assert spawn(queue, task) == child
    assert log_of(db, id) == before
    assert sum(statuses(db).values()) == 2


def test_a_failed_step_at_the_end_gives_way_to_a_spawn(lesson, db):
    """The function tries a step, and on another day another way."""
    double, *_ = define(lesson)
    id = enqueue(lesson, db, "run_double")

    def fails(_):
        raise ValueError("today")

    task = claim(lesson, db, id)
    with context(lesson, db, task) as ctx, pytest.raises(lesson.durable.StepError):
        ctx.step(fails)
    drop_workers(db)
    take_back(lesson, db)
    with context(lesson, db, claim(lesson, db, id)) as ctx:
        ctx.spawn(double, 1)
    assert [(entry[1], entry[4]) for entry in log_of(db, id)] == [("child", None)]


def test_spawn_refuses_what_would_fail_later(lesson, db):
    double, *_ = define(lesson)
    bad = lesson.tasks.BadInput

    def unknown(_):
        pass

    unregistered_double = lambda n: n  # noqa: E731
    unregistered_double.__name__ = "double"
    id = enqueue(lesson, db, "run_double")
    with context(lesson, db, claim(lesson, db, id)) as ctx:
        for function in (unknown, unregistered_double):
            with pytest.raises(bad, match="not registered"):
                ctx.spawn(function, 1)
        for options in (
            {"queue": ""},
            {"priority": 1.5},
            {"max_attempts": 0},
            {"timeout": 5},
        ):
            with pytest.raises(bad):
                ctx.spawn(double, 1, **options)
        with pytest.raises(bad):
            ctx.spawn(double, float("nan"))
        # Nothing was written, and no position was used up.
        assert log_of(db, id) == []
        assert ctx.spawn(double, 1).position == 1
    assert log_of(db, id)[0][:3] == (1, "child", "double")


def test_spawn_options_arrive(lesson, db):
    double, *_ = define(lesson)
    enqueue(lesson, db, "run_double")
    with context(lesson, db, claim(lesson, db)) as ctx:
        ctx.spawn(double, 1, queue="q", priority=7, max_attempts=2, timeout=MINUTE)
    row = task_row(db, only(db, "double"))
    assert (row.queue, row.priority, row.max_attempts, row.timeout) == ("q", 7, 2, MINUTE)


EDITS = {
    "another name": lambda ctx, tasks: ctx.spawn(tasks["refuse"], 0),
    "another input": lambda ctx, tasks: ctx.spawn(tasks["double"], 99),
    "a step": lambda ctx, _: ctx.step(str, 0),
    "nothing": lambda ctx, _: ctx.end(),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_spawn_is_caught(lesson, db, edit):
    id, (child,) = suspended(lesson, db)
    finish(lesson, db, claim(lesson, db, child), "0")
    error = lesson.durable.NonDeterminismError
    task = claim(lesson, db, id)
    with context(lesson, db, task) as ctx, pytest.raises(error, match="position 1"):
        EDITS[edit](ctx, lesson.tasks.registry)


# Cancel


def test_a_cancelled_task_takes_its_children_and_theirs_along(lesson, db):
    define(lesson)
    id = enqueue(lesson, db, "run_run_double", 1)
    for name in ("run_double", "double"):
        task = claim(lesson, db)
        with context(lesson, db, task) as ctx, pytest.raises(lesson.durable.Suspended):
            ctx.run(lesson.tasks.registry[name], 1)
    grandchild = claim(lesson, db)
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
    double, *_ = define(lesson)
    id = enqueue(lesson, db, "run_double")
    task = claim(lesson, db, id)
    with context(lesson, db, task) as ctx, queries(lesson, db) as queue:
        queue.cancel_task(id=id)
        with pytest.raises(lesson.durable.LostTask):
            ctx.spawn(double, 1)
    assert statuses(db) == {"cancelled": 1}


@pytest.mark.parametrize("end", ENDED)
def test_what_has_ended_cannot_be_cancelled(lesson, db, end):
    define(lesson)
    id = enqueue(lesson, db, "double", 1)
    task = claim(lesson, db, id)
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


def test_a_child_that_ends_after_its_parent_harms_nothing(lesson, db):
    double, *_ = define(lesson)
    id = enqueue(lesson, db, "run_double")
    task = claim(lesson, db, id)
    with context(lesson, db, task) as ctx:
        ctx.spawn(double, 1)
    finish(lesson, db, task, '"done"')
    child = claim(lesson, db)
    assert finish(lesson, db, child, "2") == 1
    row = task_row(db, id)
    assert (row.status, row.output) == ("succeeded", "done")
    execute(db, "delete from tasks where id = %s", id)  # nor does one without a parent
    execute(db, "update tasks set status = 'running', output = null where id = %s", child.id)
    assert finish(lesson, db, child, "3") == 1


# Retry and replay


def test_a_retry_keeps_the_log_and_retries_the_failed_child(lesson, db):
    stock: list[int] = []
    steps: list[str] = []

    @lesson.tasks.task
    def take(item):
        if not stock:
            raise lesson.tasks.NonRetryableError("out of stock")
        return item

    @lesson.durable.durable
    def order(ctx, item):
        ctx.step(lambda key: steps.append(key))
        return ctx.gather(ctx.spawn(take, item), ctx.spawn(take, item))

    id = enqueue(lesson, db, "order", "book")
    with working(lesson.worker.Worker(db, "w")):
        assert wait_for_status(db, id, *ENDED).status == "failed"
        stock.append(1)
        with db.engine.begin() as connection:
            lesson.durable.retry(connection, id)
        row = wait_for_status(db, id, "succeeded")
    assert (row.output, len(steps)) == (["book", "book"], 1)
    assert statuses(db) == {"succeeded": 3}


def test_a_retry_goes_down_to_grandchildren(lesson, db):
    stock: list[int] = []

    @lesson.tasks.task
    def take(item):
        if not stock:
            raise lesson.tasks.NonRetryableError("out of stock")
        return item

    @lesson.durable.durable
    def middle(ctx, item):
        return ctx.run(take, item)

    @lesson.durable.durable
    def top(ctx, item):
        return ctx.run(middle, item)

    id = enqueue(lesson, db, "top", "book")
    with working(lesson.worker.Worker(db, "w")):
        assert wait_for_status(db, id, *ENDED).status == "failed"
        stock.append(1)
        with db.engine.begin() as connection:
            lesson.durable.retry(connection, id)
        assert wait_for_status(db, id, "succeeded").output == "book"
    assert statuses(db) == {"succeeded": 3}


def test_a_retry_leaves_a_failure_alone_that_the_function_has_gone_on_from(lesson, db):
    _, refuse, *_ = define(lesson)
    works: list[int] = []

    def apologise(_):
        if not works:
            raise lesson.tasks.NonRetryableError("no mail")
        return "sorry"

    @lesson.durable.durable
    def order(ctx, item):
        try:
            ctx.run(refuse, item)
        except lesson.durable.ChildError:
            return ctx.step(apologise)

    id = enqueue(lesson, db, "order", "book")
    with working(lesson.worker.Worker(db, "w")):
        assert wait_for_status(db, id, *ENDED).status == "failed"
        works.append(1)
        with db.engine.begin() as connection:
            lesson.durable.retry(connection, id)
        assert wait_for_status(db, id, "succeeded").output == "sorry"
    assert statuses(db) == {"succeeded": 1, "failed": 1}


def test_a_retry_does_no_step_again_from_whose_failure_the_function_has_gone_on(lesson, db):
    """The step is the last in the log, and the function waits for a child because it has failed."""
    stock: list[int] = []
    tries: list[str] = []

    @lesson.tasks.task
    def take(item):
        if not stock:
            raise lesson.tasks.NonRetryableError("out of stock")
        return item

    def fails(key):
        tries.append(key)
        raise ValueError("no")

    @lesson.durable.durable
    def order(ctx, item):
        child = ctx.spawn(take, item)
        with pytest.raises(lesson.durable.StepError):
            ctx.step(fails)
        return ctx.result(child)

    id = enqueue(lesson, db, "order", "book")
    with working(lesson.worker.Worker(db, "w", slots=1)):
        assert wait_for_status(db, id, *ENDED).status == "failed"
        stock.append(1)
        with db.engine.begin() as connection:
            lesson.durable.retry(connection, id)
        assert wait_for_status(db, id, "succeeded").output == "book"
    assert len(tries) == 1


def test_a_retry_takes_a_child_along_that_failed_while_a_step_was_done(lesson, db):
    """The step comes after the child in the log, and yet it does not depend on the failure."""
    stock: list[int] = []
    steps: list[str] = []

    @lesson.tasks.task
    def take(item):
        if not stock:
            raise lesson.tasks.NonRetryableError("out of stock")
        return item

    @lesson.durable.durable
    def order(ctx, item):
        child = ctx.spawn(take, item)
        ctx.step(steps.append)
        return ctx.result(child)

    id = enqueue(lesson, db, "order", "book")
    with working(lesson.worker.Worker(db, "w")):
        assert wait_for_status(db, id, *ENDED).status == "failed"
        stock.append(1)
        with db.engine.begin() as connection:
            lesson.durable.retry(connection, id)
        assert wait_for_status(db, id, "succeeded").output == "book"
    assert len(steps) == 1


@pytest.mark.parametrize("seen", ["result", "as_completed"])
def test_a_retry_leaves_a_failure_alone_after_which_another_child_was_spawned(lesson, db, seen):
    _, refuse, *_ = define(lesson)
    stock: list[int] = []

    @lesson.tasks.task
    def take(item):
        if not stock:
            raise lesson.tasks.NonRetryableError("out of stock")
        return item

    @lesson.durable.durable
    def order(ctx, item):
        first = ctx.spawn(refuse, item)
        if seen == "result":
            with pytest.raises(lesson.durable.ChildError):
                ctx.result(first)
        else:
            assert list(ctx.as_completed(first)) == [first]
        return ctx.run(take, item)

    id = enqueue(lesson, db, "order", "book")
    with working(lesson.worker.Worker(db, "w")):
        assert wait_for_status(db, id, *ENDED).status == "failed"
        stock.append(1)
        with db.engine.begin() as connection:
            lesson.durable.retry(connection, id)
        assert wait_for_status(db, id, "succeeded").output == "book"
    assert task_row(db, only(db, "refuse")).attempt == 1


@pytest.mark.parametrize("ended", [False, True])
def test_a_child_that_was_retried_first_is_heard_when_its_parent_is(lesson, db, ended):
    id, (child,) = suspended(lesson, db)
    task = claim(lesson, db, child)
    with queries(lesson, db) as queue:
        queue.fail_task(id=child, attempt=task.attempt, error="E: no")
        parent = claim(lesson, db, id)
        queue.fail_task(id=id, attempt=parent.attempt, error="ChildError: no")
        before = log_of(db, id)
        with db.engine.begin() as connection:
            lesson.durable.retry(connection, child)
        task = claim(lesson, db, child)
        if ended:
            finish(lesson, db, task, "7")
        assert log_of(db, id) == before, "the parent has ended with the first end"
        with db.engine.begin() as connection:
            lesson.durable.retry(connection, id)
        if not ended:
            finish(lesson, db, task, "7")
    with context(lesson, db, claim(lesson, db, id)) as ctx:
        assert ctx.run(lesson.tasks.registry["double"], 0) == 7


def test_a_child_that_was_cancelled_by_hand_is_retried_with_its_parent(lesson, db):
    id, (child,) = suspended(lesson, db)
    with queries(lesson, db) as queue:
        queue.cancel_task(id=child)
        parent = claim(lesson, db, id)
        queue.fail_task(id=id, attempt=parent.attempt, error="ChildError: Cancelled")
    with db.engine.begin() as connection:
        lesson.durable.retry(connection, id)
    assert task_row(db, child).status == "queued"
    assert log_of(db, id)[0][3:] == (None, None, None)


def test_retry_and_replay_refuse_what_has_not_ended(lesson, db):
    id, (child,) = suspended(lesson, db)
    before = task_row(db, id), task_row(db, child), log_of(db, id)
    for again in (lesson.durable.retry, lesson.durable.replay):
        for which in (id, 10**9):
            with pytest.raises(lesson.tasks.BadInput), db.engine.begin() as connection:
                again(connection, which)
    assert (task_row(db, id), task_row(db, child), log_of(db, id)) == before


@pytest.mark.parametrize("first", ["retry", "replay"])
def test_a_replay_locks_the_children_in_the_order_of_a_retry(lesson, db, first):
    """Both wait for the first child. Had one of them locked the second, the other would need it."""
    id, children = suspended(lesson, db, 2)
    with queries(lesson, db) as queue:
        for child in children:
            assert queue.fail_task(
                id=child, attempt=claim(lesson, db, child).attempt, error="E: no"
            )
        queue.fail_task(id=id, attempt=claim(lesson, db, id).attempt, error="ChildError: no")

    def again(action):
        with db.engine.begin() as connection:
            action(connection, id)

    verbs = {name: getattr(lesson.durable, name) for name in ("retry", "replay")}
    other = next(name for name in verbs if name != first)
    with ThreadPoolExecutor(2) as threads, db.connect() as holder:
        holder.execute("select from tasks where id = %s for update", (children[0],))
        one = threads.submit(again, verbs[first])
        wait_until(lambda: waiting_for_a_lock(db) == 1, f"the {first} waits")
        two = threads.submit(again, verbs[other])
        wait_until(lambda: waiting_for_a_lock(db) == 2, f"the {other} waits")
        holder.rollback()
        one.result(timeout=20)
        with pytest.raises(lesson.tasks.BadInput):
            two.result(timeout=20)
    assert task_row(db, id).status == "queued"


def test_a_replay_empties_the_log_and_begins_with_new_keys_and_children(lesson, db):
    double, *_ = define(lesson)
    keys: list[str] = []

    @lesson.durable.durable
    def order(ctx, n):
        ctx.step(lambda key: keys.append(key))
        return ctx.run(double, n)

    id = enqueue(lesson, db, "order", 4)
    with working(lesson.worker.Worker(db, "w")):
        wait_for_status(db, id, "succeeded")
        with db.engine.begin() as connection:
            lesson.durable.replay(connection, id)
        assert wait_for_status(db, id, "succeeded").output == 8
    assert len(set(keys)) == 2
    children = execute(db, "select parent_id from tasks where name = 'double' order by id")
    assert children == [(None,), (id,)]


def test_a_replay_cancels_the_children_of_the_old_run(lesson, db):
    id, (one, two) = suspended(lesson, db, 2)
    running = claim(lesson, db, one)
    with queries(lesson, db) as queue:
        queue.cancel_task(id=id)
    with db.engine.begin() as connection:
        lesson.durable.replay(connection, id)
    assert [task_row(db, child).status for child in (one, two)] == ["cancelled"] * 2
    assert finish(lesson, db, running) == 0
    row = task_row(db, id)
    assert (row.status, row.completions, log_of(db, id)) == ("queued", 0, [])


# Cost


def test_a_workflow_of_ten_steps_takes_twelve_statements(lesson, db):
    def same(_key, n):
        return n

    @lesson.durable.durable
    def ten(ctx, _):
        for n in range(10):
            ctx.step(same, n)

    with db.engine.begin() as connection:
        for _ in range(5):
            lesson.tasks.enqueue(connection, "ten", None)
    noted: list[str] = []

    def note(_connection, _cursor, statement, *_):
        noted.append(re.findall(r"-- name: (\w+)", statement)[0])

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        with working(lesson.worker.Worker(db, "w", slots=1)):
            wait_until(lambda: statuses(db) == {"succeeded": 5}, "all have ended")
            counted = list(noted)
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)
    # Not what a worker does however many tasks there are, and not when it had nothing more to do.
    counted = counted[: len(counted) - counted[::-1].index("succeed_task")]
    workflow = (
        "lock_limit",
        "count_running",
        "claim_tasks",
        "load_log",
        "record_step",
        "succeed_task",
    )
    counted = [name for name in counted if name in workflow]
    assert Counter(counted)["record_step"] == 50
    assert len(counted) == 12 * 5, Counter(counted)


def test_thousands_of_waiting_tasks_hold_no_slot_and_no_memory(lesson, db):
    with db.engine.begin() as connection:
        for _ in range(WAITING):
            lesson.tasks.enqueue(connection, "wait_for_a_nap", 0, queue="parents")
    started = time.monotonic()
    options = ("--queue", "parents", "--slots", "4")
    with worker_processes(lesson.path, "w", options=options) as (worker,):
        wait_until(lambda: statuses(db)["waiting"] >= WAITING // 10, "some wait", 60)
        early = memory(worker.pid)
        wait_until(lambda: statuses(db)["waiting"] == WAITING, "all wait", 200)
        assert statuses(db) == {"waiting": WAITING, "queued": WAITING}
        waited = time.monotonic() - started
        late = memory(worker.pid)
        assert late - early < 15, "megabytes: the process keeps nothing of a task that waits"
        # The slow thing has happened, for all of them at once.
        execute(db, "update tasks set status = 'succeeded', output = 'null' where name = 'sleep'")
        wait_until(lambda: statuses(db) == {"succeeded": 2 * WAITING}, "all have finished", 200)
        print(
            f"{WAITING} waiting after {waited:.1f} s, all finished after"
            f" {time.monotonic() - started:.1f} s; {early:.1f} MB, {late:.1f} MB,"
            f" {memory(worker.pid):.1f} MB"
        )
        assert memory(worker.pid) - early < 30


def memory(pid):
    """Resident megabytes of a process."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        pytest.skip("needs /proc")
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


# Locks


def test_one_statement_ends_the_children_of_one_parent_only(lesson, db):
    """It holds their rows while it waits for the parents': two such statements could deadlock."""
    families = [suspended(lesson, db, 2) for _ in range(2)]
    children = [child for _, both in families for child in both]
    execute(db, "update tasks set max_attempts = 1 where id = any (%s)", children)
    for child in children:
        claim(lesson, db, child)
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
    double, refuse, *_ = define(lesson)

    @lesson.durable.durable
    def tree(ctx, depth):
        children = [ctx.spawn(double, n) for n in range(3)]
        if depth:
            children += [ctx.spawn(tree, depth - 1, max_attempts=1) for _ in range(2)]
        ctx.spawn(refuse, 1)
        ctx.gather(*children)
        return depth

    lesson.worker.FIRST_BACKOFF = timedelta(seconds=0.01)
    lesson.worker.UPKEEP_SECONDS = 0.02
    for _ in range(6):
        enqueue(lesson, db, "tree", 2, max_attempts=50)
    end = time.monotonic() + 5
    caplog.set_level(logging.WARNING)
    deadlocks: list[str] = []

    def meddle(seed):
        dice = random.Random(seed)
        while time.monotonic() < end:
            ((most,),) = execute(db, "select max(id) from tasks")
            try:
                with db.engine.begin() as connection:
                    action = dice.choice([cancel, retry, replay, kill, more])
                    action(connection, dice.randint(max(1, most - 60), most))
            except lesson.tasks.BadInput:
                pass
            except OperationalError as error:
                deadlocks.append(str(error))

    def cancel(connection, id):
        lesson.queries.Querier(connection).cancel_task(id=id)

    def kill(connection, _):
        connection.exec_driver_sql("delete from workers")

    def more(connection, _):
        lesson.tasks.enqueue(connection, "tree", 2, max_attempts=50)

    retry, replay = lesson.durable.retry, lesson.durable.replay
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


# Types


TYPED = """
from typing import assert_type
from durable import Child, Context, durable
from tasks import task

@task
def length(text: str) -> int:
    return len(text)

@durable
def inner(ctx: Context, n: int) -> list[str]:
    return [ctx.step(describe, n, unit="m")]

def describe(key: str, n: int, *, unit: str) -> str:
    return f"{n} {unit}"

@durable
def outer(ctx: Context, text: str) -> int:
    child = ctx.spawn(length, text, priority=1)
    assert_type(child, Child[int])
    assert_type(ctx.gather(child, ctx.spawn(length, "b")), list[int])
    assert_type(ctx.run(inner, 3), list[str])
    assert_type(ctx.step(describe, 3, unit="m"), str)
    for done in ctx.as_completed(child):
        assert_type(ctx.result(done), int)
    ctx.run(inner, "three")  # pyright: ignore[reportCallIssue, reportArgumentType]
    ctx.spawn(length, text, prio=1)  # pyright: ignore[reportCallIssue]
    ctx.step(describe, "x", unit="m")  # pyright: ignore[reportArgumentType]
    return ctx.result(child)
"""


def test_a_type_checker_understands_the_api(lesson, tmp_path):
    pytest.importorskip("basedpyright", reason="it comes with `make check`")
    path = copy_of(lesson, tmp_path, "")
    (path / "typed.py").write_text(TYPED)
    (path / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    done = subprocess.run(
        [sys.executable, "-m", "basedpyright", "--outputjson", "typed.py"],
        cwd=path,
        capture_output=True,
        text=True,
    )
    found = json.loads(done.stdout)["generalDiagnostics"]
    assert [(d["range"]["start"]["line"], d["message"]) for d in found] == []
