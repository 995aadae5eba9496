"""Lesson 09: a task sleeps without a slot, and wakes at the moment that was recorded once."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta, timezone

import pytest

from bench.growth import buffers, scans
from shared.processes import wait_until, within, working
from shared.testing import task_row, wait_for_status
from tests.helpers import (
    ALL,
    attempt,
    claim_one,
    drop_workers,
    enqueue,
    execute,
    log_of,
    new_task,
    one_by_one,
    program,
    queries,
    submitted,
)

HOUR = timedelta(hours=1)


def ring(lesson, db):
    """What the clock does: complete what is due. How many entries it has found."""
    with queries(lesson, db) as queue:
        return len(list(queue.complete_due_entries(**ALL)))


def due_now(db):
    """Move the database's clock: all open timers are due."""
    execute(
        db,
        "update event_log set due_at = now(), recorded_at = recorded_at - (due_at - now())"
        " where kind = 'timer' and completion is null",
    )


def asleep(lesson, db, id, wait):
    """The next attempt of this task, which suspends in `wait(ctx)`; its log."""
    with attempt(lesson, db, id) as (ctx, _), pytest.raises(lesson.event_log.Suspended):
        wait(ctx)
    return log_of(db, id)


def test_a_sleeper_has_no_slot(lesson, db):
    """Two sleep, and the only slot runs a third task meanwhile."""
    program(lesson, lambda ctx, seconds: ctx.sleep(timedelta(seconds=seconds)))
    sleepers = [enqueue(lesson, db, "program", 1) for _ in range(2)]
    quick = enqueue(lesson, db)
    with working(lesson.worker.Worker(db, "w", slots=1)):
        wait_for_status(db, quick, "succeeded")
        assert [task_row(db, id).status for id in sleepers] == ["waiting", "waiting"]
        for id in sleepers:
            wait_for_status(db, id, "succeeded")
            assert task_row(db, id).started_at >= log_of(db, id)[0].due_at


def test_the_moment_is_recorded_once_whoever_runs_the_task(lesson, db):
    id = new_task(lesson, db)
    first = asleep(lesson, db, id, lambda ctx: ctx.sleep(HOUR))
    assert first[0].due_at - first[0].recorded_at >= HOUR - timedelta(seconds=1)
    assert asleep(lesson, db, id, lambda ctx: ctx.sleep(HOUR)) == first
    row = task_row(db, id)
    assert (row.status, row.awaits, row.wake_after, row.deadline) == ("waiting", [1], 1, None)


@pytest.mark.parametrize("wrong", [HOUR, -HOUR], ids=["ahead", "behind"])
def test_a_clock_that_is_wrong_makes_no_sleep_longer_or_shorter(lesson, db, monkeypatch, wrong):
    class Wrong(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + wrong

    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + wrong.total_seconds())
    for module in (lesson.children, lesson.timers):
        monkeypatch.setattr(module, "datetime", Wrong)
    (entry,) = asleep(lesson, db, new_task(lesson, db), lambda ctx: ctx.sleep(HOUR))
    assert abs(entry.due_at - entry.recorded_at - HOUR) < timedelta(seconds=1)
    program(lesson, lambda ctx, seconds: ctx.sleep(timedelta(seconds=seconds)), "nap")
    id = enqueue(lesson, db, "nap", 0.3)
    with working(lesson.worker.Worker(db, "w")):
        assert wait_for_status(db, id, "succeeded").started_at >= log_of(db, id)[0].due_at


def test_nobody_is_woken_early_and_who_is_due_is_woken_once(lesson, db):
    id = new_task(lesson, db)
    asleep(lesson, db, id, lambda ctx: ctx.sleep(HOUR))
    assert ring(lesson, db) == 0
    assert task_row(db, id).status == "waiting"
    due_now(db)
    assert ring(lesson, db) == 1
    assert (task_row(db, id).status, task_row(db, id).completions) == ("queued", 1)
    assert ring(lesson, db) == 0
    with attempt(lesson, db, id) as (ctx, _):
        assert ctx.sleep(HOUR) is None
        assert ctx.step(lambda _key: 7) == 7


def test_a_moment_is_the_same_one_in_every_time_zone(lesson, db):
    id = new_task(lesson, db)
    noon = datetime(2100, 7, 1, 12, tzinfo=timezone(2 * HOUR))
    first = asleep(lesson, db, id, lambda ctx: ctx.sleep_until(noon))
    assert first[0].due_at == noon
    assert asleep(lesson, db, id, lambda ctx: ctx.sleep_until(noon.astimezone(UTC))) == first


def test_a_moment_that_is_past_is_due_at_once(lesson, db):
    id = new_task(lesson, db)
    past = datetime(1, 1, 1, tzinfo=UTC)
    asleep(lesson, db, id, lambda ctx: ctx.sleep_until(past))
    assert ring(lesson, db) == 1
    with attempt(lesson, db, id) as (ctx, _):
        ctx.sleep_until(past)


def test_a_moment_that_is_another_one_in_each_run_is_found(lesson, db):
    program(lesson, lambda ctx, _: ctx.sleep_until(datetime.now(UTC) + timedelta(seconds=0.1)))
    id = enqueue(lesson, db, "program")
    with working(lesson.worker.Worker(db, "w")):
        wait_until(lambda: task_row(db, id).error, "it is told so")
        error = task_row(db, id).error
    assert "NonDeterminismError" in error
    assert "sleep_until" in error
    assert __file__ in error, "it names the line that asks, and no line of the engine"


MISTAKES = {
    "negative": (lambda ctx: ctx.sleep(-HOUR), "duration is a timedelta from 0"),
    "too long": (lambda ctx: ctx.sleep(timedelta(days=4000)), "duration is a timedelta from 0"),
    "a number": (lambda ctx: ctx.sleep(5), "duration is a timedelta"),
    "no time zone": (lambda ctx: ctx.sleep_until(datetime(2100, 1, 1)), "with a time zone"),  # noqa: DTZ001
    "a date": (lambda ctx: ctx.sleep_until(date(2100, 1, 1)), "with a time zone"),
    "a duration": (lambda ctx: ctx.sleep_until(HOUR), "with a time zone"),
    "year 10000": (
        lambda ctx: ctx.sleep_until(datetime.max.replace(tzinfo=timezone(-HOUR))),
        "outside of the years",
    ),
    "a timeout": (lambda ctx: ctx.gather(timeout=-HOUR), "timeout is a timedelta from 0"),
    "another": (lambda ctx: list(ctx.as_completed(timeout=5)), "timeout is a timedelta"),
}


@one_by_one(("mistake", "why"), MISTAKES.values())
def test_a_mistake_with_time_is_refused_and_takes_no_position(lesson, db, mistake, why):
    id = new_task(lesson, db)
    with attempt(lesson, db, id) as (ctx, _):
        with pytest.raises(lesson.errors.FinalBadInput, match=why):
            mistake(ctx)
        assert log_of(db, id) == []


def test_a_sleep_in_a_step_is_refused(lesson, db):
    id = new_task(lesson, db)
    with (
        attempt(lesson, db, id) as (ctx, _),
        pytest.raises(lesson.errors.StepError, match="InStep"),
    ):
        ctx.step(lambda _key: ctx.sleep(HOUR))


def test_the_last_moment_that_there_is(lesson, db):
    """No statement fails for it, not even for others."""
    id = new_task(lesson, db)
    asleep(lesson, db, id, lambda ctx: ctx.sleep_until(datetime.max.replace(tzinfo=UTC)))
    other = new_task(lesson, db)
    asleep(lesson, db, other, lambda ctx: ctx.sleep(timedelta(0)))
    execute(db, "update event_log set due_at = 'infinity' where task_id = %s", id)
    with queries(lesson, db) as queue:
        assert [look.chore for look in queue.look_for_chores(worker_id=0) if look.seconds <= 0]
    assert ring(lesson, db) == 1
    assert [task_row(db, each).status for each in (id, other)] == ["waiting", "queued"]


def test_two_due_entries_of_one_task_and_one_of_a_task_that_somebody_holds(lesson, db):
    held, other = new_task(lesson, db), new_task(lesson, db)
    for id in (held, other):
        asleep(lesson, db, id, lambda ctx: ctx.gather(ctx.timer(HOUR), ctx.timer(HOUR)))
    due_now(db)
    with db.connect() as holder:
        holder.execute("select from tasks where id = %s for update", (held,))
        assert sum(ring(lesson, db) for _ in range(3)) == 2
        assert [task_row(db, id).status for id in (held, other)] == ["waiting", "queued"]
    assert sum(ring(lesson, db) for _ in range(2)) == 2
    assert task_row(db, held).status == "queued"
    for id in (held, other):
        assert [entry.completion for entry in log_of(db, id)] == [1, 2]


def test_a_timer_of_a_task_that_has_ended_locks_no_parent(lesson, db):
    parent = new_task(lesson, db)
    program(lesson, lambda _ctx, _input: None, "child")
    asleep(lesson, db, parent, lambda ctx: ctx.run(lesson.tasks.registry["child"].function, 1))
    child = claim_one(lesson, db).id
    asleep(lesson, db, child, lambda ctx: ctx.sleep(HOUR))
    execute(db, "update tasks set status = 'cancelled' where id = %s", child)
    due_now(db)
    with db.connect() as holder:
        holder.execute("select from tasks where id = %s for update", (parent,))
        assert ring(lesson, db) == 1
    assert task_row(db, parent).completions == 1


def open_timer(queue, id, attempt, duration=HOUR, position=1):
    return queue.open_timer(
        id=id,
        attempt=attempt,
        position=position,
        name="sleep",
        input="3600.0",
        moment=None,
        duration=duration,
    )


def test_a_timer_that_is_opened_twice_keeps_its_time_and_its_answer(lesson, db):
    """The connection broke before the answer came, and the statement was sent again."""
    id = new_task(lesson, db)
    task = claim_one(lesson, db, id)
    with queries(lesson, db) as queue:
        assert open_timer(queue, id, task.attempt) == 1
        opened = log_of(db, id)
        assert open_timer(queue, id, task.attempt) == 1
        assert log_of(db, id) == opened, "how long it was to last, too: a retry asks for that"
        due_now(db)
        assert ring(lesson, db) == 1
        rung = log_of(db, id)[0]
        assert open_timer(queue, id, task.attempt) == 1
    assert (log_of(db, id)[0].completion, log_of(db, id)[0].due_at) == (1, rung.due_at)


def test_an_attempt_that_is_over_opens_no_timer(lesson, db):
    id = new_task(lesson, db)
    old = claim_one(lesson, db, id)
    with attempt(lesson, db, id) as (_, queue):
        assert open_timer(queue, id, old.attempt) == 0
        assert open_timer(queue, id, old.attempt + 1, position=2) == 0, "a log has no holes"
    assert log_of(db, id) == []


def test_a_timer_waits_for_who_is_just_taking_the_task_away(lesson, db):
    """`exists (...)` would look at a snapshot in which the task is still ours, and write."""
    id = new_task(lesson, db)
    task = claim_one(lesson, db, id)
    drop_workers(db)
    with ThreadPoolExecutor(1) as thread, db.engine.connect() as connection:
        (lost,) = lesson.queries.Querier(connection).take_back_tasks(**ALL)  # not committed yet
        assert lost.id == id

        def late_write():
            with queries(lesson, db) as queue:
                return open_timer(queue, id, task.attempt)

        late = submitted(db, thread, late_write)
        connection.commit()
        assert late.result(timeout=within(20)) == 0
    assert log_of(db, id) == []


def test_a_step_that_has_failed_gives_way_to_a_timer(lesson, db):
    """As in a later attempt that goes another way, because nothing depends on the failure."""
    id = new_task(lesson, db)

    def fail(_key):
        raise ValueError

    with attempt(lesson, db, id) as (ctx, _), pytest.raises(lesson.errors.StepError):
        ctx.step(fail)
    (entry,) = asleep(lesson, db, id, lambda ctx: ctx.sleep(HOUR))
    assert (entry.kind, entry.error, entry.completion) == ("timer", None, None)
    assert entry.due_at - entry.recorded_at >= HOUR - timedelta(seconds=1)


@pytest.mark.parametrize("by", ["retry", "replay"])
def test_a_sleep_that_is_over_stays_over_unless_the_log_is_forgotten(lesson, db, by):
    id = new_task(lesson, db)
    asleep(lesson, db, id, lambda ctx: ctx.sleep(HOUR))
    due_now(db)
    ring(lesson, db)
    execute(db, "update tasks set status = 'failed', error = 'E: no' where id = %s", id)
    with db.engine.begin() as connection:
        getattr(lesson.control, by)(connection, id)
    with attempt(lesson, db, id) as (ctx, _):
        if by == "retry":
            ctx.sleep(HOUR)
        else:
            with pytest.raises(lesson.event_log.Suspended):
                ctx.sleep(HOUR)


def test_a_fork_wakes_when_the_old_task_does(lesson, db):
    id = new_task(lesson, db)
    asleep(lesson, db, id, lambda ctx: ctx.sleep(HOUR))
    with db.engine.begin() as connection:
        fork = lesson.control.fork(connection, id, 1)
    asleep(lesson, db, fork, lambda ctx: ctx.sleep(HOUR))
    assert log_of(db, fork)[0].due_at == log_of(db, id)[0].due_at
    due_now(db)
    assert ring(lesson, db) == 2
    assert [task_row(db, each).status for each in (id, fork)] == ["queued", "queued"]


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
def test_many_sleepers_cost_a_round_of_upkeep_few_pages(lesson, db, mode):
    """The look, and the statement that completes what is due: nothing, here."""
    execute(
        db,
        "with sleeper as (insert into tasks (name, input, status, attempt, awaits, wake_after)"
        " select 'nothing', 'null', 'waiting', 1, '{1}', 1 from generate_series(1, 50000)"
        " returning id)"
        " insert into event_log (task_id, position, kind, name, input, due_at, attempt)"
        " select id, 1, 'timer', 'sleep', '86400.0', now() + id * interval '1 s' + '1 day', 1"
        " from sleeper",
    )
    execute(db, "vacuum analyze tasks, event_log")
    with db.connect() as connection:
        connection.execute(f"set plan_cache_mode = {mode}")
        for name, types, values in [
            ("look_for_chores", "(bigint)", "(1)"),
            ("complete_due_entries", "(bigint, bigint)", "(0, 1000)"),
        ]:
            text = getattr(lesson.queries, name.upper()).replace("\\:", ":")
            text = text.replace(":p1", "$1").replace(":p2", "$2")
            connection.execute(f"prepare {name} {types} as {text}")
            explain = "explain (analyze, buffers, format json) execute"
            plan = connection.execute(f"{explain} {name} {values}").fetchone()[0][0]["Plan"]
            big = [s for s in scans(plan) if s.get("Relation Name") in ("tasks", "event_log")]
            assert "Seq Scan" not in {scan["Node Type"] for scan in big}, name
            assert 0 < sum(map(buffers, big)) <= 10, name
