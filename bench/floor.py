"""What the database itself allows: the same work in the fewest statements, and by pgbench."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from multiprocessing import get_context
from pathlib import Path
from typing import Any, LiteralString, NamedTuple

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
        found |= workflows(connection, sizes.workflows)
        if program := pgbench():
            for clients in (1, 16):
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
    for key, transaction in (
        ("enqueue_one", nullcontext),
        ("enqueue_transaction", connection.transaction),
    ):
        for count in (WARM_UP, tasks):
            connection.execute("truncate tasks")
            start = time.perf_counter()
            with transaction():
                for _ in range(count):
                    connection.execute(ENQUEUE, (PAYLOAD,))
            rates[key] = count / (time.perf_counter() - start)
        check_status(connection, "queued", tasks)
    connection.execute("truncate tasks")
    start = time.perf_counter()
    connection.execute(ENQUEUE_ALL, ([PAYLOAD] * 10 * tasks,))
    rates["enqueue_bulk"] = 10 * tasks / (time.perf_counter() - start)
    check_status(connection, "queued", 10 * tasks)
    return rates


class Drained(NamedTuple):
    """What one process did: start and end by the clock, and CPU, in seconds."""

    tasks: int
    statements: int
    start: float
    end: float
    cpu: float


def drain(conninfo: str, batch: int) -> Drained:
    """Claim and finish until the queue is empty. Each result is committed before the next claim."""
    done = statements = 0
    with psycopg.connect(conninfo, autocommit=True) as connection:
        cpu, start = time.process_time(), time.time()
        while claimed := connection.execute(CLAIM, (batch,)).fetchall():
            connection.execute(FINISH, ([id for id, _, _ in claimed],))
            statements += 2
            done += len(claimed)
        return Drained(done, statements + 1, start, time.time(), time.process_time() - cpu)


def draining(connection: psycopg.Connection[Any], conninfo: str, tasks: int) -> Values:
    def rate(batch: int, count: int, processes: ProcessPoolExecutor | None = None) -> Values:
        fill(connection, count)
        before = wal(connection)
        found = (
            list(processes.map(drain_beside, [conninfo] * 2, [batch] * 2))
            if processes
            else [drain(conninfo, batch)]
        )
        wal_bytes = wal(connection) - before
        check_status(connection, "succeeded", count)
        runs = sum(drained.tasks for drained in found)
        check(runs == count, f"floor: {count} tasks, and {runs} runs")
        seconds = max(drained.end for drained in found) - min(drained.start for drained in found)
        return {
            "rate": count / seconds,
            "statements": sum(drained.statements for drained in found) / count,
            "wal": wal_bytes / count,
            "cpu": sum(drained.cpu for drained in found) * 1000 / count,
        }

    one, batches = rate(1, tasks), rate(BATCH, 10 * tasks)
    context = get_context("spawn")
    with ProcessPoolExecutor(2, context, meet_at, (context.Barrier(2),)) as pool:
        two, two_batches = rate(1, tasks, pool), rate(BATCH, 10 * tasks, pool)
    return {
        "drain_1": one.pop("rate"),
        "drain_2": two["rate"],
        "drain_batch_1": batches["rate"],
        "drain_batch_2": two_batches["rate"],
        **{f"task_{key}": value for key, value in one.items()},
    }


def meet_at(barrier: Any) -> None:
    """In a process of the pool: where it waits for the other one before each drain."""
    global meeting
    meeting = barrier


def drain_beside(conninfo: str, batch: int) -> Drained:
    meeting.wait(60)
    return drain(conninfo, batch)


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
