"""Exercise 2: a retry that takes along the failed children of one name, and no others."""

import inspect

import pytest

from shared.testing import task_row, wait_for_status, working


def test_2_only(lesson, db):
    stock: list[int] = []
    tries: list[str] = []

    def take(name):
        tries.append(name)
        if not stock:
            raise lesson.tasks.NonRetryableError(f"no {name}")
        return name

    @lesson.tasks.task
    def lamp(_):
        return take("lamp")

    @lesson.tasks.task
    def label(_):
        return take("label")

    @lesson.context.durable
    def parcel(ctx, _):
        return ctx.run(label, None)

    @lesson.context.durable
    def order(ctx, _):
        pending = [ctx.spawn(function, None) for function in (lamp, label, parcel)]
        ctx.gather(*pending)

    def retry(id, **only):
        with db.engine.begin() as connection:
            lesson.control.retry(connection, id, **only)

    parameters = inspect.signature(lesson.control.retry).parameters
    assert "only" in parameters, "the parameter `only` is yours to write"
    with db.autocommit.connect() as connection:
        id = lesson.tasks.enqueue(connection, "order", None)
    with working(lesson.worker.Worker(db, "w", slots=1)):
        assert "no lamp" in wait_for_status(db, id, "failed").error
        before = task_row(db, id)
        with pytest.raises(lesson.inputs.BadInput):
            retry(id, only="parcle")
        assert task_row(db, id) == before

        stock.append(1)
        tries.clear()
        retry(id, only="lamp")
        assert "no label" in wait_for_status(db, id, "succeeded", "failed").error
        assert tries == ["lamp"]

        retry(id, only="parcel")
        assert "no label" in wait_for_status(db, id, "succeeded", "failed").error
        assert tries == ["lamp", "label"], "the label that the parcel asks for is below it"

        retry(id)
        assert wait_for_status(db, id, "succeeded", "failed").status == "succeeded"
        assert tries == ["lamp", "label", "label"]
