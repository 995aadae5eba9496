"""Lesson 11: a task that waits for a person survives a kill anywhere."""

from shared.processes import wait_until
from shared.testing import task_row
from tests.helpers import ENDED, enqueue, execute, immortal, log_of
from tests.test_11_signals import INSERT, messages, open_beside_unread

EFFECTS = ("asked for an approval", "reminder sent", "paid back")
POINTS = (
    "after: asked for an approval",
    "before: reminder sent",
    "after: reminder sent",
    "after: paid back",
)


def test_a_refund_is_paid_once_whoever_dies_and_however_often_it_is_approved(lesson, db):
    orders = [
        {"id": n, "amount": 1500, "reminder": 0.1, "patience": 600, "die_at": point}
        for n, point in enumerate(POINTS)
    ]
    ids = [enqueue(lesson, db, "refund", order) for order in orders]
    insert = INSERT.replace("payload) values (%s, %s, %s)", "payload, key) values (%s, %s, %s, %s)")
    again = f"{insert} on conflict (task_id, key) where key is not null do nothing"

    def approve():
        """Those of whom the person has heard, each as often as this is called."""
        effects = lesson.app.outside.effects()
        for id, order in zip(ids, orders, strict=True):
            reminded = any(line.startswith(f"order {order['id']}: reminder") for line in effects)
            if reminded and task_row(db, id).status not in ENDED:
                execute(db, again, id, "approval", '"Ann"', "ann")

    with immortal(lesson.path) as look_after:

        def all_ended():
            look_after()
            approve()
            return all(task_row(db, id).status in ENDED for id in ids)

        wait_until(all_ended, "all are paid, whoever was killed", 60)
    effects = lesson.app.outside.effects()
    assert sum("the worker dies" in line for line in effects) == len(POINTS)
    for id, order in zip(ids, orders, strict=True):
        row = task_row(db, id)
        assert (row.status, row.output) == ("succeeded", "approved by Ann; paid back")
        assert messages(db, id) == [("Ann", 2)]
        for effect in EFFECTS:
            start = f"order {order['id']}: {effect}, "
            lines = [line for line in effects if line.startswith(start)]
            assert len(set(lines)) == 1, lines
            assert len(lines) == (2 if order["die_at"] == f"after: {effect}" else 1)
        names = ["ask", "approval", "sleep", "remind", "pay"]
        assert [entry.name for entry in log_of(db, id)] == names
    assert open_beside_unread(db) == []
