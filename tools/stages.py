"""stages.toml: in which order a reader writes what a lesson adds, and which tests judge each stage.

Between the code that one begins with and the lesson there is a state after each stage.
"""

import shutil
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from shared.generated import record
from shared.lessons import BUILD, number
from tools.changes import engine_files, is_story, symbol_changes
from tools.generated import NoPlugin, write
from tools.layers import Texts, docstring, laid
from tools.symbols import QUERY_NAME, WHOLE, loose
from tools.tree import Course, CourseError, compared_files

FILE = "stages.toml"
GIVEN = 0
NO_QUERIES = '''\
import sqlalchemy


class Querier:
    """There are no queries yet."""

    def __init__(self, conn: sqlalchemy.engine.Connection):
        self._conn = conn
'''
Change = tuple[str, str]  # file and symbol


@dataclass(frozen=True)
class Stage:
    """tests: `test_04_log.py::test_name`. write: names such as `worker.py#Worker.run`."""

    title: str
    purpose: str
    write: list[str]
    hint: str
    tests: list[str]


@dataclass(frozen=True)
class Plan:
    """How a lesson is built. before: what one begins with; None for an empty queue.

    keep: tests of earlier lessons that what is written here could break. They run at the end.
    """

    lesson: Path
    before: Path | None
    given: list[str]
    keep: list[str]
    stages: list[Stage]

    @cached_property
    def goal(self) -> Texts:
        return compared_files(self.lesson)

    @cached_property
    def start(self) -> Texts:
        """The code before, and the lesson's story; a new module has its docstring already."""
        before = compared_files(self.before) if self.before else {}
        found = {file: text for file, text in before.items() if not is_story(file)}
        for file, text in self.goal.items():
            if is_story(file):
                found[file] = text
            elif file not in found and file.endswith((".py", ".sql")):
                found[file] = f"{docstring(text)}\n" if file.endswith(".py") else ""
        return found

    @cached_property
    def changes(self) -> dict[Change, str]:
        """What is to be written, changed or taken out, and its kind, as in lesson.toml."""
        found: dict[Change, str] = {}
        for file in engine_files(self.start, self.goal):
            old, new = self.start.get(file, ""), self.goal.get(file, "")
            for symbol, kind in symbol_changes(file, old, new).items():
                found[file, symbol] = kind
        return found

    def names(self, change: Change) -> list[str]:
        """How it may be called in stages.toml, the closest first.

        A method goes with its class where that is new or gone, and everything with its file.
        """
        file, symbol = change
        owner = symbol.partition(".")[0]
        found = [f"{file}#{symbol}"] if symbol != WHOLE else []
        if owner != symbol and self.changes.get((file, owner), "changed") != "changed":
            found.append(f"{file}#{owner}")
        return [*found, file]

    @cached_property
    def owners(self) -> dict[Change, int]:
        """The number of the stage that each change belongs to, or GIVEN."""
        said = {name: n for n, stage in enumerate(self.stages, 1) for name in stage.write}
        said |= dict.fromkeys(self.given, GIVEN)
        found: dict[Change, int] = {}
        for change in self.changes:
            if name := next((name for name in self.names(change) if name in said), None):
                found[change] = said[name]
        return found

    def state(self, stages: int) -> Texts:
        """The code after so many stages."""
        taken: dict[str, list[str]] = {}
        for (file, symbol), owner in self.owners.items():
            if owner <= stages:
                taken.setdefault(file, []).append(symbol)
        return laid(self.start, self.goal, taken)


def plan(course: Course, lesson: Path) -> Plan:
    """Raises CourseError if the lesson has no stages, or if they cannot be read."""
    path = lesson / FILE
    if not path.exists():
        other = ", ".join(f"{number(p.parent):02}" for p in lesson.parent.glob(f"*/{FILE}"))
        there = f"Lessons that have: {other}." if other else "No lesson has."
        raise CourseError(f"{lesson.name} has no stages to build it in. {there}")
    before = next((before for before, after in course.neighbours if after == lesson), None)
    try:
        read = tomllib.loads(path.read_text())
        stages = [Stage(**stage) for stage in read.pop("stage")]
        return Plan(lesson, before, read.pop("given", []), read.pop("keep", []), stages)
    except (tomllib.TOMLDecodeError, TypeError, KeyError) as error:
        raise CourseError(f"{course.shown(path)}: {error}") from None


def faults(course: Course, plan: Plan) -> Iterator[str]:
    """Is each change in one stage, and does each name mean something?"""
    path = plan.lesson / FILE
    said = Counter([*plan.given, *(name for stage in plan.stages for name in stage.write)])
    meant = {name for change in plan.changes for name in plan.names(change)}
    for change in plan.changes:
        if change not in plan.owners:
            wrong = f"{plan.names(change)[0]} is in no stage"
            yield course.finding(path, wrong, "put it into one, or into `given`")
    for (file, symbol), owner in plan.owners.items():
        above = (file, symbol.partition(".")[0])
        if plan.changes.get(above) == "added" and owner < plan.owners.get(above, owner):
            wrong = f"{file}#{symbol} comes before its class"
            yield course.finding(path, wrong, "put it into the same stage or a later one")
    for name, times in said.items():
        if times > 1:
            yield course.finding(path, f"{name} is there {times} times", "leave one of them")
        if name not in meant:
            yield course.finding(path, f"{name} does not differ", "take it away")
    tests = Counter([*plan.keep, *(test for stage in plan.stages for test in stage.tests)])
    for test, times in tests.items():
        if times > 1:
            yield course.finding(path, f"{test} is there {times} times", "leave one of them")
        file, _, name = test.partition("::")
        source = course.root / "tests" / file
        if not source.is_file() or f"\ndef {name}(" not in source.read_text():
            yield course.finding(path, f"there is no {test}", "name a test that exists")


def make(plan: Plan, stages: int, target: Path) -> None:
    """Write the code after so many stages into a new directory. Raises CourseError."""
    for file, text in plan.state(stages).items():
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        (target / file).write_text(text)
    (target / BUILD).write_text(f"{stages + 1}\n")
    generate(plan, target)


def generate(plan: Plan, copy: Path) -> None:
    """db/ of a lesson that is being built. Raises CourseError, and NoPlugin.

    Without sqlc's plugin, a db/ that was made from the same SQL will do.
    """
    try:
        if QUERY_NAME.search((copy / "queries.sql").read_text()):
            write(copy)
        else:
            write_none(copy)
    except NoPlugin:
        same = [each for each in (plan.lesson, plan.before) if each and sql(each) == sql(copy)]
        if not same:
            raise
        shutil.copytree(same[0] / "db", copy / "db", dirs_exist_ok=True)
        record(copy)


def write_none(copy: Path) -> None:
    """sqlc makes nothing of no queries."""
    (copy / "db").mkdir(exist_ok=True)
    (copy / "db/__init__.py").write_text("")
    (copy / "db/queries.py").write_text(NO_QUERIES)
    record(copy)


def sql(lesson: Path) -> list[str]:
    """What sqlc reads, up to comments and blanks."""
    schema, queries = ((lesson / name).read_text() for name in ("schema.sql", "queries.sql"))
    return [loose("x.sql", part) for part in (schema, *queries.split("-- name:"))]
