"""Cut a file into symbols so that every line that is not blank belongs to exactly one.

A comment directly above a symbol is part of it. What no symbol has (docstring, imports, loose
statements, comments that stand alone) belongs to `(module)` in Python and to `(file)` in SQL.
"""

import ast
import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

WHOLE = ""  # the symbol of a file that is not cut
REST = ("(module)", "(file)")


@dataclass(frozen=True)
class Piece:
    """Consecutive lines of a file; a symbol has one or more of them."""

    symbol: str
    text: str
    gap: str  # the blank lines before it, as they are


@dataclass(frozen=True)
class Span:
    symbol: str
    first: int  # line numbers, from 0
    last: int
    rest: str  # to which symbol the lone comments before it belong


def pieces(name: str, text: str) -> list[Piece]:
    """The file's pieces in order, and at the end an empty one with the blank lines behind them."""
    lines = text.split("\n")
    if name.endswith(".py"):
        try:
            return cut(lines, python_spans(ast.parse(text).body), "(module)")
        except SyntaxError:  # ruff reports it
            pass
    if name.endswith(".sql"):
        return cut(lines, sql_spans(text), "(file)")
    return [Piece(WHOLE, text, "")]


def cut(lines: list[str], spans: list[Span], rest: str) -> list[Piece]:
    found: list[Piece] = []
    gap: list[str] = []

    def add(symbol: str, part: list[str]) -> None:
        if part:
            found.append(Piece(symbol, "\n".join(part), "".join(gap)))
            gap.clear()

    end = 0
    for span in [*spans, Span("", len(lines), len(lines), rest)]:
        block: list[str] = []
        for line in lines[end : span.first]:
            if line.strip():
                block.append(line)
            else:
                add(span.rest, block)
                block = []
                gap.append(f"{line}\n")
        add(span.symbol or rest, block + lines[span.first : span.last + 1])
        end = span.last + 1
    return [*found, Piece(WHOLE, "", "".join(gap))]


def python_spans(body: list[ast.stmt], owner: str = "") -> list[Span]:
    spans: list[Span] = []
    rest = owner or "(module)"
    for node in body:
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]) - 1
        last = (node.end_lineno or node.lineno) - 1
        if spans and first <= spans[-1].last:  # `a = 1; b = 2`
            before = spans.pop()
            spans.append(Span(before.symbol, before.first, max(last, before.last), rest))
        elif isinstance(node, ast.ClassDef) and not owner and node.body[0].lineno > node.lineno:
            inner = python_spans(node.body, node.name)
            spans.append(Span(node.name, first, inner[0].first - 1, rest))
            spans += inner
        else:
            spans.append(Span(python_symbol(node, owner) or rest, first, last, rest))
    return spans


def python_symbol(node: ast.stmt, owner: str) -> str:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return f"{owner}.{node.name}" if owner else node.name
    if isinstance(node, ast.Assign | ast.AnnAssign) and not owner:
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if isinstance(target, ast.Name):
            return target.id
    return ""


SQL_TOKEN = re.compile(
    r"""(?P<comment>--[^\n]*) | (?P<open>/\*) | '(?:[^']|'')*' | "(?:[^"]|"")*"
    | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$ | (?P<end>;) | (?P<blank>\s+) | \w+ | .""",
    re.X | re.S,
)
QUERY_NAME = re.compile(r"^\s*--\s*name:\s*(\w+)", re.M)
NAME = r'(?:if\s+(?:not\s+)?exists\s+)?(?:only\s+)?(?:"?\w+"?\s*\.\s*)?"?(?P<name>\w+)"?'
SQL_NAMES = [
    r"create\s+(?:or\s+replace\s+)?(?:(?:unique|unlogged|temp|temporary|materialized|constraint"
    r"|recursive)\s+)*(?:table|index|function|procedure|trigger|type|domain|view|sequence|rule"
    rf"|policy|aggregate|extension|schema)\s+(?:concurrently\s+)?{NAME}",
    rf"alter\s+table\s+.*?\badd\s+constraint\s+{NAME}",
    rf"alter\s+(?:table|type|index|function|view|sequence|domain)\s+{NAME}",
    r'comment\s+on\s+column\s+(?:"?\w+"?\s*\.\s*(?=\S+\.))?"?(?P<name>\w+)"?',
    r"comment\s+on\s+(?:constraint|trigger|policy)\s+\"?(?P<name>\w+)\"?",
    rf"comment\s+on\s+(?:materialized\s+)?\w+\s+{NAME}",
]


def sql_spans(text: str) -> list[Span]:
    """One span for each statement, with the rest of its last line."""
    spans: list[Span] = []
    code: list[str] = []  # the statement without its comments
    start = 0
    name_line: int | None = None  # of the sqlc name before the statement
    query = ""
    position = line = 0

    def close() -> None:
        nonlocal name_line, query
        symbol = query or sql_symbol("".join(code)) or "(file)"
        first = start if name_line is None else min(start, name_line)
        if spans and first <= spans[-1].last:
            before = spans.pop()
            spans.append(Span(before.symbol, before.first, line, "(file)"))
        else:
            spans.append(Span(symbol, first, line, "(file)"))
        code.clear()
        name_line, query = None, ""

    while token := SQL_TOKEN.match(text, position):
        position = token.end()
        if token["open"]:
            position = block_comment_end(text, position)
        part = text[token.start() : position]
        if token["comment"] or token["open"]:
            if not code and (named := QUERY_NAME.match(part)):
                name_line, query = line, named[1]
            code += [" "] if code else []
        elif token["end"]:
            close()
        elif code or not token["blank"]:
            start = start if code else line
            code.append(part)
        line += part.count("\n")
    if code:
        close()
    return spans


def block_comment_end(text: str, position: int) -> int:
    """Behind the end of a block comment; they nest in Postgres."""
    depth = 1
    while depth and (mark := re.compile(r"/\*|\*/").search(text, position)):
        depth += 1 if mark[0] == "/*" else -1
        position = mark.end()
    return len(text) if depth else position


def sql_symbol(statement: str) -> str:
    for pattern in SQL_NAMES:
        if found := re.match(pattern, statement, re.I | re.S):
            return found["name"].lower()
    return ""


def texts(parts: Sequence[Piece]) -> dict[str, str]:
    """Symbol -> all its lines, however far apart its pieces are."""
    found: dict[str, str] = {}
    for piece in parts:
        if piece.text or len(parts) == 1:
            before = f"{found[piece.symbol]}\n" if piece.symbol in found else ""
            found[piece.symbol] = before + piece.text
    return found


def keys(parts: Sequence[Piece]) -> list[tuple[str, str, int]]:
    """A name for each piece, to find it again in the next lesson: its symbol, or else its text."""
    times = Counter(piece.symbol for piece in parts)
    seen: Counter[tuple[str, str]] = Counter()
    found: list[tuple[str, str, int]] = []
    for piece in parts:
        loose = piece.symbol in REST or times[piece.symbol] > 1
        key = (piece.symbol, piece.text if loose else "")
        seen[key] += 1
        found.append((*key, seen[key]))
    return found


def snippet(directory: Path, source: str) -> str | None:
    """`worker.py#Worker.run` as it is shown, without its indentation; None if there is none.

    Pieces of one symbol that have something else between them are shown with a blank line there.
    """
    file, _, symbol = source.partition("#")
    path = directory / file
    if not path.is_file():
        return None
    if not symbol:
        return path.read_text().strip("\n")
    found, last = "", -1
    for number, piece in enumerate(pieces(file, path.read_text())):
        if piece.symbol == symbol:
            gap = "\n" + piece.gap if last == number - 1 else "\n\n"
            found += (gap if found else "") + piece.text
            last = number
    return textwrap.dedent(found) if found else None
