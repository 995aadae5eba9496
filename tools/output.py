"""What a lesson's README shows of runs: run the command, and compare after masking.

A block `console` begins with its command; `race NAME` and `rows NAME` are what `made` runs. What
begins with `python` is run in a copy of the lesson, outside the repository: so it needs nothing
from there.
"""

import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools.markdown import Fence, fences, fill
from tools.tree import Course, copy_lesson, environment, last_line, run, run_pages, settings

# The narration's seconds; the order of its lines is what counts.
TIME = (re.compile(r"^ *\d+\.\d\d(?=  |$)"), "<time>")
SECONDS = 120
ROOT = Path(__file__).resolve().parents[1]
MADE = {
    "race": "tools race {lesson} {name}",
    "rows": "faults.pictures {lesson} {name}",
}
Masks = list[tuple[re.Pattern[str], str]]
Printed = dict[str, list[str] | None]  # a command is run once; None: it failed


def output(course: Course, lesson: str | None = None, check: bool = False) -> Iterator[str]:
    """Console blocks of the READMEs, and of the pages in docs/ that belong to a lesson."""
    for each in course.chosen(lesson):
        printed: Printed = {}
        with tempfile.TemporaryDirectory() as directory:
            # The name becomes a database schema's: always the same one, so that none is left over.
            away = copy_lesson(each, Path(directory) / "copied away" / each.name)
            for path in run_pages(course, each):
                yield from blocks(course, each, path, away, printed, check)


def blocks(
    course: Course, lesson: Path, path: Path, away: Path, printed: Printed, check: bool
) -> Iterator[str]:
    """away: the copy. printed: what has been run for the lesson's other pages, and now."""
    masks = masks_of(lesson)
    bodies: dict[int, list[str]] = {}
    for fence in fences(path.read_text()):
        where = f"line {fence.line}"
        head = fence.body[:1] if fence.kind == "console" else []
        shown = fence.body[len(head) :]
        if fence.kind in MADE and len(fence.words) == 1:
            command, home = made(fence, lesson), ROOT
        elif fence.kind != "console" or "no-run" in fence.words:
            continue
        elif not head or not head[0].startswith("$ "):
            remedy = "begin it with `$ python main.py`, or say console no-run"
            yield course.finding(path, f"{where}: a console block without command", remedy)
            continue
        else:
            command = head[0][2:]
            home = away if command.startswith("python ") else lesson
        if command not in printed:
            status, text = run(command, home, environment(PYTHONUNBUFFERED="1"), SECONDS)
            expected = next((int(word[5:]) for word in fence.words if word[:5] == "exit="), 0)
            lines = [line.rstrip() for line in text.strip("\n").splitlines()]
            printed[command] = lines if status == expected else None
            if status != expected:
                wrong = f"{where}: `{command}` ended with {status}: {last_line(text)}"
                yield course.finding(path, wrong, f"mend it, or say console exit={status}")
        full = printed[command]
        if full is None:
            continue
        now = part(full, shown, masks) if "part" in fence.words else full
        if now is None:
            wrong = f"{where}: this part is not in the output of `{command}`"
            remedy = "write its first and its last line as they are printed, and `make output`"
            yield course.finding(path, wrong, remedy)
        elif masked(now, masks) != masked(shown, masks):
            bodies[fence.line] = [*head, *now]
            if check:
                what = command if head else " ".join([fence.kind, *fence.words])
                where = f"{where}: the output of `{what}`"
                wrong = f"{where} is stale{difference(now, shown, masks)}"
                yield course.finding(path, wrong, "run `python -m tools output`")
    if bodies and not check:
        course.write(path, fill(path.read_text(), bodies))


def made(fence: Fence, lesson: Path) -> str:
    """The command whose output stands in the block."""
    module = MADE[fence.kind].format(lesson=shlex.quote(str(lesson)), name=fence.words[0])
    return f"{sys.executable} -m {module}"


def part(full: list[str], shown: list[str], masks: Masks) -> list[str] | None:
    """The lines of `full` from the first one of `shown` to its last; None if they are missing."""
    lines, wanted = masked(full, masks), masked(shown, masks)
    for start in range(len(lines)):
        if wanted and lines[start : start + len(wanted)] == wanted:
            return full[start : start + len(wanted)]
    if wanted and wanted[0] in lines:
        start = lines.index(wanted[0])
        if wanted[-1] in lines[start:]:
            return full[start : lines.index(wanted[-1], start) + 1]
    return None


def masks_of(lesson: Path) -> Masks:
    given: list[dict[str, Any]] = settings(lesson).get("masks", [])
    return [TIME, *((re.compile(mask["pattern"]), mask["replace"]) for mask in given)]


def masked(lines: list[str], masks: Masks) -> list[str]:
    lines = [line.rstrip() for line in lines]
    for pattern, replacement in masks:
        lines = [pattern.sub(replacement, line) for line in lines]
    return lines


def difference(now: list[str], shown: list[str], masks: Masks) -> str:
    for new, old, line in zip(masked(now, masks), masked(shown, masks), now, strict=False):
        if new != old:
            return f", first at `{line.strip()}`"
    return f", {len(now)} lines instead of {len(shown)}"
