"""The same drain in a table that has grown, and what the claim reads there."""

from contextlib import suppress
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from psycopg.sql import SQL, Literal

from bench import jobs
from bench.floor import FLOOR
from bench.lesson import Bench, opened, plain
from bench.measures import BATCH, PAYLOAD, check

LONG = 5  # times as many tasks, in the drains that leave dead rows behind
CLAIMED = 10  # by the claim that is explained: as many as a worker has slots

FINISHED = """
insert into tasks (name, input, status, output, attempt)
select 'old', %s, 'succeeded', 'null', 1 from generate_series(1, %s)"""
WAITING = """
insert into tasks (name, input, status, run_at)
select 'later', %s, 'waiting', clock_timestamp() + interval '1 day' from generate_series(1, %s)"""


def grow(lesson: Path, tasks: int, full: bool) -> dict[str, Any]:
    """The rows of the two tables in docs/numbers.md."""
    cases: list[tuple[str, LiteralString, int]] = [
        ("nothing else", FINISHED, 0),
        ("10,000 finished", FINISHED, 10_000),
        ("100,000 finished", FINISHED, 100_000),
        ("100,000 waiting", WAITING, 100_000),
    ]
    if full:
        cases.append(("1,000,000 finished", FINISHED, 1_000_000))
        cases.append(("10,000,000 finished", FINISHED, 10_000_000))
    with opened(jobs.load(lesson)) as bench:
        with bench.workers("a", slots=slots(bench)):
            bench.drain("nothing", PAYLOAD, tasks)  # a warm-up
            found = [one_case(bench, title, query, rows, tasks) for title, query, rows in cases]
        long = [long_drain(bench, LONG * tasks, held=held) for held in (False, True)]
    with opened(FLOOR) as bench:
        long += [long_drain(bench, LONG * tasks, held=held) for held in (False, True)]
    return {
        "lesson": lesson.name,
        "tasks": tasks,
        "long_tasks": LONG * tasks,
        "cases": found,
        "long": long,
    }


def slots(bench: Bench) -> int:
    """As many as the engine is made for."""
    return 10 if 0 < bench.lesson.number < 14 else BATCH


def one_case(
    bench: Bench, title: str, query: LiteralString, rows: int, tasks: int
) -> dict[str, Any]:
    bench.empty()
    bench.watcher.execute(query, (PAYLOAD, rows))
    bench.watcher.execute("vacuum analyze tasks")  # as autovacuum leaves a table that has grown
    with suppress(psycopg.errors.InsufficientPrivilege):
        bench.watcher.execute("checkpoint")  # or the drain would wait for the disk to write it all
    seconds, _ = bench.drain("nothing", PAYLOAD, tasks)
    left = bench.ask("select count(*) from tasks where name <> 'nothing'")
    check(left == rows, f"{rows} other rows were there, and {left} are left")
    return {"title": title, "rate": tasks / seconds, **explain(bench)}


def explain(bench: Bench) -> dict[str, Any]:
    """What one claim reads right after a drain, with its dead rows still there; rolled back."""
    with bench.db.connect() as connection:
        connection.execute(
            "insert into tasks (name, input) select 'nothing', 'null' from generate_series(1, 100)"
        )
        plan = explain_claim(connection, bench.lesson.queries, CLAIMED)
        connection.rollback()
    read = [scan for scan in scans(plan) if scan.get("Relation Name") == "tasks"]
    return {
        "buffers": buffers(plan),
        "rows": round(sum(rows_read(scan) for scan in read)),
        "plan": ", ".join(f"{scan['Node Type']} {scan.get('Index Name', '')}" for scan in read),
    }


def explain_claim(
    connection: psycopg.Connection[Any],
    queries: Any,
    at_most: int,
    mode: LiteralString = "force_generic_plan",
) -> Any:
    """The plan of a claim."""
    worker = connection.execute(
        "insert into workers (name, alive_until) values ('explains', 'infinity') returning id"
    ).fetchall()[0][0]
    known: dict[str, Any] = {"worker_id": worker, "queue": "default", "limited": False}
    known |= {"at_most": at_most, "skip": 0, "durable_names": ["nothing"]}
    return explain_query(connection, queries, "claim_tasks", known, mode)


def explain_query(
    connection: psycopg.Connection[Any],
    queries: Any,
    query: str,
    values: dict[str, Any],
    mode: LiteralString,
) -> Any:
    """The plan of a query that is really carried out: as EXPLAIN (ANALYZE, BUFFERS) gives it.

    queries: the lesson's generated module; what is explained is its own text. mode: a generic plan
    is made without knowing the parameters. A worker gets one too, if Postgres finds it as good:
    psycopg prepares what is run often.
    """
    text, names = plain(queries, query, r"$\1")
    literals = SQL(", ").join(Literal(values[name]) for name in names)
    connection.execute(SQL("set local plan_cache_mode = {}").format(SQL(mode)))
    connection.execute(f"prepare the_query as {text}")
    explained = connection.execute(
        SQL("explain (analyze, buffers, format json) execute the_query({})").format(literals)
    ).fetchall()
    connection.execute("deallocate the_query")
    return explained[0][0][0]["Plan"]


def buffers(plan: Any) -> int:
    """Pages of 8 kB that were touched, in memory or not."""
    return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]


def scans(plan: Any) -> list[Any]:
    """The parts of a plan that read a table."""
    below = [scan for child in plan.get("Plans", []) for scan in scans(child)]
    return [plan, *below] if "Scan" in plan["Node Type"] else below


def rows_read(scan: Any) -> float:
    """Also those that were looked at and then not wanted."""
    return (scan["Actual Rows"] + scan.get("Rows Removed by Filter", 0)) * scan["Actual Loops"]


def long_drain(bench: Bench, tasks: int, *, held: bool) -> dict[str, Any]:
    """Is the last fifth as fast as the first? And how many dead rows does the drain leave?

    held: somebody else's transaction stays open meanwhile, so that no dead row can be removed.
    """
    bench.empty()
    bench.watcher.execute("vacuum analyze tasks")
    before = dead_rows(bench)
    with bench.db.connect() as other, bench.workers("a", slots=slots(bench)):
        if held:
            other.execute("set transaction isolation level repeatable read")
            other.execute("select from tasks")
        seconds, _ = bench.drain("nothing", PAYLOAD, tasks)
    title = "a transaction stays open" if held else "nothing else"
    found: dict[str, Any] = {
        "title": title,
        "rate": tasks / seconds,
        "first_fifth": "–",
        "last_fifth": "–",
        "dead": dead_rows(bench) - before,
    }
    if bench.lesson is FLOOR:  # its rows do not say when they were started
        return {**found, "title": f"the floor: {title}"}
    starts = sorted(s for (s,) in bench.watcher.execute("select started_at from tasks").fetchall())
    fifth = tasks // 5
    found["first_fifth"] = fifth / (starts[fifth] - starts[0]).total_seconds()
    found["last_fifth"] = fifth / (starts[-1] - starts[-1 - fifth]).total_seconds()
    return found


def dead_rows(bench: Bench) -> int:
    """As the server's statistics have it: the workers' backends report at their end."""
    return bench.ask("select n_dead_tup from pg_stat_user_tables where relid = 'tasks'::regclass")
