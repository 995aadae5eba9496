"""Copies of lessons: one that runs far from the repository, and one for a reader to change."""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tools.tree import Course, CourseError, copy_lesson, last_line, run

SECONDS = 120


def copies(course: Course, lesson: str | None = None) -> Iterator[str]:
    """Does a copy run outside the repository, in a directory with a space in its name?"""
    for each in course.chosen(lesson):
        with tempfile.TemporaryDirectory() as directory:
            # The name becomes a database schema's: always the same one, so that none is left over.
            copy = copy_lesson(each, Path(directory) / "copied away" / each.name)
            status, text = run([sys.executable, "main.py"], copy, seconds=SECONDS)
        if status:
            wrong = f"a copy outside the repository ends with {status}: {last_line(text)}"
            remedy = "use nothing outside its directory but installed packages"
            yield course.finding(each / "main.py", wrong, remedy)


def work(course: Course, lesson: str | None, name: str | None) -> None:
    """A reader's own copy, work/01_mine; another NAME for another one."""
    home = course.lesson(lesson)
    number = home.name.partition("_")[0]
    target = course.root / "work" / f"{number}_{(name or 'mine').removeprefix(f'{number}_')}"
    path = target.relative_to(course.root).as_posix()
    if target.exists():
        raise CourseError(
            f"{path} is there already. For another copy: make work LESSON={number} NAME=second"
        )
    copy_lesson(home, target)
    print(
        f"{path} is yours: a copy of {home.name}. From here:\n"
        f"  cd {path} && python main.py\n"
        f"  LESSON={path} pytest tests/test_{number}_*.py\n"
        f"  make generate LESSON={path}      after a change to schema.sql or queries.sql\n"
        f"  make diff LESSON={path}          what you have changed so far"
    )
    if "VIRTUAL_ENV" not in os.environ:
        print("`python` and `pytest` are those of the environment: source .venv/bin/activate")
