"""Exercise 3: for each patch, how many tasks are half-way without it."""

from shared.testing import wait_for_status, working


def test_3_patches(lesson, db):
    code = ["old"]

    def note(_key):
        return "noted"

    @lesson.context.durable
    def sells(ctx, _):
        if code[0] == "new" and ctx.patched("check"):
            ctx.step(note)
        ctx.step(note)
        ctx.receive("go on")
        if code[0] == "new" and ctx.patched("late"):
            ctx.step(note)

    @lesson.context.durable
    def other(ctx, _):
        if ctx.patched("check"):
            ctx.receive("go on")

    def begin(name, number=1):
        ids = [lesson.tasks.enqueue(connection, name, None) for _ in range(number)]
        with working(lesson.worker.Worker(db, "w")):
            for id in ids:
                wait_for_status(db, id, "waiting")
        return ids

    def go_on(*ids):
        for id in ids:
            lesson.signals.send(connection, id, "go on")
        with working(lesson.worker.Worker(db, "w")):
            for id in ids:
                wait_for_status(db, id, "succeeded", "failed")

    with db.autocommit.connect() as connection:
        assert list(lesson.patches.list_patches(connection)) == []
        old = begin("sells", 3)
        code[0] = "new"
        new = begin("sells", 2)
        begin("other")
        # It has not begun, and will ask.
        lesson.tasks.enqueue(connection, "sells", None, queue="later")
        patches = lesson.patches.list_patches
        assert list(patches(connection)) == [("other", "check", 0), ("sells", "check", 3)]
        go_on(old[0], new[0])
        assert list(patches(connection)) == [
            ("other", "check", 0),
            ("sells", "check", 2),
            ("sells", "late", 3),
        ]
        go_on(*old[1:])
        assert list(patches(connection))[1] == ("sells", "check", 0)
