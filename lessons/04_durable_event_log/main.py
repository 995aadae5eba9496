"""Lesson 04: a task whose finished steps are never run again. --help lists the verbs."""

import json
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
import sqlalchemy as sa
from rich.table import Table
from rich.text import Text

import app
from db import models
from db.queries import LoadLogRow, Querier
from shared.database import Database, open_database
from shared.processes import wait_until, worker_processes
from shared.story import check, console, say, say_logs, scene
from tasks import BadInput, Json, enqueue, limit_queue
from worker import Worker

HERE = Path(__file__).resolve().parent


def story(db: Database) -> None:
    without_a_log(db)
    with_a_log(db)
    everywhere(db)
    declined_card(db)


def without_a_log(db: Database) -> None:
    scene("An order in three steps, as a task of lesson 03; the worker is killed at step 3")
    id = enqueue_order(db, "fulfil_without_a_log", die_at="before send_confirmation")
    let_workers_die(db, id)
    tell_effects()
    charged = effects("charge_card")
    check(len(charged) == 2, "as feared: the task has succeeded, and the card is charged twice")


def with_a_log(db: Database) -> None:
    scene("The same order as a durable task, and the same kill")
    id = enqueue_order(db, "fulfil", die_at="before send_confirmation")
    let_workers_die(db, id)
    tell_effects()
    for entry in log_of(db, id):
        say(f"event log: {entry.position} {entry.kind} {entry.name} -> {entry.output}")
    check(len(effects("charge_card")) == 1, "the card is charged once")
    check(get(db, id).output is not None, "and the order is fulfilled")


def everywhere(db: Database) -> None:
    scene("A kill at every place: before and after each effect")
    steps = ("charge_card", "reserve_items", "send_confirmation")
    places = [f"{when} {step}" for step in steps for when in ("before", "after")]
    app.outside.forget()
    ids = [
        enqueue_one(db, "fulfil", {"id": n, "die_at": place}, empty=n == 1)
        for n, place in enumerate(places, start=1)
    ]
    # One slot each, so that a worker takes one order with it; the last worker finishes them all.
    with worker_processes(HERE, *"abcdef", options=(*SHORT_LEASE, "--slots", "1")) as workers:
        wait_until(lambda: all(w.exit_status == -9 for w in workers), "six workers are dead")
    with worker_processes(HERE, "g", options=SHORT_LEASE):
        wait_until(lambda: all(status(db, id) == "succeeded" for id in ids), "six orders fulfilled")
    for n, place in enumerate(places, start=1):
        done = [line for line in app.outside.effects() if line.startswith(f"order {n}: ")]
        times = [sum(f": {step}," in line for line in done) for step in steps]
        keys = len({line.rpartition(" ")[2] for line in done if ", key " in line})
        say(f"killed {place:24} effects: {times}, keys: {keys}")
        again = [1 + (place == f"after {step}") for step in steps]
        if times != again or keys != 3:
            check(False, f"expected {again} effects with 3 keys")
    check(True, "a recorded step is never done again; one that was not yet recorded is")
    say("Both tries of a step have the same key: by it, and by nothing else, the bank can tell")


def declined_card(db: Database) -> None:
    scene("A step that fails is recorded too, and the function goes on from its error")
    id = enqueue_order(db, "fulfil_or_cancel", die_at="after cancel_order")
    let_workers_die(db, id)
    tell_effects()
    check(len(effects("charge_declined_card")) == 1, "the card was tried once, in two runs")
    check(get(db, id).output == "cancelled: NonRetryableError", "both runs saw the same error")


def enqueue_order(db: Database, name: str, die_at: str) -> int:
    app.outside.forget()
    return enqueue_one(db, name, {"id": 7, "die_at": die_at})


def let_workers_die(db: Database, id: int) -> None:
    """One worker, which dies where the order says, and then another."""
    with worker_processes(HERE, "a", options=SHORT_LEASE) as (worker,):
        wait_until(lambda: worker.exit_status is not None, "worker a is dead")
        say(f"worker a is dead ({worker.exit_status}), and the task is {status(db, id)}")
    with worker_processes(HERE, "b", options=SHORT_LEASE):
        wait_until(lambda: status(db, id) == "succeeded", "worker b has finished it")
    say(f"worker b has finished it, in attempt {get(db, id).attempt}")


def tell_effects() -> None:
    for line in app.outside.effects():
        say(f"outside: {line}")


def effects(step: str) -> list[str]:
    return [line for line in app.outside.effects() if f": {step}," in line]


def log_of(db: Database, id: int) -> list[LoadLogRow]:
    with db.autocommit.connect() as connection:
        return list(Querier(connection).load_log(task_id=id))


SHORT_LEASE = ("--lease", "1")


def enqueue_one(db: Database, name: str, input: Json, *, empty: bool = True, **options: Any) -> int:
    """Into an empty queue, unless told otherwise."""
    with db.engine.begin() as connection:
        if empty:
            connection.execute(sa.text("truncate tasks, workers, event_log"))
        return enqueue(connection, name, input, **options)


def get(db: Database, id: int) -> models.Task:
    with db.autocommit.connect() as connection:
        task = Querier(connection).get_task(id=id)
        assert task is not None
        return task


def status(db: Database, id: int) -> str:
    return get(db, id).status


def count(db: Database, *statuses: str) -> int:
    with db.autocommit.connect() as connection:
        counts = Querier(connection).count_tasks()
        return sum(row.tasks for row in counts if row.status in statuses)


# The verbs: the same in every lesson, to play every part by hand in several terminals.

DURATION = click.FloatRange(0.1, 1e6)  # seconds


@click.group(invoke_without_command=True)
@click.pass_context
def main(context: click.Context) -> None:
    """Without a verb: the story of this lesson, on fresh tables."""
    if context.invoked_subcommand is None:
        with open_database(HERE, reset=True) as db:
            story(db)


@main.command("worker")
@click.option("--name", default="by-hand", help="what the worker calls itself in what it prints")
@click.option("--queue", default="default", help="the queue from which it takes tasks")
@click.option("--slots", default=10, help="how many tasks it runs side by side")
@click.option("--lease", default=10.0, type=DURATION, help="seconds of silence until it is dead")
@click.option("--grace", default=30.0, type=DURATION, help="seconds for running tasks at the end")
def worker_verb(name: str, queue: str, slots: int, lease: float, grace: float) -> None:
    """Run tasks until Ctrl-C; a second Ctrl-C does not wait for those that are running."""
    say_logs()
    with open_database(HERE) as db:
        try:
            worker = Worker(
                db,
                name,
                queue=queue,
                slots=slots,
                lease=timedelta(seconds=lease),
                grace=timedelta(seconds=grace),
            )
        except BadInput as error:
            raise click.ClickException(str(error)) from None

        def stop(*_: object) -> None:
            worker.stop()

        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGTERM, stop)
        worker.run()


@main.command("enqueue")
@click.argument("name")
@click.argument("input", default="null")
@click.option("--queue", default="default", help="the queue into which it goes")
@click.option("--priority", default=0, help="higher goes first")
@click.option("--delay", type=DURATION, help="seconds until it may run")
@click.option("--timeout", type=DURATION, help="seconds that an attempt may take")
@click.option("--max-attempts", default=5, help="how often it is tried")
@click.option("--key", "idempotency_key", help="a second task with this key is not enqueued")
def enqueue_verb(
    name: str, input: str, delay: float | None, timeout: float | None, **options: Any
) -> None:
    """Put one task into the queue: enqueue send_receipt 7, enqueue divide '[6, 3]'."""
    with open_database(HERE) as db, db.autocommit.connect() as connection:
        try:
            id = enqueue(
                connection,
                name,
                json.loads(input),
                delay=None if delay is None else timedelta(seconds=delay),
                timeout=None if timeout is None else timedelta(seconds=timeout),
                **options,
            )
        except ValueError as error:  # BadInput is one; so is what json.loads raises
            raise click.ClickException(f"{error}\nThe input is JSON, in quotes: '[6, 3]'") from None
        say(f"task {id} is queued")


@main.command("limit")
@click.argument("max_running", type=int)
@click.option("--queue", default="default", help="the queue that is limited")
def limit_verb(max_running: int, queue: str) -> None:
    """Let at most so many tasks of a queue run at once; 0 pauses it."""
    with open_database(HERE) as db, db.autocommit.connect() as connection:
        try:
            limit_queue(connection, queue, max_running)
        except BadInput as error:
            raise click.ClickException(str(error)) from None
        say(f"queue {queue}: at most {max_running} tasks at once")


@main.command("status")
def status_verb() -> None:
    """Show how many tasks there are in each status, and the newest ones."""
    with open_database(HERE) as db, db.autocommit.connect() as connection:
        queue = Querier(connection)
        table = Table("id", "task", "status", "attempt", "output or error")
        for task in queue.list_tasks(at_most=10):
            call = f"{task.name}({task.input})"
            attempt = f"{task.attempt} of {task.max_attempts}"
            table.add_row(str(task.id), Text(call), task.status, attempt, Text(task.outcome))
        console.print(table)
        console.print(", ".join(f"{row.tasks} {row.status}" for row in queue.count_tasks()))
        workers = [f"{worker.name} ({worker.id})" for worker in queue.list_workers()]
        console.print(f"workers: {', '.join(workers) or 'none'}")


if __name__ == "__main__":
    main()
