"""Console blocks of a lesson's README: run the command, and compare after masking."""

import re
from pathlib import Path
from typing import Any

from tools.markdown import Fence, fences, fill
from tools.tree import Course, CourseError, environment, last_line, run, settings

# The narration's seconds; the order of its lines is what counts.
TIME = (re.compile(r"^ *\d+\.\d\d(?=  |$)"), "<time>")
SECONDS = 120
Masks = list[tuple[re.Pattern[str], str]]


def output(course: Course, name: str | None, *, check: bool) -> list[str]:
    return [
        finding for lesson in course.chosen(name) for finding in of_lesson(course, lesson, check)
    ]


def of_lesson(course: Course, lesson: Path, check: bool) -> list[str]:
    path = lesson / "README.md"
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    masks = masks_of(lesson)
    found: list[str] = []
    fresh: dict[str, list[str] | None] = {}  # a command is run once; None: it failed
    edits: list[tuple[Fence, list[str]]] = []
    for fence in fences(lines):
        words = fence.info.split()
        if words[:1] != ["console"] or "no-run" in words:
            continue
        where = f"line {fence.first}"
        if not fence.body or not fence.body[0].startswith("$ "):
            remedy = "begin it with `$ python main.py`, or say console no-run"
            found.append(course.finding(path, f"{where}: a console block without command", remedy))
            continue
        command = fence.body[0][2:]
        if command not in fresh:
            status, text = run(command, lesson, environment(PYTHONUNBUFFERED="1"), SECONDS)
            expected = next((int(word[5:]) for word in words if word.startswith("exit=")), 0)
            if status != expected:
                wrong = f"{where}: `{command}` ended with {status}: {last_line(text)}"
                remedy = f"mend it, or say console exit={status}"
                found.append(course.finding(path, wrong, remedy))
            fresh[command] = tidy(text) if status == expected else None
        full = fresh[command]
        if full is None:
            continue
        shown = fence.body[1:]
        now = part(full, shown, masks) if "part" in words else full
        if now is None:
            wrong = f"{where}: this part is not in the output of `{command}`"
            remedy = "write its first and its last line as they are printed, and `make output`"
            found.append(course.finding(path, wrong, remedy))
        elif masked(now, masks) != masked(shown, masks):
            if check:
                wrong = (
                    f"{where}: the output of `{command}` is stale{difference(now, shown, masks)}"
                )
                found.append(course.finding(path, wrong, "run `python -m tools output`"))
            else:
                edits.append((fence, [fence.body[0], *now]))
    for fence, body in reversed(edits):
        fill(lines, fence, body)
    if edits:
        path.write_text("\n".join(lines))
        print(f"{course.shown(path)}: {len(edits)} console blocks written")
    return found


def tidy(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip("\n").split("\n")] if text.strip() else []


def part(fresh: list[str], shown: list[str], masks: Masks) -> list[str] | None:
    """The lines of `fresh` from the first one of `shown` to its last; None if they are missing."""
    full, wanted = masked(fresh, masks), masked(shown, masks)
    if not wanted:
        return None
    for start in range(len(full) - len(wanted) + 1):
        if full[start : start + len(wanted)] == wanted:
            return fresh[start : start + len(wanted)]
    if wanted[0] not in full:
        return None
    start = full.index(wanted[0])
    if wanted[-1] not in full[start:]:
        return None
    return fresh[start : full.index(wanted[-1], start) + 1]


def masks_of(lesson: Path) -> Masks:
    given: list[dict[str, Any]] = settings(lesson).get("masks", [])
    try:
        return [TIME, *((re.compile(mask["pattern"]), mask["replace"]) for mask in given)]
    except (KeyError, re.error) as error:
        raise CourseError(f"{lesson / 'lesson.toml'}: [[masks]]: {error!r}") from None


def masked(lines: list[str], masks: Masks) -> list[str]:
    found: list[str] = []
    for line in lines:
        text = line.rstrip()
        for pattern, replacement in masks:
            text = pattern.sub(lambda _, new=replacement: new, text)
        found.append(text)
    return found


def difference(now: list[str], shown: list[str], masks: Masks) -> str:
    for new, old, line in zip(masked(now, masks), masked(shown, masks), now, strict=False):
        if new != old:
            return f", first at `{line.strip()}`"
    return f", {len(now)} lines instead of {len(shown)}"
