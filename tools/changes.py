"""What changed between neighbours, by symbol. lesson.toml names each change in one sentence."""

import re
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, cast

from tools.symbols import REST, WHOLE, Piece, keys, pieces, texts
from tools.tree import Course, CourseError, compared_files, settings

KINDS = ("added", "changed", "removed")
STORY = ("main.py#", "app.py#")
IMPORTS = ".py#(module)"
Changes = dict[str, list[str]]


def changes(before: Path, after: Path) -> Changes:
    """Kind -> symbols (`worker.py#Worker.run`, `sqlc.yaml`), in the order of the files."""
    old, new = compared_files(before), compared_files(after)
    found: Changes = {kind: [] for kind in KINDS}
    for file in sorted({*old, *new}):
        was = texts(pieces(file, old[file])) if file in old else {}
        now = texts(pieces(file, new[file])) if file in new else {}
        for symbol in [*now, *(s for s in was if s not in now)]:
            kind = "removed" if symbol not in now else "added" if symbol not in was else "changed"
            owner = symbol.partition(".")[0]
            if kind == "changed" and was[symbol] == now[symbol]:
                continue
            if owner != symbol and (owner in was) != (owner in now):
                continue  # a method of a class that is itself new or gone
            found[kind].append(file if symbol == WHOLE else f"{file}#{symbol}")
    return found


def moved(before: Path, after: Path) -> list[tuple[str, str]]:
    """What no list of symbols shows: (file, what) where the order or the blank lines differ."""
    old, new = compared_files(before), compared_files(after)
    found: list[tuple[str, str]] = []
    for file in sorted(old.keys() & new.keys()):
        was, now = pieces(file, old[file]), pieces(file, new[file])
        was_keys, now_keys = keys(was), keys(now)
        first = [key for key in was_keys if key in set(now_keys)]
        second = [key for key in now_keys if key in set(was_keys)]
        for tag, _, _, start, end in SequenceMatcher(None, first, second, False).get_opcodes():
            if tag in ("insert", "replace"):
                found += [(file, f"order of {called(key)}") for key in second[start:end]]
        gaps = gaps_of(was, was_keys)
        for pair, gap in gaps_of(now, now_keys).items():
            if gaps.get(pair, gap) != gap:
                found.append((file, f"blank lines before {called(pair[1])}"))
    return found


def gaps_of(parts: list[Piece], names: list[tuple[str, str, int]]) -> dict[Any, str]:
    return {
        pair: piece.gap
        for pair, piece in zip(zip([None, *names], names, strict=False), parts, strict=True)
    }


def called(key: tuple[str, str, int]) -> str:
    symbol, text, _ = key
    if symbol in REST:
        return f"`{text.partition(chr(10))[0]}`"
    return symbol or "the end of the file"


def declared(lesson: Path) -> dict[str, dict[str, str]]:
    """Kind -> symbol -> sentence, as lesson.toml has them."""
    given = settings(lesson)
    found: dict[str, dict[str, str]] = {}
    for kind in KINDS:
        table = given.get(kind, {})
        if not isinstance(table, dict):
            raise CourseError(f"{lesson / 'lesson.toml'}: [{kind}] must be a table")
        found[kind] = {k: str(v) for k, v in cast(dict[str, Any], table).items()}
    return found


def check(course: Course) -> list[str]:
    found: list[str] = []
    later = [after for _, after in course.neighbours]
    for lesson in course.lessons:
        if any(declared(lesson).values()) and lesson not in later:
            remedy = "empty [added], [changed] and [removed]"
            wrong = "the lesson is not compared with one before it"
            found.append(course.finding(lesson / "lesson.toml", wrong, remedy))
    for before, after in course.neighbours:
        toml = after / "lesson.toml"
        said = declared(after)
        real = changes(before, after)
        old, new = compared_files(before).keys(), compared_files(after).keys()
        whole = {"added": new - old, "changed": set[str](), "removed": old - new}
        for kind in KINDS:
            # A file that is new or gone may be named as a whole instead of symbol by symbol.
            short = {file for file in whole[kind] if file in said[kind]}
            expected = [s for s in real[kind] if s.partition("#")[0] not in short] + sorted(short)
            for symbol in expected:
                if symbol not in said[kind]:
                    remedy = f"name it under [{kind}] in one sentence, or undo it"
                    found.append(course.finding(toml, f"{kind} {symbol} is not named", remedy))
                elif not re.fullmatch(r"\S.*[.?!]", said[kind][symbol]):
                    remedy = "write one line that ends with a full stop"
                    found.append(course.finding(toml, f"no sentence for {symbol}", remedy))
            for symbol in said[kind]:
                if symbol not in expected:
                    wrong = f"{symbol} is named under [{kind}], and it is not {kind}"
                    found.append(course.finding(toml, wrong, "take the line away"))
        for file, what in moved(before, after):
            remedy = f"keep it as in {before.name}"
            found.append(course.finding(after / file, f"{what} in {file} differs", remedy))
    return found


def show(course: Course) -> None:
    """Print the changes as they can be pasted into lesson.toml, with the sentences that exist."""
    for before, after in course.neighbours:
        print(f"# {before.name} -> {after.name}")
        said = declared(after)
        for kind, symbols in changes(before, after).items():
            print(f"[{kind}]")
            for symbol in symbols:
                sentence = said[kind].get(symbol, "")
                print(f'"{symbol}" = "{sentence.replace(chr(34), chr(92) + chr(34))}"')
        for file, what in moved(before, after):
            print(f"# {what} in {file}")
        print()


def table(course: Course, lesson: Path) -> str:
    """The table of a README, between its markers; empty if nothing is compared with the lesson."""
    before = next((before for before, after in course.neighbours if after == lesson), None)
    if before is None:
        return ""
    # The story, its tasks and the imports are left out: they would hide the engine's rows.
    rows = [
        f"| {kind} | `{symbol}` | {sentence.replace('|', chr(92) + '|')} |"
        for kind, symbols in declared(lesson).items()
        for symbol, sentence in symbols.items()
        if not symbol.startswith(STORY) and not (kind == "changed" and symbol.endswith(IMPORTS))
    ]
    folded = [
        f"<details><summary>Symbol by symbol ({len(rows)}), without the story</summary>",
        "",
        "| | Symbol | What and why |",
        "| --- | --- | --- |",
        *rows,
        "",
        "</details>",
        "",
    ]
    name = f"{before.name[:2]}_to_{lesson.name[:2]}.patch"
    whole = f"The whole difference: [{name}](../../diffs/{name})."
    return "\n".join([*(folded if rows else []), whole])
