"""Everything that the engine is tried with, in one table, which docs/promises.md quotes."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import click
from rich.table import Table

from faults import chaos, mutants
from faults.crash import Fault, Point, crash_test, every_point
from shared.lessons import find, lessons, number
from shared.story import console
from tools.blocks import put

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "promises.md"

CRASHES: dict[Fault, str] = {
    "kill": "kill -9 before and after each commit",
    "stop": "SIGSTOP before and after each commit, until others have finished",
}
# What the tests of the last lesson try, by fault. Those of the earlier lessons run on it as well.
TESTS = {
    "a zombie's writes: SIGSTOP, a buried worker, two runs of one task": (
        "zombie or stopped_process or asleep or late_result or two_runs or buried"
    ),
    "`pg_terminate_backend`, `pg_cancel_backend`, answers that were lost": (
        "connections_are_cut or reconnect or answer_was_lost or lost_claims"
    ),
    "immediate shutdown of the server, and a restart": "server_restarts or there_is_no_server",
    "the line cut, half-open, slow; tables locked; no free connection; 30 starts": "bad_lines",
    "a worker's clock that is an hour wrong": "clock_that_is_wrong",
    "poison: what no door must let in, and rows that nobody can read": (
        "at_the_door or not_json or refused_before or python_cannot_read or cannot_be_read"
        " or postgres_refuses or unknown_name or bad_option or any_error_can"
    ),
    "races and lock orders: wake-ups, retries, replays, cancels, limits": (
        "races or deadlock or at_once or same_moment or order_of_a_retry or one_statement"
    ),
    "forks: of a task that runs, waits, has ended, or is in somebody's hands": "07_fork",
    "timers: sleeps, waits with a timeout, what was first, moments that are no moments": "test_09",
    "schedules: ticks at once, clocks that change, lines and rows that mean nothing": "test_10",
    "messages and events: races of sending, waiting and the clock, deaths between them": "test_11",
    "transactions, marks and the outbox: work with its record, lost answers, roles": "test_12",
    "deploys: logs that do not fit, unknown names, versions up and down, patches": "test_13",
    "groups: one row lost, held or refused, a leader cut off, a death in the middle": "test_14",
}

MIXED = "all faults mixed at random"
MODEL = "random schedules against a model"
PLANTED = "bugs planted: mutants that no test notices"


@dataclass(frozen=True)
class Row:
    fault: str
    tried: str  # points, seeds, tests
    violations: int
    twice: str = ""  # effects outside the database that happened twice, where they are counted


def crashes(fault: Fault) -> Row:
    """At every commit of every lesson that survives it."""
    # Without a lease nobody would take over from a worker that stands still.
    tried = [lesson for lesson in lessons() if number(lesson) >= (1 if fault == "kill" else 3)]
    points: list[Point] = []
    for lesson in tried:
        with crash_test(lesson) as test:
            points += every_point(test, "before", fault) + every_point(test, "after", fault)
        console.print(f"{CRASHES[fault]}, {lesson.name}: {len(points)} points so far")
    stuck = sum(point.stuck > 0 for point in points)
    return Row(
        CRASHES[fault],
        f"{len(points)} points in {len(tried)} lessons"
        + (f"; {stuck} of them leave a task stuck, as lessons 01 and 02 say" if stuck else ""),
        sum(len(point.violations) for point in points),
        f"at {sum(point.ran_twice > 0 for point in points)} points",
    )


def mixed(seeds: int) -> Row:
    chosen = (find("03"), find(None))
    results = [chaos.run(lesson, seed, 5) for lesson in chosen for seed in range(1, seeds + 1)]
    for result in results:
        for violation in result.violations:
            console.print(f"{result.lesson}, seed {result.seed}: {violation}")
    return Row(
        MIXED,
        f"{seeds} seeds in {len(chosen)} lessons, {sum(r.faults.total() for r in results)} faults,"
        f" {sum(r.tasks for r in results):,} tasks",
        sum(len(r.violations) for r in results),
        f"{sum(r.effects_twice for r in results)} effects",
    )


def tests(title: str, *arguments: str, **environment: str) -> Row:
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.xml"
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-n", "2", f"--junitxml={report}", *arguments],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.DEVNULL,
            check=False,
        )
        suite = next(ElementTree.parse(report).getroot().iter("testsuite"))
    ran = int(suite.get("tests", 0)) - int(suite.get("skipped", 0))
    failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
    return Row(title, "1 test" if ran == 1 else f"{ran} tests", failed if ran else 1)


def rows(seeds: int, examples: int) -> Iterator[Row]:
    """One for each fault."""
    yield crashes("kill")
    yield crashes("stop")
    for title, expression in TESTS.items():
        files = sorted(str(path) for path in (ROOT / "tests").glob("test_[01][0-9]_*.py"))
        yield tests(title, *files, "-k", expression, LESSON=find(None).name)
    yield mixed(seeds)
    # Without the number, the tests' own: the same schedules every time.
    more = {"MODEL_EXAMPLES": str(examples)} if examples else {}
    models = ("tests/test_03_model.py", "tests/test_06_model.py")
    yield tests(MODEL, *models, "--everywhere", **more)
    verdicts = mutants.run()
    killed = sum(verdict.killed for verdict in verdicts)
    yield Row(PLANTED, f"{len(verdicts)} planted, {killed} noticed", len(verdicts) - killed)


TITLES = [*CRASHES.values(), *TESTS, MIXED, MODEL, PLANTED]
HEADER = ("Fault", "Tried", "Violations", "Happened twice outside")


def cells(row: Row) -> tuple[str, ...]:
    return (row.fault, row.tried, str(row.violations), row.twice)


def write(found: list[Row]) -> None:
    """The table, into its block of docs/promises.md."""
    lines = [HEADER, tuple("---" for _ in HEADER), *map(cells, found)]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    PAGE.write_text(put(PAGE.read_text(), "faults", table))


@click.command()
@click.option("--seeds", default=20, show_default=True, help="of chaos, for each lesson")
@click.option("--examples", default=0, help="of the model; 0: as many as the tests take")
@click.option("--write/--no-write", "keep", default=True, help="the table into docs/promises.md")
def main(seeds: int, examples: int, keep: bool) -> None:
    """Try the engine with everything. Exit status 1 if a promise was broken."""
    found: list[Row] = []
    started = time.monotonic()
    for row in rows(seeds, examples):
        console.print(f"{' | '.join(cells(row))} | {time.monotonic() - started:.0f} s")
        started = time.monotonic()
        found.append(row)
        if keep:
            write(found)
    table = Table(*HEADER)
    for row in found:
        table.add_row(*cells(row))
    console.print(table)
    sys.exit(any(row.violations for row in found))
