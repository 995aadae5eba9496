"""Exercise 2: a value that a task sets is there for all to see, and does not go back."""

from shared.testing import wait_for_status, working


def test_2_progress(lesson, db):
    seen = []

    def get(id, name="percent"):
        with db.autocommit.connect() as connection:
            return lesson.signals.get_value(connection, id, name)

    @lesson.context.durable
    def slow(ctx, _):
        for percent in (20, 40):
            ctx.set_value("percent", percent)
            seen.append(get(ids[0]))
        ctx.set_value("of", "the files")
        ctx.receive("go on")
        ctx.set_value("percent", None)

    with db.autocommit.connect() as connection:
        ids = [lesson.tasks.enqueue(connection, "slow", None) for _ in range(2)]
    assert get(ids[0]) is None
    with working(lesson.worker.Worker(db, "w")):
        for id in ids:
            wait_for_status(db, id, "waiting")
        assert [get(ids[0]), get(ids[0], "of"), get(ids[0], "else")] == [40, "the files", None]
        with db.engine.begin() as connection:
            fork = lesson.control.fork(connection, ids[0], 1)
        assert get(fork) == 20
        with db.engine.begin() as connection:
            lesson.signals.send(connection, ids[0], "go on")
        assert wait_for_status(db, ids[0], "succeeded", "failed").status == "succeeded"
        assert [get(ids[0]), get(ids[1])] == [None, 40]
        with db.engine.begin() as connection:
            lesson.signals.send(connection, ids[1], "go on")
            lesson.control.cancel(connection, fork)
        wait_for_status(db, ids[1], "succeeded", "failed")
    assert 20 not in seen[seen.index(40) :], "it does not go back"
