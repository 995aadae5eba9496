"""Narration: one time-stamped line per fact, claims that must hold, and a look at the tables."""

import io
import logging
import os
import sys
import time
from contextlib import suppress
from typing import Any, cast

import sqlalchemy as sa
from rich.console import Console
from rich.text import Text

from shared.database import Database

# A terminal that lacks a character shows its number: no story ends for a tick.
if isinstance(stdout := cast(object, sys.stdout), io.TextIOWrapper):
    stdout.reconfigure(errors="backslashreplace")
# Lines are never wrapped: a story that is piped into a file reads as it does in a wide terminal.
console = Console(soft_wrap=True, highlight=False)
_started = time.monotonic()


def printable(text: str) -> str:
    """What a terminal would obey instead of showing it, escaped; line feeds stay.

    That is whatever Unicode does not count as printable: ESC and the other controls of C0 and C1,
    and the marks that turn the direction of the text. A row of the database may hold any of them.
    """
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
    )


def say(fact: str, style: str = "") -> None:
    """Print one fact with the seconds since the program started."""
    stamp = Text(f"{time.monotonic() - _started:6.2f}  ", style="dim")
    # Indented, so that a line of a stored error cannot pass for one of ours.
    console.print(stamp + Text(printable(fact).replace("\n", "\n" + 8 * " "), style=style))


def scene(title: str) -> None:
    """Begin a new part of the story."""
    console.print()
    console.print(Text(title, style="bold"))


def check(holds: bool, fact: str) -> None:
    """Print a claim with its verdict. If it does not hold, the story ends with exit status 1."""
    _claim(holds, fact, "✓", "green")


def feared(holds: bool, fact: str) -> None:
    """As `check`, for a failure that has to be seen: what the lesson is going to mend."""
    _claim(holds, fact, "!", "yellow")


def _claim(holds: bool, fact: str, mark: str, style: str) -> None:
    say(f"{mark if holds else '✗'} {fact}", style=style if holds else "bold red")
    if not holds:
        sys.exit(1)


def get(db: Database, id: int) -> sa.Row[Any]:
    """The task's row, with all its columns."""
    with db.autocommit.connect() as connection:
        return connection.execute(sa.text("select * from tasks where id = :id"), {"id": id}).one()


def status(db: Database, id: int) -> str:
    return get(db, id).status


def count(db: Database, *statuses: str) -> int:
    """How many tasks have one of the statuses."""
    counting = sa.text("select count(*) from tasks where status = any(:statuses)")
    with db.autocommit.connect() as connection:
        return connection.execute(counting, {"statuses": list(statuses)}).scalar_one()


def log_of(db: Database, id: int) -> list[sa.Row[Any]]:
    """The entries of the task's event log."""
    log = sa.text("select * from event_log where task_id = :id order by position")
    with db.autocommit.connect() as connection:
        return list(connection.execute(log, {"id": id}))


class _SayHandler(logging.Handler):
    """Says a record. One that cannot be written is lost: the disk is full, nobody reads the pipe.

    Whoever logs must not notice. Not written by rich, which keeps what it could not write, and
    ends the program when the reader of a pipe is gone.
    """

    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno >= logging.WARNING else ""
        with suppress(Exception, SystemExit):
            with console.capture() as line:
                say(self.format(record), style=style)
            print(line.get(), end="", flush=True)


def say_logs() -> None:
    """Let log records (the engine's, from INFO up) be said as facts of the story."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[_SayHandler()])


def give_up_output() -> None:
    """What could not be written must not become the exit status, when Python tries it once more."""
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
