"""The same view, in a terminal."""

import time

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from glass.history import History
from glass.view import Card, View, Worker, view
from shared.story import printable

STYLES = {
    "queued": "default",
    "running": "bright_blue",
    "waiting": "yellow",
    "succeeded": "green",
    "failed": "red",
    "cancelled": "magenta",
    "log": "cyan",
    "gone": "red",
    "lock": "bold red",
    "beat": "dim",
    "touch": "dim",
    "note": "dim",
}
ENTRIES = {
    "step": "■",
    "once": "▪",
    "transaction": "▣",
    "child": "●",
    "timer": "◆",
    "signal": "▶",
    "event": "▲",
    "patch": "┆",
    "step open": "□",
    "child open": "○",
    "timer open": "◇",
    "signal open": "▷",
    "event open": "△",
}


def show(history: History, title: str) -> None:
    """Until Ctrl-C."""
    console = Console()
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            started = time.monotonic()
            live.update(draw(view(history), title, console.height), refresh=True)
            time.sleep(min(1, max(0.1, 9 * (time.monotonic() - started))))


def draw(seen: View, title: str, height: int) -> Group:
    below = len(seen.workers) + len(seen.waits)
    cards = max(3, (height - below) // 2 - 2)
    board = Table(expand=True, box=None, pad_edge=False, header_style="bold")
    for column in seen.columns:
        heading = f"{column.status} {column.count:,}"
        width = 3 if column.count else 2
        board.add_column(text(heading, column.status), ratio=width, no_wrap=True)
    for n in range(cards):
        cells = [column.cards[n : n + 1] for column in seen.columns]
        board.add_row(*(card(*cell) if cell else Text() for cell in cells))
    parts = [board, *(worker(one) for one in seen.workers)]
    for wait in seen.waits:
        holders = " and ".join(holder.label for holder in wait.holders)
        line = f"{wait.waiter.label} waits for {holders}, {wait.seconds:.1f} s: {wait.waiter.query}"
        parts.append(text(line, "lock"))
    return Group(*parts, story(seen, title, max(3, height - cards - below - 3)))


def text(words: str, style: str = "") -> Text:
    shown = printable(words).replace("\n", " ")
    return Text(shown, STYLES.get(style, ""), no_wrap=True, overflow="ellipsis")


def card(card: Card) -> Text:
    line = text(f"{card.id} {card.name} ")
    line.append("".join(ENTRIES.get(entry, "✗") for entry in card.entries), "cyan")
    for kind, tag in card.tags:
        line.append(printable(f" {tag}"), "yellow" if kind == "again" else "dim")
    line.append(printable(f" {card.outcome}"), "red" if card.failed else "dim")
    return line


def worker(worker: Worker) -> Text:
    words = [f"worker {worker.name} {worker.id or ''}", f"runs {', '.join(worker.tasks) or '–'}"]
    late = worker.gone or (worker.lease is not None and worker.lease < 0)
    if worker.lease is not None:
        words.append(f"lease {worker.lease:.1f} s")
    if worker.process:
        words.append(f"process {worker.process.pid}, {worker.process.slots} slots")
        if worker.process.stands_still:
            words.append("stands still")
    return text("   ".join(words), "failed" if late else "")


def story(seen: View, title: str, height: int) -> Panel:
    told = Text(no_wrap=True, overflow="ellipsis")
    for line in [line for line in seen.lines if not line.quiet][-height:]:
        told.append(f"{line.time:12} ", "dim")
        for n, event in enumerate(line.events):
            told.append("  + " if n else "", "dim")
            told.append_text(text(event.text, event.kind))
        told.append("\n")
    told.rstrip()
    about = seen.note or (
        f"sampled: {seen.sampled}" if seen.sampled else f"{seen.length:,} moments"
    )
    return Panel(told, title=text(f"{title}, {about}"), title_align="left", height=height + 2)
