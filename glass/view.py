"""One moment as plain data: all that the page and the terminal draw.

What a lesson's tables do not have is left out, so that one drawing does for every lesson.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from heapq import nlargest, nsmallest

from glass.activity import Process, Wait
from glass.history import History, Moment, Row, Schema, State
from glass.story import NAME, Line, line
from glass.values import duration, interval, ordinal, short, timestamp

CARDS = 14  # in each column
LINES = 60  # of the time line
ENTRIES = 40  # of a log, on a card
LONG = 2000  # characters of a value; the page asks for all of it
ENDED = ("succeeded", "failed", "cancelled")
# Any other table is shown as it is.
DRAWN = ("tasks", "workers", "event_log", "queue_limits", "stepper")

Tag = tuple[str, str]  # its kind and its text


@dataclass
class Card:
    id: str
    name: str
    input: str
    outcome: str
    failed: bool
    ended: bool
    worker: str | None  # who runs it
    orphaned: bool  # it runs, and its worker's row is gone
    entries: list[str]  # the kinds of its log's entries
    tags: list[Tag]


@dataclass
class Column:
    status: str
    count: int
    cards: list[Card]


@dataclass
class Worker:
    """A row of `workers`, a process, or both. Before lesson 03 there are no such rows."""

    id: str | None
    name: str
    lease: float | None  # seconds that are left
    tasks: list[str]
    process: Process | None
    gone: bool = False  # it has no row, and runs tasks


@dataclass
class Limit:
    queue: str
    running: int
    most: int


@dataclass
class Held:
    """`make crash STEP=1` holds a worker before this commit: see faults/stepper.py."""

    number: str
    statement: str
    changes: str


@dataclass
class Grid:
    name: str
    columns: list[str]
    count: int
    rows: list[list[str]]


@dataclass
class Entry:
    position: str
    kind: str
    name: str
    input: str
    outcome: str
    child: str | None
    remarks: list[str]


@dataclass
class Branch:
    id: str
    name: str
    status: str
    children: list["Branch"]


@dataclass
class Detail:
    id: str
    name: str
    row: list[tuple[str, str, int]]  # column, value, and how long it is in truth
    log: list[Entry]
    tree: Branch | None


@dataclass
class View:
    live: bool
    moment: int  # so many have happened
    first: int  # the oldest that is remembered
    length: int
    connected: bool
    note: str
    sampled: str
    columns: list[Column]
    workers: list[Worker]
    limits: list[Limit]
    held: Held | None
    waits: list[Wait]
    grids: list[Grid]
    task: Detail | None
    lines: list[Line]  # of the past, the newest last
    ahead: list[Line]  # if this is not the end


def view(history: History, moment: int | None = None, task: str | None = None) -> View:
    """moment: after so many; None: what is now. task: the one to show all of."""
    with history.lock:
        length, first = history.length, history.forgotten
        at = length if moment is None else max(first, min(moment, length))
        live = at == length
        schema, state = history.at(at)
        index = at - first
        past = history.moments[max(0, index - LINES) : index]
        lines = [line(at - len(past) + n, one) for n, one in enumerate(past, 1)]
        ahead = [line(at + n, one) for n, one in enumerate(history.moments[index : index + 8], 1)]
        activity = history.activity
        note, connected = history.note, history.connected
        if history.cut:
            note = f"only the newest rows of {', '.join(sorted(history.cut))} are here. {note}"
        if schema.keyless:
            note = f"without a primary key, and so not shown: {', '.join(schema.keyless)}. {note}"
    clock = activity.now(time.monotonic()) if live else last_time(past)
    rows = Rows(schema, state, clock or 0.0)
    return View(
        live,
        at,
        first,
        length,
        connected,
        note,
        history.sampled,
        columns(rows),
        workers(rows, activity.processes if live else []),
        limits(rows),
        held(rows, activity.sessions if live else None),
        activity.waits if live else last_waits(past),
        grids(rows),
        detail(rows, task) if task in rows.tasks else None,
        lines,
        ahead,
    )


def stepped(history: History, moment: int, steps: int) -> int:
    """The moment so many lines of the time line further on, or back: a heartbeat is none."""
    with history.lock:
        moment = max(history.forgotten, min(moment, history.length))
        way = 1 if steps > 0 else -1
        while steps and history.forgotten <= moment + way <= history.length:
            moment += way
            index = moment - history.forgotten - 1
            quiet = index >= 0 and line(moment, history.moments[index]).quiet
            steps -= 0 if quiet else way
    return moment


def last_time(past: list[Moment]) -> float | None:
    return next((found for one in reversed(past) if (found := timestamp(one.at))), None)


def last_waits(past: list[Moment]) -> list[Wait]:
    noted = [one.waits for one in past if one.waits is not None]
    return noted[-1] if noted else []


class Rows:
    """The rows of one moment, and what several drawings need to find."""

    def __init__(self, schema: Schema, state: State, clock: float) -> None:
        self.schema, self.state, self.clock = schema, state, clock
        self.tasks = self.by_id("tasks")
        self.workers = self.by_id("workers")
        self.logs: dict[str, list[Row]] = defaultdict(list)
        for row in self.all("event_log"):
            self.logs[row.get("task_id") or ""].append(row)
        self.children: dict[str, list[Row]] = defaultdict(list)
        for row in self.tasks.values():
            if parent := row.get("parent_id"):
                self.children[parent].append(row)

    def all(self, table: str) -> Iterable[Row]:
        return self.state.get(table, {}).values()

    def by_id(self, table: str) -> dict[str, Row]:
        return {row.get("id") or "": row for row in self.all(table)}

    def log(self, task: str) -> list[Row]:
        return sorted(self.logs.get(task, []), key=lambda entry: number(entry, "position"))

    def left(self, until: float | None) -> str:
        return "" if until is None else duration(max(0, until - self.clock))


def number(row: Row, column: str) -> int:
    return int(row.get(column) or 0)


def columns(rows: Rows) -> list[Column]:
    by_status: dict[str, list[Row]] = {status: [] for status in rows.schema.statuses}
    for task in rows.tasks.values():
        by_status.setdefault(task.get("status") or "?", []).append(task)
    found: list[Column] = []
    for status, tasks in by_status.items():
        first = (
            nlargest(CARDS, tasks, newest) if status in ENDED else nsmallest(CARDS, tasks, next_up)
        )
        found.append(Column(status, len(tasks), [card(task, rows) for task in first]))
    return found


def newest(task: Row) -> int:
    return number(task, "id")


def next_up(task: Row) -> tuple[int, int]:
    return -number(task, "priority"), number(task, "id")


def card(task: Row, rows: Rows) -> Card:
    id, running = task.get("id") or "", task.get("status") == "running"
    worker = task.get("worker_id") if running else None
    return Card(
        id,
        short(task.get("name"), NAME),
        short(task.get("input"), 46),
        short(task.get("error") or task.get("output"), 60),
        bool(task.get("error")),
        task.get("status") in ENDED,
        worker,
        worker is not None and worker not in rows.workers,
        [entry_kind(entry) for entry in rows.log(id)[-ENTRIES:]],
        [tag for tag in tags(task, worker, rows) if tag[1]],
    )


def tags(task: Row, worker: str | None, rows: Rows) -> Iterable[Tag]:
    status, attempt = task.get("status"), number(task, "attempt")
    if status in ENDED:
        return
    if attempt:
        yield "again" if attempt > 1 else "", f"attempt {attempt}"
    if worker:
        yield "who", f"{rows.workers.get(worker, {}).get('name') or 'worker'} {worker}"
    if priority := number(task, "priority"):
        yield "", f"priority {priority}"
    if (queue := task.get("queue")) and queue != "default":
        yield "", f"queue {queue}"
    if version := task.get("version"):
        yield "", f"version {version}"
    if parent := task.get("parent_id"):
        yield "", f"child of {parent}"
    started, timeout = timestamp(task.get("started_at")), interval(task.get("timeout"))
    if status == "running" and started and timeout is not None:
        yield "due", f"times out in {rows.left(started + timeout)}"
    if status == "waiting" and task.get("awaits"):
        yield "due", waits_for(task, rows)
    elif status == "waiting" and (run_at := timestamp(task.get("run_at"))):
        yield "due", f"runs in {rows.left(run_at)}"
    elif status == "waiting" and (codes := task.get("parked_by")):
        tried = codes.strip("{}").replace('"', "").replace(",", ", ")
        yield "due", f"parked: {short(tried, NAME)} cannot run it"


def waits_for(task: Row, rows: Rows) -> str:
    """What a task that is suspended waits for, and for how long, if the clock may end that."""
    log = {entry.get("position"): entry for entry in rows.log(task.get("id") or "")}
    positions = (task.get("awaits") or "").strip("{}").split(",")
    awaited = [
        log[position] for position in positions if position in log and is_open(log[position])
    ]
    kinds = {one.get("kind") for one in awaited}
    missing = number(task, "wake_after")
    if kinds == {"timer"} and (alarms := moments(awaited)):
        return f"sleeps for {rows.left(alarms[min(missing, len(alarms)) - 1])}"
    until = [log.get(task.get("deadline"), Row())]
    if len(awaited) == 1 and kinds <= {"signal", "event"}:
        until += awaited
        what = "a message" if kinds == {"signal"} else "the event"
        text = f"waits for {what} {short(awaited[0].get('name'), NAME)}"
    else:
        one, many = ("child", "children") if kinds <= {"child"} else ("entry", "entries")
        text = f"waits for {missing} {one if missing == 1 else many}"
    ends = moments(until)
    return f"{text}, {rows.left(ends[0])} at most" if ends else text


def moments(entries: list[Row]) -> list[float]:
    """When the clock completes them, the earliest first."""
    return sorted(moment for one in entries if (moment := timestamp(one.get("due_at"))))


def is_open(entry: Row) -> bool:
    return entry.get("output") is None and entry.get("error") is None


def entry_kind(entry: Row) -> str:
    """step, child and so on, and: failed, or open as it has no outcome yet."""
    kind = entry.get("kind") or "step"
    if entry.get("error") is not None:
        return f"{kind} failed"
    return f"{kind} open" if is_open(entry) else kind


def workers(rows: Rows, processes: list[Process]) -> list[Worker]:
    """processes: none if it is the past."""
    tasks: dict[str, list[str]] = defaultdict(list)
    running = [task for task in rows.tasks.values() if task.get("status") == "running"]
    for task in sorted(running, key=newest):
        if owner := task.get("worker_id"):
            tasks[owner].append(task.get("id") or "")
    free = list(processes)
    found: list[Worker] = []
    # The newest first: a worker that was killed may have left the row of an older one of its name.
    for id, row in sorted(rows.workers.items(), key=lambda item: -int(item[0])):
        name = row.get("name") or ""
        process = next((one for one in free if one.name == name), None)
        if process:
            free.remove(process)
        until = timestamp(row.get("alive_until"))
        lease = None if until is None else until - rows.clock
        found.insert(0, Worker(id, name, lease, tasks.pop(id, []), process))
    found += [Worker(id, "?", None, held, None, gone=True) for id, held in tasks.items()]
    return found + [Worker(None, process.name, None, [], process) for process in free]


def limits(rows: Rows) -> list[Limit]:
    running = Counter(
        task.get("queue") for task in rows.tasks.values() if task.get("status") == "running"
    )
    return [
        Limit(row.get("queue") or "", running[row.get("queue")], number(row, "max_running"))
        for row in rows.all("queue_limits")
    ]


def held(rows: Rows, sessions: set[int] | None) -> Held | None:
    """sessions: None if it is the past."""
    row = max(rows.all("stepper"), key=lambda row: number(row, "number"), default=None)
    if row is None or row.get("answer") is not None:
        return None
    if sessions is not None and number(row, "asks") not in sessions:
        return None
    return Held(*(row.get(column) or "" for column in ("number", "statement", "changes")))


def grids(rows: Rows) -> list[Grid]:
    found: list[Grid] = []
    for table in rows.schema.tables.values():
        if table.name not in DRAWN:
            all_rows = list(rows.all(table.name))
            last = [[short(row.get(c), 40) for c in table.columns] for row in all_rows[-8:]]
            found.append(Grid(table.name, table.columns, len(all_rows), last))
    return found


def detail(rows: Rows, id: str) -> Detail:
    task = root = rows.tasks[id]
    for _ in range(50):
        root = rows.tasks.get(root.get("parent_id") or "", root)
    values = [
        (column, value[:LONG], len(value))
        for column in rows.schema.tables["tasks"].columns
        if (value := task.get(column)) is not None
    ]
    log = [log_entry(entry) for entry in rows.log(id)[-200:]]
    tree = branch(root, rows, 12) if rows.children.get(root.get("id") or "") else None
    return Detail(id, task.get("name") or "", values, log, tree)


def log_entry(entry: Row) -> Entry:
    remarks = [f"attempt {entry.get('attempt')}"]
    if completion := number(entry, "completion"):
        remarks.append(f"{ordinal(completion)} to end")
    if entry.get("settled") == "true":
        remarks.append("settled")
    if due_at := entry.get("due_at"):
        remarks.append(f"due at {due_at[:19]}")
    return Entry(
        entry.get("position") or "",
        entry_kind(entry),
        entry.get("name") or "",
        short(entry.get("input"), 80),
        short(entry.get("error") or entry.get("output"), 160),
        entry.get("child_id"),
        remarks,
    )


def branch(task: Row, rows: Rows, depth: int) -> Branch:
    id = task.get("id") or ""
    children = sorted(rows.children.get(id, []), key=lambda child: number(child, "parent_position"))
    below = [branch(child, rows, depth - 1) for child in children[:50]] if depth else []
    return Branch(id, task.get("name") or "", task.get("status") or "?", below)
