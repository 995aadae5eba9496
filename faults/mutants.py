"""Mutation testing with bugs planted by hand: does a test fail for each of them?

    python -m faults.mutants [NAME...] [--whole-suite]

A mutant is a patch with a header: what it breaks, in which lesson, and the one test that must fail
on a copy of that lesson with the patch. The bugs are those that systems of this kind have had: a
write without its fence, a rescue that does not look again, a wake-up that is lost. The lessons'
own breaks are mutants too. Exit status 1: one has survived, and the suite has a hole.
"""

import argparse
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from shared.postgres import server
from tools.breaks import one_break
from tools.patches import apply, copy_of, run_tests
from tools.tree import Course, CourseError

ROOT = Path(__file__).resolve().parents[1]
MUTANTS = Path(__file__).with_name("mutants")
AT_ONCE = 2
WHOLE_SUITE_SECONDS = 900

HEADER = re.compile(
    r"What: (?P<what>\S.*)\nLesson: (?P<lesson>\d\d_\w+)\nKilled by: (?P<test>tests/\S+::\S+)\n\n"
)


@dataclass(frozen=True)
class Mutant:
    """A planted bug. test: what must kill it, as pytest names it."""

    patch: Path
    lesson: Path
    what: str
    test: str
    of_lesson: bool  # one of the lesson's breaks

    @property
    def name(self) -> str:
        number = self.lesson.name.partition("_")[0]
        return f"{number}/{self.patch.stem}" if self.of_lesson else self.patch.stem


@dataclass(frozen=True)
class Verdict:
    """killed: by the test `by`. Otherwise, why says how that test ended."""

    mutant: Mutant
    killed: bool
    by: str
    why: str
    seconds: float


@dataclass(frozen=True)
class Result:
    verdicts: list[Verdict]

    @property
    def planted(self) -> int:
        return len(self.verdicts)

    @property
    def killed(self) -> int:
        return sum(verdict.killed for verdict in self.verdicts)

    @property
    def survivors(self) -> list[Mutant]:
        return [verdict.mutant for verdict in self.verdicts if not verdict.killed]


def planted(course: Course) -> list[Mutant]:
    """The patches in mutants/. Raises CourseError for a header that is not as it must be."""
    return [read(course, patch) for patch in sorted(MUTANTS.glob("*.patch"))]


def read(course: Course, patch: Path) -> Mutant:
    found = HEADER.match(patch.read_text())
    if not found:
        raise CourseError(
            f"{course.shown(patch)}: begin with `What: one sentence.`, `Lesson: 06_durable_tasks`"
            " and `Killed by: tests/test_x.py::test_y`"
        )
    return Mutant(patch, course.lesson(found["lesson"]), found["what"], found["test"], False)


def breaks(course: Course) -> list[Mutant]:
    """The breaks of the lessons. The one test is the second line of their headers."""
    found: list[Mutant] = []
    for lesson in course.lessons:
        for patch in sorted((lesson / "breaks").glob("*.patch")):
            what, test = (line.partition(": ")[2] for line in patch.read_text().splitlines()[:2])
            found.append(Mutant(patch, lesson, what, test, True))
    return found


def judge(course: Course, mutant: Mutant, whole_suite: bool = False) -> Verdict:
    """Plant the bug in a copy of its lesson, and run its test, or all tests up to the first kill.

    A patch that does not fit, a test that cannot be run and one that does not fail are survivors.
    """
    started = time.monotonic()
    if mutant.of_lesson and not whole_suite:
        by, why = mutant.test, "; ".join(one_break(course, mutant.lesson, mutant.patch))
        killed = not why
    else:
        ended, why, by = hunt(course, mutant, whole_suite)
        killed = ended == "failed"
        why = f"{ended}: {why}"
    return Verdict(mutant, killed, by or mutant.test, why, time.monotonic() - started)


def hunt(course: Course, mutant: Mutant, whole_suite: bool) -> tuple[str, str, str]:
    """How the tests end on a copy with the bug, a line about it, and the test that decided."""
    tests = [mutant.test]
    if whole_suite:
        tests = sorted(str(path) for path in (course.root / "tests").glob("test_[0-9][0-9]_*.py"))
    with copy_of(mutant.lesson) as copy:
        if wrong := apply(course, copy, mutant.patch):
            return "error", "; ".join(wrong), ""
        return run_tests(course, copy, "-x", *tests, seconds=WHOLE_SUITE_SECONDS)


def run(course: Course, names: list[str] | None = None, whole_suite: bool = False) -> Result:
    """Judge the mutants whose name contains one of `names`, or all. Prints a line for each."""
    mutants = [
        mutant
        for mutant in planted(course) + breaks(course)
        if not names or any(name in mutant.name for name in names)
    ]
    verdicts: list[Verdict] = []
    with server(), ThreadPoolExecutor(AT_ONCE) as threads:  # one server for all of them
        for verdict in threads.map(partial(judge, course, whole_suite=whole_suite), mutants):
            verdicts.append(verdict)
            print(line(verdict), flush=True)
    return Result(verdicts)


def line(verdict: Verdict) -> str:
    state = "killed" if verdict.killed else "SURVIVED"
    by = verdict.by.rpartition("::")[2]
    text = f"{state:8} {verdict.seconds:5.1f} s  {verdict.mutant.name:28} {by}"
    return text if verdict.killed else f"{text}\n         {verdict.why}"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m faults.mutants")
    parser.add_argument("names", metavar="NAME", nargs="*", help="part of a mutant's name")
    parser.add_argument(
        "--whole-suite", action="store_true", help="all tests of the lesson, up to the first kill"
    )
    given = parser.parse_args(arguments)
    try:
        result = run(Course(ROOT), given.names, given.whole_suite)
    except CourseError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{result.planted} planted, {result.killed} killed, {len(result.survivors)} survived")
    return 1 if result.survivors or not result.planted else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
