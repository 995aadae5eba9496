"""What the checks need of Markdown: blocks of code, links, and the anchors of headings."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

PARSER = MarkdownIt().enable("table")


@dataclass(frozen=True)
class Fence:
    kind: str  # the first word behind the back quotes; none for a block that is only indented
    words: list[str]  # the others
    body: list[str]  # without the indentation of the fence
    line: int  # where it opens, from 1
    closed: bool
    indent: str


def fences(page: str) -> list[Fence]:
    lines = page.split("\n")
    found: list[Fence] = []
    for token in PARSER.parse(f"{page}\n"):
        if token.type in ("fence", "code_block") and token.map:
            first, end = token.map
            body = token.content.split("\n")[:-1]
            closed = token.type == "code_block" or len(body) == end - first - 2
            before = re.split("`{3}|~{3}", lines[first])[0]
            indent = re.sub(r"[^\s>]", " ", before)  # `- ` of a list is there once
            kind, *words = token.info.split() or [""]
            found.append(Fence(kind, words, body, first + 1, closed, indent))
    return found


def fill(page: str, bodies: dict[int, list[str]]) -> str:
    """The page with new bodies for the fences that open on these lines."""
    lines = page.split("\n")
    for fence in reversed(fences(page)):  # from the last: filling moves what follows
        if fence.closed and fence.line in bodies:
            body = [(fence.indent + line).rstrip() for line in bodies[fence.line]]
            lines[fence.line : fence.line + len(fence.body)] = body
    return "\n".join(lines)


def tokens(page: str, found: dict[str, Any]) -> Iterator[tuple[int, Token]]:
    """All tokens with their lines, from 1. The definitions of links are put into `found`."""
    for token in PARSER.parse(page, found):
        line = token.map[0] + 1 if token.map else 0
        yield line, token
        for child in token.children or ():
            yield line, child
            line += child.type.endswith("break") + child.content.count("\n")


def links(page: str) -> Iterator[tuple[int, str]]:
    """(line number from 1, target)."""
    defined: dict[str, Any] = {}
    for line, token in tokens(page, defined):
        if target := token.attrGet("href") or token.attrGet("src"):
            yield line, str(target)
        if token.type.startswith("html"):
            for found in re.finditer(r'(?:href|src)="([^"]+)"', token.content):
                yield line + token.content.count("\n", 0, found.start()), found[1]
    for reference in defined.get("references", {}).values():
        yield reference["map"][0] + 1, reference["href"]


@cache
def anchors(page: str) -> set[str]:
    """As GitHub makes them of headings, and those set by hand."""
    found: set[str] = set()
    seen: Counter[str] = Counter()
    before = ""
    for _, token in tokens(page, {}):
        if token.type.startswith("html"):
            found.update(re.findall(r"""<\w+[^>]* (?:id|name)=["']([^"']+)""", token.content))
        if before == "heading_open":
            shown = [c.content for c in token.children or () if c.type in ("text", "code_inline")]
            slug = re.sub(r"[^\w\- ]", "", "".join(shown).lower()).replace(" ", "-")
            found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
            seen[slug] += 1
        before = token.type
    return found
