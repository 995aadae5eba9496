"""Markdown against the code: snippets, CHANGES.md, labels of fences, links."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from shared.lessons import number
from tools.blocks import NoBlock, put
from tools.changes import pages, pointer
from tools.markdown import Fence, anchors, fences, fill, links
from tools.output import MADE
from tools.symbols import snippet
from tools.tree import Course, run_pages, walk

UNCHECKED = {"text", "diff", "sketch", "mermaid", "sh", "toml"}
CODE = {"python", "sql"}
MOST_LINES = 350  # what one can read in one sitting


def readme(course: Course, check: bool) -> Iterator[str]:
    """Snippets and CHANGES.md; checks labels of fences, and links."""
    have = [path for lesson in course.lessons for path in lesson.glob("CHANGES.md")]
    needless = "lesson.toml names no changes"
    yield from course.keep(pages(course), have, "readme", needless, check)  # READMEs link to them
    for path in walk(course.root):
        if path.suffix != ".md" or path.is_relative_to(course.root / "work"):
            continue
        yield from misuses(course, path)
        yield from broken_links(course, path)
        yield from update(course, path, check)
    for lesson in course.lessons:
        page = lesson / "README.md"
        lines = page.read_text().count("\n") if page.exists() else 0
        if not lines:
            yield course.finding(page, "missing", "write it")
        elif number(lesson) > 0 and lines > MOST_LINES:  # 00 explains the tools as well
            remedy = f"cut it to {MOST_LINES}, or put what carries no idea into docs/"
            yield course.finding(page, f"{lines} lines", remedy)


def misuses(course: Course, path: Path) -> Iterator[str]:
    is_run = any(path in run_pages(course, lesson) for lesson in course.lessons)
    for fence in fences(path.read_text()):
        if found := misuse(fence, is_run):
            yield course.finding(path, f"line {fence.line}: {found[0]}", found[1])


def misuse(fence: Fence, is_run: bool) -> tuple[str, str] | None:
    """What is wrong with a fence, and what to do. is_run: commands in this file can be run."""
    if not fence.closed:
        return "the fence has no end", "close it"
    if not fence.kind:
        return "a fence without a label", f"say {', '.join(sorted(UNCHECKED))} or console"
    if fence.kind in CODE and len(fence.words) != 1:
        remedy = f"name it: {fence.kind} worker.py#Worker.run; or say sketch"
        return f"{fence.kind} without a source", remedy
    if fence.kind == "console" and not is_run and "no-run" not in fence.words:
        remedy = "say console no-run; a lesson's README.md and docs/01_name.md are run"
        return "nobody runs this block", remedy
    known = r"part|no-run|exit=\d+"
    if fence.kind == "console" and not all(re.fullmatch(known, word) for word in fence.words):
        return f"console with {fence.words}", "only part, no-run and exit=1 are known"
    if fence.kind in MADE and not is_run:
        return "nobody runs this block", "only a lesson's README.md is run"
    if fence.kind in MADE and len(fence.words) != 1:
        return f"{fence.kind} without a name", f"name it: {fence.kind} NAME"
    if fence.kind not in UNCHECKED | CODE | {"console", *MADE}:
        return f"the label {fence.kind} is not known", "say text or sketch, if nothing checks it"
    return None


def broken_links(course: Course, path: Path) -> Iterator[str]:
    for line, target in links(path.read_text()):
        if re.match(r"[a-zA-Z][\w+.-]*:", target):  # a URL: needs a network to be checked
            continue
        file, _, anchor = unquote(target).partition("#")
        goal = path.parent / file if file else path
        if file.startswith("/") or not goal.exists():
            yield course.finding(path, f"line {line}: {target} does not exist", "mend the link")
        elif anchor and goal.suffix == ".md" and anchor not in anchors(goal.read_text()):
            yield course.finding(path, f"line {line}: no heading for {target}", "mend the anchor")


def update(course: Course, path: Path, check: bool) -> Iterator[str]:
    """Fill (or only check) what is made from the code; report what nobody can fill in."""
    page = path.read_text()
    lesson = next((lesson for lesson in course.lessons if path.is_relative_to(lesson)), None)
    bodies: dict[int, list[str]] = {}
    stale: list[str] = []
    for fence in fences(page):
        if fence.kind not in CODE or len(fence.words) != 1:
            continue
        code = snippet(lesson or course.root, fence.words[0])
        if code is None:
            remedy = "name what the fence should show"
            yield course.finding(path, f"there is no {fence.words[0]}", remedy)
        elif [line.rstrip() for line in code.split("\n")] != fence.body:
            bodies[fence.line] = code.split("\n")
            stale.append(f"the snippet {fence.words[0]}")
    page = fill(page, bodies)
    if lesson and path == lesson / "README.md":
        made = pointer(course, lesson)
        try:
            filled = put(page, "changes", made)
            stale += ["the block of changes"] if filled != page else []
            page = filled
        except NoBlock as error:
            if made:
                yield course.finding(path, f"no block of changes: {error}", "add them")
    if stale and not check:
        course.write(path, page)
    for what in stale if check else ():
        yield course.finding(path, f"{what} is stale", "run `python -m tools readme`")
