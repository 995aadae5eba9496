"""Exercise 2: a client that waits has one connection, and leaves none behind."""

import threading
from datetime import timedelta

import pytest

from shared.processes import wait_until
from shared.testing import task_row, working


def test_2_one_connection(lesson, db):
    lesson.listen.LOOK_SECONDS = 600

    def sessions():
        """Of this process, besides the one that asks."""
        with db.connect() as connection:
            query = (
                "select count(*) from pg_stat_activity where pid <> pg_backend_pid()"
                " and application_name = current_setting('application_name')"
            )
            return connection.execute(query).fetchone()[0]

    with db.autocommit.connect() as connection:
        id = lesson.tasks.enqueue(connection, "divide", [6, 1])
    db.autocommit.dispose()
    wait_until(lambda: sessions() == 1, "there is only the one that keeps the schema")

    got = []
    wait = lesson.listen.wait_for_result
    client = threading.Thread(
        target=lambda: got.append(wait(db, id, timedelta(seconds=30))), daemon=True
    )
    client.start()
    wait_until(lambda: task_row(db, id).watched, "the client waits")
    assert sessions() == 2, "one more"
    with working(lesson.worker.Worker(db, "w")):
        client.join(timeout=20)
    assert got == [6.0]
    with db.autocommit.connect() as connection:
        later = lesson.tasks.enqueue(connection, "nothing", None, delay=timedelta(hours=1))
    with pytest.raises(TimeoutError):
        wait(db, later, timedelta(0))
    db.autocommit.dispose()
    db.engine.dispose()
    wait_until(lambda: sessions() == 1, "nothing is left behind")
