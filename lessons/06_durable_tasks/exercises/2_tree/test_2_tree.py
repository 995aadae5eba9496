"""Exercise 2: the log, and the logs of the children, as a tree."""

from shared.testing import wait_for_status, working

EXPECTED = """\
1 step charge -> "card charged"
2 child pack -> "parcel of book"
  1 step fold -> "box"
  2 child wrap -> null
3 child refuse -> NonRetryableError: no
4 child never"""


def test_2_tree(lesson, db):
    @lesson.tasks.task
    def wrap(_):
        return None

    @lesson.tasks.task
    def never(_):
        return None

    @lesson.tasks.task
    def refuse(_):
        raise lesson.tasks.NonRetryableError("no")

    def charge(_key):
        return "card charged"

    def fold(_key):
        return "box"

    @lesson.context.durable
    def pack(ctx, item):
        ctx.step(fold)
        ctx.run(wrap, item)
        return f"parcel of {item}"

    @lesson.context.durable
    def order(ctx, item):
        ctx.step(charge)
        ctx.run(pack, item)
        try:
            ctx.run(refuse, item)
        except lesson.children.ChildError:
            ctx.spawn(never, item, queue="nobody")

    assert hasattr(lesson.event_log, "tree"), "event_log.tree is yours to write"
    with db.autocommit.connect() as connection:
        id = lesson.tasks.enqueue(connection, "order", "book")
        with working(lesson.worker.Worker(db, "w", slots=1)):
            wait_for_status(db, id, "succeeded", "failed")
        assert lesson.event_log.tree(connection, id) == EXPECTED
