"""Lesson 06: `tree` shows the logs of the children below their parent's, `status` who is whose."""

from shared.testing import wait_for_status, working
from tests.helpers import define, enqueue, run_program, run_verb


def test_tree_shows_children_below_their_parent(lesson, db):
    define(lesson)
    id = enqueue(lesson, db, "run_run_double", 4)
    with working(lesson.worker.Worker(db, "w")):
        wait_for_status(db, id, "succeeded")
    shown = run_program(lesson, "tree", str(id))
    assert shown.stdout.splitlines() == [
        f"task {id} run_run_double: succeeded",
        "  1 child run_double -> 8",
        "    1 child double -> 8",
    ]
    assert run_verb(lesson, "log", str(id)).stdout.splitlines() == [
        f"task {id} run_run_double: succeeded",
        "  1 child run_double -> 8",
    ]


def test_status_shows_parents_and_workers(lesson, db):
    define(lesson)
    id = enqueue(lesson, db, "run_double", 4)
    with working(lesson.worker.Worker(db, "w")):
        wait_for_status(db, id, "succeeded")
    shown = run_verb(lesson, "status").stdout
    assert "worker" in shown
    assert "parent" in shown
    (child,) = [line for line in shown.splitlines() if " double(4)" in line]
    cells = [cell.strip() for cell in child.strip("│|").replace("|", "│").split("│")]
    assert cells[1:] == ["double(4)", "succeeded", "1 of 5", "1", str(id), "8"]
