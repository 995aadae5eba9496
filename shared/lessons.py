"""Where the lessons are, and which one somebody means: the one answer to `LESSON=...`."""

import re
import sys
from pathlib import Path

LESSONS = Path(__file__).resolve().parents[1] / "lessons"
BUILD = ".build"  # is in the directory of a lesson that a reader is building


class NoSuchLesson(LookupError):
    """The message names what there is."""


def lessons(home: Path = LESSONS) -> list[Path]:
    """The numbered lessons, in their order."""
    return sorted(path for path in home.glob("[0-9][0-9]_*") if path.is_dir())


def number(lesson: Path) -> int:
    """The number in the directory's name; a copy without one counts as the latest lesson."""
    found = re.match(r"(\d\d)_", lesson.name)
    return int(found[1]) if found else 99


def find(name: str | None, home: Path = LESSONS) -> Path:
    """`01`, `01_simple_queue`, or the path of a directory with a main.py; the last lesson for None.

    A path is taken from where we are, or from the directory above the lessons. Raises NoSuchLesson.
    """
    known = lessons(home)
    if not name and known:
        return known[-1]
    for lesson in known:
        if name in (lesson.name, lesson.name[:2]):
            return lesson
    for path in (Path(name or "."), home.parent / (name or "")):
        if (path / "main.py").is_file():
            return path.resolve()
    names = ", ".join(lesson.name for lesson in known) or f"none in {home}"
    raise NoSuchLesson(
        f"{name}: no such lesson, and no directory with a main.py; there are {names}"
    )


if __name__ == "__main__":  # for the Makefile: the directory that LESSON names
    try:
        print(find(sys.argv[1]))
    except NoSuchLesson as error:
        print(f"LESSON={error}", file=sys.stderr)
        sys.exit(2)
