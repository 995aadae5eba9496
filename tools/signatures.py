"""What a reader is told of a symbol that is to be written: what others call, and no more."""

import ast
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

from tools.symbols import QUERY_NAME, SQL_TOKEN, snippet

Function = ast.FunctionDef | ast.AsyncFunctionDef
Named = Function | ast.ClassDef
LONG = 40  # lines


def signature(lesson: Path, file: str, symbol: str) -> str:
    """A few lines: of a function its `def`, of a table its columns, of a query what it takes.

    Of what has no name of its own, nothing.
    """
    if symbol == "(file)":
        return ""
    code = snippet(lesson, f"{file}#{symbol}") or ""
    if file.endswith(".py"):
        return python_signature(code)
    named = QUERY_NAME.search(code)
    return query_signature(lesson, code, named[1]) if named else table_signature(code)


def remark(lesson: Path, file: str, symbol: str) -> str:
    """What the database is told of a table."""
    code = snippet(lesson, f"{file}#{symbol}") or ""
    found = re.search(r"^comment on table \w+ is '(.*)';$", code, re.M)
    return found[1] if found else ""


def python_signature(code: str) -> str:
    """The head of a function or class, with the first paragraph of its docstring."""
    node = ast.parse(f"{code}\n    ..." if code.rstrip().endswith(":") else code).body[0]
    if not isinstance(node, Named):
        return ast.get_source_segment(code, node) or ""
    lines = code.split("\n")
    first = min([node.lineno, *(each.lineno for each in node.decorator_list)]) - 1
    head = "\n".join(lines[first : node.body[0].lineno - 1])
    said = (ast.get_docstring(node) or "").partition("\n\n")[0]
    inner = [f'"""{said}"""'] if said else []
    if isinstance(node, ast.ClassDef):  # its fields
        inner += [ast.unparse(each) for each in node.body if isinstance(each, ast.AnnAssign)]
    return "\n".join([head, *(textwrap.indent(line, "    ") for line in inner)])


def query_name(symbol: str) -> str:
    """ClaimTasks -> claim_tasks, as sqlc calls the method."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", symbol).lower()


def query_signature(lesson: Path, code: str, name: str) -> str:
    """Its first line, and what the method that sqlc makes of it takes and gives."""
    first = next(line for line in code.split("\n") if QUERY_NAME.match(line))
    tree = ast.parse((lesson / "db/queries.py").read_text())
    found = {node.name: node for node in ast.walk(tree) if isinstance(node, Named)}
    method, row = found.get(query_name(name)), found.get(f"{name}Row")
    if not isinstance(method, Function):
        return first
    lines = [first]
    if takes := method.args.kwonlyargs:
        lines += listed("takes", takes)
    if row:
        lines += listed("gives", [n.target for n in row.body if isinstance(n, ast.AnnAssign)])
    return "\n".join(lines)


def listed(what: str, nodes: Sequence[ast.AST]) -> list[str]:
    return textwrap.wrap(
        f"{what} {', '.join(map(ast.unparse, nodes))}", 88, subsequent_indent=" " * 6
    )


def table_signature(code: str) -> str:
    """Of a table, each column with its type; of others, one line of code.

    Of a function all, if it is not long; else what it takes and returns.
    """
    bare = "".join(t[0] for t in SQL_TOKEN.finditer(code) if t.lastgroup != "comment")
    if not (table := re.match(r"\s*create table (\w+) \((.*)\n\);", bare, re.S)):
        text = bare.strip()
        if not text.startswith("create function"):
            return re.sub(r"\s*\n\s*", " ", text)
        return text if text.count("\n") < LONG else text.partition(" as $$")[0]
    columns = [
        f"    {found[1]} {found[2]}"
        for found in re.finditer(r"^    (\w+) +(\w+(?:\[\])?)", table[2], re.M)
        if found[1] not in ("constraint", "primary", "unique", "check", "foreign", "exclude")
    ]
    return "\n".join([f"table {table[1]}", *columns])
