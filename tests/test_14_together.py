"""Lesson 14: what is written at the same moment is written together, and nobody waits."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import sqlalchemy as sa

from shared.processes import wait_until, within, working
from shared.testing import wait_for_status
from tests.helpers import (
    by_hand,
    claim,
    claim_one,
    context,
    define,
    enqueue,
    enqueue_all,
    execute,
    fences,
    log_of,
    patiently,
    program,
    queries,
    register,
    several,
    statuses,
    waiting_in,
)


class Commits:
    """The statement of a group, which takes as long as the test wants."""

    def __init__(self):
        self.sent = []
        self.go_on = threading.Event()

    def __call__(self, rows):
        self.sent.append(rows)
        assert self.go_on.wait(within(20))
        return {(1, 1), (2, 1), (3, 1)}


@contextmanager
def writing(group, *ids):
    """A thread for each row; what `write` has said to each, so far."""
    answers = {}
    with ThreadPoolExecutor(len(ids)) as threads:

        def write(id):
            answers[id] = group.write((id, 1), str(id))

        yield answers, [threads.submit(write, id) for id in ids]


def test_those_who_come_while_a_thread_writes_are_written_together(lesson):
    commits = Commits()
    group = lesson.group.Group(commits)
    with writing(group, 1) as (first, _):
        wait_until(lambda: commits.sent == ["[1]"], "the first one writes at once")
        with writing(group, 2, 3, 4) as (others, _):
            wait_until(lambda: waiting_in(group) == 3, "the others wait")
            commits.go_on.set()
    assert first == {1: True}
    assert others == {2: True, 3: True, 4: False}, "4 is not among those that are committed"
    assert len(commits.sent) == 2
    assert sorted(commits.sent[1].strip("[]").split(",")) == ["2", "3", "4"]


def test_nobody_is_told_before_the_commit(lesson):
    commits = Commits()
    group = lesson.group.Group(commits)
    with writing(group, 1) as (first, _):
        wait_until(lambda: commits.sent, "the first one writes")
        with writing(group, 2, 3) as (others, _):
            wait_until(lambda: waiting_in(group) == 2, "the others wait")
            told = {**first, **others}
            commits.go_on.set()
    assert told == {}
    assert {**first, **others} == {1: True, 2: True, 3: True}


def test_an_error_says_nothing_about_a_row_and_the_next_group_is_written(lesson):
    lost = threading.Event()

    def statement(rows):
        if rows == "[1]":
            assert lost.wait(within(20))
            raise RuntimeError("the answer is lost")
        return {(2, 1)}

    group = lesson.group.Group(statement)
    with writing(group, 1) as (first, (future,)):
        with writing(group, 2) as (second, _):
            wait_until(lambda: waiting_in(group) == 1, "the other one waits")
            lost.set()
        assert isinstance(future.exception(within(20)), RuntimeError)
    assert (first, second) == ({}, {2: True})
    assert group.write((2, 1), "2") is True


def running(lesson, db, n):
    """So many tasks that run, as their rows."""
    several(lesson, db, n)
    return [claim_one(lesson, db) for _ in range(n)]


def step_of(task, attempt=None):
    return (
        f'{{"task_id": {task.id}, "attempt": {attempt or task.attempt}, "position": 1,'
        f' "name": "s", "input": [], "output": {task.id}}}'
    )


def result_of(task, attempt=None):
    return f'{{"id": {task.id}, "attempt": {attempt or task.attempt}, "output": {task.id}}}'


def test_each_row_of_a_group_has_a_fence_of_its_own(lesson, db):
    old, cancelled, right = running(lesson, db, 3)
    execute(db, "update tasks set attempt = 2 where id = %s", old.id)
    by_hand(lesson, db, "cancel", cancelled.id)
    with queries(lesson, db) as queue:
        steps = ",".join(step_of(task, 1) for task in (old, cancelled, right))
        assert [row.task_id for row in queue.record_steps(steps=f"[{steps}]")] == [right.id]
        results = ",".join(result_of(task, 1) for task in (old, cancelled, right))
        assert [row.id for row in queue.succeed_tasks(results=f"[{results}]")] == [right.id]
    assert statuses(db) == {"running": 1, "cancelled": 1, "succeeded": 1}
    assert [len(log_of(db, task.id)) for task in (old, cancelled, right)] == [0, 0, 1]


def test_a_held_row_keeps_no_other_step_from_being_recorded(lesson, db):
    tasks = running(lesson, db, 3)
    with held(lesson, db, tasks[1].id) as queue:
        rows = ",".join(step_of(task) for task in tasks)
        written = {row.task_id for row in queue.record_steps(steps=f"[{rows}]")}
    assert written == {tasks[0].id, tasks[2].id}


def test_a_held_row_keeps_no_other_result_from_being_stored(lesson, db):
    tasks = running(lesson, db, 3)
    with held(lesson, db, tasks[1].id) as queue:
        rows = ",".join(result_of(task) for task in tasks)
        written = {row.id for row in queue.succeed_tasks(results=f"[{rows}]")}
    assert written == {tasks[0].id, tasks[2].id}


@contextmanager
def held(lesson, db, id):
    """Somebody holds the row of this task; queries on a connection that does not wait for ever."""
    with db.engine.begin() as psql, db.autocommit.connect() as connection:
        psql.exec_driver_sql(f"select from tasks where id = {id} for update")
        patiently(connection, 2)
        yield lesson.queries.Querier(connection)


def test_the_end_of_a_child_does_not_wait_for_its_parents_row(lesson, db):
    define(lesson)
    parent = enqueue(lesson, db, "run_double", 1, priority=1)
    with context(lesson, db, claim_one(lesson, db, parent)) as ctx:
        ctx.spawn(lesson.defined.double, 1)
    child = claim_one(lesson, db)
    (alone,) = running(lesson, db, 1)
    rows = f"[{result_of(child)},{result_of(alone)}]"
    with held(lesson, db, parent) as queue:
        assert [row.id for row in queue.succeed_tasks(results=rows)] == [alone.id]
    with queries(lesson, db) as queue:
        assert [row.id for row in queue.succeed_tasks(results=rows)] == [child.id]


def sent(do):
    """How often each query was sent meanwhile."""
    noted = Counter()

    def note(_connection, _cursor, statement, *_):
        noted.update(re.findall(r"-- name: (\w+)", statement))

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        do()
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)
    return noted


def test_steps_of_many_runs_share_a_statement_and_a_lost_one_is_told_alone(lesson, db):
    tasks = running(lesson, db, 8)

    def step(fence):
        try:
            return lesson.context.Context(fence).step(done)
        except lesson.fence.LostTask:
            return "lost"

    def done(_key):
        return "done"

    def do():
        with db.engine.begin() as psql, ThreadPoolExecutor(8) as threads:
            psql.exec_driver_sql("lock table event_log in share mode")
            with fences(lesson, db, tasks) as (made, group):
                steps = [threads.submit(step, fence) for fence in made]
                wait_until(lambda: waiting_in(group) == 7, "one writes, and the others wait")
                by_hand(lesson, db, "cancel", tasks[3].id)
                psql.rollback()
                outcomes.extend(step.result(within(20)) for step in steps)

    outcomes = []
    assert sent(do)["record_steps"] == 2
    assert [n for n, outcome in enumerate(outcomes) if outcome != "done"] == [3]
    assert [len(log_of(db, task.id)) for task in tasks] == [1, 1, 1, 0, 1, 1, 1, 1]


def test_sixty_slots_share_two_connections(lesson, db):
    go_on = threading.Event()
    begun = []

    @lesson.tasks.task
    def hold(n):
        begun.append(n)
        assert go_on.wait(within(20))

    ids = enqueue_all(lesson, db, "hold", range(60))
    with working(lesson.worker.Worker(db, "w", slots=60, connections=2)):
        wait_until(lambda: len(begun) == 60, "all of them run")
        sessions = execute(
            db,
            "select 1 from pg_stat_activity"
            " where application_name = current_setting('application_name')",
        )
        go_on.set()
        for id in ids:
            wait_for_status(db, id, "succeeded")
    assert len(sessions) < 15, "a slot is no connection"


def test_results_share_a_statement(lesson, db):
    enqueue_all(lesson, db, "nothing", [None] * 100)

    def do():
        with working(lesson.worker.Worker(db, "w", slots=100)):
            wait_until(lambda: statuses(db) == {"succeeded": 100}, "all have succeeded")

    noted = sent(do)
    assert noted["succeed_task"] == 0, "no slot has to store one alone"
    assert 0 < noted["succeed_tasks"] < 50


def test_children_are_written_together_before_anything_else(lesson, db):
    double = define(lesson).double

    def spawns(ctx, count):
        for n in range(count):
            ctx.spawn(double, n)
        ctx.step(str)
        ctx.spawn(double, count)

    id = enqueue(lesson, db, program(lesson, spawns).__name__, 250, priority=1)
    with working(lesson.worker.Worker(db, "w", slots=2)):
        noted = sent(lambda: wait_for_status(db, id, "succeeded"))
    assert noted["spawn_children"] == 4, (
        "a hundred, a hundred, fifty before the step, and one at the end"
    )
    log = log_of(db, id)
    assert [entry.kind for entry in log] == ["child"] * 250 + ["step", "child"]
    children = [entry.child_id for entry in log if entry.child_id]
    assert children == sorted(children), "their ids are in the order of their positions"


def test_many_are_enqueued_by_one_statement_in_the_order_of_the_inputs(lesson, db):
    inputs = ["b", None, [1e300], "a", *range(500)]

    def do():
        with db.engine.begin() as connection:
            ids.extend(lesson.bulk.enqueue_many(connection, "nothing", inputs, priority=3))

    ids = []
    assert sent(do) == {"enqueue_tasks": 1}
    assert ids == sorted(ids)
    rows = execute(db, "select id, input, priority, status from tasks order by id")
    assert rows == [(id, input, 3, "queued") for id, input in zip(ids, inputs, strict=True)]
    with db.engine.begin() as connection, pytest.raises(lesson.inputs.BadInput):
        lesson.bulk.enqueue_many(connection, "nothing", [1, float("nan")])
    assert len(statuses(db)) == 1, "all of them, or none"


def test_a_claim_and_an_end_leave_a_row_on_its_page(lesson, db):
    """So they need no entry in the log of the database for the rest of the row."""
    pages = "select id, ctid::text::point from tasks order by id"
    several(lesson, db, 200)
    before = execute(db, pages)
    while tasks := claim(lesson, db, register(lesson, db), 20):
        rows = ",".join(
            f'{{"id": {id}, "attempt": {attempt}, "output": 1}}' for id, attempt in tasks
        )
        with queries(lesson, db) as queue:
            assert len(list(queue.succeed_tasks(results=f"[{rows}]"))) == len(tasks)
    assert statuses(db) == {"succeeded": 200}
    page = [point.partition(",")[0] for _, point in before]
    assert [point.partition(",")[0] for _, point in execute(db, pages)] == page


def test_a_worker_process_that_dies_is_started_again_and_a_signal_stops_all(lesson, db):
    alive = (
        "select distinct split_part(application_name, ' ', 2)::int from pg_stat_activity"
        " where application_name like %s and application_name <> %s"
    )

    def pids():
        return {
            pid for (pid,) in execute(db, alive, f"{db.schema} %", f"{db.schema} {os.getpid()}")
        }

    command = [sys.executable, "main.py", "workers", "--processes", "2", "--lease", "1"]
    with subprocess.Popen(command, cwd=lesson.path, stdout=subprocess.DEVNULL) as supervisor:
        try:
            wait_until(lambda: len(pids()) == 2, "two workers are there")
            first = min(pids())
            os.kill(first, signal.SIGKILL)
            wait_until(lambda: len(pids()) == 2 and first not in pids(), "there are two again")
        finally:
            supervisor.terminate()
        assert supervisor.wait(within(20)) == 0
    wait_until(lambda: not pids(), "all are gone")
