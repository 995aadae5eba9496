"""Who is connected to a lesson, which processes these are, and who waits for whose lock."""

import re
import shlex
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import psycopg

OURS = "glass box"  # how the names of our own connections begin
SESSIONS = """
select pid, application_name, coalesce(state, ''), left(query, 400),
    case when wait_event_type = 'Lock' then pg_blocking_pids(pid) else '{}' end,
    coalesce(extract(epoch from clock_timestamp() - query_start), 0)::float8
from pg_stat_activity
where datname = current_database() and backend_type = 'client backend'
and pid <> pg_backend_pid()
"""


@dataclass
class Process:
    """A worker's process. It finds its row in `workers` by its name: two may be confused."""

    pid: int
    name: str
    slots: int
    stands_still: bool
    connections: int


@dataclass
class Session:
    pid: int  # of the server's process
    label: str  # whose it is
    state: str
    query: str


@dataclass
class Wait:
    waiter: Session
    holders: list[Session]
    seconds: float

    @property
    def pair(self) -> tuple[int, list[int]]:
        return self.waiter.pid, [holder.pid for holder in self.holders]


@dataclass
class Activity:
    seconds: float = 0.0  # the server's clock, since 1970
    seen: float = 0.0  # our own, monotonic, at that time
    processes: list[Process] = field(default_factory=list[Process])
    waits: list[Wait] = field(default_factory=list[Wait])
    sessions: set[int] = field(default_factory=set[int])  # all of the database

    def now(self, monotonic: float) -> float:
        return self.seconds + monotonic - self.seen

    def clock(self, monotonic: float) -> str:
        return str(datetime.fromtimestamp(self.now(monotonic), UTC)) if self.seconds else ""


def look(db: psycopg.Connection[Any], schema: str, slots: int, monotonic: float) -> Activity:
    """slots: how many a worker has if its command line does not say."""
    clock = db.execute("select extract(epoch from clock_timestamp())::float8").fetchone()
    rows = db.execute(SESSIONS).fetchall()
    names = {pid: str(name) for pid, name, *_ in rows}
    pids = [found for name in names.values() if (found := process_of(name, schema))]
    processes = [
        process
        for pid in sorted(set(pids))
        if (process := worker_process(pid, slots, pids.count(pid)))
    ]
    workers = {process.pid: f"worker {process.name}" for process in processes}

    def label(name: str) -> str:
        pid = process_of(name, schema)
        if name.startswith(OURS):
            return OURS
        return workers.get(pid, f"process {pid}") if pid else name or "a session without a name"

    sessions = {
        pid: Session(pid, label(name), state, " ".join(str(query).split()))
        for pid, name, state, query, *_ in rows
    }
    waits = [
        Wait(sessions[pid], [sessions[one] for one in set(blockers) & sessions.keys()], seconds)
        for pid, _, _, _, blockers, seconds in rows
        if blockers
        and (
            names[pid] == ours(schema)
            or any(process_of(names[p], schema) for p in {pid, *blockers} & set(names))
        )
    ]
    return Activity(clock[0] if clock else 0.0, monotonic, processes, waits, {*sessions})


def ours(schema: str) -> str:
    """The name of the sessions that follow this schema."""
    return f"{OURS} of {schema}"


def process_of(application_name: str, schema: str) -> int | None:
    """Each session of a lesson carries the number of its process: shared.session.conninfo."""
    found = re.fullmatch(re.escape(schema) + r" (\d+)", application_name)
    return int(found[1]) if found else None


def worker_process(pid: int, slots: int, connections: int) -> Process | None:
    """None if it is no worker, or runs on another machine."""
    try:
        process = psutil.Process(pid)
        command, state = shlex.join(process.cmdline()), process.status()
    except psutil.Error:
        return None
    if not re.search(r"main\.py worker\b", command):
        return None
    return Process(
        pid,
        option(command, "name") or "by-hand",
        int(option(command, "slots") or slots),
        state == psutil.STATUS_STOPPED,
        connections,
    )


def option(command: str, name: str) -> str | None:
    found = re.search(rf"--{name}[ =](\S+)", command)
    return found[1] if found else None


def default_slots(lesson: Path) -> int:
    """How many slots a worker of the lesson has, if nothing else is said; one in lesson 01."""
    worker = lesson / "worker.py"
    found = re.search(r"\bslots: int = (\d+)", worker.read_text()) if worker.exists() else None
    return int(found[1]) if found else 1
