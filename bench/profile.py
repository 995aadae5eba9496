"""Where a task's CPU goes, the client's and the server's, beside the fewest statements for it."""

import json
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from bench import floor, jobs
from bench.lesson import Bench, opened
from bench.measures import BATCH, PAYLOAD, BenchError, check

PARTS = [
    "enqueue, one by one",
    "enqueue, all in one statement",
    f"claim, {BATCH} at once",
    f"finish, {BATCH} at once",
    "a step, alone",
    f"a step, {BATCH} at once",
]
INPUT = json.loads(PAYLOAD)

Parts = list[Callable[[], object]]  # what each part does, for so many tasks


def profile(path: Path, tasks: int) -> list[dict[str, Any]]:
    """The rows of the table in docs/numbers.md: µs for each task. tasks: a multiple of BATCH."""
    lesson = jobs.load(path)
    bare, ours = spent(floor.FLOOR, of_floor, tasks), spent(lesson, of_lesson, tasks)
    keys = ("floor_client", "floor_server", "client", "server")
    return [
        {"title": title, **dict(zip(keys, (*least, *most), strict=True))}
        for title, least, most in zip(PARTS, bare, ours, strict=True)
    ]


def spent(
    lesson: Any, parts: Callable[[Bench, sa.Connection, int], Parts], tasks: int
) -> list[tuple[float, float]]:
    with opened(lesson) as bench, bench.db.autocommit.connect() as connection:
        driver: Any = connection.connection.driver_connection
        pid = driver.info.backend_pid

        def cpu() -> tuple[float, float]:
            return time.thread_time(), on_cpu(pid)

        found: list[tuple[float, float]] = []
        for _ in range(2):  # the first one is a warm-up
            bench.empty()
            found.clear()
            for do in parts(bench, connection, tasks):
                before = cpu()
                do()
                client, server = (now - then for now, then in zip(cpu(), before, strict=True))
                found.append((client / tasks * 1e6, server / tasks * 1e6))
        return found


def on_cpu(pid: int) -> float:
    """Seconds that a server's process has been on a core."""
    process = Path("/proc", str(pid))
    try:
        if (process / "comm").read_text().strip() == "postgres":
            return int((process / "schedstat").read_text().split()[0]) / 1e9
    except OSError:
        pass
    raise BenchError("to see what the server uses, it must be on this machine, and that a Linux")


def of_floor(bench: Bench, connection: sa.Connection, tasks: int) -> Parts:  # noqa: ARG001
    driver: Any = connection.connection
    cursor = driver.cursor()
    claimed: list[int] = []

    def enqueue() -> None:
        for _ in range(tasks):
            floor.enqueue(connection, "nothing", INPUT)

    def claim() -> None:
        for _ in range(tasks // BATCH):
            claimed.extend(id for id, *_ in cursor.execute(floor.CLAIM, (BATCH,)).fetchall())

    def finish() -> None:
        for start in range(0, tasks, BATCH):
            cursor.execute(floor.FINISH, ("null", claimed[start : start + BATCH]))

    def record() -> None:
        for position in range(tasks):
            cursor.execute(floor.RECORD, (1, position))

    def record_together() -> None:
        for position in range(tasks // BATCH):
            cursor.execute(floor.RECORD_MANY, (position, BATCH))

    bulk = partial(floor.enqueue_many, connection, "nothing", [INPUT] * tasks)
    return [enqueue, bulk, claim, finish, record, record_together]


def of_lesson(bench: Bench, connection: sa.Connection, tasks: int) -> Parts:
    lesson, queries = bench.lesson, bench.lesson.queries.Querier(connection)
    lease = timedelta(hours=1)
    worker = queries.register_worker(name="w", queue="default", version="", lease=lease)
    take = partial(lesson.claim.claim, bench.db, connection, worker, "default")
    claimed: list[Any] = []
    running: list[Any] = []

    def enqueue() -> None:
        for _ in range(tasks):
            lesson.tasks.enqueue(connection, "nothing", INPUT)

    def claim() -> None:
        for _ in range(tasks // BATCH):
            claimed.extend(take(BATCH))

    def finish() -> None:
        for start in range(0, tasks, BATCH):
            results = [lesson.results.Result(task, "null") for task in claimed[start:][:BATCH]]
            stored = lesson.results.store_together(connection, results)
            check(len(stored) == BATCH, f"of {BATCH} results, {len(stored)} were stored")

    def record() -> None:
        lesson.tasks.enqueue(connection, "nothing", INPUT)
        alone, *together = take(1 + BATCH)
        running.extend(together)
        step = {"kind": "step", "name": "step", "input": "[[1], {}]", "output": "1", "error": None}
        for position in range(1, 1 + tasks):
            queries.record_step(id=alone.id, attempt=1, position=position, **step)

    def record_together() -> None:
        step: dict[str, Any] = {"attempt": 1, "name": "step", "input": [[1], {}], "output": 1}
        for position in range(1, 1 + tasks // BATCH):
            rows = [{**step, "task_id": task.id, "position": position} for task in running]
            recorded = list(queries.record_steps(steps=json.dumps(rows)))
            check(len(recorded) == BATCH, f"of {BATCH} steps, {len(recorded)} were recorded")

    bulk = partial(lesson.bulk.enqueue_many, connection, "nothing", [INPUT] * tasks)
    return [enqueue, bulk, claim, finish, record, record_together]
