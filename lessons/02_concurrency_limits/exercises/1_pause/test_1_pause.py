"""Exercise 1: a paused queue starts nothing, and gets its own limit back."""

import pytest


@pytest.mark.parametrize("limit", [None, 2])
def test_1_pause(lesson, db, limit):
    enqueue, claim = lesson.tasks.enqueue, lesson.claim
    with db.autocommit.connect() as connection, db.autocommit.connect() as other:
        for _ in range(6):
            enqueue(connection, "nothing", None)
        if limit is not None:
            claim.limit_queue(connection, "default", limit)
        claim.pause_queue(connection, "default")
        assert claim.claim(db, other, "default", 10) == [], "it is paused"
        claim.pause_queue(connection, "mail")
        claim.resume_queue(connection, "mail")
        assert claim.claim(db, other, "default", 10) == [], "another queue was resumed"
        claim.resume_queue(connection, "default")
        assert len(claim.claim(db, other, "default", 10)) == (limit or 6), "it has its old limit"


def test_1_a_limit_set_during_the_pause(lesson, db):
    enqueue, claim = lesson.tasks.enqueue, lesson.claim
    with db.autocommit.connect() as connection, db.autocommit.connect() as other:
        for _ in range(6):
            enqueue(connection, "nothing", None)
        claim.pause_queue(connection, "default")
        claim.limit_queue(connection, "default", 3)
        assert claim.claim(db, other, "default", 10) == [], "it is still paused"
        claim.resume_queue(connection, "default")
        assert len(claim.claim(db, other, "default", 10)) == 3
        with pytest.raises(lesson.inputs.BadInput):
            claim.pause_queue(connection, "a b")
