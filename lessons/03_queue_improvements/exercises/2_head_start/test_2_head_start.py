"""Exercise 2: a priority is a head start, and nobody starves."""

from datetime import timedelta

import sqlalchemy as sa


def test_2_head_start(lesson, db):
    with db.autocommit.connect() as connection:
        queue = lesson.queries.Querier(connection)
        worker_id = queue.register_worker(name="w", lease=timedelta(minutes=1))

        def claim(connection, slots):
            tasks = lesson.claim.claim(db, connection, worker_id, "default", slots)
            return [task.id for task in tasks]

        low = lesson.tasks.enqueue(connection, "nothing", None)
        for _ in range(40):
            lesson.tasks.enqueue(connection, "nothing", None, priority=1)
        highest = lesson.tasks.enqueue(connection, "nothing", None, priority=2**31 - 1)
        with db.autocommit.connect() as dispatcher:
            order = [id for _ in range(42) for id in claim(dispatcher, 1)]
        assert order[0] == highest
        assert 8 <= order.index(low) <= 11, f"ten may pass: {order}"

        connection.exec_driver_sql("update tasks set status = 'queued'")
        with db.autocommit.connect() as dispatcher:
            assert claim(dispatcher, 42) == order, "a batch, too"

        connection.exec_driver_sql("update tasks set status = 'queued'")
        connection.exec_driver_sql("set enable_sort = off; set enable_seqscan = off")
        plan = connection.execute(
            sa.text(f"explain {lesson.queries.CLAIM_TASKS}"),
            {"p1": worker_id, "p2": "default", "p3": False, "p4": 0, "p5": 1},
        )
        assert "Sort" not in "\n".join(line for (line,) in plan), "the index has the order"
