"""What the database itself allows: the same work in the fewest statements, and by pgbench."""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import psycopg
import sqlalchemy as sa

from bench import jobs, pgbench
from bench.lesson import (
    Bench,
    crowding,
    draining,
    enqueueing,
    enqueueing_many,
    opened,
    stepping,
    workflows,
)
from bench.measures import BATCH, PAYLOAD, Sizes, Values
from shared.database import open_database

HERE = Path(__file__).resolve().parent
PAUSE = 0.002  # seconds between two looks into an empty queue

ENQUEUE = "insert into tasks (name, input) values (%s, %s) returning id"
ENQUEUE_MANY = """
insert into tasks (name, input)
select %s, input from json_array_elements(cast(%s as json)) as input returning id"""
CLAIM = """
update tasks set status = 'running' where id = any (array(
    select id from tasks where status = 'queued' order by id limit %s for update skip locked
)) returning id, name, input"""
FINISH = "update tasks set status = 'succeeded', output = %s where id = any (%s)"
RECORD = """
insert into event_log (task_id, position, name, input, output)
values (%s, %s, 'step', '[[1], {}]', '1')"""
RECORD_MANY = """
insert into event_log (task_id, position, name, input, output)
select task_id, %s, 'step', '[[1], {}]', '1' from generate_series(2, 1 + %s) as task_id"""


def enqueue(connection: sa.Connection, name: str, input: Any) -> int:
    cursor = connection.connection.cursor()  # psycopg's own
    cursor.execute(ENQUEUE, (name, json.dumps(input)))
    row: Any = cursor.fetchone()
    return row[0]


def enqueue_many(connection: sa.Connection, name: str, inputs: list[Any]) -> list[int]:
    cursor = connection.connection.cursor()
    cursor.execute(ENQUEUE_MANY, (name, json.dumps(inputs)))
    rows: Any = cursor.fetchall()
    return [id for (id,) in rows]


@click.command()
@click.argument("verb")
@click.option("--name")
@click.option("--slots", type=int)
def main(verb: str, name: str, slots: int) -> None:  # noqa: ARG001
    """Claim as many as there are slots, finish them, and again, until it is killed."""
    with open_database(HERE) as db, db.connect(autocommit=True) as connection:
        print(f"worker {name}: started", flush=True)
        while True:
            claimed = connection.execute(CLAIM, (slots,)).fetchall()
            if not claimed:
                time.sleep(PAUSE)
                continue
            outputs = [run(connection, *task) for task in claimed]
            connection.execute(FINISH, (outputs[0], [id for id, _, _ in claimed]))
            jobs.statements.add(2)


def run(connection: psycopg.Connection[Any], id: int, name: str, input: Any) -> str:
    """`nothing`, or the steps of a workflow: its output is the seconds that they took."""
    if name == "nothing":
        jobs.runs.add()
        return "null"
    start = time.perf_counter()
    for position in range(input):
        connection.execute(RECORD, (id, position))
    jobs.statements.add(input)
    jobs.runs.add(input)
    return str(time.perf_counter() - start)


# To be measured like a lesson.
FLOOR = SimpleNamespace(
    path=HERE,
    number=0,
    tasks=SimpleNamespace(enqueue=enqueue),
    bulk=SimpleNamespace(enqueue_many=enqueue_many),
    main=SimpleNamespace(main=main),
)


def one_round(sizes: Sizes) -> Values:
    with opened(FLOOR) as bench:
        found = enqueueing(bench, sizes)
        with bench.workers("a", slots=1) as workers:
            found |= draining(bench, workers, "drain_1", sizes.tasks)
            found |= workflows(bench, workers, "workflows_10", sizes.workflows)
        with bench.workers("a", "b", slots=1) as workers:
            found |= draining(bench, workers, "drain_2", sizes.tasks)
        for n, names in ((1, "a"), (2, "ab")):
            with bench.workers(*names, slots=BATCH) as workers:
                found |= draining(bench, workers, f"drain_batch_{n}", sizes.many_tasks)
            found |= {f"drain_many_{n}": found[f"drain_batch_{n}"]}
        with bench.workers("a", slots=BATCH) as workers:
            found |= workflows(bench, workers, "workflows_many", sizes.many_workflows)
        found |= enqueueing_many(bench, sizes)
        found |= stepping(bench, sizes)
        if program := pgbench.program():
            found |= crowding(bench, program, sizes)
            for clients in (1, 16):
                found |= benching(bench, program, clients, sizes.tasks)
    return found


def benching(bench: Bench, program: str, clients: int, tasks: int) -> Values:
    """A client in C that claims one and finishes one, prepared: the database without Python."""
    each = tasks // clients
    bench.empty()
    bench.fill("nothing", PAYLOAD, each * clients)
    rate = pgbench.rate(program, bench.db.conninfo, "drain.sql", clients, each)
    bench.check_drained("nothing", each * clients)
    return {f"pgbench_{clients}": rate}
