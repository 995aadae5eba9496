"""Exercise 1: a function that differs from run to run, and what cures it."""

from datetime import datetime, timedelta

from shared.processes import worker_processes
from shared.testing import wait_for_status, working

ITEMS = ["pen", "ink", "pen", "book", "lamp", "desk", "cup", "key", "ink", "rug"]


def run_twice(lesson, db, name):
    """The task's row after an attempt without mail, and another one in another process."""
    assert name in lesson.tasks.registry, f"{name} is yours to write, in app.py"
    with db.autocommit.connect() as connection:
        id = lesson.tasks.enqueue(connection, name, {"id": 7, "items": ITEMS})
    with worker_processes(lesson.path, "a", options=("--no-mail",)):
        first = wait_for_status(db, id, "waiting", "failed")
    assert first.error.startswith("StepError: send_confirmation"), first.error
    assert reserved(lesson) == sorted(set(ITEMS)), "each item once, in the first attempt"
    with worker_processes(lesson.path, "b"):
        return wait_for_status(db, id, "succeeded", "failed")


def reserved(lesson):
    lines = [line.partition(", key ")[0] for line in lesson.app.outside.effects()]
    return sorted(line.split()[2] for line in lines if line.endswith(" reserved"))


def test_1_a_function_that_nobody_has_edited_is_caught(lesson, db):
    row = run_twice(lesson, db, "unsteady")
    assert row.status == "failed", "it did the same in the second run"
    assert row.error.startswith("NonDeterminismError: at position ")
    assert reserved(lesson) == sorted(set(ITEMS)), "the second attempt has done nothing"


def test_1_it_is_cured(lesson, db):
    row = run_twice(lesson, db, "steady")
    assert row.status == "succeeded", row.error
    assert reserved(lesson) == sorted(set(ITEMS))


def run(lesson, db, function):
    lesson.timing.Timing.backoff = lambda *_: timedelta(0)
    lesson.context.durable(function)
    with db.autocommit.connect() as connection:
        id = lesson.tasks.enqueue(connection, function.__name__, None)
    with working(lesson.worker.Worker(db, "w")):
        return wait_for_status(db, id, "succeeded", "failed")


def test_1_clock_and_dice_are_recorded(lesson, db):
    assert hasattr(lesson.context.Context, "now"), "Context.now is yours to write"
    seen = []

    def looks(ctx, _):
        seen.append([ctx.now(), ctx.random(), ctx.random(), ctx.now()])
        if len(seen) < 3:
            raise RuntimeError("once more")
        return seen[-1]

    row = run(lesson, db, looks)
    assert row.status == "succeeded", row.error
    assert seen == [row.output] * 3
    first, a, b, second = row.output
    assert datetime.fromisoformat(first).utcoffset() == timedelta(0)
    assert datetime.fromisoformat(first) < datetime.fromisoformat(second)
    assert a != b
    assert 0 <= min(a, b) <= max(a, b) < 1

    runs = iter(["now", "random"])

    def edited(ctx, _):
        getattr(ctx, next(runs))()
        raise RuntimeError("once more")

    row = run(lesson, db, edited)
    assert row.error.startswith("NonDeterminismError: at position 1, ")
