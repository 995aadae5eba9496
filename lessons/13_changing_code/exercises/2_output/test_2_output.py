"""Exercise 2: a rehearsal compares what a task has returned."""

import json

import pytest

from shared.testing import wait_for_status, working


def test_2_output(lesson, db):
    answer = [True]

    def note(_key):
        return "noted"

    @lesson.context.durable
    def answers(ctx, go_on):
        ctx.step(note)
        if go_on == "wait":
            ctx.receive("go on")
        if go_on == "fail":
            raise lesson.tasks.NonRetryableError("no answer")
        return answer[0]

    def export(input, *statuses):
        id = lesson.tasks.enqueue(connection, "answers", input)
        wait_for_status(db, id, *statuses)
        return json.loads(json.dumps(lesson.rehearsal.export_log(connection, id)))

    with db.autocommit.connect() as connection, working(lesson.worker.Worker(db, "w")):
        succeeded = export(None, "succeeded")
        others = [export("wait", "waiting"), export("fail", "failed")]

    rehearse = lesson.rehearsal.rehearse
    said = [rehearse(history) for history in [succeeded, *others]]
    answer[0] = 1
    with pytest.raises(lesson.nondeterminism.NonDeterminismError, match="returned") as raised:
        rehearse(succeeded)
    assert "true" in str(raised.value)
    assert "1" in str(raised.value)
    assert [rehearse(history) for history in others] == said[1:]
    old = {name: value for name, value in succeeded.items() if name != "output"}
    assert rehearse(old) == said[0], "an export without an output"
