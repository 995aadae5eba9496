"""Copies of lessons: one that runs far from the repository, and one for a reader to change."""

import os
import sys
import tempfile
from pathlib import Path

from tools.tree import Course, CourseError, copy_lesson, environment, last_line, run

SECONDS = 120


def copies(course: Course, name: str | None = None) -> list[str]:
    """Each lesson's story ends well in a directory outside the repository, with a space in it."""
    found: list[str] = []
    for lesson in course.chosen(name):
        with tempfile.TemporaryDirectory() as directory:
            # The name becomes a database schema's: always the same one, so that none is left over.
            copy = copy_lesson(lesson, Path(directory) / "copied away" / lesson.name)
            env = environment()
            env.pop("PYTHONPATH", None)
            status, text = run([sys.executable, "main.py"], copy, env, SECONDS)
        if status:
            wrong = f"a copy outside the repository ends with {status}: {last_line(text)}"
            remedy = "use nothing outside its directory but installed packages"
            found.append(course.finding(lesson / "main.py", wrong, remedy))
    return found


def work(course: Course, lesson: Path, name: str | None) -> None:
    """A reader's own copy, in work/. Never overwrites one."""
    number = lesson.name.partition("_")[0]
    target = course.root / "work" / f"{number}_{(name or 'mine').removeprefix(f'{number}_')}"
    path = target.relative_to(course.root).as_posix()
    if target.exists():
        raise CourseError(
            f"{path} is there already. For another copy: make work LESSON={number} NAME=second"
        )
    copy_lesson(lesson, target)
    print(
        f"{path} is yours: a copy of {lesson.name}. From here:\n"
        f"  cd {path} && python main.py\n"
        f"  LESSON={path} pytest tests/test_{number}_*.py\n"
        f"  make generate LESSON={path}      after a change to schema.sql or queries.sql\n"
        f"  make diff LESSON={path}          what you have changed so far"
    )
    if "VIRTUAL_ENV" not in os.environ:
        print("`python` and `pytest` are those of the environment: source .venv/bin/activate")
