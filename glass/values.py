"""Values of columns, as Postgres prints them: short enough to show, or as numbers."""

import re
from datetime import datetime


def short(value: str | None, most: int) -> str:
    """On one line. null is an empty text."""
    text = re.sub(r"\s+", " ", (value or "")[: 4 * most])
    return text if len(text) <= most else text[: most - 1] + "…"


def ordinal(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")


def timestamp(value: str | None) -> float | None:
    """A timestamptz in seconds since 1970; None too for what Python has no date for."""
    try:
        return datetime.fromisoformat(value or "").timestamp()
    except ValueError:
        return None


def duration(seconds: float) -> str:
    """In few letters: 90 s, 3 h, 12 days."""
    for unit, size in (("days", 86_400), ("h", 3_600)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.0f} s"


def interval(value: str | None) -> float | None:
    """`1 day 02:03:04.5` in seconds."""
    found = re.fullmatch(r"(?:(\d+) days? ?)?(?:(\d+):(\d\d):(\d\d(?:\.\d+)?))?", value or "")
    if not value or not found:
        return None
    days, hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
