"""Exercise 3: many tasks are enqueued by COPY."""

from datetime import timedelta

import pytest

INPUTS = [None, 1e300, "a\tb\nc\\N \\", {"ä": ["\u2028", '"', "\\t"]}, *range(5000)]


def test_3_copy(lesson, db):
    def rows():
        with db.connect() as connection:
            return connection.execute("select * from tasks order by id").fetchall()

    def copied(connection, inputs, **options):
        return lesson.tasks.enqueue_copied(connection, "nothing", inputs, **options)

    with db.engine.connect() as connection:
        assert copied(connection, INPUTS) == len(INPUTS)
        connection.rollback()
    assert rows() == [], "it is in the caller's transaction"
    for wrong in ([1, float("nan")], [1, "\0"], [1, object()]):
        with db.engine.begin() as connection, pytest.raises(lesson.inputs.BadInput):
            copied(connection, wrong)
    with db.engine.begin() as connection, pytest.raises(lesson.inputs.BadInput):
        lesson.tasks.enqueue_copied(connection, "unknown", [1])
    assert rows() == [], "all of them, or none"

    options = {"queue": "q", "priority": 3, "max_attempts": 2, "timeout": timedelta(seconds=90)}
    with db.engine.begin() as connection:
        assert copied(connection, INPUTS) == len(INPUTS)
        assert copied(connection, []) == 0
        assert copied(connection, ["x"], **options) == 1
        one = lesson.tasks.enqueue(connection, "nothing", "x", **options)
    with db.connect() as connection:
        inputs = connection.execute("select input from tasks where queue = 'default' order by id")
        assert [input for (input,) in inputs] == INPUTS
        last, alone = connection.execute(
            "select name, input::text, queue, priority, max_attempts, timeout, status from tasks"
            " where queue = 'q' order by id"
        ).fetchall()
        assert last == alone, f"as task {one}, which was enqueued alone"
