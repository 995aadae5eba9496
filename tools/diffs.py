"""diffs/00_to_01.patch ...: what differs between neighbours, for people to read."""

import re
import subprocess
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from shared.lessons import number
from tools.tree import Course, CourseError, compared_files, environment, git, patch_name

OPTIONS = ("--no-index", "--no-prefix", "--no-renames", "a", "b")


def diffs(course: Course, check: bool) -> Iterator[str]:
    """diffs/00_to_01.patch and so on."""
    home = course.root / "diffs"
    wanted = {home / patch_name(*pair): patch(*pair) for pair in course.neighbours}
    yield from course.keep(wanted, home.glob("*.patch"), "diffs", "no such neighbours", check)


def patch(before: Path, after: Path) -> str:
    with side_by_side(before, after) as directory:
        plain = ("--no-color", "--no-ext-diff")
        status, text = git("-c", "core.abbrev=7", "diff", *plain, *OPTIONS, cwd=directory)
    if status > 1:
        raise CourseError(f"git diff: {text.strip()}")
    # With --no-prefix, git says `b/x b/x` of a file that is new, and `git apply` wants `a/x b/x`.
    return re.sub(r"^diff --git [ab]/(\S+) [ab]/\1$", r"diff --git a/\1 b/\1", text, flags=re.M)


@contextmanager
def side_by_side(before: Path, after: Path) -> Generator[Path]:
    """A directory with the compared files of both, in a/ and b/."""
    with TemporaryDirectory() as directory:
        for side, lesson in (("a", before), ("b", after)):
            for name, text in compared_files(lesson).items():
                path = Path(directory, side, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(text.encode(errors="surrogateescape"))
        yield Path(directory)


def diff(course: Course, lesson: str | None) -> None:
    """A lesson against the one before it; a reader's copy against its lesson."""
    later = course.lesson(lesson)
    if later in course.lessons:
        earlier = [before for before, after in course.neighbours if after == later]
    else:
        earlier = [other for other in course.lessons if number(other) == number(later)]
    if not earlier:
        print(f"{later.name} is no copy of a lesson before it. For your own: LESSON=work/01_mine")
        return
    with side_by_side(earlier[0], later) as directory:
        # The user's own git settings: pager and colours.
        env = {k: v for k, v in environment().items() if k not in ("NO_COLOR", "COLUMNS")}
        subprocess.run(["git", "diff", *OPTIONS], cwd=directory, env=env, check=False)
