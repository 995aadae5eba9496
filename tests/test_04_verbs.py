"""Lesson 04: `log` shows what a durable task has done."""

from shared.testing import wait_for_status, working
from tests.helpers import enqueue, one_by_one, program, run_program, run_verb

EVIL = "\x1b]52;c;aGk=\x07\u202e"


def test_log_shows_each_entry_and_obeys_none(lesson, db):
    def charge(_key):
        return f"charged{EVIL}"

    def refuse(_key):
        raise lesson.tasks.NonRetryableError(f"no\n  3 step forged{EVIL}")

    program(lesson, lambda ctx, _input: [ctx.step(charge), ctx.step(refuse)])
    id = enqueue(lesson, db, "program")
    with working(lesson.worker.Worker(db, "w")):
        wait_for_status(db, id, "failed")
    shown = run_program(lesson, "log", str(id))
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert lines[0] == f"task {id} program: failed"
    assert lines[1].startswith("  1 step charge -> ")
    assert lines[2].startswith("  2 step refuse -> NonRetryableError: no ")
    assert len(lines) == 3
    assert not {"\x1b", "\x07", "\u202e"} & set(shown.stdout)


@one_by_one("id", ["999", "0", "-1", str(2**63), "x"])
def test_a_log_that_is_not_there(lesson, db, id):
    del db
    shown = run_verb(lesson, "log", id)
    assert shown.returncode != 0
    assert "Traceback" not in shown.stderr
    assert id in shown.stderr
