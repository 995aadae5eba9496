"""Exercise 2: the clock and the dice, recorded."""

from datetime import datetime, timedelta

from shared.testing import wait_for_status, working


def run(lesson, db, function):
    lesson.timing.Timing.backoff = lambda *_: timedelta(0)
    lesson.context.durable(function)
    with db.autocommit.connect() as connection:
        id = lesson.tasks.enqueue(connection, function.__name__, None)
    with working(lesson.worker.Worker(db, "w")):
        return wait_for_status(db, id, "succeeded", "failed")


def test_2_clock_and_dice(lesson, db):
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
