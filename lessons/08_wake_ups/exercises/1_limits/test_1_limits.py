"""Exercise 1: a limit that is raised is heard."""

from shared.processes import wait_until
from shared.testing import task_row, wait_for_status, working


def test_1_limits(lesson, db):
    timing = lesson.timing.Timing(seldom=600)
    worker = lesson.worker.Worker(db, "w", timing=timing)

    def limit(max_running):
        with db.engine.begin() as connection:
            lesson.claim.limit_queue(connection, "default", max_running)

    limit(0)
    with db.autocommit.connect() as connection:
        first, second = (lesson.tasks.enqueue(connection, "nothing", None) for _ in range(2))
    with working(worker):
        wait_until(lambda: worker._listener.hears, "it hears itself")
        rests(db)
        assert task_row(db, first).status == "queued"
        limit(1)
        for id in (first, second):
            wait_for_status(db, id, "succeeded", seconds=5)
        limit(0)
        with db.autocommit.connect() as connection:
            third = lesson.tasks.enqueue(connection, "nothing", None)
        rests(db)
        with db.connect() as by_hand:
            by_hand.execute("update queue_limits set max_running = 5")
        wait_for_status(db, third, "succeeded", seconds=5)


def rests(db):
    """Wait until the worker has not looked for work for as long as three short pauses."""
    looks = (
        "select count(*) from pg_stat_activity where query like '%look_for_work%'"
        " and application_name = current_setting('application_name') and state = 'idle'"
        " and state_change < clock_timestamp() - interval '0.3 s'"
    )
    with db.connect(autocommit=True) as connection:
        wait_until(lambda: connection.execute(looks).fetchone() == (1,), "the worker rests")
