"""One round of one lesson: its own tables, its own modules, real worker processes."""

import inspect
import itertools
import json
import os
import random
import re
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, LiteralString, cast

import psycopg

from bench import jobs, pgbench
from bench.measures import (
    BATCH,
    CHILDREN,
    CROWD,
    IDLE,
    LEASE,
    MANY_CHILDREN,
    MOST_CHILDREN,
    PAYLOAD,
    SLOW_COMMIT,
    STEPS,
    WIDE,
    BenchError,
    Sizes,
    Values,
    check,
    wal,
)
from shared.database import Database, open_database, schema_name
from shared.processes import WorkerProcess, wait_until, worker_processes
from shared.testing import environment

HERE = Path(__file__).resolve().parent
WARM_UP = 50  # tasks
SECONDS = 300  # until something counts as lost


class Bench:
    """What is done with one engine's tables. `watcher` is a connection that only looks.

    lesson: its number, and its modules; the floor has number 0.
    """

    def __init__(self, lesson: Any, db: Database, watcher: psycopg.Connection[Any]) -> None:
        self.lesson = lesson
        self.db = db
        self.watcher = watcher

    def workers(
        self, *names: str, slots: int = 10, lease: float = 10
    ) -> AbstractContextManager[list[WorkerProcess]]:
        options: tuple[str, ...] = ()
        if self.lesson.number != 1:
            options += ("--slots", str(slots))
        if self.lesson.number >= 3:
            options += ("--lease", str(lease))
        return worker_processes(HERE, *names, options=(*options, str(self.lesson.path)))

    def ask(self, query: LiteralString, *values: Any) -> Any:
        return self.watcher.execute(query, values).fetchall()[0][0]

    def empty(self) -> None:
        has_log = self.ask("select to_regclass('event_log') is not null")
        self.watcher.execute("truncate tasks, event_log cascade" if has_log else "truncate tasks")

    def fill(self, name: str, input: str, count: int) -> list[int]:
        """Add so many queued tasks; their ids."""
        added = self.watcher.execute(
            "insert into tasks (name, input) select %s, %s from generate_series(1, %s)"
            " returning id",
            (name, input, count),
        ).fetchall()
        self.watcher.execute("analyze tasks")
        return [id for (id,) in added]

    def drain(self, name: str, input: str, count: int) -> tuple[float, int]:
        """Seconds from the first claim until all have succeeded, and bytes of WAL meanwhile."""
        with self.watcher.transaction():  # the workers see all tasks at once, when it commits
            added = self.fill(name, input, count)
            wal_before = wal(self.watcher)
        claimed = "select status <> 'queued' from tasks where id = %s"
        self.until(lambda: self.ask(claimed, added[0]), "the first task is claimed")
        start = time.perf_counter()
        left = (
            "select exists (select from tasks where status = 'queued')"
            " or exists (select from tasks where status = 'running')"
        )
        self.until(  # the cheaper question first
            lambda: self.ask(claimed, added[-1]) and not self.ask(left), f"{count} are drained"
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
        self, workers: list[WorkerProcess], key: str, name: str, input: str, count: int, runs: int
    ) -> Values:
        """Drain: the rate, and what one task costs. `runs`: how often functions must run."""
        before = counts(workers)
        seconds, wal_bytes = self.drain(name, input, count)
        used = counts(workers)
        used.subtract(before)
        check(used["runs"] == runs, f"{runs} runs were due, and there were {used['runs']}")
        return {
            key: count / seconds,
            f"{key}_statements": used["statements"] / count,
            f"{key}_wal": wal_bytes / count,
            f"{key}_cpu": used["cpu"] * 1000 / count,
        }

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Look often at first, and then every 10 ms: looking takes time from the engine."""
        start = time.monotonic()
        while not condition():
            waited = time.monotonic() - start
            check(waited < SECONDS, f"after {SECONDS} s still not true: {what}")
            time.sleep(min(0.001 + waited / 50, 0.01))

    def wait_for(self, id: int) -> Any:
        """Wait for the task's success; its output."""

        def succeeded() -> bool:
            status = self.ask("select status from tasks where id = %s", id)
            if status == "failed":
                error = self.ask("select error from tasks where id = %s", id)
                raise BenchError(f"task {id} failed: {error}")
            return status == "succeeded"

        self.until(succeeded, f"task {id} has succeeded")
        return self.ask("select output from tasks where id = %s", id)

    def run_one(self, name: str, input: Any) -> Any:
        with self.db.autocommit.connect() as connection:
            id = self.lesson.tasks.enqueue(connection, name, input)
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
def opened(lesson: Any) -> Iterator[Bench]:
    """Fresh tables, in a schema of this run's own: the reader's are left alone."""
    path = lesson.path
    with (
        environment(LESSON_SCHEMA=f"test_bench_{os.getpid()}_{schema_name(path)}"[:60]),
        open_database(path, reset=True) as db,
        db.connect(autocommit=True, application_name="the benchmark looks on") as watcher,
    ):
        yield Bench(lesson, db, watcher)


def one_round(path: Path, sizes: Sizes) -> Values:
    """Everything that this lesson can do, once."""
    with opened(jobs.load(path)) as bench:
        found = enqueueing(bench, sizes)
        if program := pgbench.program():
            found |= crowding(bench, program, sizes)
        with bench.workers("a") as workers:
            found |= draining(bench, workers, "drain_1", sizes.tasks)
            found |= idling(bench, workers, sizes)
            if bench.lesson.number >= 9:
                found |= waking(bench, sizes)
            if bench.lesson.number >= 4:
                found |= workflows(bench, workers, "workflows_10", sizes.workflows)
            if bench.lesson.number >= 6:
                times = [fanning_out(bench, CHILDREN) for _ in range(sizes.fan_outs)]
                found["fan_out"] = statistics.median(times)
        with bench.workers("a", "b") as workers:
            found |= draining(bench, workers, "drain_2", sizes.tasks)
        if bench.lesson.number >= 2:
            with bench.workers("a", slots=WIDE) as workers:
                found |= draining(bench, workers, "drain_wide", sizes.tasks)
            found |= telling(bench, sizes)
        if bench.lesson.number >= 4:
            found |= stepping(bench, sizes) | recording(bench, sizes)
        if bench.lesson.number >= 14:
            found |= sharing(bench, sizes)
        if bench.lesson.number >= 3:
            found |= recovering(bench)
    return found


def enqueueing(bench: Bench, sizes: Sizes) -> Values:
    payload = json.loads(PAYLOAD)
    found: Values = {}
    for key, connect in (
        ("enqueue_one", bench.db.autocommit.connect),
        ("enqueue_transaction", bench.db.engine.begin),
    ):
        for count in (WARM_UP, sizes.tasks):
            bench.empty()
            start = time.perf_counter()
            with connect() as connection:
                for _ in range(count):
                    bench.lesson.tasks.enqueue(connection, "nothing", payload)
            found[key] = count / (time.perf_counter() - start)
        queued = bench.ask("select count(*) from tasks where status = 'queued'")
        check(queued == sizes.tasks, f"{sizes.tasks} were enqueued, and {queued} are there")
    return found


def crowding(bench: Bench, program: str, sizes: Sizes) -> Values:
    """Many clients that enqueue at once, while each commit takes longer than it would."""
    if bench.ask("select current_setting('is_superuser')") != "on":
        return {}  # the server's own settings are not for us
    bench.empty()
    slow = f"-c commit_delay={SLOW_COMMIT * 1000} -c commit_siblings=0"
    each = max(1, sizes.tasks // CROWD)
    rate = pgbench.rate(program, bench.db.conninfo, "enqueue.sql", CROWD, each, slow)
    queued = bench.ask("select count(*) from tasks where status = 'queued'")
    check(queued == CROWD * each, f"{CROWD * each} were enqueued, and {queued} are there")
    return {"enqueue_crowd": rate}


def draining(bench: Bench, workers: list[WorkerProcess], key: str, tasks: int) -> Values:
    warm_up(bench)
    return bench.cost(workers, key, "nothing", PAYLOAD, tasks, runs=tasks)


def sharing(bench: Bench, sizes: Sizes) -> Values:
    """More slots than a server has connections, and many tasks in one statement."""
    with bench.workers("a", slots=BATCH) as workers:
        found = draining(bench, workers, "drain_many_1", sizes.many_tasks)
        found |= workflows(bench, workers, "workflows_many", sizes.many_workflows)
        for key, children in (("fan_out_many", MANY_CHILDREN), ("fan_out_most", MOST_CHILDREN)):
            found[key] = fanning_out(bench, children) / children
    with bench.workers("a", "b", slots=BATCH) as workers:
        found |= draining(bench, workers, "drain_many_2", sizes.many_tasks)
    return found | enqueueing_many(bench, sizes)


def enqueueing_many(bench: Bench, sizes: Sizes) -> Values:
    payloads = [json.loads(PAYLOAD)] * sizes.many_tasks
    seconds = 0.0
    for _ in range(2):  # the first one is a warm-up
        bench.empty()
        start = time.perf_counter()
        with bench.db.autocommit.connect() as connection:
            bench.lesson.bulk.enqueue_many(connection, "nothing", payloads)
        seconds = time.perf_counter() - start
    queued = bench.ask("select count(*) from tasks where status = 'queued'")
    check(queued == len(payloads), f"{len(payloads)} were enqueued, and {queued} are there")
    return {"enqueue_many": len(payloads) / seconds}


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


def idling(bench: Bench, workers: list[WorkerProcess], sizes: Sizes) -> Values:
    """What an idle worker sends, and the wait of a single task that meets it, in ms."""
    bench.empty()
    time.sleep(1)  # until it has noticed
    before, start = counts(workers), time.monotonic()
    time.sleep(IDLE)
    used = counts(workers)
    used.subtract(before)
    rate = used["statements"] / (time.monotonic() - start)
    waits: list[float] = []
    for _ in range(sizes.samples):
        time.sleep(random.uniform(0.1, 0.3))  # it is idle, and at any point of its pause
        start = time.time()
        waits.append((bench.run_one("now", None) - start) * 1000)
    return {"idle_statements": rate, **spread("idle", waits)}


def waking(bench: Bench, sizes: Sizes) -> Values:
    """From the moment at which a sleep is to end until the run that goes on starts; in ms."""
    late = (
        "select cast(1000 * extract(epoch from started_at - due_at) as float)"
        " from tasks join event_log on task_id = tasks.id"
    )
    waits: list[float] = []
    for _ in range(sizes.samples):
        bench.empty()
        bench.run_one("nap", random.uniform(0.1, 0.3))
        waits.append(bench.ask(late))
    return spread("waking", waits)


def spread(key: str, waits: list[float]) -> Values:
    return {
        key: statistics.median(waits),
        f"{key}_p95": statistics.quantiles(waits, n=20, method="inclusive")[-1],
    }


def workflows(bench: Bench, workers: list[WorkerProcess], key: str, count: int) -> Values:
    """Durable tasks of 10 steps, side by side in all slots, and what one of them costs."""
    bench.empty()
    bench.run_one("steps", STEPS)
    bench.empty()
    found = bench.cost(workers, key, "steps", str(STEPS), count, runs=count * STEPS)
    check_log(bench, count * STEPS)
    return found


def stepping(bench: Bench, sizes: Sizes) -> Values:
    """The same with one slot, and one long workflow that times its own steps."""
    with bench.workers("a", slots=1) as workers:
        found = workflows(bench, workers, "workflows_1", max(1, sizes.workflows // 4))
        bench.empty()
        in_steps = bench.run_one("steps", sizes.steps)
        check_log(bench, sizes.steps)
    return {**found, "step": in_steps * 1000 / sizes.steps}


def recording(bench: Bench, sizes: Sizes) -> Values:
    """What RecordStep costs without a worker around it: as plain psycopg sends it, and by way of
    the generated code, by turns."""
    bench.empty()
    task_id = bench.ask(
        "insert into tasks (name, input, status, attempt, worker_id, started_at)"
        " values ('steps', 'null', 'running', 1, 1, clock_timestamp()) returning id"
    )
    run = {"id": task_id, "attempt": 1}
    step = {"kind": "step", "name": "step", "input": "[[1], {}]", "output": "1", "error": None}
    queries = bench.lesson.queries
    statement, names = plain(queries, "record_step", r"%(p\1)s")
    positions, turns = itertools.count(), 1 + sizes.steps // WARM_UP
    seconds = {"step_statement": 0.0, "step_generated": 0.0}
    with bench.db.autocommit.connect() as connection:
        querier = queries.Querier(connection)

        def plainly(position: int) -> None:
            values: dict[str, Any] = {**run, **step, "position": position}
            bench.watcher.execute(statement, {f"p{n}": values[k] for n, k in enumerate(names, 1)})

        def generated(position: int) -> None:
            querier.record_step(**run, **step, position=position)

        for turn in range(1 + turns):  # the first one is a warm-up
            for key, record in zip(seconds, (plainly, generated), strict=True):
                start = time.perf_counter()
                for _ in range(WARM_UP):
                    record(next(positions))
                if turn:
                    seconds[key] += time.perf_counter() - start
    check_log(bench, 2 * (1 + turns) * WARM_UP)
    return {key: spent * 1000 / (turns * WARM_UP) for key, spent in seconds.items()}


def plain(queries: Any, method: str, form: str) -> tuple[LiteralString, list[str]]:
    """A generated query without SQLAlchemy: with placeholders of that form; its parameters."""
    text = re.sub(r":p(\d)", form, getattr(queries, method.upper())).replace("\\:", ":")
    names = list(inspect.signature(getattr(queries.Querier, method)).parameters)[1:]
    return cast(LiteralString, text), names


def check_log(bench: Bench, entries: int) -> None:
    found = bench.ask("select count(*) from event_log where output is not null")
    check(found == entries, f"the log should hold {entries} entries, and has {found}")


def fanning_out(bench: Bench, children: int) -> float:
    """From the enqueue until the parent, which was suspended meanwhile, has succeeded; in ms."""
    bench.empty()
    start = time.perf_counter()
    bench.run_one("fan_out", children)
    taken = (time.perf_counter() - start) * 1000
    bench.check_drained("nothing", children)
    return taken


def recovering(bench: Bench) -> Values:
    """From kill -9 of the worker that runs a task to the task's start on another; in s."""
    bench.empty()
    with bench.workers("a", lease=LEASE) as (doomed,):
        with bench.db.autocommit.connect() as connection:
            id = bench.lesson.tasks.enqueue(connection, "hang_in", doomed.pid)
        query = "select status from tasks where id = %s"
        wait_until(lambda: bench.ask(query, id) == "running", "the doomed worker runs the task")
        with bench.workers("b", lease=LEASE):
            time.sleep(random.uniform(0, LEASE / 4))  # at any point between two heartbeats
            killed = time.time()
            doomed.kill()
            seconds = bench.wait_for(id) - killed
    check(bench.ask("select attempt from tasks where id = %s", id) == 2, "the attempt is not 2")
    return {"recovery": seconds}
