"""Exercise 2: a worker leaves tasks alone whose function it does not have."""

from shared.testing import task_row, wait_for_status, working


def test_2_only_known(lesson, db):
    with db.autocommit.connect() as connection:
        queue = lesson.queries.Querier(connection)
        unknown = queue.enqueue_task(name="from_the_next_release", input="1")
        known = lesson.tasks.enqueue(connection, "divide", [6, 3])
    with working(lesson.worker.Worker(db, "w")):
        wait_for_status(db, known, "succeeded")
    assert task_row(db, unknown).status == "queued"
