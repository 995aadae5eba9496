"""Markdown against the code: snippets, the table of changes, labels of fences, links."""

import re
from pathlib import Path
from urllib.parse import unquote

from tools.changes import table
from tools.markdown import Fence, anchors, documents, fences, fill, links
from tools.symbols import snippet
from tools.tree import Course

UNCHECKED = {"text", "diff", "sketch", "mermaid", "sh", "toml"}
CODE = {"python", "sql"}
TABLE = re.compile(r"(?<=<!-- changes -->\n).*?(?=<!-- /changes -->)", re.S)


def readme(course: Course, *, check: bool) -> list[str]:
    """Fill (or only check) what is made from the code; report what nobody can fill in."""
    found: list[str] = []
    for path in documents(course):
        text = path.read_text()
        lines = text.split("\n")
        for fence in reversed(list(fences(lines))):  # from the last: filling moves what follows
            found += label(course, path, fence, len(lines))
            if source := source_of(fence):
                found += fill_snippet(course, path, lines, fence, source, check)
        filled = fill_table(course, path, "\n".join(lines))
        if check and filled != "\n".join(lines):
            remedy = "run `python -m tools readme`"
            found.append(course.finding(path, "the table of changes is stale", remedy))
        elif not check and filled != text:
            path.write_text(filled)
            print(f"{course.shown(path)}: written")
    for lesson in course.lessons:
        found += required(course, lesson)
    return found + broken_links(course)


def source_of(fence: Fence) -> str | None:
    words = fence.info.split()
    return words[1] if len(words) == 2 and words[0] in CODE else None


def label(course: Course, path: Path, fence: Fence, lines: int) -> list[str]:
    words = fence.info.split()
    where = f"line {fence.first}"
    if fence.end == lines:
        return [course.finding(path, f"{where}: the fence has no end", "close it")]
    if not words:
        kinds = ", ".join(sorted(UNCHECKED))
        return [
            course.finding(path, f"{where}: a fence without a label", f"say {kinds} or console")
        ]
    if words[0] in CODE and source_of(fence) is None:
        remedy = f"name it: {words[0]} worker.py#Worker.run; or say sketch"
        return [course.finding(path, f"{where}: {words[0]} without a source", remedy)]
    if words[0] == "console":
        unrun = path.parent not in course.lessons or path.name != "README.md"
        if unrun and "no-run" not in words:
            remedy = "only a lesson's README.md is run: say console no-run"
            return [course.finding(path, f"{where}: nobody runs this block", remedy)]
        if not all(re.fullmatch(r"part|no-run|exit=\d+", word) for word in words[1:]):
            remedy = "only part, no-run and exit=1 are known"
            return [course.finding(path, f"{where}: console with {words[1:]}", remedy)]
        return []
    if words[0] not in UNCHECKED | CODE:
        remedy = "say text or sketch, if nothing checks it"
        return [course.finding(path, f"{where}: the label {words[0]} is not known", remedy)]
    return []


def fill_snippet(
    course: Course, path: Path, lines: list[str], fence: Fence, source: str, check: bool
) -> list[str]:
    code = snippet(home(course, path), source)
    if code is None:
        return [course.finding(path, f"there is no {source}", "name what the fence should show")]
    if [line.rstrip() for line in code.split("\n")] == [line.rstrip() for line in fence.body]:
        return []
    if check:
        return [
            course.finding(path, f"the snippet {source} is stale", "run `python -m tools readme`")
        ]
    fill(lines, fence, code.split("\n"))
    return []


def home(course: Course, path: Path) -> Path:
    """Where a fence's source is looked up: in the lesson, outside lessons at the top."""
    return next((lesson for lesson in course.lessons if path.is_relative_to(lesson)), course.root)


def fill_table(course: Course, path: Path, text: str) -> str:
    if path.name != "README.md" or path.parent not in course.lessons:
        return text
    made = table(course, path.parent)
    return TABLE.sub(lambda _: f"\n{made}\n\n" if made else "", text, count=1)


def required(course: Course, lesson: Path) -> list[str]:
    path = lesson / "README.md"
    if not path.exists():
        return [course.finding(path, "a lesson without README.md", "write it")]
    if table(course, lesson) and not TABLE.search(path.read_text()):
        remedy = "add the lines <!-- changes --> and <!-- /changes -->"
        return [course.finding(path, "no place for the table of changes", remedy)]
    return []


def broken_links(course: Course) -> list[str]:
    found: list[str] = []
    for path in documents(course):
        lines = path.read_text().split("\n")
        for number, target in links(lines):
            if re.match(r"[a-zA-Z][\w+.-]*:", target):  # a URL: needs a network to be checked
                continue
            file, _, anchor = unquote(target).partition("#")
            goal = path.parent / file if file else path
            if file.startswith("/") or not goal.exists():
                wrong = f"line {number}: {target} does not exist"
                found.append(course.finding(path, wrong, "mend the link"))
            elif (
                anchor
                and goal.suffix == ".md"
                and anchor not in anchors(goal.read_text().split("\n"))
            ):
                wrong = f"line {number}: no heading for {target}"
                found.append(course.finding(path, wrong, "mend the anchor"))
    return found
