"""Carry the uncommitted edits of one lesson into all later ones, by a 3-way merge."""

import os
import subprocess
import tempfile
from pathlib import Path

from tools.tree import OWN, Course, CourseError, compared_files


def carry(course: Course, lesson: Path) -> list[str]:
    """Writes into the later lessons. The findings are what has to be done by hand."""
    if lesson not in course.lessons:
        raise CourseError(f"{lesson}: only edits of a directory in lessons/ are carried")
    later: list[Path] = []
    for before, after in course.neighbours:
        if before == [lesson, *later][-1]:
            later.append(after)
    committed, edited = committed_files(course.root, lesson), compared_files(lesson)
    found: list[str] = []
    for name in sorted({*committed, *edited}):
        base, mine = committed.get(name), edited.get(name)
        if base == mine:
            continue
        for target in [other / name for other in later]:
            if base is not None and not target.exists():
                break  # dropped here: what later lessons have under this name has another history
            if mine is None:
                wrong = f"{lesson.name} has no {name} any more, and this is still here"
                found.append(course.finding(target, wrong, "delete it, if it should go"))
            elif base is None and target.exists() and write(mine) != target.read_bytes():
                wrong = f"{name} is new in {lesson.name}, and another one is here"
                found.append(course.finding(target, wrong, "merge them by hand"))
            elif base is None:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(write(mine))
                print(f"{course.shown(target)}: copied")
            else:
                found += merge(course, target, lesson.name, base, mine)
    print(f"Not carried: {', '.join(sorted(OWN))}.")
    print("Next: make generate, python -m tools diffs, python -m tools readme, make check")
    return found


def merge(course: Course, target: Path, name: str, base: str, mine: str) -> list[str]:
    before = target.read_bytes()
    if b"\n<<<<<<< " in b"\n" + before:
        return [course.finding(target, "has conflict markers", "resolve them, then carry again")]
    with tempfile.TemporaryDirectory() as directory:
        old, new = Path(directory, "base"), Path(directory, "edited")
        old.write_bytes(write(base))
        new.write_bytes(write(mine))
        labels = [
            f"-L{label}" for label in (target.parent.name, f"{name} before", f"{name} edited")
        ]
        merged = subprocess.run(
            ["git", "merge-file", "-p", *labels, target, old, new], capture_output=True, check=False
        )
    if merged.returncode < 0 or merged.returncode > 127:
        raise CourseError(f"{target}: git merge-file: {merged.stderr.decode().strip()}")
    if merged.stdout != before:
        target.write_bytes(merged.stdout)
        print(f"{course.shown(target)}: {'CONFLICT' if merged.returncode else 'merged'}")
    wrong = f"conflict with the edit of {name}"
    return [course.finding(target, wrong, "resolve <<<<<<<")] if merged.returncode else []


def committed_files(root: Path, lesson: Path) -> dict[str, str]:
    """Name -> text in the last commit, of the files that are compared."""
    prefix = f"./{lesson.relative_to(root).as_posix()}/"

    def ask(*arguments: str) -> bytes:
        answer = subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=False)
        if answer.returncode:
            raise CourseError(f"git {arguments[0]}: {answer.stderr.decode().strip()}")
        return answer.stdout

    listed = ask("ls-tree", "-r", "-z", "--name-only", "HEAD", prefix)
    names = [os.path.relpath(os.fsdecode(name), prefix) for name in listed.split(b"\0") if name]
    return {
        name: ask("show", f"HEAD:{prefix}{name}").decode(errors="surrogateescape")
        for name in names
        if name.partition("/")[0] not in OWN
    }


def write(text: str) -> bytes:
    return text.encode(errors="surrogateescape")
