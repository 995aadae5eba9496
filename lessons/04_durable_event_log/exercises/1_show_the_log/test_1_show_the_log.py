"""Exercise 1: a verb that shows what a durable task has done."""

import subprocess
import sys

from shared.testing import wait_for_status, working


def log(lesson, id):
    return subprocess.run(
        [sys.executable, "main.py", "log", str(id)],
        cwd=lesson.path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_1_show_the_log(lesson, db):
    with db.autocommit.connect() as connection:
        id = lesson.tasks.enqueue(connection, "fulfil_or_cancel", {"id": 7})
    with working(lesson.worker.Worker(db, "w")):
        wait_for_status(db, id, "succeeded")
    shown = log(lesson, id)
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.strip().splitlines()
    assert len(lines) == 2
    expected = [("1", "charge_declined_card", "declined"), ("2", "cancel_order", '"cancel_order')]
    for line, words in zip(lines, expected, strict=True):
        for word in words:
            assert word in line
    unknown = log(lesson, 999)
    assert unknown.returncode != 0
    assert "999" in unknown.stderr
    assert "Traceback" not in unknown.stderr
