"""Exercise 1: a child is run by the version of its parent."""

from shared.testing import task_row, wait_for_status, working


def test_1_children(lesson, db):
    @lesson.tasks.task
    def plain(_):
        return "plain"

    @lesson.context.durable
    def child(_ctx, _):
        return "durable"

    @lesson.context.durable
    def parent(ctx, _):
        return ctx.gather(*(ctx.spawn(f, None, queue="others") for f in (plain, child)))

    def worker(name, queue, version):
        return lesson.worker.Worker(db, name, queue=queue, version=version)

    def begun(version):
        """A parent that waits for its children, and these."""
        with working(worker("a", "default", version)):
            id = lesson.tasks.enqueue(connection, "parent", None)
            wait_for_status(db, id, "waiting")
        return id, [id + 1, id + 2]

    with db.autocommit.connect() as connection:
        first, children = begun("1")
        second, others = begun("")
        assert [task_row(db, id).version for id in children] == ["1", "1"]
        assert [task_row(db, id).version for id in others] == ["", ""]
        with working(worker("b", "others", "2")), working(worker("c", "default", "2")):
            assert wait_for_status(db, second, "succeeded", "failed").output == ["plain", "durable"]
            assert {task_row(db, id).status for id in children} == {"queued"}, "left alone"
        with working(worker("d", "others", "1")), working(worker("e", "default", "1")):
            assert wait_for_status(db, first, "succeeded", "failed").output == ["plain", "durable"]
