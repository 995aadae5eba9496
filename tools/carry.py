"""Carry the uncommitted edits of one lesson into all later ones, by a 3-way merge."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from tools.tree import OWN, Course, CourseError, compared_files, run


def carry(course: Course, lesson: str) -> Iterator[str]:
    """Merge a lesson's uncommitted edits into all later lessons."""
    # The findings are what has to be done by hand.
    home = course.lesson(lesson)
    if home not in course.lessons:
        raise CourseError(f"{home}: only edits of a directory in lessons/ are carried")
    later = [home]
    for before, after in course.neighbours:
        if before == later[-1]:
            later.append(after)
    with TemporaryDirectory() as directory:
        base = committed(course, home, Path(directory))
        old, new = compared_files(base), compared_files(home)
        for name in sorted({*old, *new}):
            for target in later[1:] if old.get(name) != new.get(name) else ():
                if name in old and not (target / name).exists():
                    break  # dropped here: what later lessons have of this name is not the same
                yield from carry_file(course, base / name, home / name, target / name)
    print(f"Not carried: {', '.join(sorted(OWN))}.")
    print("Next: make generate, python -m tools diffs, python -m tools readme, make check")


def committed(course: Course, lesson: Path, directory: Path) -> Path:
    """A copy of the lesson as it is in the last commit."""
    archive = directory / "committed.zip"
    tree = f"HEAD:{lesson.relative_to(course.root).as_posix()}"
    status, text = run(["git", "archive", f"--output={archive}", tree], course.root)
    if status:
        raise CourseError(f"git archive: {text.strip()}")
    shutil.unpack_archive(archive, directory / "committed")
    return directory / "committed"


def carry_file(course: Course, base: Path, edited: Path, target: Path) -> Iterator[str]:
    """Copy a new file or merge an edited one. base: as it was before the edit."""
    before = target.read_bytes() if target.exists() else b""
    if not edited.exists():
        wrong = f"{course.shown(edited)} is gone, and this is still here"
        yield course.finding(target, wrong, "delete it, if it should go")
    elif not base.exists() and before not in (b"", edited.read_bytes()):
        wrong = f"{course.shown(edited)} is new, and another one is here"
        yield course.finding(target, wrong, "merge them by hand")
    elif not base.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(edited, target)
        print(f"{course.shown(target)}: copied")
    elif b"\n<<<<<<< " in b"\n" + before:
        yield course.finding(target, "has conflict markers", "resolve them, then carry again")
    else:
        labels = [f"-L{name}" for name in (course.shown(target), "before the edit", "edited")]
        files = (str(target), str(base), str(edited))
        conflicts, text = run(["git", "merge-file", *labels, *files], course.root)
        if not 0 <= conflicts <= 127:
            raise CourseError(f"git merge-file: {text.strip()}")
        if target.read_bytes() != before:
            print(f"{course.shown(target)}: {'CONFLICT' if conflicts else 'merged'}")
        if conflicts:
            wrong = f"conflict with the edit of {course.shown(edited)}"
            yield course.finding(target, wrong, "resolve <<<<<<<")
