"""Exercise 2: a schedule starts nothing while what it has started before has not ended."""

import pytest


@pytest.mark.parametrize("status", ["queued", "running", "waiting"])
def test_2_one_at_a_time(lesson, db, status):
    def tick(*names):
        """One tick later; how many tasks there are."""
        with db.connect(autocommit=True) as by_hand:
            back = "update schedules set next_at = now() - interval '1 s' * %s where name = any(%s)"
            by_hand.execute(back, (later.pop(), list(names)))
            with db.autocommit.connect() as connection:
                lesson.schedules.tick(lesson.queries.Querier(connection))
            due = "select count(*) from schedules where next_at <= now()"
            assert by_hand.execute(due).fetchone() == (0,), "the tick passes"
            return by_hand.execute("select count(*) from tasks").fetchone()[0]

    def becomes(status, error=None):
        with db.connect(autocommit=True) as by_hand:
            by_hand.execute(
                "update tasks set status = %s, error = %s, attempt = 1, worker_id = 1,"
                " started_at = now(), run_at = now() where idempotency_key ~ '^schedule s '",
                (status, error),
            )

    later = [10, 20, 30, 40, 50]
    with db.autocommit.connect() as connection:
        for name in ("s", "s-2"):
            lesson.schedules.set_schedule(connection, name, "0 0 1 1 *", "nothing", None)
    assert tick("s") == 1
    becomes(status)
    assert tick("s") == 1, "its task has not ended"
    assert tick("s-2") == 2, "that is another schedule"
    assert tick("s") == 2
    becomes("failed", "E: no")
    assert tick("s") == 3, "a task that has failed has ended"
