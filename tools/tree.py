"""The course as the tools see it: its lessons, their files, and how to run something on them."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.lessons import NoSuchLesson, find, lessons, number

# These differ from lesson to lesson by nature, or another check holds them.
FILES = {"README.md", "CHANGES.md", "lesson.toml", "stages.toml", "rows.toml"}
OWN = FILES | {"db", "breaks", "exercises", "races"}
JUNK = {"__pycache__", "outside.log"}


class CourseError(Exception):
    """Nothing can be done before somebody does what the message says."""


@dataclass(frozen=True)
class Course:
    root: Path

    @property
    def lessons(self) -> list[Path]:
        return lessons(self.root / "lessons")

    @property
    def neighbours(self) -> list[tuple[Path, Path]]:
        """Each lesson that is a copy of the one before it, and that one."""
        pairs = zip(self.lessons, self.lessons[1:], strict=False)
        return [
            (before, after)
            for before, after in pairs
            if not (after / "lesson.toml").exists() or not settings(after).get("starts_the_chain")
        ]

    def lesson(self, name: str | None) -> Path:
        """`01`, `01_simple_queue`, or the path of a directory; the last lesson for None."""
        try:
            return find(name, self.root / "lessons")
        except NoSuchLesson as error:
            raise CourseError(error) from None

    def chosen(self, name: str | None) -> list[Path]:
        """One lesson by name, or all of them."""
        return [self.lesson(name)] if name else self.lessons

    def finding(self, path: Path, wrong: str, remedy: str) -> str:
        return " ".join(f"{self.shown(path)}: {wrong}: {remedy}".split())

    def shown(self, path: Path) -> str:
        return str(path.relative_to(self.root) if path.is_relative_to(self.root) else path)

    def write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(f"{self.shown(path)}: written")

    def keep(
        self,
        wanted: Mapping[Path, str],
        have: Iterable[Path],
        verb: str,
        needless: str,
        check: bool,
    ) -> Iterator[str]:
        """Files that are made from others: write and delete, or only say, what is not as wanted."""
        there = {path: path.read_text() for path in have}
        for path in sorted({*wanted, *there}):
            if wanted.get(path) == there.get(path):
                continue
            if check:
                wrong = "stale" if path in wanted else needless
                yield self.finding(path, wrong, f"run `python -m tools {verb}`")
            elif path in wanted:
                self.write(path, wanted[path])
            else:
                path.unlink()
                print(f"{self.shown(path)}: deleted")


def walk(directory: Path) -> Iterator[Path]:
    """All files below, in the order of their names, without caches and hidden files."""
    for path in sorted(directory.iterdir()):
        if path.name in JUNK or path.name.startswith("."):
            continue
        if path.is_dir():
            yield from walk(path)
        else:
            yield path


def compared_files(lesson: Path) -> dict[str, str]:
    """Name -> text of the files that must not differ between neighbours without being named."""
    return {
        path.relative_to(lesson).as_posix(): path.read_bytes().decode(errors="surrogateescape")
        for path in walk(lesson)
        if path.relative_to(lesson).parts[0] not in OWN
        and not re.fullmatch(r"test_\w+\.py", path.name)
    }


def run_pages(course: Course, lesson: Path) -> list[Path]:
    """The pages whose console blocks are run in this lesson: its README, and docs/01_name.md."""
    docs = course.root.glob(f"docs/{number(lesson):02}_*.md") if lesson in course.lessons else ()
    return [path for path in (lesson / "README.md", *sorted(docs)) if path.exists()]


def patch_name(before: Path, after: Path) -> str:
    """Of the difference between neighbours, in diffs/."""
    return f"{number(before):02}_to_{number(after):02}.patch"


def copy_lesson(lesson: Path, target: Path) -> Path:
    for path in walk(lesson):
        copy = target / path.relative_to(lesson)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    return target


def settings(lesson: Path) -> dict[str, Any]:
    """lesson.toml. Raises CourseError if it is missing or cannot be read."""
    path = lesson / "lesson.toml"
    try:
        return tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise CourseError(f"{path}: {error}") from None


def environment(**variables: str) -> dict[str, str]:
    """Ours, without what would choose another lesson, module or git repository, and colours."""
    unwanted = re.compile("LESSON|PYTHONPATH|GIT_|FORCE_COLOR")
    kept = {name: value for name, value in os.environ.items() if not unwanted.match(name)}
    return kept | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}",
        "NO_COLOR": "1",
        "COLUMNS": "100",
        **variables,
    }


def run(
    command: list[str] | str, cwd: Path, env: Mapping[str, str] | None = None, seconds: float = 300
) -> tuple[int, str]:
    """Run to the end; the exit status and the output, stderr mixed in. A string goes to the shell.

    What takes longer than `seconds` is killed with all its children, and has the status 124.
    """
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=environment() if env is None else env,
        shell=isinstance(command, str),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        output = process.communicate(timeout=seconds)[0]
        with suppress(ProcessLookupError):  # what it has started and left running
            os.killpg(process.pid, signal.SIGKILL)
        return process.returncode, output.decode(errors="replace")
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output = process.communicate()[0]
        return 124, f"{output.decode(errors='replace')}\nno end after {seconds:g} s"
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise


def git(*arguments: str, cwd: Path) -> tuple[int, str]:
    """git on plain directories: no settings of the user, and no repository around them."""
    env = environment(
        GIT_CONFIG_GLOBAL=os.devnull,
        GIT_CONFIG_NOSYSTEM="1",
        GIT_CEILING_DIRECTORIES=str(cwd.parent),
    )
    return run(["git", *arguments], cwd, env)


def last_line(output: str) -> str:
    lines = output.split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")
