"""A patched copy of a lesson, and how a test ends on it: the ground of breaks and exercises."""

import re
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from shared.generated import record, stale
from tools.forked import forked
from tools.generated import NoPlugin, differing
from tools.tree import Course, CourseError, copy_lesson, environment, git, last_line

SECONDS = 180


@contextmanager
def copy_of(lesson: Path) -> Generator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        # The same name: tests read the lesson's number from it.
        yield copy_lesson(lesson, Path(directory).resolve() / "copy" / lesson.name)


def apply(course: Course, copy: Path, patch: Path, *, for_readers: bool = False) -> list[str]:
    """Apply a patch to a copy. It must fit, and bring the db/ that sqlc makes of its SQL.

    for_readers: it must also bring the fingerprint, where the copy would not run without it.
    """
    status, text = git("apply", str(patch), cwd=copy)
    if status:
        remedy = "make it again from the lesson as it is"
        return [course.finding(patch, f"does not apply: {last_line(text)}", remedy)]
    if not (copy / "sqlc.yaml").exists():
        return []
    remedy = "apply it to a copy, `make generate` there, and make the patch again"
    try:
        if differing(course, copy):
            return [course.finding(patch, "its db/ is not what sqlc makes of its SQL", remedy)]
    except NoPlugin:  # the check of the generated code says so, once
        pass
    except CourseError as error:
        return [course.finding(patch, str(error), "mend its SQL")]
    if for_readers and stale(copy):
        return [course.finding(patch, "it does not bring its db/fingerprint.txt", remedy)]
    record(copy)
    return []


def unless(wanted: str, course: Course, copy: Path, test: str) -> str:
    """What is wrong with how a test ends on a copy; empty if it `passed` or `failed` as wanted."""
    result, why = "passed", ""
    if wanted == "failed":
        result, why, _ = run_tests(course, copy, test, "-x", "-p", "tools.hurry")
    if result == "passed":  # or what it watches takes longer than it was given
        result, why, _ = run_tests(course, copy, test)
    if result == wanted:
        return ""
    must = "must fail" if wanted == "failed" else "must pass"
    return f"{must}, and the outcome is {result}{f' ({why})' if why else ''}"


def run_tests(
    course: Course, copy: Path, *arguments: str, seconds: float = SECONDS
) -> tuple[str, str, str]:
    """Run pytest on a copy: how it ends, a line about it, and the test that decided that.

    It ends as `passed`, `failed`, `skipped` or `error`. A test that runs several times with
    different parameters has failed if it failed once.
    """
    try:
        found = cases(course, copy, *arguments, seconds=seconds)
    except NoReport as error:
        return "error", str(error), ""
    for ended in ("error", "failed", "skipped"):
        for case in found:
            if case.ended == ended:
                return ended, case.why, case.name
    return "passed", "", ""


class NoReport(Exception):
    """pytest has run no test, or has not come to its end. The message is its last line."""


@dataclass(frozen=True)
class Case:
    """A test with its parameters. why: the last line of the error; message: the whole of it."""

    test: str  # test_04_log.py::test_name
    name: str  # test_name[parameters]
    ended: str
    why: str
    message: str
    line: str = ""  # the last line of a test's file on the way to the error
    others: str = ""  # if it has several sets of parameters: which one this is, and how many fail


def cases(course: Course, copy: Path, *arguments: str, seconds: float = SECONDS) -> list[Case]:
    """Run pytest on a copy. Raises NoReport."""
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.xml"
        # Without Hypothesis's plugin, which only reports, pytest needs half as long to start.
        plugins = ["-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
        options = ["-q", *plugins, f"--junitxml={report}"]
        configuration = course.root / "pyproject.toml"
        if configuration.exists():  # a test in a copy would else be run without our settings
            options += ["-c", str(configuration), f"--rootdir={course.root}"]
        env = environment(LESSON=str(copy))
        status, text = forked(run_pytest, [*options, *arguments], course.root, env, seconds)
        if status == 124 or not report.exists():
            raise NoReport(last_line(text))
        found = [case(element) for element in ElementTree.parse(report).getroot().iter("testcase")]
    if not found:
        raise NoReport(last_line(text))
    return found


def run_pytest(arguments: list[str]) -> int:
    import pytest  # in the new process only

    return pytest.main(arguments)


def case(element: ElementTree.Element) -> Case:
    name = element.get("name", "")
    file = f"{element.get('classname', '').rpartition('.')[2]}.py"
    test = f"{file}::{name.partition('[')[0]}"
    for kind, ended in (("error", "error"), ("failure", "failed"), ("skipped", "skipped")):
        if (child := element.find(kind)) is not None:
            message = child.get("message", "")
            reasons = re.findall(r"^E +(.*)", child.text or "", re.M)  # of a collection
            lines = re.findall(r"test_\w+\.py:(\d+): ", child.text or "")
            why, line = (reasons or [message])[-1], (lines or [""])[-1]
            return Case(test, name, ended, why, message, line)
    return Case(test, name, "passed", "", "")
