"""Exercise 2: a worker serves several queues, the first one first."""

import threading

from shared.processes import wait_until
from shared.testing import working

QUEUES = ("urgent", "default")


def enqueue(lesson, db, queue, tasks):
    with db.engine.begin() as connection:
        for _ in range(tasks):
            lesson.tasks.enqueue(connection, "note", queue, queue=queue)


def running(db):
    with db.connect() as connection:
        return connection.execute("select count(*) from tasks where status = 'running'").fetchone()[
            0
        ]


def test_2_the_first_queue_first(lesson, db):
    ran = []

    @lesson.tasks.task
    def note(queue):
        ran.append(queue)

    enqueue(lesson, db, "default", 3)
    enqueue(lesson, db, "urgent", 3)
    with working(lesson.worker.Worker(db, "w", queues=QUEUES, slots=1)):
        wait_until(lambda: len(ran) == 6, "six tasks have run")
    assert ran == ["urgent"] * 3 + ["default"] * 3


def test_2_a_paused_queue_does_not_hold_up_the_others(lesson, db):
    ran = []

    @lesson.tasks.task
    def note(queue):
        ran.append(queue)

    with db.autocommit.connect() as connection:
        lesson.claim.limit_queue(connection, "urgent", 0)
    enqueue(lesson, db, "urgent", 3)
    enqueue(lesson, db, "default", 3)
    with working(lesson.worker.Worker(db, "w", queues=QUEUES, slots=2)):
        wait_until(lambda: len(ran) == 3, "three tasks have run")
    assert ran == ["default"] * 3


def test_2_no_more_tasks_than_slots(lesson, db):
    seen = []
    lock = threading.Lock()

    @lesson.tasks.task
    def note(_):
        now = running(db)
        with lock:
            seen.append(now)

    enqueue(lesson, db, "urgent", 30)
    enqueue(lesson, db, "default", 30)
    with working(lesson.worker.Worker(db, "w", queues=QUEUES, slots=3)):
        wait_until(lambda: len(seen) == 60, "all tasks have run")
    assert max(seen) <= 3


def test_2_a_claim_that_fails_loses_nothing_of_the_queue_before(lesson, db):
    ran = []

    @lesson.tasks.task
    def note(queue):
        ran.append(queue)

    with db.connect(autocommit=True) as connection:
        connection.execute(
            "alter table tasks add constraint refused"
            " check (queue <> 'default' or status <> 'running')"
        )
    enqueue(lesson, db, "default", 1)
    enqueue(lesson, db, "urgent", 3)
    with working(lesson.worker.Worker(db, "w", queues=QUEUES, slots=5)):
        wait_until(lambda: len(ran) == 3, "the urgent tasks have run")
