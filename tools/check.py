"""Everything that `make check` holds, one line for each check."""

import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from tools.breaks import breaks, exercises
from tools.changes import changes
from tools.copies import copies
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
    "exercises": exercises,
    "stages": stages,
    "copies": copies,
}


def check(course: Course) -> Iterator[str]:
    """All checks, whatever fails, two of them at a time."""
    told: list[str] = []
    with ThreadPoolExecutor(2) as pool:
        running = {name: pool.submit(timed, find, course) for name, find in CHECKS.items()}
        for name, future in running.items():
            found, seconds = future.result()
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
