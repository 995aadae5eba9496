"""A copy of a lesson, for a reader to change."""

import os

from tools.tree import Course, CourseError, copy_lesson


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
