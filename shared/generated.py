"""Are the files in a lesson's db/ those that sqlc made from its schema.sql and queries.sql?

`make generate` writes db/fingerprint.txt: one hash of what sqlc reads, one of what it writes.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from shared.lessons import LESSONS, lessons

INPUTS = ("schema.sql", "queries.sql", "sqlc.yaml")


def fingerprint(lesson: Path) -> tuple[str, str]:
    """The hashes, as they are now, of the files that sqlc reads and of those that it writes."""
    return _hash(lesson / name for name in INPUTS), _hash(sorted((lesson / "db").glob("*.py")))


def recorded(lesson: Path) -> tuple[str, str] | None:
    """The two hashes when db/ was generated; None if nothing readable was written down."""
    path = lesson / "db" / "fingerprint.txt"
    words = path.read_text().split() if path.exists() else []
    return (words[1], words[3]) if len(words) == 4 else None


def record(lesson: Path) -> None:
    inputs, outputs = fingerprint(lesson)
    (lesson / "db" / "fingerprint.txt").write_text(f"inputs {inputs}\noutputs {outputs}\n")


def stale(lesson: Path) -> str | None:
    """Why the lesson must not run yet, and what to do; None if it may."""
    if not (lesson / "sqlc.yaml").exists():
        return None
    then, now = recorded(lesson), fingerprint(lesson)
    # A patch in breaks/ brings its generated code along, for readers who have no sqlc plugin: then
    # both hashes are new. Only an edit of nothing but the SQL leaves the outputs as they were.
    if then and (then[0] == now[0] or then[1] != now[1]):
        return None
    return (
        f"{' or '.join(INPUTS)} was edited, and the Python in db/ was not made from it.\n"
        f"In the top directory: make generate LESSON={selector(lesson)}"
    )


def selector(lesson: Path) -> str:
    """What LESSON=... has to be, in the top directory, to mean this lesson."""
    lesson, top = lesson.resolve(), LESSONS.parent
    if lesson in lessons():
        return lesson.name
    path = str(lesson.relative_to(top) if lesson.is_relative_to(top) else lesson)
    return f"'{path}'" if " " in path else path


def _hash(files: Iterable[Path]) -> str:
    total = hashlib.sha256()
    for file in files:
        text = file.read_bytes().replace(b"\r\n", b"\n") if file.exists() else b""
        total.update(f"{file.name} {len(text)}\n".encode() + text)
    return total.hexdigest()
