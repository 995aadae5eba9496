"""Everything that `make check` holds, one line for each check; the longest come last in CHECKS."""

import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial

from shared.postgres import server
from tools.breaks import breaks, exercises
from tools.changes import changes
from tools.diffs import diffs
from tools.generated import generate
from tools.judge import stages
from tools.output import output
from tools.readme import readme
from tools.tree import Course, CourseError, run

Find = Callable[[Course], Iterable[str] | None]


def program(command: str, course: Course) -> list[str]:
    """A program's lines are its findings."""
    status, text = run([sys.executable, "-m", *command.split()], course.root, seconds=600)
    return text.strip().split("\n") if status else []


CHECKS: dict[str, Find] = {
    "ruff check": partial(program, "ruff check"),
    "ruff format": partial(program, "ruff format --check"),
    "changes": partial(changes, check=True),
    "readme": partial(readme, check=True),
    "generate": partial(generate, check=True),
    "diffs": partial(diffs, check=True),
    "types": partial(program, "basedpyright"),
    "output": partial(output, check=True),
    "breaks": breaks,
    "stages": stages,
    "exercises": exercises,
}


def check(course: Course) -> Iterator[str]:
    """All checks, whatever fails, four of them at a time, the longest first."""
    told: list[str] = []
    with server(), ThreadPoolExecutor(4) as pool:  # one server for all of them
        running = {pool.submit(timed, CHECKS[name], course): name for name in reversed(CHECKS)}
        for future in as_completed(running):
            name, (found, seconds) = running[future], future.result()
            verdict = f"{len(found)} lines" if found else "ok"
            print(f"{name:<12} {seconds:6.1f} s   {verdict}", flush=True)
            told += [f"\n{name}", *(f"  {line}" for line in found)] if found else []
    yield from told


def timed(find: Find, course: Course) -> tuple[list[str], float]:
    start = time.monotonic()
    try:
        found = list(find(course) or ())
    except CourseError as error:
        found = [str(error)]
    except Exception:  # a fault of the tool itself must not hide what the other checks find
        found = traceback.format_exc().splitlines()
    return found, time.monotonic() - start
