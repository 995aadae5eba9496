"""Everything that `make check` holds, one line for each check."""

import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from tools import changes, generated
from tools.breaks import breaks
from tools.copies import copies
from tools.diffs import diffs
from tools.exercises import exercises
from tools.output import output
from tools.readme import readme
from tools.tree import Course, CourseError, run


@dataclass(frozen=True)
class Check:
    name: str
    find: Callable[[Course], list[str]]
    mend: str
    slow: bool = False


def program(*command: str) -> Callable[[Course], list[str]]:
    """A program's lines are its findings."""

    def find(course: Course) -> list[str]:
        status, text = run([sys.executable, "-m", *command], course.root, seconds=600)
        return text.strip().split("\n") if status else []

    return find


CHECKS = [
    Check("ruff check", program("ruff", "check"), "ruff check --fix"),
    Check("ruff format", program("ruff", "format", "--check"), "ruff format"),
    Check("changes", changes.check, "python -m tools changes prints what to put into lesson.toml"),
    Check("readme", lambda c: readme(c, check=True), "python -m tools readme"),
    Check("generated", generated.check, "make generate"),
    Check("diffs", lambda c: diffs(c, check=True), "python -m tools diffs"),
    Check("types", program("basedpyright"), "mend the types", slow=True),
    Check("output", lambda c: output(c, None, check=True), "python -m tools output", slow=True),
    Check("breaks", breaks, "python -m tools breaks 01 tries one lesson's", slow=True),
    Check("exercises", exercises, "python -m tools exercises 01 tries one lesson's", slow=True),
    Check("copies", copies, "python -m tools copies 01 tries one lesson", slow=True),
]


def check(course: Course) -> int:
    """Run all checks, whatever fails, two of the slow ones at a time. The number that failed."""
    failed: list[tuple[Check, list[str]]] = []

    def note(check: Check, found: list[str], seconds: float) -> None:
        verdict = f"{len(found)} lines" if found else "ok"
        print(f"{check.name:<12} {seconds:6.1f} s   {verdict}", flush=True)
        if found:
            failed.append((check, found))

    for one in CHECKS:
        if not one.slow:
            note(one, *timed(one, course))
    with ThreadPoolExecutor(2) as pool:
        running = {pool.submit(timed, one, course): one for one in CHECKS if one.slow}
        for future in as_completed(running):
            note(running[future], *future.result())
    for one, found in failed:
        print(f"\n{one.name} (to mend it: {one.mend})")
        for line in found:
            print(f"  {line}")
    return len(failed)


def timed(check: Check, course: Course) -> tuple[list[str], float]:
    start = time.monotonic()
    try:
        found = check.find(course)
    except CourseError as error:
        found = [str(error)]
    except Exception:  # a fault of the tool itself must not hide what the other checks find
        found = traceback.format_exc().splitlines()
    return found, time.monotonic() - start
