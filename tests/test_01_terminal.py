"""Lesson 01: a row does not rule the terminal, and a log that cannot be written stops no work."""

import os
import signal
import subprocess
import sys
import time

import pytest

from shared.processes import wait_until, within
from shared.story import printable
from shared.testing import wait_for_status
from tests.helpers import count, enqueue, execute, run_verb, several

# Title, clipboard (OSC 52), clear screen, an 8-bit CSI, right-to-left override, backspaces.
EVIL = "\x1b]0;t\x07 \x1b]52;c;aGk=\x07 \x1b[2J \x9b2J \u202egnp \b\b \r \u2066 \x85 [red]"
OBEYED = "\x1b\x07\x9b\u202e\b\r\u2066\x85"


def test_what_a_terminal_would_obey_is_escaped():
    shown = printable(EVIL)
    assert not set(OBEYED) & set(shown)
    assert r"\x1b]52;c;aGk=\x07" in shown
    assert printable("naïve 漢字 ✓ 🙂\nline two") == "naïve 漢字 ✓ 🙂\nline two"


@pytest.mark.parametrize("column", ["name", "error", "input"])
def test_status_escapes_what_stands_in_a_row(lesson, db, column):
    id = enqueue(lesson, db, "divide")
    values = {"name": "n", "error": "E", "input": '"i"', column: f'"{EVIL}"'}
    attempt = "attempt = 1, " if hasattr(lesson, "fence") else ""
    execute(
        db,
        f"update tasks set {attempt} status = 'failed',"  # noqa: S608
        " name = %s, error = %s, input = to_json(%s::text)",
        *values.values(),
    )
    shown = run_verb(lesson, "status")
    assert shown.returncode == 0, shown.stderr
    assert str(id) in shown.stdout
    assert not set(OBEYED) & set(shown.stdout)


def test_status_of_large_rows_is_short_and_soon_there(lesson, db):
    several(lesson, db, 10, "divide", "x" * 900_000)
    started = time.monotonic()
    shown = run_verb(lesson, "status")
    assert time.monotonic() - started < within(60), "it took minutes, once"
    assert shown.returncode == 0
    assert len(shown.stdout) < 20_000


def start(lesson, stdout, **environment):
    return subprocess.Popen(
        [sys.executable, "main.py", "worker", "--name", "w"],
        cwd=lesson.path,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
    )


def works_and_ends(lesson, db, process):
    """It does two tasks, one after the other, and ends as it should; what it said on stderr."""
    try:
        for _ in range(2):
            id = enqueue(lesson, db, "divide", [6, 3])
            wait_for_status(db, id, "succeeded", seconds=30)
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=within(20))
    finally:
        process.kill()
    assert process.returncode == 0, stderr
    assert count(db, "running") == 0
    return stderr


def test_a_worker_whose_pipe_nobody_reads_any_more_goes_on(lesson, db):
    process = start(lesson, subprocess.PIPE)
    assert process.stdout.readline(), "it has started"
    process.stdout.close()
    process.stdout = None
    assert works_and_ends(lesson, db, process) == b""


def test_a_worker_whose_log_is_on_a_full_disk_goes_on(lesson, db):
    with open("/dev/full", "wb") as full:
        assert works_and_ends(lesson, db, start(lesson, full)) == b""


def test_a_worker_without_any_output_goes_on(lesson, db):
    command = f'exec "{sys.executable}" main.py worker --name w >&-'
    process = subprocess.Popen(
        ["sh", "-c", command], cwd=lesson.path, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert works_and_ends(lesson, db, process) == b""


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_a_worker_says_what_its_terminal_can_show(lesson, db, tmp_path, encoding):
    execute(db, "insert into tasks (name, input) values ('漢字 ✓', 'null')")
    with (tmp_path / "log").open("wb") as log:
        process = start(lesson, log, PYTHONIOENCODING=encoding, PYTHONUTF8="0")
        said = lambda: (tmp_path / "log").read_text(encoding)  # noqa: E731
        try:
            wait_until(lambda: r"\u6f22\u5b57 \u2713" in said(), "it has said the task's name")
        finally:
            works_and_ends(lesson, db, process)


def test_a_line_of_an_error_is_not_taken_for_one_of_the_workers(lesson, db, tmp_path):
    execute(db, "insert into tasks (name, input) values (%s, 'null')", "a\n  0.01  task 7 b")
    with (tmp_path / "log").open("wb") as log:
        process = start(lesson, log)
        said = lambda: (tmp_path / "log").read_text()  # noqa: E731
        try:
            wait_until(lambda: "task 7 b" in said(), "it has said the task's name")
        finally:
            works_and_ends(lesson, db, process)
    (line,) = [line for line in said().splitlines() if line.endswith("task 7 b")][:1]
    assert line.startswith(8 * " ")


def test_reset_makes_the_tables_anew(lesson, db):
    enqueue(lesson, db, "divide")
    schema = f"reset_{os.getpid()}"  # not test_...: other runs drop those that nobody uses
    shown = subprocess.run(
        [sys.executable, "main.py", "reset"],
        cwd=lesson.path,
        capture_output=True,
        text=True,
        env={**os.environ, "LESSON_SCHEMA": schema},
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert "empty" in shown.stdout
    assert execute(db, "select to_regclass(%s) is not null", f"{schema}.tasks") == [(True,)]
    execute(db, f"drop schema {schema} cascade")


def test_a_story_that_runs_out_of_time_says_what_to_do(lesson, db):
    """A deadline of no time at all."""
    schema = f"test_{os.getpid()}_out_of_time_{lesson.number}"  # its workers may linger
    shown = subprocess.run(
        [sys.executable, "main.py"],
        cwd=lesson.path,
        capture_output=True,
        text=True,
        env={**os.environ, "LESSON_SCHEMA": schema, "TEST_PATIENCE": "0.001"},
        check=False,
        timeout=within(60),
    )
    execute(db, f"drop schema {schema} cascade")
    assert shown.returncode == 1
    assert "Traceback" not in shown.stderr
    assert "TEST_PATIENCE" in shown.stderr
