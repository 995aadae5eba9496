"""Between two versions of a lesson's code: one, with some symbols of the other laid over it.

Imports and docstrings of modules follow by themselves, from both versions.
"""

import ast
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

from tools.changes import symbol_changes
from tools.symbols import REST, Piece, pieces

Texts = dict[str, str]  # file -> text
Key = tuple[str, int | str]  # a symbol, and which of its pieces; for a comment, its text
WIDTH = 100


@dataclass(frozen=True)
class Import:
    """`from module import name as alias`; without a name, `import module as alias`."""

    module: str
    name: str
    alias: str

    @property
    def bound(self) -> str:
        return self.alias or self.name or self.module.partition(".")[0]


def laid(start: Texts, goal: Texts, taken: Mapping[str, Collection[str]]) -> Texts:
    """`start`, with the taken symbols (file -> symbols) as they are in `goal`.

    A file of which all differences are taken is the goal's, to the letter.
    """
    found, mixed = dict(start), dict[str, str]()
    for file in {*start, *goal}:
        old, new = start.get(file, ""), goal.get(file, "")
        changed = symbol_changes(file, old, new).keys()
        here = changed & set(taken.get(file, ()))
        if here == changed and file in goal:
            found[file] = new
        elif here == changed:
            del found[file]
        elif here:
            found[file] = mixed[file] = merged(file, old, new, changed, here)
    for file, body in mixed.items():
        if file.endswith(".py"):
            found[file] = headed(body, start.get(file, ""), goal.get(file, ""), found)
    return {file: found[file] for file in sorted(found)}


def merged(file: str, old: str, new: str, changed: Collection[str], taken: Collection[str]) -> str:
    """The pieces of both in the order of the new one; of a Python file, without its head."""
    was, now = keyed(file, old), keyed(file, new)
    order = list(now)
    for n, key in enumerate(was):
        if key not in now:  # behind what it was behind
            order.insert(order.index(list(was)[n - 1]) + 1 if n else 0, key)
    parts: list[Piece] = []
    for key in order:
        if key[0] in REST and key[0] not in changed:
            parts.append(now.get(key) or was[key])  # a comment that stands alone
        elif piece := (now if key[0] in taken else was).get(key):
            parts.append(piece)
    return "".join(f"{part.gap}{part.text}\n" for part in parts)


def keyed(file: str, text: str) -> dict[Key, Piece]:
    found: dict[Key, Piece] = {}
    for piece in pieces(file, text)[:-1]:
        if piece.symbol in REST:
            if found or not file.endswith(".py"):  # in Python, what comes first is the head
                found[piece.symbol, piece.text] = piece
        else:
            found[piece.symbol, sum(key[0] == piece.symbol for key in found)] = piece
    return found


def headed(body: str, old: str, new: str, files: Texts) -> str:
    """A module's body with docstring and imports: those of the new and the old one that it uses."""
    used = names(body)
    imports: dict[str, Import] = {}
    for each in [*imported(new), *imported(old)]:
        there = defines(files, each)
        known = imports.get(each.bound)
        if each.bound in used and (known is None or (there and not defines(files, known))):
            imports[each.bound] = each
    lines = import_lines(list(imports.values()), {file.partition(".")[0] for file in files})
    head = "\n\n".join(part for part in (docstring(new) or docstring(old), lines) if part)
    return f"{head}\n{body}" if head else body.lstrip("\n")


def names(code: str) -> set[str]:
    """What may be a name that the code uses; annotations may be strings."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= set(re.findall(r"\w+", node.value)) if " " not in node.value else set()
    return found


def imported(code: str) -> Iterator[Import]:
    for node in ast.parse(code).body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, "", alias.asname or "")
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield Import(node.module or "", alias.name, alias.asname or "")


def defines(files: Texts, each: Import) -> bool:
    """Is the name there to be imported? Of a module that is not one of `files`, yes."""
    text = files.get(f"{each.module}.py")
    return text is None or re.search(rf"\b{re.escape(each.name)}\b", text) is not None


def import_lines(imports: list[Import], local: Collection[str]) -> str:
    """As ruff sorts and formats them."""

    def section(each: Import) -> int:
        top = each.module.partition(".")[0]
        return 0 if top in sys.stdlib_module_names else 2 if top in {*local, "db", "shared"} else 1

    def order(each: Import) -> tuple[object, ...]:
        kind = 0 if each.name.isupper() and len(each.name) > 1 else 1 + each.name[:1].islower()
        return section(each), bool(each.name), each.module, kind, each.name.lower()

    blocks: list[str] = []
    for _, together in groupby(sorted(imports, key=order), section):
        lines: list[str] = []
        for (named, module), group in groupby(
            together, lambda each: (bool(each.name), each.module)
        ):
            said = [f"{e.name or module}{f' as {e.alias}' if e.alias else ''}" for e in group]
            line = f"from {module} import {', '.join(said)}" if named else f"import {said[0]}"
            if len(line) > WIDTH:
                line = "".join(f"    {name},\n" for name in said)
                line = f"from {module} import (\n{line})"
            lines.append(line)
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def docstring(code: str) -> str:
    body = ast.parse(code).body
    first = ast.get_source_segment(code, body[0]) if body else None
    return first if first and ast.get_docstring(ast.parse(code)) is not None else ""
