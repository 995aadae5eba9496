"""Exercise 2: the tasks at the bottom of what a task waits for."""

from datetime import timedelta

from shared.processes import wait_until
from shared.testing import task_row, wait_for_status, working


def test_2_waits_for(lesson, db):
    @lesson.tasks.task
    def slow(_):
        return None

    @lesson.tasks.task
    def quick(_):
        return None

    @lesson.tasks.task
    def broken(_):
        raise ValueError("try again")

    @lesson.context.durable
    def pack(ctx, _):
        ctx.spawn(slow, None, queue="nobody")  # not waited for
        ctx.gather(
            ctx.spawn(quick, None), ctx.spawn(slow, None, queue="nobody"), ctx.spawn(broken, None)
        )

    @lesson.context.durable
    def order(ctx, _):
        ctx.spawn(slow, None, queue="nobody")
        ctx.run(pack, None)

    def waits_for(id):
        with db.autocommit.connect() as connection:
            return lesson.children.waits_for(connection, id)

    def task_id(name, at_position):
        with db.connect() as connection:
            query = "select id from tasks where name = %s and parent_position = %s order by id"
            return connection.execute(query, (name, at_position)).fetchall()[-1][0]

    assert hasattr(lesson.children, "waits_for"), "children.waits_for is yours to write"
    lesson.timing.Timing.backoff = lambda *_: timedelta(hours=1)
    with db.autocommit.connect() as connection:
        id = lesson.tasks.enqueue(connection, "order", None)
    assert waits_for(id) == [id], "it waits for no child"
    with working(lesson.worker.Worker(db, "w")):
        wait_for_status(db, id, "waiting")
        pack_id = task_id("pack", 2)

        def one_has_ended():
            task = task_row(db, pack_id)
            return (task.status, task.completions) == ("waiting", 1)

        wait_until(one_has_ended, "the quick one has ended, and the others are waited for")
        wait_for_status(db, task_id("broken", 4), "waiting")
        held_up_by = [task_id("slow", 3), task_id("broken", 4)]
        assert waits_for(id) == waits_for(pack_id) == held_up_by
        assert waits_for(held_up_by[0]) == held_up_by[:1]
        assert waits_for(task_id("quick", 2)) == []
        assert waits_for(10**9) == []
