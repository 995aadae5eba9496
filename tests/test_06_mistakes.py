"""Lesson 06: what is asked of children by mistake is refused once, and nothing is spawned."""

# ruff: noqa: ARG005  a mistake takes a context and a task, used or not

from concurrent.futures import ThreadPoolExecutor

import pytest

from shared.testing import wait_until, working
from tests.helpers import (
    attempt,
    count,
    define,
    enqueue,
    execute,
    fail,
    log_of,
    new_task,
    program,
    run_once,
    spawned,
    suspended,
)


def a_step(_key, n):
    return n


SPAWNED = {
    "by name": (lambda ctx, double: ctx.spawn("double", 1), "'double' is not registered"),
    "called already": (lambda ctx, double: ctx.spawn(double(1), 1), "2 is not registered"),
    "nothing": (lambda ctx, double: ctx.spawn(None, 1), "None is not registered"),
    "a step": (lambda ctx, double: ctx.spawn(a_step, 1), "@task or @durable"),
    "a lambda": (lambda ctx, double: ctx.spawn(lambda n: n, 1), "@task or @durable"),
    "run by name": (lambda ctx, double: ctx.run("double", 1), r"spawn\(f, input\)"),
    "no JSON": (lambda ctx, double: ctx.spawn(double, {1}), "not JSON"),
    "a child": (lambda ctx, double: ctx.run(double, ctx.spawned), r"ctx.result\(...\) waits"),
    "a child in a list": (lambda ctx, double: ctx.step(a_step, [ctx.spawned]), r"ctx.result\("),
    "an option": (lambda ctx, double: ctx.spawn(double, 1, prority=3), "no option prority; there"),
    "another's option": (
        lambda ctx, double: ctx.spawn(double, 1, idempotency_key="k"),
        "no option idempotency_key; there are queue, priority, max_attempts, timeout",
    ),
    "a bad option": (lambda ctx, double: ctx.run(double, 1, max_attempts=0), "max_attempts is"),
    "a step with a child's name": (lambda ctx, double: ctx.step(double, 1), "is a task"),
    "gather of a list": (lambda ctx, double: ctx.gather([ctx.spawned]), r"gather\(\*children\)"),
    "gather of a generator": (lambda ctx, _: ctx.gather(c for c in [ctx.spawned]), r"\*children"),
    "gather of results": (lambda ctx, double: ctx.gather(1, 2), "1 is no child"),
    "result of a value": (lambda ctx, double: ctx.result(4), "4 is no child"),
    "result of a position": (lambda ctx, double: ctx.result(ctx.spawned.position), "no child"),
    "as_completed of a list": (
        lambda ctx, double: list(ctx.as_completed([ctx.spawned])),
        r"\*children",
    ),
}


@pytest.mark.parametrize(("mistake", "why"), SPAWNED.values(), ids=SPAWNED.keys())
def test_a_mistake_with_children_is_refused_and_takes_no_position(lesson, db, mistake, why):
    double = define(lesson).double
    id = new_task(lesson, db)
    with attempt(lesson, db, id) as (ctx, _):
        ctx.spawned = ctx.spawn(double, 1)
        log = log_of(db, id)
        with pytest.raises(lesson.inputs.BadInput, match=why):
            mistake(ctx, double)
        assert log_of(db, id) == log
        ctx.spawn(double, 2)
    assert [entry.position for entry in log_of(db, id)] == [1, 2]
    assert execute(db, "select count(*) from tasks where name = 'double'") == [(2,)]


def test_a_refused_spawn_takes_no_position(lesson, db):
    """What the function does after it is found where it was, in the next run too."""
    double = define(lesson).double
    id = new_task(lesson, db)
    for run in range(2):
        with attempt(lesson, db, id) as (ctx, _):
            with pytest.raises(lesson.inputs.BadInput, match="no option"):
                ctx.spawn(double, 1, delay=3)
            ctx.spawn(double, 2)
            assert ctx.step(a_step, run * 0) == 0
    assert [(entry.kind, entry.attempt) for entry in log_of(db, id)] == [("child", 1), ("step", 1)]


@pytest.mark.parametrize("call", ["spawn", "run"])
def test_a_mistake_with_a_child_is_not_tried_again(lesson, db, call):
    program(lesson, lambda ctx, _input: getattr(ctx, call)("double", 1))
    id = enqueue(lesson, db, "program")
    row = run_once(lesson, db, id)
    assert (row.status, row.attempt, log_of(db, id)) == ("failed", 1, [])
    assert "BadInput: 'double' is not registered: write spawn(f, input)" in row.error


def test_what_another_run_has_spawned_is_refused(lesson, db):
    double = define(lesson).double
    kept = []
    id, other = new_task(lesson, db), new_task(lesson, db)
    with attempt(lesson, db, id) as (ctx, _):
        kept.append(ctx.spawn(double, 1))
    with attempt(lesson, db, other) as (ctx, _):
        kept.append(ctx.spawn(double, 1))
    with attempt(lesson, db, id) as (ctx, _):
        own = ctx.spawn(double, 1)
        for other in kept:
            for wait in (ctx.result, ctx.gather, lambda one: next(ctx.as_completed(one))):
                with pytest.raises(lesson.inputs.BadInput, match="another run"):
                    wait(other)
        with pytest.raises(lesson.event_log.Suspended):
            ctx.result(own)


def test_another_thread_spawns_nothing_and_waits_for_nothing(lesson, db):
    double = define(lesson).double
    id = new_task(lesson, db)
    with attempt(lesson, db, id) as (ctx, _), ThreadPoolExecutor(1) as threads:
        child = ctx.spawn(double, 1)
        for call in (lambda: ctx.spawn(double, 2), lambda: ctx.result(child)):
            with pytest.raises(lesson.inputs.BadInput, match="thread"):
                threads.submit(call).result()
        ctx.step(a_step, 3)
    assert [entry.kind for entry in log_of(db, id)] == ["child", "step"]


def test_a_child_has_a_key_of_its_own(lesson, db):
    keys = []

    @lesson.tasks.task
    def book(_item):
        keys.append(lesson.tasks.task_key())
        if len(keys) == 1:
            raise ConnectionError

    with attempt(lesson, db, new_task(lesson, db)) as (ctx, _):
        for item in ("pen", "pen"):
            ctx.spawn(book, item)
    ids = [id for (id,) in execute(db, "select id from tasks where name = 'book' order by id")]
    execute(db, "update tasks set status = 'waiting', run_at = now() where name = 'book'")
    for id in (ids[0], ids[0], ids[1]):
        run_once(lesson, db, id)
    assert keys[0] == keys[1] != keys[2]


# Edits that pass, as lesson 06 says


WAITS = {
    "as it was": lambda ctx, task: ctx.gather(ctx.spawn(task, 1), ctx.spawn(task, 2)),
    "single results": lambda ctx, task: [
        ctx.result(child) for child in [ctx.spawn(task, 1), ctx.spawn(task, 2)]
    ],
    "as_completed": lambda ctx, task: list(
        ctx.as_completed(ctx.spawn(task, 1), ctx.spawn(task, 2))
    ),
    "no wait": lambda ctx, task: [ctx.spawn(task, 1), ctx.spawn(task, 2)],
    "other options": lambda ctx, task: [
        ctx.spawn(task, 1, priority=9, queue="other"),
        ctx.spawn(task, 2, max_attempts=1),
    ],
}


@pytest.mark.parametrize("edit", WAITS.values(), ids=WAITS.keys())
def test_waits_and_options_are_not_compared(lesson, db, edit):
    double = define(lesson).double
    id = new_task(lesson, db)
    with attempt(lesson, db, id) as (ctx, _):
        ctx.spawn(double, 1), ctx.spawn(double, 2)
        ctx.step(a_step, 3)
        log = log_of(db, id)
    with working(lesson.worker.Worker(db, "w")):
        wait_until(lambda: count(db, "succeeded") == 2, "the children have ended")
    with attempt(lesson, db, id) as (ctx, _):
        edit(ctx, double)
        assert ctx.step(a_step, 3) == 3
    assert [(entry.kind, entry.name, entry.input) for entry in log_of(db, id)] == [
        (entry.kind, entry.name, entry.input) for entry in log
    ]


def test_a_durable_function_that_returns_what_spawn_returns_fails_at_once(lesson, db):
    double = define(lesson).double
    program(lesson, lambda ctx, _input: ctx.spawn(double, 1))
    row = run_once(lesson, db, enqueue(lesson, db, "program", priority=1))
    assert (row.status, row.attempt) == ("failed", 1)
    assert "ctx.result(...) waits for what the child returns" in row.error


def test_the_end_of_a_child_that_was_edited_by_hand_fails_its_parent_at_once(lesson, db):
    id, (child,) = suspended(lesson, db)
    fail(lesson, db, child)
    execute(db, "update event_log set error = '{}' where task_id = %s", id)
    row = run_once(lesson, db, id)
    assert (row.status, row.attempt) == ("failed", 2)
    assert f"the error at position 1 of the log of task {id} is not as" in row.error


def test_the_news_of_a_child_that_were_edited_by_hand_fail_its_parent_at_once(lesson, db):
    """It ends, and somebody edits that, while the parent's run is on its way to wait for it."""
    double = define(lesson).double

    def waits(ctx, _input):
        pending = ctx.spawn(double, 1)
        spawned(ctx)
        execute(db, "update tasks set status = 'failed', error = 'E: no', attempt = 1"
                    " where parent_id is not null")  # fmt: skip
        execute(db, "update event_log set error = '{}'")
        return ctx.result(pending)

    program(lesson, waits)
    row = run_once(lesson, db, enqueue(lesson, db, "program"))
    assert (row.status, row.attempt) == ("failed", 1)
    assert "the error at position 1 of the log" in row.error
