"""Lesson 06: children are spawned once, their ends are heard, and a wait cannot be swallowed."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import sqlalchemy as sa

from shared.processes import within
from shared.testing import task_row, wait_for_status, working
from tests.helpers import (
    ENDED,
    MINUTE,
    claim_one,
    context,
    define,
    drop_workers,
    enqueue,
    execute,
    finish,
    hurry,
    log_of,
    make_context,
    needs,
    only,
    queries,
    spawn,
    spawned,
    statuses,
    submitted,
    suspended,
    take_back,
)

# Suspended is no Exception


def test_except_exception_does_not_swallow_a_suspension(lesson, db):
    double = define(lesson).double
    swallowed: list[str] = []

    @lesson.context.durable
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
    double = define(lesson).double
    swallowed: list[int] = []
    keys: list[str] = []

    @lesson.context.durable
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
    double = define(lesson).double

    @lesson.context.durable
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
    double = define(lesson).double

    @lesson.context.durable
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
    refuse = define(lesson).refuse
    caught: list[tuple[str, str, str]] = []

    @lesson.context.durable
    def handles(ctx, _):
        try:
            ctx.run(refuse, 1)
        except lesson.children.ChildError as error:
            caught.append((error.step, error.type, str(error)))
        if len(caught) < 3:
            raise ValueError("run again")
        return "handled"

    hurry(lesson, first_backoff=timedelta(seconds=0.01))
    id = enqueue(lesson, db, "handles")
    with working(lesson.worker.Worker(db, "w")):
        assert wait_for_status(db, id, *ENDED).output == "handled"
    expected = ("refuse", "NonRetryableError", "refuse: NonRetryableError: out of stock")
    assert caught == [expected] * 3
    assert statuses(db) == {"succeeded": 1, "failed": 1}, "the child ran once"


def test_a_failure_that_is_not_caught_fails_the_parent_at_once(lesson, db):
    refuse = define(lesson).refuse

    @lesson.context.durable
    def trusts(ctx, _):
        return ctx.run(refuse, 1)

    id = enqueue(lesson, db, "trusts")
    with working(lesson.worker.Worker(db, "w")):
        row = wait_for_status(db, id, *ENDED)
    assert (row.status, row.attempt) == ("failed", 2)
    assert row.error == "ChildError: refuse: NonRetryableError: out of stock"


def test_gather_waits_for_all_and_raises_the_first_in_its_own_order(lesson, db):
    double, refuse = define(lesson).double, define(lesson).refuse

    @lesson.tasks.task
    def refuse_late(_):
        time.sleep(0.1)
        raise lesson.tasks.NonRetryableError("late")

    @lesson.context.durable
    def gathers(ctx, _):
        ctx.gather(ctx.spawn(double, 1), ctx.spawn(refuse_late, 1), ctx.spawn(refuse, 1))

    id = enqueue(lesson, db, "gathers")
    with working(lesson.worker.Worker(db, "w")):
        row = wait_for_status(db, id, *ENDED)
    assert row.error == "ChildError: refuse_late: NonRetryableError: late"
    assert row.completions == 3


@pytest.mark.parametrize("levels", [1, 2, 4, 50])
def test_an_error_from_far_below_names_its_cause(lesson, db, levels):
    """And the way to it, but not every step of a long way."""

    @lesson.context.durable
    def go_down(ctx, level):
        if level:
            return ctx.run(go_down, level - 1)
        return ctx.run(define(lesson).refuse, None)

    id = enqueue(lesson, db, "go_down", levels - 1)
    with working(lesson.worker.Worker(db, "w")):
        error = wait_for_status(db, id, *ENDED).error
    way = {1: "", 2: "go_down > ", 4: "go_down > go_down > go_down > "}
    way = way.get(levels, "go_down > go_down > … > go_down > ")
    assert error == f"ChildError: {way}refuse: NonRetryableError: out of stock"


def test_a_long_error_loses_little_on_its_way_up(lesson):
    error = {"type": "E", "error": f"E: {'x' * 9_997}", "traceback": "", "final": True}
    for level in range(100):
        raised = lesson.children.ChildError(f"level_{level}", error)
        assert (raised.step, raised.type) == (f"level_{level}", error["type"])
        error = {**error, "type": "ChildError", "error": lesson.inputs.describe(raised)}
    begins = "ChildError: level_99 > level_98 > … > level_1 > level_0: E: xxx"
    assert error["error"].startswith(begins)
    assert error["error"].count("x") > 9_900


@pytest.mark.parametrize("end", ["dies", "times out", "is cancelled"])
def test_a_parent_hears_how_its_child_ended_whoever_ended_it(lesson, db, end):
    id, (child,) = suspended(lesson, db)
    execute(db, "update tasks set max_attempts = 1 where id = %s", child)
    if end == "is cancelled":
        needs(lesson, "cancel_task")
        with queries(lesson, db) as queue:
            assert queue.cancel_task(id=child) == 1
    else:
        claim_one(lesson, db, child)
        if end == "dies":
            drop_workers(db)
        else:
            execute(db, "update tasks set timeout = '0' where id = %s", child)
        assert take_back(lesson, db) == {child: "failed"}
    kind = {"dies": "WorkerDied", "times out": "Timeout", "is cancelled": "Cancelled"}[end]
    for _ in range(2):
        with context(lesson, db, claim_one(lesson, db, id)) as ctx:
            with pytest.raises(lesson.children.ChildError) as caught:
                ctx.run(define(lesson).double, 0)
            assert caught.value.type == kind
        drop_workers(db)
        take_back(lesson, db)


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
    double = define(lesson).double
    id = enqueue(lesson, db, "run_double")
    task = claim_one(lesson, db, id)
    statements: list[str] = []
    with db.engine.connect() as connection:
        sa.event.listen(
            connection, "before_cursor_execute", lambda *args: statements.append(args[2])
        )
        ctx = make_context(lesson, lesson.queries.Querier(connection), task)
        ctx.spawn(double, 1)
        spawned(ctx)
        assert len(statements) == 1
        connection.rollback()  # what a killed worker's connection does
    assert (log_of(db, id), statuses(db)) == ([], {"running": 1})
    with context(lesson, db, task) as ctx:
        ctx.spawn(double, 1)
    assert [entry.name for entry in log_of(db, id)] == ["double"]
    assert statuses(db) == {"running": 1, "queued": 1}


@pytest.mark.parametrize("ended", [False, True])
def test_a_spawn_whose_answer_was_lost_is_sent_again_and_spawns_nothing(lesson, db, ended):
    define(lesson)
    id = enqueue(lesson, db, "run_double")
    task = claim_one(lesson, db, id)
    with queries(lesson, db) as queue:
        child = spawn(queue, task)
        if ended:
            finish(lesson, db, claim_one(lesson, db, child), "2")
        before = log_of(db, id)
        assert spawn(queue, task) == child
    assert log_of(db, id) == before
    assert sum(statuses(db).values()) == 2


def test_a_spawn_that_is_still_on_its_way_when_it_is_sent_again_is_not_lost(lesson, db):
    """The connection broke, and the server, which waited for a lock, has not noticed."""
    double = define(lesson).double
    id = enqueue(lesson, db, "run_double")
    task = claim_one(lesson, db, id)

    def send_again():
        with context(lesson, db, task) as ctx:
            ctx.spawn(double, 0)

    with ThreadPoolExecutor(1) as threads:
        with db.engine.begin() as first:
            spawn(lesson.queries.Querier(first), task)
            second = submitted(db, threads, send_again)
            assert not second.done(), "it waits for the first"
        second.result(timeout=within(20))
    assert [entry.name for entry in log_of(db, id)] == ["double"]
    assert sum(statuses(db).values()) == 2


def test_a_failed_step_at_the_end_gives_way_to_a_spawn(lesson, db):
    """The function tries a step, and on another day another way."""
    double = define(lesson).double
    id = enqueue(lesson, db, "run_double")

    def fails(_):
        raise ValueError("today")

    task = claim_one(lesson, db, id)
    with context(lesson, db, task) as ctx, pytest.raises(lesson.errors.StepError):
        ctx.step(fails)
    drop_workers(db)
    take_back(lesson, db)
    with context(lesson, db, claim_one(lesson, db, id)) as ctx:
        ctx.spawn(double, 1)
    assert [(entry.kind, entry.error) for entry in log_of(db, id)] == [("child", None)]


def test_spawn_refuses_what_would_fail_later(lesson, db):
    double = define(lesson).double
    bad = lesson.inputs.BadInput

    def unknown(_):
        pass

    unregistered_double = lambda n: n  # noqa: E731
    unregistered_double.__name__ = "double"
    id = enqueue(lesson, db, "run_double")
    with context(lesson, db, claim_one(lesson, db, id)) as ctx:
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
    (entry,) = log_of(db, id)
    assert (entry.position, entry.kind, entry.name) == (1, "child", "double")


@pytest.mark.parametrize("queue", ["default", "q"])
def test_a_child_goes_into_the_queue_of_its_parent(lesson, db, queue):
    """Whoever runs the parent runs the child."""
    define(lesson)
    id = enqueue(lesson, db, "run_run_double", 2, queue=queue)
    with working(lesson.worker.Worker(db, "w", queue=queue)):
        assert wait_for_status(db, id, *ENDED).output == 4
    assert execute(db, "select distinct queue from tasks") == [(queue,)]


def test_spawn_options_arrive(lesson, db):
    double = define(lesson).double
    enqueue(lesson, db, "run_double")
    with context(lesson, db, claim_one(lesson, db)) as ctx:
        ctx.spawn(double, 1, queue="q", priority=7, max_attempts=2, timeout=MINUTE)
    row = task_row(db, only(db, "double"))
    assert (row.queue, row.priority, row.max_attempts, row.timeout) == ("q", 7, 2, MINUTE)


EDITS = {
    "another name": lambda ctx, tasks: ctx.spawn(tasks.refuse, 0),
    "another input": lambda ctx, tasks: ctx.spawn(tasks.double, 99),
    "a step": lambda ctx, _: ctx.step(str, 0),
    "nothing": lambda ctx, _: ctx.end(),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_spawn_is_caught(lesson, db, edit):
    id, (child,) = suspended(lesson, db)
    finish(lesson, db, claim_one(lesson, db, child), "0")
    error = lesson.nondeterminism.NonDeterminismError
    task = claim_one(lesson, db, id)
    with context(lesson, db, task) as ctx, pytest.raises(error, match="position 1"):
        EDITS[edit](ctx, define(lesson))
