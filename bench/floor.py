"""What the database itself allows: the same work in the fewest statements, and by pgbench."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from bench.measures import BATCH, PAYLOAD, STEPS, Sizes, Values, check, wal
from shared.database import MARK

HERE = Path(__file__).resolve().parent
WARM_UP = 50
meeting: Any = None  # of the two processes that drain side by side

ENQUEUE = "insert into tasks (name, input) values ('nothing', %s) returning id"
ENQUEUE_ALL = "insert into tasks (name, input) select 'nothing', unnest(%s::json[])"
CLAIM = """
update tasks set status = 'running' where id = any (array(
    select id from tasks where status = 'queued' order by id limit %s for update skip locked
)) returning id, name, input"""
FINISH = "update tasks set status = 'succeeded', output = 'null' where id = any (%s)"
RECORD = """
insert into event_log (task_id, position, name, input, output)
values (%s, %s, 'step', '[[1], {}]', '1')"""


@contextmanager
def opened(url: str) -> Iterator[tuple[str, psycopg.Connection[Any]]]:
    """Tables of this run's own: what to connect with, and a connection."""
    schema = f"test_bench_{os.getpid()}_floor"
    given = str(conninfo_to_dict(url).get("options") or "")
    conninfo = make_conninfo(url, options=f"{given} -csearch_path={schema}".strip())
    names = {"schema": sql.Identifier(schema), "mark": sql.Literal(MARK)}
    with psycopg.connect(conninfo, autocommit=True) as connection:
        # Mark and lock as those of a lesson: should this process be killed, the next run drops it.
        connection.execute("select pg_advisory_lock(hashtextextended(%s, 0))", (schema,))
        with connection.transaction():
            connection.execute(sql.SQL("create schema {schema}").format(**names))
            connection.execute(sql.SQL("comment on schema {schema} is {mark}").format(**names))
            connection.execute((HERE / "floor.sql").read_bytes())
        try:
            yield conninfo, connection
        finally:
            connection.execute("set client_min_messages = warning")
            connection.execute(sql.SQL("drop schema {schema} cascade").format(**names))


def one_round(url: str, sizes: Sizes) -> Values:
    with opened(url) as (conninfo, connection):
        found = enqueueing(connection, sizes.tasks)
        found |= draining(connection, conninfo, sizes.tasks)
        found |= draining_in_batches(connection, conninfo, 10 * sizes.tasks)
        with two_processes() as pool:
            found["drain_2"] = by_two(connection, pool, conninfo, 1, sizes.tasks)
            found["drain_batch_2"] = by_two(connection, pool, conninfo, BATCH, 10 * sizes.tasks)
        found |= workflows(connection, sizes.workflows)
        for clients in (1, 16):
            if program := pgbench():
                found |= benching(connection, program, conninfo, clients, sizes.tasks)
    return found


def fill(connection: psycopg.Connection[Any], count: int) -> None:
    connection.execute("truncate tasks, event_log")
    connection.execute(ENQUEUE_ALL, ([PAYLOAD] * count,))
    connection.execute("analyze tasks")


def check_status(connection: psycopg.Connection[Any], status: LiteralString, count: int) -> None:
    found = connection.execute("select status, count(*) from tasks group by status").fetchall()
    check(found == [(status, count)], f"floor: {count} tasks should be {status}, now: {found}")


def enqueueing(connection: psycopg.Connection[Any], tasks: int) -> Values:
    rates: Values = {}
    for count in (WARM_UP, tasks):
        connection.execute("truncate tasks")
        start = time.perf_counter()
        for _ in range(count):
            connection.execute(ENQUEUE, (PAYLOAD,))
        rates["enqueue_one"] = count / (time.perf_counter() - start)
    check_status(connection, "queued", tasks)
    connection.execute("truncate tasks")
    start = time.perf_counter()
    connection.execute(ENQUEUE_ALL, ([PAYLOAD] * 10 * tasks,))
    rates["enqueue_bulk"] = 10 * tasks / (time.perf_counter() - start)
    check_status(connection, "queued", 10 * tasks)
    return rates


def drain(conninfo: str, batch: int) -> tuple[int, int, float, float, float]:
    """Claim and finish until the queue is empty: tasks, statements, start, end, CPU; seconds."""
    done = statements = 0
    with psycopg.connect(conninfo, autocommit=True) as connection:
        cpu, start = time.process_time(), time.time()
        while True:
            claimed = connection.execute(CLAIM, (batch,)).fetchall()
            statements += 1
            if not claimed:
                return done, statements, start, time.time(), time.process_time() - cpu
            connection.execute(FINISH, ([id for id, _, _ in claimed],))
            statements += 1
            done += len(claimed)


def draining(connection: psycopg.Connection[Any], conninfo: str, tasks: int) -> Values:
    """Row by row, each result committed before the next task is claimed: as the lessons do."""
    fill(connection, tasks)
    before = wal(connection)
    done, statements, start, end, cpu = drain(conninfo, 1)
    check_status(connection, "succeeded", tasks)
    check(done == tasks, f"floor: {tasks} tasks, and {done} runs")
    return {
        "drain_1": tasks / (end - start),
        "task_statements": statements / tasks,
        "task_wal": (wal(connection) - before) / tasks,
        "task_cpu": cpu * 1000 / tasks,
    }


def draining_in_batches(connection: psycopg.Connection[Any], conninfo: str, tasks: int) -> Values:
    fill(connection, tasks)
    done, _, start, end, _ = drain(conninfo, BATCH)
    check_status(connection, "succeeded", tasks)
    check(done == tasks, f"floor: {tasks} tasks, and {done} runs")
    return {"drain_batch_1": tasks / (end - start)}


@contextmanager
def two_processes() -> Iterator[ProcessPoolExecutor]:
    context = get_context("spawn")
    with ProcessPoolExecutor(2, context, meet_at, (context.Barrier(2),)) as pool:
        yield pool


def meet_at(barrier: Any) -> None:
    """For a process of the pool: where it waits for the other one."""
    global meeting
    meeting = barrier


def drain_beside(conninfo: str, batch: int) -> tuple[int, int, float, float, float]:
    meeting.wait(60)
    return drain(conninfo, batch)


def by_two(
    connection: psycopg.Connection[Any],
    pool: ProcessPoolExecutor,
    conninfo: str,
    batch: int,
    tasks: int,
) -> float:
    """The rate of two processes, from the first's start to the last's end."""
    fill(connection, tasks)
    found = list(pool.map(drain_beside, [conninfo] * 2, [batch] * 2))
    check_status(connection, "succeeded", tasks)
    runs = sum(done for done, *_ in found)
    check(runs == tasks, f"floor: {tasks} tasks, and {runs} runs")
    return tasks / (max(f[3] for f in found) - min(f[2] for f in found))


def workflows(connection: psycopg.Connection[Any], count: int) -> Values:
    """Claim, ten inserts, finish: 12 statements, one connection."""
    fill(connection, count)
    before, cpu, start = wal(connection), time.process_time(), time.perf_counter()
    in_steps = 0.0
    for _ in range(count):
        ((id, _, _),) = connection.execute(CLAIM, (1,)).fetchall()
        first_step = time.perf_counter()
        for position in range(STEPS):
            connection.execute(RECORD, (id, position))
        in_steps += time.perf_counter() - first_step
        connection.execute(FINISH, ([id],))
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    wal_bytes = wal(connection) - before
    check_status(connection, "succeeded", count)
    entries = connection.execute("select count(*) from event_log").fetchall()[0][0]
    check(entries == count * STEPS, f"floor: {entries} log entries for {count} workflows")
    return {
        "workflows_10": count / seconds,
        "workflows_1": count / seconds,
        "step": in_steps * 1000 / (count * STEPS),
        "workflow_statements": STEPS + 2,
        "workflow_wal": wal_bytes / count,
        "workflow_cpu": cpu * 1000 / count,
    }


def pgbench() -> str | None:
    """The one that came with the embedded server, or the one on PATH; None if there is none."""
    if os.environ.get("DATABASE_URL"):
        return shutil.which("pgbench")
    from shared.embedded import Embedded

    return str(Embedded().wheel() / "pginstall/bin/pgbench")


def benching(
    connection: psycopg.Connection[Any], program: str, conninfo: str, clients: int, tasks: int
) -> Values:
    """A client in C that claims one and finishes one, prepared: the database without Python."""
    each = tasks // clients
    fill(connection, each * clients)
    script = ["--no-vacuum", "--protocol=prepared", f"--file={HERE / 'pgbench.sql'}"]
    load = [f"--client={clients}", "--jobs=2" if clients > 1 else "--jobs=1"]
    run = subprocess.run(
        [program, *script, *load, f"--transactions={each}", conninfo],
        capture_output=True,
        text=True,
        check=False,
    )
    rate = re.search(r"^tps = ([\d.]+)", run.stdout, re.MULTILINE)
    if run.returncode or not rate:
        check(False, f"pgbench: {run.stderr or run.stdout}")
        return {}
    check_status(connection, "succeeded", each * clients)
    return {f"pgbench_{clients}": float(rate[1])}
