"""Lesson 06: what a workflow costs, and what a waiting task does not."""

import os
import time
from collections import Counter
from pathlib import Path

import pytest
import sqlalchemy as sa

from shared.lessons import lessons
from shared.processes import wait_until, worker_processes
from shared.testing import wait_for_status, working
from tests.helpers import enqueue_all, execute, name_of, statuses

WAITING = int(os.environ.get("WAITING", "2000"))  # durable tasks wait at once in the newest lesson


# Cost


def test_a_workflow_of_ten_steps_takes_twelve_statements(lesson, db):
    def same(_key, n):
        return n

    @lesson.context.durable
    def ten(ctx, _):
        for n in range(10):
            ctx.step(same, n)

    enqueue_all(lesson, db, "ten", [None] * 5)
    noted: list[str] = []

    def note(_connection, _cursor, statement, *_):
        noted.append(name_of(statement))

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


def test_as_completed_looks_once_at_what_has_ended(lesson, db, monkeypatch):
    """And not once for each child: a run over n ended children would cost n² comparisons."""
    children, looked_at = 20, []

    @lesson.context.durable
    def all_of_them(ctx, _):
        pending = [ctx.spawn(child, n) for n in range(children)]
        ctx.gather(*pending)
        looked_at.clear()
        return [ctx.result(one) for one in ctx.as_completed(*pending)]

    @lesson.tasks.task
    def child(n):
        return n

    wait = lesson.event_log.EventLog.wait

    def noted(self, positions, enough, **deadline):
        looked_at.append(len(positions))
        return wait(self, positions, enough, **deadline)

    monkeypatch.setattr(lesson.event_log.EventLog, "wait", noted)
    (id,) = enqueue_all(lesson, db, "all_of_them", [None])
    with working(lesson.worker.Worker(db, "w")):
        assert sorted(wait_for_status(db, id, "succeeded", "failed").output) == [*range(children)]
    # One look at all of them, and one for each result.
    assert sum(looked_at) == 2 * children


def test_thousands_of_waiting_tasks_hold_no_slot_and_no_memory(lesson, db):
    tasks = WAITING if lesson.path == lessons()[-1] else WAITING // 20
    enqueue_all(lesson, db, "wait_for_a_nap", [0] * tasks, queue="parents")
    started = time.monotonic()
    options = ("--queue", "parents", "--slots", "4")
    with worker_processes(lesson.path, "w", options=options) as (worker,):
        wait_until(lambda: statuses(db)["waiting"] >= tasks // 10, "some wait", 60)
        early = memory(worker.pid)
        wait_until(lambda: statuses(db)["waiting"] == tasks, "all wait", 200)
        assert statuses(db) == {"waiting": tasks, "queued": tasks}
        waited = time.monotonic() - started
        late = memory(worker.pid)
        assert late - early < 3, "megabytes: the process keeps nothing of a task that waits"
        # The slow thing has happened, for all of them at once.
        execute(db, "update tasks set status = 'succeeded', output = 'null' where name = 'sleep'")
        wait_until(lambda: statuses(db) == {"succeeded": 2 * tasks}, "all have finished", 200)
        print(
            f"{tasks} waiting after {waited:.1f} s, all finished after"
            f" {time.monotonic() - started:.1f} s; {early:.1f} MB, {late:.1f} MB,"
            f" {memory(worker.pid):.1f} MB"
        )
        assert memory(worker.pid) - early < 6


def memory(pid):
    """Resident megabytes of a process."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        pytest.skip("needs /proc")
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024
