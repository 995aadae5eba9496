"""Lesson 14: many tasks in one statement: what is written, what is passed over, who is told."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import sqlalchemy as sa

from shared.processes import wait_until, within
from shared.testing import task_row, wait_for_status, waiting_for_a_lock, working
from tests.helpers import (
    claim_one,
    context,
    count,
    define,
    enqueue,
    enqueue_all,
    execute,
    limit,
    log_of,
    new_task,
    only,
    program,
    queries,
    record_together,
    refusing,
    several,
    spawned,
    statuses,
    store_together,
)

GROUPS = {  # of rows, each a task and an attempt; what is written of them, and how that is seen
    "results": (
        store_together,
        lambda db: {row[0] for row in execute(db, "select id from tasks where output is not null")},
    ),
    "steps": (
        record_together,
        lambda db: {row[0] for row in execute(db, "select task_id from event_log")},
    ),
}


@pytest.fixture(params=GROUPS)
def group(request):
    return GROUPS[request.param]


def claimed_tasks(lesson, db, n):
    for _ in range(n):
        new_task(lesson, db)
    return [claim_one(lesson, db) for _ in range(n)]


# The statements


@pytest.mark.parametrize(
    "end",
    [
        "update tasks set attempt = attempt + 1 where id = %s",
        "update tasks set status = 'queued' where id = %s",
        "update tasks set status = 'cancelled' where id = %s",
        "delete from tasks where id = %s",
    ],
    ids=["claimed again", "taken back", "cancelled", "deleted"],
)
def test_one_that_is_lost_is_left_out(lesson, db, group, end):
    write, written = group
    lost, *others = claimed_tasks(lesson, db, 3)
    execute(db, end, lost.id)
    runs = {(task.id, task.attempt) for task in others}
    with queries(lesson, db) as queue:
        assert write(queue, [lost, *others]) == runs
        assert written(db) == {task.id for task in others}


def test_a_group_waits_for_no_row(lesson, db, group):
    """Somebody holds one of them: it is left out, and the others are written."""
    write, written = group
    tasks = claimed_tasks(lesson, db, 3)
    with db.connect() as holder, queries(lesson, db) as queue:
        holder.execute("select from tasks where id = %s for update", (tasks[1].id,))
        assert write(queue, tasks) == {(tasks[0].id, 1), (tasks[2].id, 1)}
    assert written(db) == {tasks[0].id, tasks[2].id}


def test_a_group_waits_for_no_parent(lesson, db):
    """A child's end is told to its parent, whose row somebody holds."""
    id = new_task(lesson, db)
    claim_one(lesson, db, id)
    children = execute(
        db,
        "insert into tasks (name, input, parent_id, parent_position)"
        " select 'child', '1', %s, position from generate_series(1, 2) as position returning id",
        id,
    )
    tasks = [claim_one(lesson, db) for _ in children]
    with queries(lesson, db) as queue:
        with db.connect() as holder:
            holder.execute("select from tasks where id = %s for update", (id,))
            assert store_together(queue, tasks) == set()
        assert store_together(queue, tasks) == {(child, 1) for (child,) in children}


def test_of_two_attempts_of_a_task_in_one_group_only_the_newer_writes(lesson, db, group):
    """A worker may run the old one still, and both may come to the same group."""
    write, written = group
    old = claimed_tasks(lesson, db, 2)
    execute(db, "update tasks set status = 'queued'")
    new = [claim_one(lesson, db) for _ in old]
    rows = [old[0], new[0], new[1], old[1]]  # whichever of the two the database comes to first
    with queries(lesson, db) as queue:
        runs = {(task.id, 2) for task in new}
        assert write(queue, rows, of=lambda task: task.attempt) == runs
    assert written(db) == {task.id for task in new}
    for task in new:
        outputs = [task_row(db, task.id).output, *(entry.output for entry in log_of(db, task.id))]
        assert {output for output in outputs if output is not None} == {2}


@pytest.mark.parametrize("position", [1, 3])
def test_a_step_that_is_not_the_next_is_left_out(lesson, db, position):
    """The log has one entry: the first is there, for the third the second is missing."""
    one, other = claimed_tasks(lesson, db, 2)
    with queries(lesson, db) as queue:
        assert record_together(queue, [one]) == {(one.id, 1)}
        first = [(entry.output, entry.recorded_at) for entry in log_of(db, one.id)]
        wrong = record_together(queue, [one], position=position)
        assert wrong == set()
        assert record_together(queue, [other]) == {(other.id, 1)}
    assert [(entry.output, entry.recorded_at) for entry in log_of(db, one.id)] == first


def test_a_result_is_stored_as_it_was_written(lesson, db):
    """json keeps the text: 1e300 does not become a whole number of 301 digits."""
    (task,) = claimed_tasks(lesson, db, 1)
    text = '{"a":  1e300, "b": "\\u00e4\\\\u0000", "a": 2}'
    with queries(lesson, db) as queue:
        assert store_together(queue, [task], of=lambda _: text, raw=True) == {(task.id, 1)}
    assert execute(db, "select output::text from tasks") == [(text,)]


# Leader and followers


class Recorder:
    """The statement of a group: waits at a gate, and notes what it is given."""

    def __init__(self):
        self.gate, self.groups, self.fails = threading.Semaphore(0), [], []

    def __call__(self, rows):
        with self.gate:
            pass
        self.groups.append(json.loads(rows))
        if self.fails:
            raise self.fails.pop()
        return {(row, 1) for row in self.groups[-1] if row != 13}

    def open(self):
        self.gate.release(1000)


def test_who_comes_while_one_writes_is_in_the_next_group(lesson):
    recorder = Recorder()
    group = lesson.group.Group(recorder)
    with ThreadPoolExecutor(8) as threads:
        first = threads.submit(group.write, (0, 1), "0")
        wait_until(lambda: group._writing and not group._waiting, "the first one writes")
        others = [threads.submit(group.write, (n, 1), str(n)) for n in (1, 2, 13, 4, 5)]
        wait_until(lambda: len(group._waiting) == 5, "the others wait")
        assert not first.done(), "nothing is acknowledged before it is committed"
        recorder.open()
        assert first.result(within(10)) is True
        told = [other.result(within(10)) for other in others]
    assert told == [True, True, False, True, True], "each is told of its own row"
    assert recorder.groups[0] == [0]
    assert sorted(recorder.groups[1]) == [1, 2, 4, 5, 13]
    assert len(recorder.groups) == 2


def test_a_leader_that_fails_lets_the_others_go_on(lesson):
    """Whatever it is: those of its group write alone, and the next group has a leader."""
    recorder = Recorder()
    recorder.fails = [MemoryError()]
    group = lesson.group.Group(recorder)
    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(group.write, (0, 1), "0")
        wait_until(lambda: group._writing and not group._waiting, "the first one writes")
        others = [threads.submit(group.write, (n, 1), str(n)) for n in (1, 2)]
        wait_until(lambda: len(group._waiting) == 2, "the others wait")
        recorder.open()
        with pytest.raises(MemoryError):
            first.result(within(10))
        assert [other.result(within(10)) for other in others] == [True, True]
    assert group.write((3, 1), "3") is True


# A worker


def gate(lesson):
    """A task that waits until the event is set."""
    opened = threading.Event()

    @lesson.tasks.task
    def wait_at_the_gate(n):
        assert opened.wait(within(20))
        return n

    return opened


def test_one_row_that_is_refused_keeps_no_other_from_being_stored(lesson, db):
    """It is poison for its group: each of them is then stored alone."""
    ids = enqueue_all(lesson, db, "divide", [[n, 1] for n in range(6)])
    lesson.connection.MAX_REFUSALS = 2
    with (
        refusing(db, "tasks", "new.status = 'succeeded' and new.output::text = '3.0'"),
        working(lesson.worker.Worker(db, "w")),
    ):
        wait_until(lambda: count(db, "succeeded") == 5, "all others have succeeded")
    assert task_row(db, ids[3]).status != "succeeded"


def test_a_row_that_somebody_holds_keeps_no_other_from_ending(lesson, db):
    go = gate(lesson)
    with db.connect() as holder, working(lesson.worker.Worker(db, "w", connections=1)):
        ids = enqueue_all(lesson, db, "wait_at_the_gate", range(10))
        wait_until(lambda: count(db, "running") == 10, "all run")
        holder.execute("select from tasks where id = %s for update", (ids[0],))
        go.set()
        wait_until(lambda: count(db, "succeeded") == 9, "the others have ended")
        assert task_row(db, ids[0]).status == "running"
        holder.rollback()
        wait_for_status(db, ids[0], "succeeded")
    assert {task_row(db, id).attempt for id in ids} == {1}


def test_a_task_holds_its_slot_until_its_result_is_stored(lesson, db):
    """So no crash repeats more functions than there are slots, and nobody gives it back."""
    go = gate(lesson)
    ids = enqueue_all(lesson, db, "wait_at_the_gate", range(5))
    with db.connect() as holder, working(lesson.worker.Worker(db, "w", slots=2)):
        wait_until(lambda: count(db, "running") == 2, "two run")
        holder.execute("select from tasks where id = any (%s) for update", (ids[:2],))
        go.set()
        wait_until(lambda: waiting_for_a_lock(db) == 2, "their results wait")
        assert statuses(db) == {"running": 2, "queued": 3}
        holder.rollback()
        wait_until(lambda: count(db, "succeeded") == 5, "all have ended")
    assert {task_row(db, id).attempt for id in ids} == {1}


def test_a_row_that_somebody_holds_keeps_no_other_from_its_steps(lesson, db):
    go = threading.Event()

    def waits(_key):
        assert go.wait(within(20))

    program(lesson, lambda ctx, _: ctx.step(waits))
    held = enqueue(lesson, db, "program")
    with db.connect() as holder, working(lesson.worker.Worker(db, "w", connections=1)):
        wait_for_status(db, held, "running")
        holder.execute("select from tasks where id = %s for update", (held,))
        go.set()
        others = enqueue_all(lesson, db, "program", [None] * 9)
        wait_until(lambda: count(db, "succeeded") == 9, "the others have ended")
        assert task_row(db, held).status == "running"
        holder.rollback()
        wait_for_status(db, held, "succeeded")
    assert {len(log_of(db, id)) for id in [held, *others]} == {1}


def test_results_do_not_wait_for_the_limit_of_the_queue(lesson, db):
    """Somebody has changed it, and has not committed: a claim waits for that."""
    go = gate(lesson)
    limit(lesson, db, 5)
    ids = enqueue_all(lesson, db, "wait_at_the_gate", range(3))
    with db.connect() as holder, working(lesson.worker.Worker(db, "w", slots=4)):
        wait_until(lambda: count(db, "running") == 3, "all run")
        holder.execute("update queue_limits set max_running = 7")
        more = several(lesson, db, 1)
        wait_until(lambda: waiting_for_a_lock(db) == 1, "the claim waits")
        go.set()
        wait_until(lambda: count(db, "succeeded") == 3, "their results are stored")
        assert task_row(db, more[0]).status == "queued"
        holder.rollback()
        wait_for_status(db, more[0], "succeeded")
    assert {task_row(db, id).attempt for id in ids} == {1}


def test_a_result_that_is_passed_over_goes_with_the_next_groups_and_then_alone(lesson, db):
    """Alone, each child holds its parent's row for a moment, and groups pass over the others."""
    one, other = claimed_tasks(lesson, db, 2)
    stored, alone = [], []
    results = lesson.results.Results(stored.append, alone.append)
    with db.autocommit.connect() as connection, db.connect() as holder:
        holder.execute("select from tasks for update")
        results.add(one, "1")
        assert results.store(connection), "it is to be tried again"
        assert (stored, alone) == ([], [])
        holder.rollback()
        assert not results.store(connection)
        assert (stored, alone) == ([one], [])
        holder.execute("select from tasks for update")
        results.add(other, "1")
        tries = 1
        while results.store(connection):
            tries += 1
        assert (stored, [result.task for result in alone]) == ([one], [other])
        assert tries == lesson.results.MAX_TRIES


def test_a_connection_that_is_cut_in_a_group_loses_and_repeats_nothing(lesson, db):
    """Each step of the group is then recorded alone; some of them were committed already."""
    done = []

    def step(_key, n):
        done.append(n)
        return n

    program(lesson, lambda ctx, n: [ctx.step(step, 10 * n + i) for i in range(10)])
    ids = enqueue_all(lesson, db, "program", list(range(20)))
    cut = (
        "select pg_terminate_backend(pid) from pg_stat_activity where query like '%%record_steps%%'"
        " and application_name = current_setting('application_name') and pid <> pg_backend_pid()"
    )
    with working(lesson.worker.Worker(db, "w", slots=20)):
        while count(db, "succeeded") < 20:
            execute(db, cut)
    assert sorted(done) == list(range(200)), "no step is done twice"
    assert {len(log_of(db, id)) for id in ids} == {10}
    assert {task_row(db, id).attempt for id in ids} == {1}


# Children


def test_children_are_spawned_in_their_order_when_the_function_asks_for_more(lesson, db):
    id = new_task(lesson, db)

    @lesson.tasks.task
    def child(n):
        return n

    with context(lesson, db, claim_one(lesson, db, id)) as ctx:
        for n in range(250):
            ctx.spawn(child, n)
        assert count(db, "queued") == 200, "a hundred at a time"
        ctx.step(str)
        assert count(db, "queued") == 250, "before the step is done"
    rows = execute(db, "select input::text::int, parent_position from tasks where name = 'child'"
                       " order by id")  # fmt: skip
    assert rows == [(n, n + 1) for n in range(250)]
    assert [entry.kind for entry in log_of(db, id)] == ["child"] * 250 + ["step"]


def test_children_are_spawned_all_or_none(lesson, db):
    """In the place of one there is a child already, though the log does not know of it."""
    id, double = new_task(lesson, db), define(lesson).double
    by_hand = "insert into tasks (name, input, parent_id, parent_position) values ('a', '1', %s, 2)"
    execute(db, by_hand, id)
    with context(lesson, db, claim_one(lesson, db, id)) as ctx:
        ctx.spawn(double, 0)
        ctx.spawn(double, 1)
        with pytest.raises(lesson.fence.Hopeless):
            spawned(ctx)
    assert log_of(db, id) == []
    assert count(db, "queued") == 1


def test_children_that_are_not_all_there_fail_the_task(lesson, db):
    """One was put into its place while the statement waited for it."""
    id, double = new_task(lesson, db), define(lesson).double
    by_hand = "insert into tasks (name, input, parent_id, parent_position) values ('a', '1', %s, 2)"
    with (
        context(lesson, db, claim_one(lesson, db, id)) as ctx,
        db.connect() as psql,
        ThreadPoolExecutor(1) as threads,
    ):
        psql.execute(by_hand, (id,))
        for n in range(3):
            ctx.spawn(double, n)
        writes = threads.submit(ctx._log._write_children)
        wait_until(lambda: waiting_for_a_lock(db) == 1, "it waits for the child in the way")
        psql.commit()
        with pytest.raises(lesson.fence.Hopeless, match="not as its run has left it"):
            writes.result(within(20))


def test_a_child_may_have_no_time_at_all(lesson, db):
    id, double = new_task(lesson, db), define(lesson).double
    with context(lesson, db, claim_one(lesson, db, id)) as ctx:
        ctx.spawn(double, 0, timeout=timedelta(0))
        spawned(ctx)
    assert execute(db, "select timeout from tasks where parent_id = %s", id) == [(timedelta(0),)]


def test_a_run_that_breaks_is_not_waited_for(lesson, db, monkeypatch):
    """The engine's own error ends the worker, and not the grace period."""
    monkeypatch.setattr(lesson.timing.Timing, "backoff", lambda *_: 1 / 0)
    enqueue(lesson, db, "divide", [1, 0])
    worker = lesson.worker.Worker(db, "w", grace=timedelta(hours=1))
    with ThreadPoolExecutor(1) as threads, pytest.raises(ZeroDivisionError):
        threads.submit(worker.run).result(within(20))


@pytest.mark.parametrize(
    "error",
    [ValueError("no"), RuntimeError("no"), sa.exc.InternalError("no", None, None)],
    ids=lambda error: type(error).__name__,
)
def test_whatever_goes_wrong_in_a_group_its_rows_go_alone(lesson, db, monkeypatch, error):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(lesson.queries.Querier, "record_steps", fails)
    monkeypatch.setattr(lesson.queries.Querier, "succeed_tasks", fails)
    program(lesson, lambda ctx, _: ctx.step(lambda _: 7))
    id = enqueue(lesson, db, "program")
    with working(lesson.worker.Worker(db, "w")):
        assert wait_for_status(db, id, "succeeded", "failed").output == 7
    assert [entry.output for entry in log_of(db, id)] == [7]


@pytest.mark.parametrize("how", ["returns", "raises", "swallows"])
def test_what_a_function_has_spawned_is_there_when_it_has_ended(lesson, db, how):
    @lesson.tasks.task
    def child(n):
        return n

    def function(ctx, _):
        try:
            ctx.spawn(child, 1)
            if how == "raises":
                raise lesson.tasks.NonRetryableError("no")
        except ValueError:
            raise AssertionError from None
        except BaseException:
            if how != "raises":
                return
            raise

    program(lesson, function)
    id = enqueue(lesson, db, "program")
    with working(lesson.worker.Worker(db, "w")):
        wait_for_status(db, id, "failed" if how == "raises" else "succeeded")
        wait_for_status(db, only(db, "child"), "succeeded")
    assert [entry.output for entry in log_of(db, id)] in ([1], [None])


def test_children_that_cannot_be_stored_fail_their_parent_whatever_it_catches(lesson, db):
    @lesson.tasks.task
    def child(n):
        return n

    def function(ctx, _):
        try:
            ctx.gather(ctx.spawn(child, 1), ctx.spawn(child, "poison"))
        except BaseException:
            return "fine"

    program(lesson, function)
    id = enqueue(lesson, db, "program")
    with (
        refusing(db, "tasks", "new.parent_id is not null", "22P02"),
        working(lesson.worker.Worker(db, "w")),
    ):
        error = wait_for_status(db, id, "succeeded", "failed").error
    assert "Postgres cannot store this" in error
    assert log_of(db, id) == []
    assert statuses(db) == {"failed": 1}
