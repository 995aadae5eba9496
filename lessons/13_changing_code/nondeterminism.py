"""Does the function ask for what its log has recorded? And if not: what exactly is different?"""

import inspect
import traceback
from pathlib import Path
from types import FunctionType
from typing import cast

from db.queries import ClaimTasksRow, LoadLogRow
from fence import Misfit
from inputs import Json, canonical
from tasks import registry


class NonDeterminismError(Misfit):
    """The function asks for something other than what its log has recorded."""


def mismatch(
    task: ClaimTasksRow, entry: LoadLogRow, kind: str, name: str, input: Json
) -> NonDeterminismError | None:
    """None if the entry is the answer to this question."""
    asked = (kind, name, canonical(input))
    recorded = (entry.kind, entry.name, canonical(entry.input))
    if asked == recorded:
        return None
    place = returned_from(task.name) if kind == "return" else called_from()
    return NonDeterminismError(f"{explain(entry.position, recorded, asked)}\n{place}\n{ADVICE}")


COLUMN = 36  # characters, in the message below
ADVICE = """\
In this run no step was done, and nothing recorded. Either the code was edited while the task was
under way: put the edit into `if ctx.patched("a name"):`, or let workers of the old version end what
they have begun. Or the function does not do the same every time (a clock, a random number, the
order of a set): let a step do that, and use what it returns."""


def explain(position: int, recorded: tuple[str, ...], asked: tuple[str, ...]) -> str:
    """Recorded and asked side by side, with a mark where they differ. Its length is bounded."""
    lines = [
        f"at position {position}, the function does not do what its log has recorded",
        f"           {'recorded':{COLUMN + 2}}  asked for now",
    ]
    for title, was, now in zip(("kind", "name", "input"), recorded, asked, strict=True):
        mark = " " if was == now else "≠"
        left, right = excerpt(was, now), excerpt(now, was)
        lines.append(f"  {mark} {title:6} {left:{COLUMN + 2}}  {right}".rstrip())
    return "\n".join(lines)


def excerpt(text: str, other: str) -> str:
    """What fits into a column: of a long text, the part where the two begin to differ."""
    pairs = enumerate(zip(text, other, strict=False))
    differ = next((n for n, (a, b) in pairs if a != b), min(len(text), len(other)))
    long = max(len(text), len(other)) > COLUMN
    start = max(0, differ - COLUMN // 3) if long and text != other else 0
    cut = text[start : start + COLUMN]
    cut = "".join(c if c.isprintable() else "?" for c in cut)  # a name can hold a line feed
    return ("…" if start else "") + cut + ("…" if text[start + COLUMN :] else "")


ASKED_THROUGH = (
    "context",
    "rehearsal",
    "patches",
    "events",
    "signals",
    "timers",
    "children",
    "event_log",
    "nondeterminism",
)


def called_from() -> str:
    """The line of the user's code that asks."""
    return innermost(traceback.extract_stack())


def innermost(frames: traceback.StackSummary) -> str:
    """The innermost frame outside of these modules.

    Written as in a traceback: terminals and editors make a link of that.
    """
    ours = [str(Path(__file__).with_name(f"{module}.py")) for module in ASKED_THROUGH]
    frame = next(f for f in reversed(frames) if f.filename not in ours)
    line = (frame.line or "")[:100]
    return f'  File "{frame.filename}", line {frame.lineno}, in {frame.name}\n    {line}'


def returned_from(name: str) -> str:
    """Where the function that has returned stands."""
    code = cast(FunctionType, inspect.unwrap(registry[name].function)).__code__
    return f'  File "{code.co_filename}", line {code.co_firstlineno}, in {name}\n    has returned'
