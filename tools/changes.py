"""What changed between neighbours, by symbol. lesson.toml names each change in one sentence.

The story (STORY) needs no sentences, nor do imports, docstrings and comments that belong to no
symbol.
"""

import json
import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

from shared.lessons import number
from tools.symbols import REST, WHOLE, loose, order, pieces, texts
from tools.tree import Course, compared_files, patch_name, settings

KINDS = ("added", "changed", "removed")
STORY = {"main.py", "app.py", "app.sql", "deploys", "logs"}
PAGE = """\
# Lesson {number}: what changes, symbol by symbol

All that differs from [{before}](../{before}/README.md), except the story (`main.py`, `app.*`, and
its directories).
As a diff: [{patch}](../../diffs/{patch}). Back to [the lesson](README.md).

| | Symbol | What and why |
| --- | --- | --- |
{rows}"""
Changes = dict[str, list[str]]


def changes(course: Course, check: bool) -> Iterator[str] | None:
    """Symbols that differ between neighbours, against lesson.toml."""
    return undeclared(course) if check else show(course)


def differences(before: Path, after: Path) -> Changes:
    """Kind -> what needs a sentence (`worker.py#Worker.run`, `sqlc.yaml`), in the files' order.

    A file that is new or gone may be named as a whole instead of symbol by symbol.
    """
    said = declared(after)
    old, new = compared_files(before), compared_files(after)
    found: Changes = {kind: [] for kind in KINDS}
    for file in engine_files(old, new):
        whole = "removed" if file not in new else "added" if file not in old else "changed"
        if whole != "changed" and file in said[whole]:
            found[whole].append(file)
            continue
        different = symbol_changes(file, old.get(file, ""), new.get(file, ""))
        for symbol, kind in different.items():
            owner = symbol.partition(".")[0]
            if owner != symbol and different.get(owner, "changed") != "changed":
                continue  # a method of a class that is itself new or gone
            found[kind].append(file if symbol == WHOLE else f"{file}#{symbol}")
    return found


def engine_files(old: Iterable[str], new: Iterable[str]) -> list[str]:
    """Of these files of two lessons, those that are not their stories."""
    return sorted(file for file in {*old, *new} if not is_story(file))


def is_story(file: str) -> bool:
    """Or in a directory of the story."""
    return file.partition("/")[0] in STORY


def symbol_changes(file: str, old: str, new: str) -> dict[str, str]:
    """Symbol -> kind, of what differs between two versions of a file; "" is a file that is not."""
    was, now = (texts(pieces(file, text)) if text else {} for text in (old, new))
    found: dict[str, str] = {}
    for symbol in [*now, *(s for s in was if s not in now)]:
        kind = "removed" if symbol not in now else "added" if symbol not in was else "changed"
        if symbol in REST:
            same = loose(file, was.get(symbol, "")) == loose(file, now.get(symbol, ""))
        else:
            same = was.get(symbol) == now.get(symbol)
        if not same:
            found[symbol] = kind
    return found


def moved(before: Path, after: Path) -> Iterator[tuple[str, str]]:
    """What no list of symbols shows: (file, what) where the order or the blank lines differ."""
    old, new = compared_files(before), compared_files(after)
    for file in sorted(old.keys() & new.keys()):
        was, now = order(pieces(file, old[file])), order(pieces(file, new[file]))
        kept = zip([k for k in was if k in now], [k for k in now if k in was], strict=True)
        if out_of_order := next((key for other, key in kept if key != other), None):
            yield file, f"order of {out_of_order.partition(chr(10))[0]}"
        gaps = dict(zip(pairwise([None, *was]), was.values(), strict=True))
        for pair, gap in zip(pairwise([None, *now]), now.values(), strict=True):
            if gaps.get(pair, gap) != gap:
                where = (pair[1] or "").partition("\n")[0] or "the end of the file"
                yield file, f"blank lines before {where}"


def declared(lesson: Path) -> dict[str, dict[str, str]]:
    """Kind -> symbol -> sentence, as lesson.toml has them."""
    given = settings(lesson)
    return {kind: given.get(kind, {}) for kind in KINDS}


def undeclared(course: Course) -> Iterator[str]:
    later = [after for _, after in course.neighbours]
    for lesson in course.lessons:
        if any(declared(lesson).values()) and lesson not in later:
            wrong = "the lesson is not compared with one before it"
            remedy = "empty [added], [changed] and [removed]"
            yield course.finding(lesson / "lesson.toml", wrong, remedy)
    for before, after in course.neighbours:
        toml, said = after / "lesson.toml", declared(after)
        for kind, symbols in differences(before, after).items():
            for symbol in symbols:
                if symbol not in said[kind]:
                    remedy = f"name it under [{kind}] in one sentence, or undo it"
                    yield course.finding(toml, f"{kind} {symbol} is not named", remedy)
                elif not re.fullmatch(r"\S.*[.?!]", said[kind][symbol]):
                    remedy = "write one line that ends with a full stop"
                    yield course.finding(toml, f"no sentence for {symbol}", remedy)
            for symbol in sorted(said[kind].keys() - set(symbols)):
                wrong = f"{symbol} is named, and it is not {kind} or needs no sentence"
                yield course.finding(toml, wrong, "take the line away")
        for file, what in moved(before, after):
            wrong = f"{what} in {file} differs"
            yield course.finding(after / file, wrong, f"keep it as in {before.name}")


def show(course: Course) -> None:
    """Print the changes as they can be pasted into lesson.toml, with the sentences that exist."""
    for before, after in course.neighbours:
        print(f"# {before.name} -> {after.name}")
        said = declared(after)
        for kind, symbols in differences(before, after).items():
            print(f"[{kind}]")
            for symbol in symbols:
                sentence = json.dumps(said[kind].get(symbol, ""), ensure_ascii=False)
                print(f'"{symbol}" = {sentence}')
        for file, what in moved(before, after):
            print(f"# {what} in {file}")
        print()


def pages(course: Course) -> dict[Path, str]:
    """CHANGES.md of each lesson that names changes -> what it says."""
    return {
        after / "CHANGES.md": PAGE.format(
            number=f"{number(after):02}",
            before=before.name,
            patch=patch_name(before, after),
            rows="".join(
                f"| {kind} | `{symbol}` | {sentence.replace('|', chr(92) + '|')} |\n"
                for kind, symbols in declared(after).items()
                for symbol, sentence in symbols.items()
            ),
        )
        for before, after in course.neighbours
        if any(declared(after).values())
    }


def pointer(course: Course, lesson: Path) -> str:
    """The line of a README that leads to its changes; empty if nothing is compared with it."""
    before = next((before for before, after in course.neighbours if after == lesson), None)
    if before is None:
        return ""
    name = patch_name(before, lesson)
    listed = (
        "Symbol by symbol: [CHANGES.md](CHANGES.md). " if any(declared(lesson).values()) else ""
    )
    return f"{listed}As a diff: [{name}](../../diffs/{name})."
