"""Lesson 04: only the run that has the task may record."""

# ruff: noqa: ARG001, ARG005  a step takes a key and a program an input, used or not

import json
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
import sqlalchemy as sa

from shared.processes import within
from shared.testing import wait_for_status, working
from tests.helpers import (
    ALL,
    attempt,
    claim_one,
    claimed,
    enqueue,
    execute,
    log_of,
    make_context,
    new_task,
    program,
    queries,
    record,
    recording,
    run_once,
    submitted,
)

ENDS = {
    "taken back": "update tasks set status = 'queued' where id = %s",
    "claimed again": "update tasks set attempt = attempt + 1 where id = %s",
    "succeeded": "update tasks set status = 'succeeded', output = '1' where id = %s",
    "failed": "update tasks set status = 'failed', error = 'x' where id = %s",
    "waiting": "update tasks set status = 'waiting', run_at = clock_timestamp() where id = %s",
}


@pytest.mark.parametrize("end", ENDS)
def test_a_run_that_has_lost_its_task_records_nothing(lesson, db, end):
    id = new_task(lesson, db)
    with attempt(lesson, db, id) as (ctx, queue):
        assert record(queue, id, attempt=1) == 1
        execute(db, ENDS[end], id)
        assert record(queue, id, attempt=1, output="2") == 0
        assert record(queue, id, attempt=1, position=2) == 0
        with pytest.raises(lesson.fence.LostTask):
            ctx.step(lambda key: "late")
    assert [(row.output, row.attempt) for row in log_of(db, id)] == [("done", 1)]


def test_two_workers_have_the_task_and_one_can_write(lesson, db):
    """Claim, take back, claim again: the old attempt is refused, the new one is not."""
    id = new_task(lesson, db)
    with attempt(lesson, db, id) as (zombie, _), attempt(lesson, db, id) as (ctx, queue):
        with pytest.raises(lesson.fence.LostTask):
            zombie.step(lambda key: "zombie")
        assert ctx.step(lambda key: "ours") == "ours"
        assert record(queue, id, attempt=1) == 0, "nor may it overwrite"
    assert [(row.output, row.attempt) for row in log_of(db, id)] == [("ours", 2)]


def test_a_zombie_does_not_overwrite_an_error_of_the_next_attempt(lesson, db):
    """The one kind of entry that may give way, and only to who has the task."""
    id = new_task(lesson, db)
    with claimed(lesson, db, id) as (_, queue):
        execute(db, "update tasks set attempt = 2 where id = %s", id)
        error = json.dumps({"type": "E", "error": "E", "traceback": "", "final": False})
        assert record(queue, id, attempt=2, output=None, error=error) == 1
        assert record(queue, id, attempt=1) == 0
    assert log_of(db, id)[0].error["type"] == "E"


def test_while_a_step_is_being_recorded_nobody_takes_the_task_away(lesson, db):
    id = new_task(lesson, db)
    with claimed(lesson, db, id), db.engine.connect() as one, queries(lesson, db) as other:
        assert record(lesson.queries.Querier(one), id, attempt=1) == 1  # and not committed yet
        execute(db, "delete from workers")
        assert list(other.take_back_tasks(**ALL)) == [], "it passes over the locked row"
        one.commit()
        assert [lost.id for lost in other.take_back_tasks(**ALL)] == [id]
    assert len(log_of(db, id)) == 1


def test_a_record_waits_for_who_is_just_taking_the_task_away(lesson, db):
    """`exists (...)` would look at a snapshot in which the task is still ours, and write."""
    id = new_task(lesson, db)
    with claimed(lesson, db, id), db.engine.connect() as one, ThreadPoolExecutor(1) as thread:
        execute(db, "delete from workers")
        taken = list(lesson.queries.Querier(one).take_back_tasks(**ALL))  # and not committed yet
        assert [lost.id for lost in taken] == [id]

        def late_record():
            with queries(lesson, db) as late:
                return record(late, id, attempt=1)

        late = submitted(db, thread, late_record)
        one.commit()
        assert late.result(timeout=within(20)) == 0
    assert log_of(db, id) == []


def test_losing_the_task_is_not_swallowed_by_except_exception(lesson, db):
    reached = []

    def function(ctx, input):
        try:
            ctx.step(lambda key: execute(db, "update tasks set attempt = attempt + 1"))
        except Exception:
            reached.append("except")
        reached.append("after")

    program(lesson, function)
    id = enqueue(lesson, db, "program")
    task = run_once(lesson, db, id)
    assert reached == []
    assert (task.status, task.attempt, task.error) == ("running", 2, None), "left as it was"
    assert log_of(db, id) == []


def test_a_run_that_has_lost_its_task_does_nothing_more(lesson, db):
    """Not even if the function catches everything."""
    id, calls = new_task(lesson, db), []
    with attempt(lesson, db, id) as (ctx, _):
        execute(db, "update tasks set attempt = 2 where id = %s", id)
        for _ in range(3):
            with pytest.raises(lesson.fence.LostTask):
                ctx.step(lambda key: calls.append(key))
    assert len(calls) == 1


def test_recording_the_same_step_twice_in_one_attempt_is_recording_it_once(lesson, db):
    """The reply to the first try was lost with the connection."""
    id = new_task(lesson, db)
    with claimed(lesson, db, id) as (_, queue):
        assert record(queue, id, attempt=1) == 1
        assert record(queue, id, attempt=1) == 1
    assert len(log_of(db, id)) == 1


def test_the_log_is_read_in_the_order_of_its_positions(lesson, db):
    """And not in the order in which its rows lie in the table."""
    id = new_task(lesson, db)
    with claimed(lesson, db, id) as (_, queue):
        for position in (1, 2, 3):
            assert record(queue, id, attempt=1, position=position) == 1
        execute(db, "update event_log set recorded_at = clock_timestamp() where position = 1")
        execute(db, "analyze event_log")
        assert [entry.position for entry in queue.load_log(task_id=id)] == [1, 2, 3]


def test_what_an_earlier_attempt_has_recorded_is_not_overwritten(lesson, db):
    id = new_task(lesson, db)
    with claimed(lesson, db, id) as (_, queue):
        assert record(queue, id, attempt=1) == 1
    with claimed(lesson, db, id) as (_, queue):
        assert record(queue, id, attempt=2, output='"again"') == 0
    assert log_of(db, id)[0].output == "done"


def test_a_fence_remembers_that_it_has_lost_its_task(lesson, db):
    id = new_task(lesson, db)
    with claimed(lesson, db, id) as (fence, _):
        fence.check()
        execute(db, "update tasks set attempt = 2 where id = %s", id)
        with pytest.raises(lesson.fence.LostTask):
            fence.write(lesson.queries.Querier.fail_task, error="late")
        with pytest.raises(lesson.fence.LostTask):
            fence.check()


def test_an_error_of_the_engine_ends_the_run_and_is_not_the_functions(lesson, db):
    with claimed(lesson, db, new_task(lesson, db)) as (fence, _):
        with pytest.raises(lesson.fence.Hopeless, match="MemoryError"), fence.engine():
            raise MemoryError
        with pytest.raises(lesson.fence.Hopeless):
            fence.check()


def test_a_write_that_fails_although_the_task_is_not_lost_is_hopeless(lesson, db):
    """Another entry stands where the run would write: given back, it would come here for ever."""
    hopeless = pytest.raises(lesson.fence.Hopeless, match="not as its run has left it")
    with claimed(lesson, db, new_task(lesson, db)) as (fence, _), hopeless:
        fence.write(lambda *_, **__: 0)


CUT = {
    "terminate": "select pg_terminate_backend(pid) from pg_stat_activity"
    " where application_name = current_setting('application_name') and pid <> pg_backend_pid()",
    "cancel": "select pg_cancel_backend(pid) from pg_stat_activity"
    " where application_name = current_setting('application_name') and pid <> pg_backend_pid()",
}


@pytest.mark.parametrize("cut", CUT)
def test_a_connection_that_breaks_between_doing_and_recording(lesson, db, cut):
    """The step is recorded when the database can be reached again, and not done again."""
    calls = []

    def step(key):
        calls.append(key)
        execute(
            db,
            CUT[cut],
        )
        return "done"

    program(lesson, lambda ctx, input: [ctx.step(step), ctx.step(lambda key: "next")])
    id = enqueue(lesson, db, "program")
    with working(lesson.worker.Worker(db, "w", slots=1)):
        task = wait_for_status(db, id, "succeeded", "failed", "waiting")
    assert (task.status, task.output, task.attempt) == ("succeeded", ["done", "next"], 1)
    assert len(calls) == 1
    assert len(log_of(db, id)) == 2


def test_a_reply_that_is_lost_after_the_commit(lesson, db):
    """The record is there, and the worker does not know: it records again, and goes on."""
    id, calls = new_task(lesson, db), []
    task = claim_one(lesson, db, id)
    with queries(lesson, db) as queue:
        tries = []

        def record(write, _positions):
            tries.append(write())
            if len(tries) == 1:
                raise sa.exc.OperationalError("insert", None, psycopg.OperationalError("gone"))
            return tries[-1]

        recording(queue, record)
        ctx = make_context(lesson, queue, task)
        assert ctx.step(lambda key: calls.append(key)) is None
        assert [bool(rows) for rows in tries] == [True, True]
    assert len(calls) == len(log_of(db, id)) == 1
