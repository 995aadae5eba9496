"""Exercise 3: one step is done again, and what follows only if it asks for something different."""

from datetime import timedelta

import pytest

from shared.testing import task_row, wait_for_status, working


def test_3_redo(lesson, db):
    lesson.timing.Timing.backoff = lambda *_: timedelta(0)
    streets = ["Elm Street"]
    done: list[str] = []
    refusals: list[int] = []

    def did(what):
        done.append(what)
        return what

    def charge(_key):
        return did("charge")

    def look_up(_key):
        did("look up")
        return streets[0]

    def weigh(_key):
        return did("weigh")

    def send(_key, street):
        return did(f"send to {street}")

    def thank(_key):
        if refusals and refusals.pop():
            raise ConnectionError("try again")
        return did("thank")

    @lesson.context.durable
    def parcel(ctx, _):
        ctx.step(charge)
        street = ctx.step(look_up)
        return [ctx.step(weigh), ctx.step(send, street), ctx.step(thank)]

    @lesson.tasks.task
    def pack(_):
        return did("pack")

    @lesson.context.durable
    def pack_and_thank(ctx, _):
        ctx.step(look_up)
        ctx.run(pack, None)
        return ctx.step(thank)

    def enqueued(name):
        with db.autocommit.connect() as connection:
            return lesson.tasks.enqueue(connection, name, None)

    def redone(id, position):
        """What is done, when it is done again from there."""
        done.clear()
        with db.engine.begin() as connection:
            new = lesson.control.redo(connection, id, position)
        assert wait_for_status(db, new, "succeeded", "failed").status == "succeeded"
        return done.copy()

    assert hasattr(lesson.control, "redo"), "control.redo is yours to write"
    id, other = enqueued("parcel"), enqueued("pack_and_thank")
    with working(lesson.worker.Worker(db, "w", slots=1)):
        wait_for_status(db, id, "succeeded")
        wait_for_status(db, other, "succeeded")
        before = task_row(db, id)
        assert redone(id, 2) == ["look up"], "all that follows asks for the same"
        assert redone(id, 3) == ["weigh"]
        streets[0] = "Oak Street"
        assert redone(id, 2) == ["look up", "send to Oak Street", "thank"]
        refusals.append(1)
        assert redone(id, 2) == ["look up", "send to Oak Street", "thank"], "in two attempts"
        assert redone(other, 1) == ["look up", "pack", "thank"], "a child is not taken over"
        done.clear()
        with db.engine.begin() as connection:
            new = lesson.control.fork(connection, id, 1)
        wait_for_status(db, new, "succeeded")
        assert done == ["look up", "weigh", "send to Oak Street", "thank"], "a fork is no redo"
        for which, position in ((id, 0), (id, 6), (other, 2), (10**9, 1)):
            with pytest.raises(lesson.inputs.BadInput), db.engine.begin() as connection:
                lesson.control.redo(connection, which, position)
        assert task_row(db, id) == before
