"""Exercise 1: a paused queue starts nothing, and gets its own limit back."""

import pytest


@pytest.mark.parametrize("limit", [None, 2])
def test_1_pause(lesson, db, limit):
    tasks = lesson.tasks
    worker = lesson.worker.Worker(db, "w")
    with db.autocommit.connect() as connection, db.autocommit.connect() as other:
        for _ in range(6):
            tasks.enqueue(connection, "nothing", None)
        if limit is not None:
            tasks.limit_queue(connection, "default", limit)
        tasks.pause_queue(connection, "default")
        assert worker._claim(other, 10) == [], "it is paused"
        tasks.pause_queue(connection, "mail")
        tasks.resume_queue(connection, "mail")
        assert worker._claim(other, 10) == [], "another queue was resumed"
        tasks.resume_queue(connection, "default")
        assert len(worker._claim(other, 10)) == (limit or 6), "it has its old limit"


def test_1_a_limit_set_during_the_pause(lesson, db):
    tasks = lesson.tasks
    worker = lesson.worker.Worker(db, "w")
    with db.autocommit.connect() as connection, db.autocommit.connect() as other:
        for _ in range(6):
            tasks.enqueue(connection, "nothing", None)
        tasks.pause_queue(connection, "default")
        tasks.limit_queue(connection, "default", 3)
        assert worker._claim(other, 10) == [], "it is still paused"
        tasks.resume_queue(connection, "default")
        assert len(worker._claim(other, 10)) == 3
        with pytest.raises(tasks.BadInput):
            tasks.pause_queue(connection, "a b")
