"""Exercise 1: look, sleep, look again, with growing pauses and an end."""

from datetime import timedelta

from shared.testing import task_row, wait_for_status, working

FIRST = timedelta(seconds=0.02)
WITHIN = timedelta(seconds=0.2)


def test_1_look_again(lesson, db):
    looks = []

    def look(_key, order, paid_at):
        looks.append(order)
        return "paid" if looks.count(order) == paid_at else None

    @lesson.context.durable
    def wait_for_money(ctx, order):
        found = lesson.app.look_again(ctx, look, *order, first=FIRST, within=WITHIN)
        return [found]

    def log(id):
        with db.connect() as connection:
            query = "select kind, input from event_log where task_id = %s order by position"
            return connection.execute(query, (id,)).fetchall()

    assert hasattr(lesson.app, "look_again"), "look_again is yours to write"
    with db.autocommit.connect() as connection:
        once, third, never = (
            lesson.tasks.enqueue(connection, "wait_for_money", [order, paid_at])
            for order, paid_at in [("A", 1), ("B", 3), ("C", 99)]
        )
    with working(lesson.worker.Worker(db, "w")):
        for id, found, order, n in [
            (once, "paid", "A", 1),
            (third, "paid", "B", 3),
            (never, None, "C", 4),  # 0.02 + 0.04 + 0.08, and 0.16 more would be too long
        ]:
            row = wait_for_status(db, id, "succeeded", "failed")
            assert (row.status, row.output) == ("succeeded", [found]), row.error
            assert looks.count(order) == n, "each look was done once"
            assert [kind for kind, _ in log(id)] == [*(n - 1) * ["step", "timer"], "step"]
            assert task_row(db, id).attempt == n, "it held no slot between two looks"
    pauses = [input for kind, input in log(never) if kind == "timer"]
    assert pauses == [0.02, 0.04, 0.08]
