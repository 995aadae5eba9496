"""Exercise 1: a queued task can be cancelled, and only a queued one."""

from shared.testing import task_row, wait_for_status, working


def test_1_cancel(lesson, db):
    with db.autocommit.connect() as connection:
        first = lesson.tasks.enqueue(connection, "divide", [6, 3])
        second = lesson.tasks.enqueue(connection, "divide", [8, 2])
        assert lesson.tasks.cancel(connection, first) is True
        assert lesson.tasks.cancel(connection, first) is False, "it is cancelled already"
        with working(lesson.worker.Worker(db, "w")):
            wait_for_status(db, second, "succeeded")
        assert task_row(db, first).status == "cancelled", "the worker has passed over it"
        assert lesson.tasks.cancel(connection, second) is False, "it has succeeded"
        third = lesson.tasks.enqueue(connection, "divide", [1, 1])
        assert lesson.queries.Querier(connection).claim_task().id == third
        assert lesson.tasks.cancel(connection, third) is False, "it is running"
    assert task_row(db, second).output == 4
