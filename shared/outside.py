"""The world outside the database, where no rollback reaches: a file with a line per effect.

It stands for the card that was charged and the e-mail that was sent, and it is the witness that
counts how often a task really ran.
"""

import os
from pathlib import Path


class Outside:
    """`outside.log` in the lesson's directory; the tests point LESSON_OUTSIDE somewhere else."""

    def __init__(self, lesson: Path) -> None:
        self._path = lesson / "outside.log"

    @property
    def path(self) -> Path:
        return Path(os.environ.get("LESSON_OUTSIDE") or self._path)

    def record(self, effect: str) -> None:
        """Append one line. Lines of several processes never mix: it is one short O_APPEND write."""
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, f"{effect}\n".encode())
        finally:
            os.close(file)

    def effects(self) -> list[str]:
        """All lines so far, oldest first."""
        return self.path.read_text().splitlines() if self.path.exists() else []

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)
