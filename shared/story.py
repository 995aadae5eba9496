"""Narration: one time-stamped line per fact, and claims that must hold."""

import logging
import sys
import time

from rich.console import Console
from rich.text import Text

# Lines are never wrapped: a story that is piped into a file reads as it does in a wide terminal.
console = Console(soft_wrap=True, highlight=False)
_started = time.monotonic()


def say(fact: str, style: str = "") -> None:
    """Print one fact with the seconds since the program started."""
    stamp = Text(f"{time.monotonic() - _started:6.2f}  ", style="dim")
    console.print(stamp + Text(fact, style=style))


def scene(title: str) -> None:
    """Begin a new part of the story."""
    console.print()
    console.print(Text(title, style="bold"))


def check(holds: bool, fact: str) -> None:
    """Print a claim with its verdict. If it does not hold, the story ends with exit status 1."""
    say(f"{'✓' if holds else '✗'} {fact}", style="green" if holds else "bold red")
    if not holds:
        sys.exit(1)


class _SayHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record), style="yellow" if record.levelno >= logging.WARNING else "")


def say_logs() -> None:
    """Let log records (the engine's, from INFO up) be said as facts of the story."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[_SayHandler()])
