"""Exercise 3: new tasks go a new way, and those that are under way the old one."""

from datetime import timedelta

from shared.testing import wait_for_status, working

done = []


def charge(_key, order):
    done.append("charge")
    return order


def check(_key, order):
    done.append("check")
    return order


def run(lesson, db, *codes):
    """A task whose runs have these codes in turn; all but the last end by raising."""
    runs = iter(codes)
    done.clear()

    def order(ctx, id):
        code = next(runs)
        result = code(ctx, id)
        if code is not codes[-1] or next(runs, None):
            raise RuntimeError("and then the worker died")
        return result

    lesson.timing.Timing.backoff = lambda *_: timedelta(0)
    lesson.tasks.registry.pop("order", None)
    lesson.context.durable(order)
    with db.autocommit.connect() as connection:
        id = lesson.tasks.enqueue(connection, "order", 7)
    with working(lesson.worker.Worker(db, "w")):
        return wait_for_status(db, id, "succeeded", "failed")


def old(ctx, id):
    ctx.step(charge, id)
    return "old"


def patched(ctx, id):
    new = ctx.patched("fraud")
    if new:
        ctx.step(check, id)
    ctx.step(charge, id)
    return "new" if new else "old"


def other_patch(ctx, id):
    if ctx.patched("another"):
        ctx.step(check, id)
    ctx.step(charge, id)


def last(ctx, id):
    return patched(ctx, id)


def test_3_patched(lesson, db):
    assert hasattr(lesson.context.Context, "patched"), "Context.patched is yours to write"
    row = run(lesson, db, old, last)
    assert (row.status, row.output) == ("succeeded", "old"), row.error
    assert done == ["charge"]
    row = run(lesson, db, patched, last)
    assert (row.status, row.output) == ("succeeded", "new"), row.error
    assert done == ["check", "charge"], "and the second run answers as the first"
    row = run(lesson, db, patched, other_patch)
    assert row.status == "failed", "the marker of the one is not that of the other"
    row = run(lesson, db, patched, old)
    assert row.error.startswith("NonDeterminismError: at position 1, "), "removed too early"
