"""As much of Markdown as the checks need: fences, links, and the anchors of headings."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.tree import Course, walk


@dataclass(frozen=True)
class Fence:
    info: str  # what stands behind the back quotes
    body: list[str]  # without the indentation of the fence
    first: int  # the body's lines in the file, from 0
    end: int  # the line of the closing back quotes; the number of lines if there are none
    indent: str


def fences(lines: list[str]) -> Iterator[Fence]:
    number = 0
    while number < len(lines):
        opened = re.match(r"(\s*(?:[-*>] +)?)(`{3,}|~{3,})\s*([^`]*)$", lines[number])
        number += 1
        if not opened:
            continue
        first, indent = number, re.sub(r"[-*]", " ", opened[1])
        while number < len(lines) and not closes(lines[number], opened[2]):
            number += 1
        body = [line.removeprefix(indent) for line in lines[first:number]]
        yield Fence(opened[3].strip(), body, first, number, indent)
        number += 1


def closes(line: str, mark: str) -> bool:
    text = line.strip(" >\t")
    return set(text) == {mark[0]} and len(text) >= len(mark)


def fill(lines: list[str], fence: Fence, body: list[str]) -> None:
    """Replace the body of a fence. Later fences move: fill them from the last to the first."""
    lines[fence.first : fence.end] = [(fence.indent + line).rstrip() for line in body]


def prose(lines: list[str]) -> list[str]:
    """The lines with the fences and inline code blanked: same numbers, no false links."""
    found = list(lines)
    for fence in fences(lines):
        end = min(fence.end + 1, len(lines))
        found[fence.first - 1 : end] = [""] * (end - fence.first + 1)
    return [re.sub(r"(`+)[^`].*?\1", lambda m: "`" * len(m[0]), line) for line in found]


LINK = re.compile(
    r"""\]\(\s*<?(?P<inline>[^)\s>]+)>?[^)]*\) | ^\s*\[[^\]]+\]:\s+<?(?P<reference>[^\s>]+)
    | (?:href|src)="(?P<html>[^"]+)" """,
    re.X,
)


def links(lines: list[str]) -> Iterator[tuple[int, str]]:
    """(line number from 1, target)."""
    for number, line in enumerate(prose(lines), 1):
        for found in LINK.finditer(line):
            yield number, found["inline"] or found["reference"] or found["html"]


def anchors(lines: list[str]) -> set[str]:
    """As GitHub makes them of headings, and those set by hand."""
    found: set[str] = set()
    seen: Counter[str] = Counter()
    shown = prose(lines)
    for number, line in enumerate(shown):
        found.update(re.findall(r"""<\w+[^>]* (?:id|name)=["']([^"']+)""", line))
        if not re.match(r" {0,3}#{1,6}\s", line):
            continue
        title = lines[number].strip().lstrip("#").rstrip("#").strip()
        title = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", title)
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def documents(course: Course) -> list[Path]:
    """All Markdown files but those of readers' copies."""
    return [
        path
        for path in walk(course.root)
        if path.suffix == ".md" and path.relative_to(course.root).parts[0] != "work"
    ]
