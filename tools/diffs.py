"""diffs/00_to_01.patch ...: what differs between neighbours, for people to read."""

import re
import subprocess
import tempfile
from pathlib import Path

from tools.tree import Course, CourseError, compared_files, environment, git


def patch(before: Path, after: Path) -> str:
    with tempfile.TemporaryDirectory() as directory:
        lay_out(Path(directory), before, after)
        options = ["--no-index", "--no-prefix", "--no-color", "--no-renames", "--no-ext-diff"]
        status, text = git("-c", "core.abbrev=7", "diff", *options, "a", "b", cwd=Path(directory))
    if status > 1:
        raise CourseError(f"git diff: {text.strip()}")
    # With --no-prefix, git says `b/x b/x` of a file that is new, and `git apply` wants `a/x b/x`.
    return re.sub(r"^diff --git [ab]/(\S+) [ab]/\1$", r"diff --git a/\1 b/\1", text, flags=re.M)


def lay_out(directory: Path, before: Path, after: Path) -> None:
    for side, lesson in (("a", before), ("b", after)):
        (directory / side).mkdir()
        for name, text in compared_files(lesson).items():
            path = directory / side / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode(errors="surrogateescape"))


def diffs(course: Course, *, check: bool) -> list[str]:
    directory = course.root / "diffs"
    wanted = {
        f"{before.name[:2]}_to_{after.name[:2]}.patch": patch(before, after)
        for before, after in course.neighbours
    }
    have = {path.name: path.read_text() for path in directory.glob("*.patch")}
    found: list[str] = []
    for name in sorted({*wanted, *have}):
        if wanted.get(name) == have.get(name):
            continue
        path = directory / name
        if check:
            wrong = "stale" if name in wanted else "no such neighbours"
            found.append(course.finding(path, wrong, "run `python -m tools diffs`"))
        elif name in wanted:
            directory.mkdir(exist_ok=True)
            path.write_text(wanted[name])
            print(f"{course.shown(path)}: written")
        else:
            path.unlink()
            print(f"{course.shown(path)}: deleted")
    return found


def show(course: Course, lesson: Path) -> None:
    """On the terminal: a lesson against the one before it, a reader's copy against its lesson."""
    number = lesson.name[:2]
    if lesson in course.lessons:
        earlier = [before for before, after in course.neighbours if after == lesson]
    else:
        earlier = [other for other in course.lessons if other.name[:2] == number]
    if not earlier:
        print(f"{lesson.name} is no copy of the lesson before it: the chain begins there.")
        print("What you have changed in a copy of your own: make diff LESSON=work/01_mine")
        return
    with tempfile.TemporaryDirectory() as directory:
        lay_out(Path(directory), earlier[0], lesson)
        # The user's own git settings: pager and colours.
        command = ["git", "diff", "--no-index", "--no-prefix", "--no-renames", "a", "b"]
        env = {k: v for k, v in environment().items() if k not in ("NO_COLOR", "COLUMNS")}
        subprocess.run(command, cwd=directory, env=env, check=False)
