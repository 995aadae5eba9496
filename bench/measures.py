"""What is measured, and what becomes of the rounds."""

import os
import platform
import statistics
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg


class BenchError(Exception):
    """The work was not done as it should have been, so that its speed says nothing."""


def check(holds: bool, what: str) -> None:
    if not holds:
        raise BenchError(what)


@dataclass(frozen=True)
class Sizes:
    """How much of everything one round does."""

    tasks: int  # enqueued, and drained

    @property
    def many_tasks(self) -> int:
        """Where they share statements."""
        return 10 * self.tasks

    @property
    def workflows(self) -> int:
        return max(4, self.tasks // 20)

    @property
    def many_workflows(self) -> int:
        return 4 * self.workflows

    @property
    def steps(self) -> int:
        """Of the one long workflow."""
        return max(20, self.tasks // 3)

    @property
    def samples(self) -> int:
        """Of the time from enqueue to start."""
        return max(4, self.tasks // 100)

    @property
    def fan_outs(self) -> int:
        return max(1, self.tasks // 400)


PAYLOAD = '{"padding": "' + "x" * 85 + '"}'  # 100 bytes of JSON
STEPS, CHILDREN, BATCH, WIDE, LEASE = 10, 50, 100, 20, 2.0
MANY_CHILDREN, MOST_CHILDREN = 1000, 10_000
CROWD, SLOW_COMMIT = 16, 2  # clients; ms that a commit takes longer
IDLE = 3.0  # seconds


@dataclass(frozen=True)
class Measure:
    key: str
    title: str
    unit: str


MEASURES = [
    Measure("enqueue_one", "enqueue, one by one", "tasks/s"),
    Measure("enqueue_transaction", "enqueue, all in one transaction", "tasks/s"),
    Measure("enqueue_many", "enqueue, all in one statement", "tasks/s"),
    Measure(
        "enqueue_crowd", f"enqueue, {CROWD} clients, a commit {SLOW_COMMIT} ms longer", "tasks/s"
    ),
    Measure("drain_1", "drain, 1 worker process", "tasks/s"),
    Measure("drain_2", "drain, 2 worker processes", "tasks/s"),
    Measure("drain_wide", f"drain, 1 worker process, {WIDE} slots", "tasks/s"),
    Measure("drain_told", "drain, 1 worker that prints each run", "tasks/s"),
    Measure("drain_many_1", f"drain, 1 worker process, {BATCH} slots", "tasks/s"),
    Measure("drain_many_2", f"drain, 2 worker processes, {BATCH} slots", "tasks/s"),
    Measure("drain_batch_1", f"drain, batches of {BATCH}, 1 process", "tasks/s"),
    Measure("drain_batch_2", f"drain, batches of {BATCH}, 2 processes", "tasks/s"),
    Measure("pgbench_1", "drain, pgbench, 1 client", "tasks/s"),
    Measure("pgbench_16", "drain, pgbench, 16 clients", "tasks/s"),
    Measure("workflows_10", f"workflows of {STEPS} steps, 10 slots", "/s"),
    Measure("workflows_1", f"workflows of {STEPS} steps, 1 slot", "/s"),
    Measure("workflows_many", f"workflows of {STEPS} steps, {BATCH} slots", "/s"),
    Measure("step", "one step, 1 slot", "ms"),
    Measure("step_statement", "its statement alone, plain psycopg", "ms"),
    Measure("step_generated", "its statement alone, generated code", "ms"),
    Measure("fan_out", f"fan-out: {CHILDREN} children and their parent", "ms"),
    Measure("fan_out_many", f"fan-out: each of {MANY_CHILDREN:,} children", "ms"),
    Measure("fan_out_most", f"fan-out: each of {MOST_CHILDREN:,} children", "ms"),
    Measure("idle", "idle worker: enqueue to start, median", "ms"),
    Measure("idle_p95", "idle worker: enqueue to start, 95 %", "ms"),
    Measure("waking", "idle worker: end of a sleep to start, median", "ms"),
    Measure("waking_p95", "idle worker: end of a sleep to start, 95 %", "ms"),
    Measure("idle_statements", "idle worker: statements a second", ""),
    Measure("recovery", f"kill -9 to the next attempt, lease {LEASE:g} s", "s"),
    Measure("drain_1_statements", "statements per task", ""),
    Measure("drain_wide_statements", f"statements per task, {WIDE} slots", ""),
    Measure("drain_many_1_statements", f"statements per task, {BATCH} slots", ""),
    Measure("drain_1_wal", "WAL per task", "bytes"),
    Measure("drain_1_cpu", "worker CPU per task", "ms"),
    Measure("drain_many_1_wal", f"WAL per task, {BATCH} slots", "bytes"),
    Measure("drain_many_1_cpu", f"worker CPU per task, {BATCH} slots", "ms"),
    Measure("workflows_10_statements", f"statements per workflow of {STEPS} steps", ""),
    Measure("workflows_10_wal", f"WAL per workflow of {STEPS} steps", "bytes"),
    Measure("workflows_10_cpu", f"worker CPU per workflow of {STEPS} steps", "ms"),
    Measure("workflows_many_statements", f"the same, {BATCH} slots: statements", ""),
    Measure("workflows_many_wal", f"the same, {BATCH} slots: WAL", "bytes"),
    Measure("workflows_many_cpu", f"the same, {BATCH} slots: worker CPU", "ms"),
]


@dataclass(frozen=True)
class Goal:
    """What the last lesson is to reach; ratio: to the floor, in the same run."""

    key: str
    value: float
    ratio: bool = True
    at_most: bool = False


GOALS = [
    Goal("drain_many_1", 0.8),
    Goal("drain_many_2", 0.8),
    Goal("workflows_many", 0.67),
    Goal("step", 1.4, at_most=True),
    Goal("enqueue_many", 0.9),
    Goal("enqueue_one", 0.7),
    Goal("fan_out_most", 0.2, ratio=False, at_most=True),
    Goal("drain_many_1_cpu", 0.12, ratio=False, at_most=True),
    Goal("workflows_many_cpu", 2.5, ratio=False, at_most=True),
]

Values = dict[str, float]  # by a measure's key; of one engine, in one round
Rounds = dict[str, list[Values]]  # by engine: "floor", "01", "02" ...


def summary(rounds: Rounds) -> dict[str, dict[str, dict[str, float | None]]]:
    """By measure and engine: median, min, max, and the ratio of the median to the floor's."""
    table: dict[str, dict[str, dict[str, float | None]]] = {}
    for measure in MEASURES:
        for engine, found in rounds.items():
            values = [once[measure.key] for once in found if measure.key in once]
            if values:
                table.setdefault(measure.key, {})[engine] = {
                    "median": statistics.median(values),
                    "min": min(values),
                    "max": max(values),
                }
        cells = table.get(measure.key, {})
        floor = cells.get("floor", {}).get("median")
        for cell in cells.values():
            cell["ratio"] = (cell["median"] or 0) / floor if floor else None
    return table


def settings(url: str) -> dict[str, Any]:
    """Of the server and of the machine: without them the figures say nothing."""
    names = ["server_version", "fsync", "synchronous_commit", "shared_buffers", "max_wal_size"]
    names += ["wal_level"]
    query = "select name, current_setting(name) from pg_settings where name = any (%s)"
    with psycopg.connect(url, autocommit=True) as connection:
        server = connection.execute(query, (names,)).fetchall()
    return {
        **dict(server),
        "server": "DATABASE_URL" if os.environ.get("DATABASE_URL") else "embedded",
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "psycopg": psycopg.__version__,
        "machine": f"{sys.platform} {platform.machine()}",
        "date": datetime.now(UTC).date().isoformat(),
    }


def wal(connection: psycopg.Connection[Any]) -> int:
    """Bytes of WAL that the server has written so far, whoever made it."""
    row = connection.execute("select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')")
    return int(row.fetchall()[0][0])
