"""Exercise 1: two of three are enough, and they are the same two in every run."""

from datetime import timedelta

import pytest

from shared.testing import wait_for_status, working

HOUR = timedelta(hours=1)


def test_1_quorum(lesson, db):
    runs = []

    @lesson.context.durable
    def ask_three(ctx, _):
        people = {name: ctx.signal(name) for name in ("ann", "bob", "cem")}
        for wrong in (0, 4):
            with pytest.raises(lesson.errors.FinalBadInput):
                ctx.some(wrong, *people.values())
        two = ctx.some(2, *people.values(), timeout=HOUR)
        runs.append([next(name for name in people if people[name] == one) for one in two])
        answers = []
        for one in two:
            try:
                answers.append(ctx.result(one))
            except lesson.errors.SignalError as error:
                answers.append(str(error))
        ctx.receive("go on")
        return answers

    def send(id, name, **message):
        with db.engine.begin() as connection:
            if message:
                lesson.signals.send_error(connection, id, name, **message)
            else:
                lesson.signals.send(connection, id, name, name.title())

    with db.autocommit.connect() as connection:
        id = lesson.tasks.enqueue(connection, "ask_three", None)
    with working(lesson.worker.Worker(db, "w")):
        wait_for_status(db, id, "waiting")
        send(id, "cem", error="not me")
        wait_for_status(db, id, "waiting")
        assert runs == [], "one is not enough"
        send(id, "ann")
        send(id, "bob")
        wait_for_status(db, id, "waiting")
        send(id, "go on")
        assert wait_for_status(db, id, "succeeded", "failed").output == ["cem: not me", "Ann"]
    assert runs == [["cem", "ann"]] * len(runs)
    assert len(runs) >= 2
