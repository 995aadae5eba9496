"""Cut a file into symbols so that every line that is not blank belongs to exactly one.

A comment directly above a symbol is part of it. What no symbol has (docstring, imports, loose
statements, comments that stand alone) belongs to `(module)` in Python and to `(file)` in SQL.
"""

import ast
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
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


def pieces(name: str, text: str) -> list[Piece]:
    """The file's pieces in order, and at the end an empty one with the blank lines behind them."""
    if name.endswith(".py"):
        try:
            return cut(text.split("\n"), python_spans(ast.parse(text).body), "(module)")
        except SyntaxError:  # ruff reports it
            pass
    if name.endswith(".sql"):
        return cut(text.split("\n"), sql_spans(text), "(file)")
    return [Piece(WHOLE, text, ""), Piece(WHOLE, "", "")]


def cut(lines: list[str], spans: list[Span], rest: str) -> list[Piece]:
    found: list[Piece] = []
    gap: list[str] = []

    def add(symbol: str, part: list[str]) -> None:
        if part:
            found.append(Piece(symbol, "\n".join(part), "".join(gap)))
            gap.clear()

    end = 0
    for span in [*spans, Span(rest, len(lines), len(lines))]:
        block: list[str] = []
        for line in lines[end : span.first]:
            if line.strip():
                block.append(line)
            else:
                add(rest, block)
                block = []
                gap.append(f"{line}\n")
        add(span.symbol, block + lines[span.first : span.last + 1])
        end = span.last + 1
    return [*found, Piece(WHOLE, "", "".join(gap))]


def python_spans(body: list[ast.stmt], owner: str = "") -> list[Span]:
    spans: list[Span] = []
    for node in body:
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]) - 1
        last = (node.end_lineno or node.lineno) - 1
        inner: list[Span] = []
        if isinstance(node, ast.ClassDef) and not owner and node.body[0].lineno > node.lineno:
            inner = python_spans(node.body, node.name)
            last = inner[0].first - 1
        append(spans, Span(python_symbol(node, owner), first, last))
        spans += inner
    return spans


def append(spans: list[Span], span: Span) -> None:
    """What begins on the last line of another symbol (`a = 1; b = 2`) belongs to that one."""
    if spans and span.first <= spans[-1].last:
        before = spans.pop()
        span = replace(before, last=max(before.last, span.last))
    spans.append(span)


def python_symbol(node: ast.stmt, owner: str) -> str:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return f"{owner}.{node.name}" if owner else node.name
    if isinstance(node, ast.Assign | ast.AnnAssign) and not owner:
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if isinstance(target, ast.Name):
            return target.id
    return owner or "(module)"


SQL_TOKEN = re.compile(
    r"""(?P<comment>--[^\n]*|/\*.*?\*/) | '(?:[^']|'')*' | "(?:[^"]|"")*"
    | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$ | (?P<end>;) | (?P<blank>\s+) | \w+ | .""",
    re.X | re.S,
)
QUERY_NAME = re.compile(r"--\s*name:\s*(\w+)")
# In a statement whose tokens have one space between them.
SQL_NAME = re.compile(
    r"(?:alter table .*?\badd constraint|(?:create|alter|comment on) (?:\w+ )*?(?:table|index|view"
    r"|function|procedure|trigger|type|domain|sequence)(?: concurrently)?(?: if (?:not )?exists)?)"
    r' (?:"?\w+"? \. )?"?(?P<name>\w+)"?',
    re.I | re.S,
)


def sql_spans(text: str) -> list[Span]:
    """One span for each statement, with the rest of its last line."""
    spans: list[Span] = []
    code: list[str] = []  # the statement without its comments
    query = ""  # what sqlc is told that its name is
    line = first = 0
    for token in SQL_TOKEN.finditer(f"{text.rstrip()}\n;"):  # the last statement may have no end
        kind = token.lastgroup
        if kind == "comment" and not code and (named := QUERY_NAME.match(token[0])):
            query, first = named[1], line
        elif kind in (None, "tag"):
            first = first if code or query else line
            code.append(token[0])
        elif kind == "end" and code:
            named = SQL_NAME.match(" ".join(code))
            symbol = query or (named["name"].lower() if named else "(file)")
            append(spans, Span(symbol, first, line))
            code, query = [], ""
        line += token[0].count("\n")
    return spans


def loose(name: str, text: str) -> str:
    """What the code that has no symbol does: without its imports, docstrings and comments."""
    if name.endswith(".sql"):
        tokens = SQL_TOKEN.finditer(text)
        return " ".join(t[0] for t in tokens if t.lastgroup not in ("comment", "blank"))
    body = [
        node
        for node in ast.parse(text).body
        if not isinstance(node, ast.Import | ast.ImportFrom)
        and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
    ]
    return ast.unparse(ast.Module(body, []))


def texts(parts: Sequence[Piece]) -> dict[str, str]:
    """Symbol -> all its lines, however far apart its pieces are."""
    found: dict[str, str] = {}
    for piece in parts[:-1]:
        before = f"{found[piece.symbol]}\n" if piece.symbol in found else ""
        found[piece.symbol] = before + piece.text
    return found


def order(parts: Sequence[Piece]) -> dict[str, str]:
    """The name of each piece, or its text where it has none, and the blank lines before it."""
    found: dict[str, str] = {}
    for piece in parts:
        name = piece.text if piece.symbol in REST else piece.symbol
        while name in found:
            name += " again"
        found[name] = piece.gap
    return found


def snippet(directory: Path, source: str) -> str | None:
    """`worker.py#Worker.run` as it is shown, without its indentation; None if there is none."""
    file, _, symbol = source.partition("#")
    path = directory / file
    if not path.is_file():
        return None
    if not symbol:
        return path.read_text().strip("\n")
    found = [part for part in pieces(file, path.read_text()) if part.symbol == symbol]
    shown = "".join(f"\n{part.gap}{part.text}" for part in found)
    return textwrap.dedent(shown.strip("\n")) or None
