"""One round of one lesson: its own tables, its own modules, real worker processes."""

import inspect
import json
import os
import random
import re
import signal
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, LiteralString, cast

import psycopg
import sqlalchemy as sa

from bench import jobs
from bench.measures import CHILDREN, LEASE, PAYLOAD, STEPS, WIDE, Sizes, Values, check, wal
from shared.database import Database, open_database, schema_name
from shared.processes import WorkerProcess, wait_until, worker_processes
from shared.testing import Lesson, environment

HERE = Path(__file__).resolve().parent
WARM_UP = 50  # tasks
SECONDS = 300  # until something counts as lost


class Bench:
    """What is done with one lesson's tables. `watcher` is a connection that only looks."""

    def __init__(self, lesson: Lesson, db: Database, watcher: psycopg.Connection[Any]) -> None:
        self.lesson = lesson
        self.db = db
        self.watcher = watcher

    def workers(
        self, *names: str, slots: int = 10, lease: float = 10
    ) -> AbstractContextManager[list[WorkerProcess]]:
        path, options = str(self.lesson.path), ("--slots", str(slots), "--lease", str(lease))
        return worker_processes(HERE, *names, options=("--lesson", path, *options))

    def enqueue(self, connection: sa.Connection, name: str, input: Any) -> int:
        return self.lesson.tasks.enqueue(connection, name, input)

    def ask(self, query: LiteralString, *values: Any) -> Any:
        return self.watcher.execute(query, values).fetchall()[0][0]

    def empty(self) -> None:
        self.watcher.execute("truncate tasks")
        if self.lesson.number >= 4:
            self.watcher.execute("truncate event_log")

    def drain(self, name: str, input: str, count: int) -> tuple[float, int]:
        """Seconds from the first claim until all have succeeded, and bytes of WAL meanwhile."""
        with self.watcher.transaction():  # the workers see all tasks at once, when it commits
            added = self.watcher.execute(
                "insert into tasks (name, input) select %s, %s from generate_series(1, %s)"
                " returning id",
                (name, input, count),
            ).fetchall()
            self.watcher.execute("analyze tasks")
            wal_before = wal(self.watcher)
        claimed = "select status <> 'queued' from tasks where id = %s"
        wait_until(lambda: self.ask(claimed, *added[0]), "the first task is claimed", SECONDS)
        start = time.perf_counter()
        left = (
            "select exists (select from tasks where status = 'queued')"
            " or exists (select from tasks where status = 'running')"
        )
        wait_until(  # the cheaper question first
            lambda: self.ask(claimed, *added[-1]) and not self.ask(left),
            f"{count} are drained",
            SECONDS,
        )
        seconds, wal_bytes = time.perf_counter() - start, wal(self.watcher) - wal_before
        self.check_drained(name, count)
        return seconds, wal_bytes

    def check_drained(self, name: str, count: int) -> None:
        """All have succeeded, in their first attempt."""
        found = self.watcher.execute(
            "select status, count(*) from tasks where name = %s group by status", (name,)
        ).fetchall()
        check(found == [("succeeded", count)], f"{count} of {name} were enqueued, now: {found}")
        if self.lesson.number >= 3:
            again = self.ask("select count(*) from tasks where name = %s and attempt > 1", name)
            check(again == 0, f"{again} tasks needed a second attempt")

    def cost(
        self, workers: list[WorkerProcess], name: str, input: str, count: int, runs: int
    ) -> tuple[float, Values]:
        """Drain; the seconds, and what one task costs. `runs`: how often functions must run."""
        before = counts(workers)
        seconds, wal_bytes = self.drain(name, input, count)
        used = counts(workers)
        used.subtract(before)
        check(used["runs"] == runs, f"{runs} runs were due, and there were {used['runs']}")
        return seconds, {
            "statements": used["statements"] / count,
            "wal": wal_bytes / count,
            "cpu": used["cpu"] * 1000 / count,
        }

    def wait_for(self, id: int, every: float = 0.002) -> Any:
        """Wait for the task's success; its output."""
        deadline = time.monotonic() + SECONDS
        while True:
            query = "select status, output, error from tasks where id = %s"
            status, output, error = self.watcher.execute(query, (id,)).fetchall()[0]
            if status == "succeeded":
                return output
            check(status != "failed", f"task {id} failed: {error}")
            check(time.monotonic() < deadline, f"task {id} is still {status}")
            time.sleep(every)

    def run_one(self, name: str, input: Any) -> Any:
        with self.db.autocommit.connect() as connection:
            id = self.enqueue(connection, name, input)
        return self.wait_for(id)


def counts(workers: list[WorkerProcess]) -> Counter[str]:
    """What the workers say about themselves, added up."""
    total: Counter[str] = Counter()
    for worker in workers:
        seen = len(said(worker))
        worker.signal(signal.SIGUSR1)
        wait_until(lambda w=worker, n=seen: len(said(w)) > n, f"worker {worker.name} has counted")
        total.update(said(worker)[-1])
    return total


def said(worker: WorkerProcess) -> list[dict[str, Any]]:
    lines = worker.output().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("\n")]


@contextmanager
def opened(path: Path) -> Iterator[Bench]:
    """Fresh tables, in a schema of this run's own: the reader's are left alone."""
    lesson = Lesson(path)
    jobs.register(lesson.tasks, lesson.durable if lesson.number >= 4 else None)
    with (
        environment(LESSON_SCHEMA=f"test_bench_{os.getpid()}_{schema_name(path)}"[:60]),
        open_database(path, reset=True) as db,
        db.connect(autocommit=True, application_name="the benchmark looks on") as watcher,
    ):
        yield Bench(lesson, db, watcher)


def one_round(path: Path, sizes: Sizes) -> Values:
    """Everything that this lesson can do, once."""
    with opened(path) as bench:
        found = enqueueing(bench, sizes)
        with bench.workers("a") as workers:
            found |= draining(bench, workers, sizes) | idling(bench, sizes)
            if bench.lesson.number >= 4:
                found |= workflows(bench, workers, sizes)
            if bench.lesson.number >= 6:
                found |= fanning_out(bench, sizes)
        with bench.workers("a", "b") as workers:
            found |= draining_by_two(bench, workers, sizes)
        if bench.lesson.number >= 2:
            found |= draining_in_many_slots(bench, sizes) | telling(bench, sizes)
        if bench.lesson.number >= 4:
            found |= stepping(bench, sizes) | recording(bench, sizes)
        if bench.lesson.number >= 3:
            found |= recovering(bench)
    return found


def enqueueing(bench: Bench, sizes: Sizes) -> Values:
    payload = json.loads(PAYLOAD)

    def each(connection: sa.Connection, count: int) -> None:
        for _ in range(count):
            bench.enqueue(connection, "nothing", payload)

    def at_once(connection: sa.Connection, count: int) -> None:
        bench.lesson.tasks.enqueue_many(connection, "nothing", [payload] * count)

    ways = [
        ("enqueue_one", bench.db.autocommit.connect, each, sizes.tasks),
        ("enqueue_transaction", bench.db.engine.begin, each, sizes.tasks),
    ]
    if bench.lesson.number >= 3:
        ways.append(("enqueue_bulk", bench.db.autocommit.connect, at_once, 10 * sizes.tasks))
    found: Values = {}
    for key, connect, enqueue, most in ways:
        for count in (WARM_UP, most):
            bench.empty()
            start = time.perf_counter()
            with connect() as connection:
                enqueue(connection, count)
            found[key] = count / (time.perf_counter() - start)
        queued = bench.ask("select count(*) from tasks where status = 'queued'")
        check(queued == most, f"{most} were enqueued, and {queued} are there")
    return found


def draining(bench: Bench, workers: list[WorkerProcess], sizes: Sizes) -> Values:
    warm_up(bench)
    seconds, each = bench.cost(workers, "nothing", PAYLOAD, sizes.tasks, runs=sizes.tasks)
    costs = {f"task_{key}": value for key, value in each.items()}
    return {"drain_1": sizes.tasks / seconds, **costs}


def draining_by_two(bench: Bench, workers: list[WorkerProcess], sizes: Sizes) -> Values:
    warm_up(bench)
    seconds, _ = bench.cost(workers, "nothing", PAYLOAD, sizes.tasks, runs=sizes.tasks)
    return {"drain_2": sizes.tasks / seconds}


def draining_in_many_slots(bench: Bench, sizes: Sizes) -> Values:
    with bench.workers("a", slots=WIDE) as workers:
        warm_up(bench)
        seconds, each = bench.cost(workers, "nothing", PAYLOAD, sizes.tasks, runs=sizes.tasks)
    return {"drain_wide": sizes.tasks / seconds, "wide_statements": each["statements"]}


def telling(bench: Bench, sizes: Sizes) -> Values:
    """The lesson's own `main.py worker`, which prints two lines for each run."""
    bench.empty()
    with worker_processes(bench.lesson.path, "a"):
        warm_up(bench)
        seconds, _ = bench.drain("nothing", PAYLOAD, sizes.tasks)
    return {"drain_told": sizes.tasks / seconds}


def warm_up(bench: Bench) -> None:
    """Connections are made and statements prepared before the clock runs."""
    bench.empty()
    bench.drain("nothing", PAYLOAD, WARM_UP)
    bench.empty()


def idling(bench: Bench, sizes: Sizes) -> Values:
    """The wait of a single task that meets an idle worker, in ms."""
    bench.empty()
    waits: list[float] = []
    for _ in range(sizes.samples):
        time.sleep(random.uniform(0, 0.1))  # at any point of the worker's pause
        start = time.time()
        waits.append((bench.run_one("now", None) - start) * 1000)
    return {
        "idle": statistics.median(waits),
        "idle_p95": statistics.quantiles(waits, n=20, method="inclusive")[-1],
    }


def workflows(bench: Bench, workers: list[WorkerProcess], sizes: Sizes) -> Values:
    """Durable tasks of 10 steps, side by side in 10 slots, and what one of them costs."""
    bench.empty()
    bench.run_one("steps", STEPS)
    bench.empty()
    count = sizes.workflows
    seconds, each = bench.cost(workers, "steps", str(STEPS), count, runs=count * STEPS)
    check_log(bench, count * STEPS)
    costs = {f"workflow_{key}": value for key, value in each.items()}
    return {"workflows_10": count / seconds, **costs}


def stepping(bench: Bench, sizes: Sizes) -> Values:
    """The same with one slot, and one long workflow that times its own steps."""
    count = max(1, sizes.workflows // 4)
    with bench.workers("a", slots=1) as workers:
        bench.empty()
        bench.run_one("steps", STEPS)
        bench.empty()
        seconds, _ = bench.cost(workers, "steps", str(STEPS), count, runs=count * STEPS)
        check_log(bench, count * STEPS)
        bench.empty()
        in_steps = bench.run_one("steps", sizes.steps)
        check_log(bench, sizes.steps)
    return {"workflows_1": count / seconds, "step": in_steps * 1000 / sizes.steps}


def recording(bench: Bench, sizes: Sizes) -> Values:
    """What RecordStep costs without a worker around it: as plain psycopg sends it, and by way of
    the generated code, by turns."""
    bench.empty()
    task_id = bench.ask(
        "insert into tasks (name, input, status, attempt, worker_id, started_at)"
        " values ('steps', 'null', 'running', 1, 1, clock_timestamp()) returning id"
    )
    run = {"task_id": task_id, "attempt": 1}
    step = {"kind": "step", "name": "step", "input": "[[1], {}]", "output": "1", "error": None}
    queries = bench.lesson.queries
    names = list(inspect.signature(queries.Querier.record_step).parameters)[1:]
    statement = placeholders(queries.RECORD_STEP, r"%(p\1)s")
    seconds = {"step_statement": 0.0, "step_generated": 0.0}
    with bench.db.autocommit.connect() as connection:
        querier = queries.Querier(connection)

        def plainly(position: int) -> None:
            values: dict[str, Any] = {**run, **step, "position": position}
            bench.watcher.execute(statement, {f"p{n}": values[k] for n, k in enumerate(names, 1)})

        def generated(position: int) -> None:
            querier.record_step(**run, **step, position=position)

        for first in range(0, WARM_UP + sizes.steps, WARM_UP):
            for key, record in (("step_statement", plainly), ("step_generated", generated)):
                start = time.perf_counter()
                for position in range(first, first + WARM_UP):
                    record(2 * position + (record is plainly))
                if first:
                    seconds[key] += time.perf_counter() - start
    count = len(range(WARM_UP, WARM_UP + sizes.steps, WARM_UP)) * WARM_UP
    check_log(bench, 2 * (WARM_UP + count))
    return {key: spent * 1000 / count for key, spent in seconds.items()}


def placeholders(text: str, form: str) -> LiteralString:
    """A generated query's text with other placeholders than those of SQLAlchemy."""
    return cast(LiteralString, re.sub(r":p(\d)", form, text).replace("\\:", ":"))


def check_log(bench: Bench, entries: int) -> None:
    found = bench.ask("select count(*) from event_log where output is not null")
    check(found == entries, f"the log should hold {entries} entries, and has {found}")


def fanning_out(bench: Bench, sizes: Sizes) -> Values:
    """From the enqueue until the parent, which was suspended meanwhile, has succeeded; in ms."""
    times: list[float] = []
    for _ in range(sizes.fan_outs):
        bench.empty()
        start = time.perf_counter()
        bench.run_one("fan_out", CHILDREN)
        times.append((time.perf_counter() - start) * 1000)
        bench.check_drained("nothing", CHILDREN)
    return {"fan_out": statistics.median(times)}


def recovering(bench: Bench) -> Values:
    """From kill -9 of the worker that runs a task to the task's start on another; in s."""
    bench.empty()
    with bench.workers("a", lease=LEASE) as (doomed,):
        with bench.db.autocommit.connect() as connection:
            id = bench.enqueue(connection, "hang_in", doomed.pid)
        query = "select status from tasks where id = %s"
        wait_until(lambda: bench.ask(query, id) == "running", "the doomed worker runs the task")
        with bench.workers("b", lease=LEASE):
            time.sleep(random.uniform(0, LEASE / 4))  # at any point between two heartbeats
            killed = time.time()
            doomed.kill()
            seconds = bench.wait_for(id, every=0.01) - killed
    check(bench.ask("select attempt from tasks where id = %s", id) == 2, "the attempt is not 2")
    return {"recovery": seconds}
