"""The rows of a lesson's tables in the course of one order: a picture from a run, for its README.

A lesson's rows.toml holds the pictures by their names. `tables` are the columns to show, as SQL;
`acts` are what happens, one after the other:

    { enqueue = "fulfil", input = { id = 1 } }      a task of the lesson's app.py
    { start = "a" }                                 a worker: a process, with one slot; it may
                                                    have more `options`
    { after = "ClaimTasks", show = "It is claimed." }   let it go on until it has committed this
    { before = "RecordStep" }                       or until it is about to
    { kill = "a" }                                  kill -9; its lease is over
    { outside = "lamp: in stock" }                  a line for outside.log
    { by_hand = "retry", id = 1 }                   a function that the engine has for people; a
                                                    fork has a `position`, too; a move of a
                                                    version has `old` and `new`

After any of them, `show` is a caption: what has changed since the last picture is shown.
"""

import queue
import re
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, LiteralString, cast

import click

from faults import lesson_with_worker, witness
from faults.crash import Watched, When, watched
from faults.nursery import Nursery
from shared.database import Database
from shared.outside import Outside
from shared.processes import within
from tools.races import value_text

WIDTH = 100
KEY = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}(/[0-9a-f]{4})[0-9a-f]{12}")
FROM: dict[str, str] = {
    "tasks": "tasks order by tasks.id",
    "workers": "workers order by workers.id",
    "event_log": "event_log where task_id = 1 order by position",
    "fork": "event_log join tasks on tasks.id = task_id where forked_from = 1 order by position",
}
TITLES = {
    "event_log": "event_log of task 1",
    "fork": "event_log of its fork",
    "outside": "outside.log",
}
Row = tuple[str, ...]
Tables = dict[str, list[Row]]


class Held(Watched):
    """Its workers stand still at each commit until they may go on."""

    def __init__(self, db: Database, url: str, nursery: Nursery, logs: Path) -> None:
        super().__init__(db, url, nursery, logs)
        self._stops: queue.Queue[tuple[When, tuple[str, ...]]] = queue.Queue()
        self._answers: queue.Queue[bool] = queue.Queue()
        self._is_held = False  # a worker waits for an answer, and we know of it
        self._cut: bool | None = None  # the answer to all who come, if there is one
        self._pids: dict[str, int] = {}

    def before(self, names: tuple[str, ...]) -> bool:
        return self._stop("before", names)

    def after(self, names: tuple[str, ...]) -> bool:
        return self._stop("after", names)

    def _stop(self, when: When, names: tuple[str, ...]) -> bool:
        if self._cut is not None:
            return self._cut
        self._stops.put((when, names))
        return self._answers.get()

    def until(self, when: When, name: str) -> None:
        """Let the worker go on until it comes there."""
        deadline = time.monotonic() + within(30)  # a worker polls: it comes somewhere all the time
        while True:
            self._go_on(cut=False)
            try:
                there, names = self._stops.get(timeout=max(0, deadline - time.monotonic()))
            except queue.Empty:
                raise TimeoutError(f"no worker has come to: {when} {name}") from None
            self._is_held = True
            if there == when and name in names:
                return

    def _go_on(self, *, cut: bool) -> None:
        if self._is_held:
            self._is_held = False
            self._answers.put(cut)

    def act(self, act: dict[str, Any]) -> None:
        match act:
            case {"enqueue": name, **rest}:
                with self.db.engine.begin() as connection:
                    self.engine.enqueue(connection, name, rest.get("input"))
            case {"start": name, **rest}:
                self._pids[name] = self.start(name, self.proxy.url, *rest.get("options", []))
            case {"kill": name}:
                self._cut = True
                self._go_on(cut=True)
                self.kill(self._pids.pop(name))
                self._cut = None
                self.end_leases()
            case {"by_hand": verb, **rest}:
                where = [rest[name] for name in ("id", "position", "old", "new") if name in rest]
                with self.db.engine.begin() as connection:
                    getattr(self.engine, verb)(connection, *where)
            case {"outside": line}:
                self.outside.record(line)
            case {"after": name}:
                self.until("after", name)
            case {"before": name}:
                self.until("before", name)
            case _:
                if "show" not in act:
                    raise click.ClickException(f"nobody knows this act: {act}")

    def let_go(self) -> None:
        """From now on nobody is held."""
        self._cut = False
        self._answers.put(False)

    def end(self) -> None:
        """Before the proxy ends, so that no line is open any more."""
        self._cut = True
        self._answers.put(True)
        for pid in self._pids.values():
            self.kill(pid)


def read(db: Database, outside: Outside, columns: dict[str, str]) -> Tables:
    """The rows of each table, below the names of the columns; NULL is blank."""
    found: Tables = {}
    for table, chosen in columns.items():
        if table == "outside":
            lines = enumerate((KEY.sub(r"…\1", line) for line in outside.effects()), 1)
            found[table] = [("", chosen), *((str(n), line) for n, line in lines)]
            continue
        query = f"select {chosen} from {FROM[table]}"  # noqa: S608  from a file of the course
        with db.connect(autocommit=True, application_name="the camera") as connection:
            cursor = connection.execute(cast(LiteralString, query))
            names = tuple(column.name for column in cursor.description or ())
            found[table] = [names, *(tuple(cell(value) for value in row) for row in cursor)]
    return found


def cell(value: Any) -> str:
    return "" if value is None else value_text(value)


def drawn(snapshots: list[tuple[str, Tables]]) -> Iterator[str]:
    """Side by side: first the columns, then each caption with the rows that are new or changed."""
    tables = list(snapshots[0][1])
    widths = {
        table: [
            max(map(len, column))
            for column in zip(*(row for _, shot in snapshots for row in shot[table]), strict=True)
        ]
        for table in tables
    }
    titles = [(TITLES.get(table, table),) for table in tables]
    yield beside(titles, [[sum(widths[table]) + len(widths[table]) - 1] for table in tables])
    yield beside([snapshots[0][1][table][0] for table in tables], list(widths.values()))
    last: Tables = {table: [] for table in tables}
    for caption, shot in snapshots:
        yield caption
        changed = [changes(last[table], shot[table]) for table in tables]
        for at in range(max(map(len, changed))):
            rows = [rows[at] if at < len(rows) else () for rows in changed]
            yield beside(rows, list(widths.values()))
        last = shot


def changes(before: list[Row], now: list[Row]) -> list[Row]:
    """Without the heads; what is not there any more has its first column only."""
    gone = sorted({row[0] for row in before[1:]} - {row[0] for row in now[1:]})
    return [*((first, "gone") for first in gone), *(row for row in now[1:] if row not in before)]


def beside(rows: list[Row], widths: list[list[int]]) -> str:
    parts: list[str] = []
    for row, width in zip(rows, widths, strict=True):
        cells = [*row, *[""] * (len(width) - len(row))]
        parts.append(" ".join(each.ljust(size) for each, size in zip(cells, width, strict=True)))
    return ("   " + "   ".join(parts)).rstrip()


def picture(lesson: Path, name: str) -> list[str]:
    """Its lines."""
    pictures = tomllib.loads((lesson / "rows.toml").read_text())
    if name not in pictures:
        raise click.ClickException(f"{lesson.name}/rows.toml has {', '.join(pictures)}")
    snapshots: list[tuple[str, Tables]] = []
    with watched(lesson, Held) as run:
        witness.install(run.db)
        try:
            for act in pictures[name]["acts"]:
                run.act(act)
                if "show" in act:
                    shot = read(run.db, run.outside, pictures[name]["tables"])
                    snapshots.append((act["show"], shot))
        finally:
            run.end()
    lines = list(drawn(snapshots))
    if too_wide := [line for line in lines if len(line) > WIDTH]:
        raise click.ClickException(f"wider than {WIDTH} columns: {too_wide[0]}")
    return lines


@click.command()
@click.argument("lesson", callback=lesson_with_worker)
@click.argument("name")
def main(lesson: Path, name: str) -> None:
    """Draw the picture NAME of LESSON's rows.toml from a run."""
    try:
        click.echo("\n".join(picture(lesson, name)))
    except TimeoutError as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
