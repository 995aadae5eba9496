"""Mutation testing with bugs planted by hand: does a test fail for each of them?

The bugs of mutants.toml are those that systems of this kind have had: a write without its fence, a
rescue that does not look again, a wake-up that is lost. The lessons' own breaks are mutants too.
"""

import re
import sys
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from shared.generated import record
from shared.lessons import find, lessons
from shared.postgres import server
from tools.generated import NoPlugin, differing
from tools.patches import apply, copy_of, run_tests
from tools.tree import Course, CourseError

TABLE = Path(__file__).with_name("mutants.toml")
COURSE = Course(Path(__file__).resolve().parents[1])
AT_ONCE = 2
MOST_SECONDS = 900  # for the whole suite
PARAMETER = re.compile(r"@(\w+)")


@dataclass(frozen=True)
class Edit:
    """old, which stands there once, becomes new: in a query, in a file, or in some *.py."""

    old: str
    new: str
    query: str = ""
    file: str = ""


@dataclass(frozen=True)
class Mutant:
    """A planted bug. killed_by: the test that must fail. patch: of a break, it has no edits."""

    name: str
    lesson: Path
    what: str
    killed_by: str
    edits: tuple[Edit, ...] = ()
    patch: Path | None = None


@dataclass(frozen=True)
class Verdict:
    """killed: by the test `by`. Otherwise, why says how that test ended."""

    mutant: Mutant
    killed: bool
    by: str
    why: str
    seconds: float


def planted() -> list[Mutant]:
    """The mutants of the table."""
    return [read(name, row) for name, row in tomllib.loads(TABLE.read_text()).items()]


def read(name: str, row: dict[str, Any]) -> Mutant:
    words = {key: row.pop(key) for key in ("what", "killed_by")}
    lesson = find(row.pop("lesson", None))
    edits = tuple(Edit(**edit) for edit in row.get("edits", [row]))
    return Mutant(name, lesson, **words, edits=edits)


def breaks() -> list[Mutant]:
    """The breaks of the lessons. What and which test are the first two lines of their headers."""
    found: list[Mutant] = []
    for lesson in lessons():
        for patch in sorted((lesson / "breaks").glob("*.patch")):
            what, test = (line.partition(": ")[2] for line in patch.read_text().splitlines()[:2])
            name, killed_by = f"{lesson.name[:2]}/{patch.stem}", test.rpartition("::")[2]
            found.append(Mutant(name, lesson, what, killed_by, patch=patch))
    return found


def plant(lesson: Path, edits: tuple[Edit, ...]) -> None:
    """Make the edits in a copy of a lesson. Raises CourseError."""
    for edit in edits:
        if edit.query:
            edit_query(lesson, edit)
            continue
        paths = [lesson / edit.file] if edit.file else sorted(lesson.glob("*.py"))
        texts = {path: path.read_text() for path in paths}
        once(edit, "".join(texts.values()))
        for path, text in texts.items():
            path.write_text(text.replace(edit.old, edit.new))
    record(lesson)


def once(edit: Edit, text: str) -> str:
    """The text with the edit."""
    if text.count(edit.old) != 1:
        where = edit.query or edit.file or "the lesson's *.py"
        raise CourseError(f"in {where}, {text.count(edit.old)} times and not once: {edit.old!r}")
    return text.replace(edit.old, edit.new)


def edit_query(lesson: Path, edit: Edit) -> None:
    """In queries.sql, and in what sqlc has made of it: the plugin for that is not everywhere."""
    sql, python = lesson / "queries.sql", lesson / "db" / "queries.py"
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", edit.query).lower()
    found = re.search(rf"-- name: {edit.query} .*\n((?s:.*?))(?=-- name: |\Z)", sql.read_text())
    made = re.search(rf'"""-- name: {name} .*\n((?s:.*?))\n"""', python.read_text())
    if not (found and made):
        raise CourseError(f"there is no query {edit.query}")
    before, after = found[1], once(edit, found[1])
    numbers = dict(zip(parameters(before), re.findall(r":(p\d+)", made[1]), strict=True))
    if as_generated(before, numbers) != made[1]:
        raise CourseError(f"db/queries.py does not hold the SQL of {edit.query}")
    if new := set(parameters(after)) - set(numbers):
        raise CourseError(f"{edit.query} gets new parameters: {', '.join(sorted(new))}")
    for path, old, new in ((sql, found, after), (python, made, as_generated(after, numbers))):
        path.write_text(path.read_text().replace(old[0], old[0].replace(old[1], new)))


def parameters(query: str) -> list[str]:
    return PARAMETER.findall(plain(query))


def as_generated(query: str, numbers: dict[str, str]) -> str:
    """The SQL as sqlc's Python plugin writes it. numbers: of each parameter, such as p1."""
    sql = plain(query).strip().removesuffix(";").strip().replace(":", r"\\:")
    return PARAMETER.sub(lambda found: f":{numbers[found[1]]}", sql)


def plain(query: str) -> str:
    """Without comments, and each parameter as @name."""
    return re.sub(r"sqlc\.n?arg\((\w+)\)", r"@\1", re.sub(r"^--.*\n", "", query, flags=re.M))


def find_test(mutant: Mutant) -> str:
    """The test that must kill it, with the file in which it stands. Raises CourseError."""
    definition = re.compile(rf"^def {mutant.killed_by.partition('[')[0]}\(", re.M)
    tests = sorted((COURSE.root / "tests").glob("test_*.py"))
    found = [path for path in tests if definition.search(path.read_text())]
    if len(found) != 1:
        raise CourseError(f"{len(found)} files have a test {mutant.killed_by}")
    return f"tests/{found[0].name}::{mutant.killed_by}"


def all_tests() -> list[str]:
    return sorted(map(str, (COURSE.root / "tests").glob("test_[0-9][0-9]_*.py")))


def judge(mutant: Mutant, whole_suite: bool = False) -> Verdict:
    """Plant the bug in a copy of its lesson, and run its test, or all tests up to the first kill.

    A bug that does not fit, a test that cannot be run and one that does not fail are survivors.
    """
    started = time.monotonic()
    try:
        with copy_of(mutant.lesson) as copy:
            if mutant.patch:
                wrong = apply(COURSE, copy, mutant.patch)
            else:
                plant(copy, mutant.edits)
                wrong = not_as_generated(copy)
            if wrong:
                raise CourseError("; ".join(wrong))
            tests = all_tests() if whole_suite else [find_test(mutant)]
            ended, why, by = run_tests(COURSE, copy, "-x", *tests, seconds=MOST_SECONDS)
    except CourseError as error:
        ended, why, by = "error", str(error), ""
    return Verdict(
        mutant,
        killed=ended == "failed",
        by=by or mutant.killed_by,
        why=f"{ended}: {why}",
        seconds=time.monotonic() - started,
    )


def not_as_generated(copy: Path) -> list[str]:
    """Is its db/ what sqlc makes of its SQL? Nothing, where the plugin cannot be had."""
    try:
        return differing(COURSE, copy)
    except NoPlugin:
        return []


def run(names: tuple[str, ...] = (), whole_suite: bool = False) -> list[Verdict]:
    """Judge the mutants whose name contains one of `names`, or all. Prints a line for each."""
    mutants = [
        mutant
        for mutant in planted() + breaks()
        if not names or any(name in mutant.name for name in names)
    ]
    verdicts: list[Verdict] = []
    with server(), ThreadPoolExecutor(AT_ONCE) as threads:  # one server for all of them
        for verdict in threads.map(partial(judge, whole_suite=whole_suite), mutants):
            verdicts.append(verdict)
            click.echo(line(verdict))
    return verdicts


def line(verdict: Verdict) -> str:
    state = "killed" if verdict.killed else "SURVIVED"
    text = f"{state:8} {verdict.seconds:5.1f} s  {verdict.mutant.name:28} {verdict.by}"
    return text if verdict.killed else f"{text}\n         {verdict.why}"


@click.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--whole-suite", is_flag=True, help="All tests of the lesson, up to the first kill.")
def main(names: tuple[str, ...], whole_suite: bool) -> None:
    """Plant each bug whose name contains a NAME, or all; exit status 1 if one survives."""
    verdicts = run(names, whole_suite)
    killed = sum(verdict.killed for verdict in verdicts)
    click.echo(f"{len(verdicts)} planted, {killed} killed, {len(verdicts) - killed} survived")
    sys.exit(killed != len(verdicts) or not verdicts)


if __name__ == "__main__":
    main()
