"""On which lessons a test runs, and how long it waits."""

from pathlib import Path

import pytest

from shared.lessons import find, lessons, number
from shared.processes import wait_until, within
from shared.testing import lessons_for

LAST = number(lessons()[-1])


def numbers(first, until=100, everywhere=False):
    return [
        number(path)
        for path in lessons_for(Path(f"/tests/test_{first:02}_x.py"), until, everywhere)
    ]


def test_a_test_runs_on_the_first_and_the_last_lesson_for_which_it_holds(monkeypatch):
    monkeypatch.delenv("LESSON", raising=False)
    assert numbers(1) == [1, LAST]
    assert numbers(1, until=4) == [1, 3]
    assert numbers(2, until=3) == [2]
    assert numbers(LAST) == [LAST]
    assert numbers(LAST + 1) == []
    assert numbers(2, until=5, everywhere=True) == [2, 3, 4]


def test_a_chosen_lesson_gets_all_tests_that_hold_for_it(monkeypatch, tmp_path):
    monkeypatch.setenv("LESSON", "03")
    assert (numbers(1), numbers(3), numbers(4), numbers(1, until=3)) == ([3], [3], [], [])
    copy = tmp_path / "02_mine"
    copy.mkdir()
    (copy / "main.py").touch()
    monkeypatch.setenv("LESSON", str(copy))
    assert lessons_for(Path("/tests/test_01_x.py"), 100, False) == [copy]
    assert numbers(3) == []
    monkeypatch.setenv("LESSON", "no such")
    with pytest.raises(pytest.UsageError, match="no such"):
        numbers(1)


def test_an_exercise_runs_on_the_lesson_in_which_it_is(tmp_path):
    exercise = Path("exercises/1_first/test_1_first.py")
    assert lessons_for(tmp_path / exercise, 100, False) == [tmp_path]
    with pytest.raises(pytest.skip.Exception):
        lessons_for(find("01") / exercise, 100, False)


def test_patience_makes_every_deadline_longer(monkeypatch):
    monkeypatch.setenv("TEST_PATIENCE", "0.01")
    assert within(20) == 0.2
    with pytest.raises(TimeoutError, match=r"after 0\.2 s still not true: this"):
        wait_until(lambda: False, "this", 20)
