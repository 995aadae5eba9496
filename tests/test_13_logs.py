"""Lesson 13: the logs that the lesson has are rehearsed in pytest, as a reader would do it."""

import re
import subprocess
import sys

import pytest

from tests.helpers import copy_of


def rehearsed(copy):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "logs"],
        cwd=copy,
        stdout=subprocess.PIPE,
        text=True,
    )
    return done.returncode, re.findall(r"FAILED .*\[(\w+)\]", done.stdout)


def test_an_edit_that_does_not_fit_a_log_fails_the_test_of_that_log(lesson, tmp_path):
    if not (lesson.path / "logs" / "test_logs.py").exists():
        pytest.skip("a lesson that is being built has no tests of its own")
    copy = copy_of(lesson, tmp_path)
    assert rehearsed(copy) == (0, [])
    app = copy / "app.py"
    charge = "    payment = ctx.step(charge_card, order)\n    ctx.receive("
    assert charge in app.read_text()
    app.write_text(app.read_text().replace(charge, f"    ctx.step(check_fraud, order)\n{charge}"))
    assert rehearsed(copy) == (1, ["sell"])
