"""Lesson 06: of two runs of a task, one can step, spawn and wait."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from shared.processes import wait_until, within, worker_processes
from shared.testing import task_row, wait_for_status
from tests.helpers import (
    ALL,
    MINUTE,
    OPTIONS,
    announce,
    by_hand,
    claim_one,
    claim_tasks,
    context,
    copy_of,
    define,
    drop_workers,
    enqueue,
    execute,
    finish,
    log_of,
    looks_before_and_locks_after,
    needs,
    queries,
    spawn,
    spawned,
    statuses,
    submitted,
    suspended,
    take_back,
)


def test_of_two_runs_of_one_task_only_one_can_write(lesson, db):
    double = define(lesson).double
    id = enqueue(lesson, db, "run_double", 1, max_attempts=9)
    old = claim_one(lesson, db, id)
    with ExitStack() as stack:
        # A run that has been refused refuses by itself from then on: one for each write.
        zombies = [stack.enter_context(context(lesson, db, old)) for _ in range(6)]
        for waits in zombies[2::3]:
            child_of_old = waits.spawn(double, 0)
            spawned(waits)
        drop_workers(db)
        assert take_back(lesson, db) == {id: "queued"}
        for running in (False, True):
            if running:
                new = claim_one(lesson, db, id)
            before = task_row(db, id), log_of(db, id), statuses(db)
            does, spawns, waits = zombies[:3] if running else zombies[3:]
            for write in (
                lambda does=does: does.step(str),
                lambda spawns=spawns: (spawns.spawn(double, 1), spawned(spawns)),
                lambda waits=waits: waits.result(child_of_old),
            ):
                with pytest.raises(lesson.fence.LostTask):
                    write()
            assert finish(lesson, db, old) == 0
            assert (task_row(db, id), log_of(db, id), statuses(db)) == before
    with context(lesson, db, new) as ctx:
        child = ctx.spawn(double, 0)
        with pytest.raises(lesson.event_log.Suspended):
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
    announce(lesson, "sleepy")
    id = enqueue(lesson, db, "sleepy", {"id": 1})
    with worker_processes(path, "a", options=OPTIONS) as (a,):
        wait_until(lambda: len(lesson.app.outside.effects()) == 1, "a sleeps in its step")
        with worker_processes(path, "b", options=OPTIONS) as (b,):
            assert wait_for_status(db, id, "succeeded").output == "done"
            before = task_row(db, id), log_of(db, id)
            a.resume()
            wait_until(
                lambda: "not running in attempt 1 any more: void" in a.output(), "a was refused"
            )
            assert (task_row(db, id), log_of(db, id)) == before
            assert log_of(db, id)[0].output == str(b.pid)


@pytest.mark.parametrize("write", ["spawns", "settles"])
def test_a_write_waits_for_who_is_just_taking_the_task_away(lesson, db, write):
    """`exists (...)` would look at a snapshot in which the task is still ours, and write."""
    refuse = define(lesson).refuse
    id = enqueue(lesson, db, "run_double", priority=1)
    task = claim_one(lesson, db, id)
    with context(lesson, db, task) as ctx:
        ctx.spawn(refuse, 1)
    with queries(lesson, db) as queue:
        failed = claim_one(lesson, db)
        assert queue.fail_task(id=failed.id, attempt=1, error="E: no") == 1
    before = log_of(db, id), statuses(db).total()
    with ThreadPoolExecutor(1) as thread, db.engine.connect() as connection:
        drop_workers(db)
        (lost,) = lesson.queries.Querier(connection).take_back_tasks(**ALL)  # not committed yet
        assert lost.id == id

        def late_write():
            with queries(lesson, db) as queue:
                if write == "spawns":
                    return spawn(queue, task, position=2)
                return queue.settle_errors(id=id, attempt=1, positions=[1])

        late = submitted(db, thread, late_write)
        connection.commit()
        assert not late.result(timeout=within(20))
    assert claim_one(lesson, db, id).attempt == 2
    assert not late_write(), "nor does it mistake the next attempt for its own"
    assert (log_of(db, id), statuses(db).total()) == before


@pytest.mark.parametrize("meanwhile", ["retried by hand", "succeeded", "failed"])
def test_a_child_that_was_lost_when_looked_at_may_be_well_when_it_is_locked(lesson, db, meanwhile):
    """One looks, and is slow."""
    if meanwhile == "retried by hand":
        needs(lesson, "replay_task")
    _, (with_timeout, lost) = suspended(lesson, db, 2)
    execute(db, "update tasks set max_attempts = 1, timeout = '1 h' where parent_id is not null")
    with queries(lesson, db) as queue:
        alive, dead = (queue.register_worker(name="w", lease=MINUTE) for _ in range(2))
        for worker, child in ((alive, with_timeout), (dead, lost)):
            (task,) = claim_tasks(queue, worker)
            assert task.id == child
    execute(db, "delete from workers where id = %s", dead)
    rows = []

    def then():
        if meanwhile == "succeeded":
            assert finish(lesson, db, task) == 1
        elif meanwhile == "failed":
            with queries(lesson, db) as queue:
                assert queue.fail_task(id=lost, attempt=1, error="E: no") == 1
        else:
            assert take_back(lesson, db) == {lost: "failed"}
            by_hand(lesson, db, "retry", lost)
            assert claim_one(lesson, db, lost).attempt == 2
        rows.append(task_row(db, lost))

    assert looks_before_and_locks_after(lesson, db, "take_back_tasks", then) == []
    assert rows == [task_row(db, lost)]
