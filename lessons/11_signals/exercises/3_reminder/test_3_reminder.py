"""Exercise 3: a reminder again and again, until there is an answer."""

from shared.processes import wait_until
from shared.testing import wait_for_status, working


def test_3_reminder(lesson, db):
    def reminders(order):
        effects = lesson.app.outside.effects()
        return sum(line.startswith(f"order {order}: reminder sent") for line in effects)

    with db.autocommit.connect() as connection:
        patient, hasty = (
            lesson.tasks.enqueue(connection, "approval", {"id": id, "every": every})
            for id, every in ((1, 3600), (2, 0.1))
        )
        with working(lesson.worker.Worker(db, "w")):
            wait_for_status(db, patient, "waiting")
            wait_until(lambda: reminders(2) >= 3, "it reminds again and again")
            for id in (patient, hasty):
                lesson.signals.send(connection, id, "approval", {"by": "Ann"})
                assert wait_for_status(db, id, "succeeded", "failed").output == {"by": "Ann"}
    assert reminders(1) == 1
    keys = [line for line in lesson.app.outside.effects() if "order 2: reminder" in line]
    assert len(set(keys)) == len(keys), "each is a step of its own"
