"""Exercise 1: the first child's result, and no other child goes on."""

import threading

from shared.testing import wait_for_status, working


def test_1_first(lesson, db):
    runs: list[str] = []
    over = threading.Event()

    @lesson.tasks.task
    def ask(carrier):
        if carrier == "slow":
            over.wait(20)
        return carrier

    @lesson.durable.durable
    def quickest(ctx, carriers):
        found = ctx.first(*(ctx.spawn(ask, carrier) for carrier in carriers))
        runs.append(found)
        if len(runs) == 1:
            raise ValueError("run again")
        return found

    assert hasattr(lesson.durable.Context, "first"), "Context.first is yours to write"
    lesson.worker.FIRST_BACKOFF *= 0.01
    with db.autocommit.connect() as connection:
        id = lesson.tasks.enqueue(connection, "quickest", ["slow", "quick", "slow"])
        with working(lesson.worker.Worker(db, "w", slots=4)):
            row = wait_for_status(db, id, "succeeded", "failed")
            others = connection.exec_driver_sql(
                "select status from tasks where name = 'ask' and input::text = '\"slow\"'"
            ).fetchall()
            over.set()
        assert (row.status, row.output, runs) == ("succeeded", "quick", ["quick", "quick"])
        assert [status for (status,) in others] == ["cancelled", "cancelled"]
