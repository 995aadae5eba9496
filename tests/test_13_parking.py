"""Lesson 13: a task that this code cannot run waits for other code, and loses nothing meanwhile."""

from shared.processes import wait_until
from shared.testing import task_row, wait_for_status, working
from tests.helpers import execute
from tests.shop import (
    charge,
    check,
    confirm,
    deploy,
    effects,
    order,
    order_under_way,
    reserve,
)


def edited(ctx, id):
    ctx.step(check, id)
    ctx.step(charge, id, 10)
    ctx.step(reserve, id, 2)
    return ctx.step(confirm, id)


edited.__name__ = "order"


def test_smoke(lesson, db):
    id = order_under_way(lesson, db)
    deploy(lesson, edited)
    execute(db, "update tasks set status = 'queued', max_attempts = 1")
    with (
        working(lesson.worker.Worker(db, "a", version="2")),
        working(lesson.worker.Worker(db, "b", version="3")),
    ):
        wait_until(
            lambda: (
                task_row(db, id).parked_by == ["2", "3"] or task_row(db, id).parked_by == ["3", "2"]
            ),
            "both tried",
        )
        row = task_row(db, id)
        assert row.status == "waiting"
        assert row.attempt - row.uncounted == 1
    deploy(lesson, order)
    with working(lesson.worker.Worker(db, "c", version="4")):
        wait_for_status(db, id, "succeeded")
    assert effects == ["charge", "reserve", "confirm"]
    print(task_row(db, id))
