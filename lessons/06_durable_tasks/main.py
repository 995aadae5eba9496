"""Lesson 06: durable tasks that spawn tasks, and wait without a slot. --help lists the verbs."""

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
from durable import replay, retry
from shared.database import Database, open_database
from shared.processes import wait_until, worker_processes
from shared.story import check, console, say, say_logs, scene
from tasks import BadInput, Json, enqueue, limit_queue, task
from worker import Worker

HERE = Path(__file__).resolve().parent


def story(db: Database) -> None:
    waiting_in_a_slot(db)
    killed_half_way(db)
    child_fails(db)
    many_waiting(db)
    cancel_and_replay(db)


def waiting_in_a_slot(db: Database) -> None:
    scene("Two tasks that wait for their children, on a worker with two slots; they keep the slots")
    give_up = threading.Event()

    @task
    def wait_in_the_slot(seconds: float) -> None:
        with db.autocommit.connect() as connection:
            child = enqueue(connection, "sleep", seconds)
        while status(db, child) != "succeeded" and not give_up.wait(0.05):
            pass

    for n in range(2):
        enqueue_one(db, "wait_in_the_slot", 0, empty=n == 0)
    with working(Worker(db, "a", slots=2)):
        wait_until(lambda: (count(db, "running"), count(db, "queued")) == (2, 2), "both wait")
        say("two tasks are running and wait; their children are queued, and there is no free slot")
        time.sleep(0.5)
        stuck = count(db, "queued") == 2
        give_up.set()
    check(stuck, "as feared: nothing goes on until somebody gives up")


def killed_half_way(db: Database) -> None:
    scene("An order: charge, reserve two items in parallel, confirm; the worker is killed half-way")
    app.outside.forget()
    order = {"id": 7, "items": ["book", "pen"], "die_at": "before: confirmation sent"}
    id = enqueue_one(db, "fulfil", order)
    with worker_processes(HERE, "a", options=SHORT_LEASE) as (worker,):
        wait_until(lambda: worker.exit_status is not None, "worker a is dead")
    say(f"worker a is dead ({worker.exit_status}), and the order is {status(db, id)}")
    with worker_processes(HERE, "b", options=SHORT_LEASE):
        wait_until(lambda: status(db, id) == "succeeded", "worker b has finished it")
    for entry in log_of(db, id):
        ended = f", the {ordinal(entry.completion)} child to end" if entry.completion else ""
        say(f"event log: {entry.position} {entry.kind} {entry.name} -> {entry.output}{ended}")
    check(effects("card charged") == 1, f"one charge; {get(db, id).output}")
    check(effects("reserved") == 2, "each item was reserved once")


def child_fails(db: Database) -> None:
    scene("A child fails for good: its parent gets the error, in every run the same")
    app.outside.forget()
    order = {"id": 8, "items": ["book", "unicorn"], "die_at": "before: card refunded"}
    id = enqueue_one(db, "fulfil", order)
    with worker_processes(HERE, "a", options=SHORT_LEASE) as (worker,):
        wait_until(lambda: worker.exit_status is not None, "worker a is dead")
    say("worker a is killed before the refund")
    with worker_processes(HERE, "b", options=SHORT_LEASE):
        wait_until(lambda: status(db, id) == "succeeded", "worker b has finished it")
    say(f"{get(db, id).output}")
    check(
        effects("card charged") == effects("card refunded") == 1, "charged once, and refunded once"
    )


def many_waiting(db: Database) -> None:
    scene("A thousand durable tasks that all wait, on one worker with ten slots")
    with db.engine.begin() as connection:
        connection.execute(sa.text("truncate tasks, workers, event_log"))
        limit_queue(connection, "default", 0)
        for _ in range(1000):
            enqueue(connection, "wait_for_a_nap", 0, queue="parents")
    with working(Worker(db, "a", queue="parents")), working(Worker(db, "b")):
        wait_until(lambda: count(db, "waiting") == 1000, "a thousand wait")
        say(f"{count(db, 'waiting')} are waiting, {count(db, 'running')} are running")
        check(count(db, "running") == 0, "not one holds a slot")
        with db.autocommit.connect() as connection:
            limit_queue(connection, "default", 1000)
        wait_until(lambda: count(db, "succeeded") == 2000, "all have ended")
    check(True, "their children may run now: all 1000 were woken, and have succeeded")


def cancel_and_replay(db: Database) -> None:
    scene("Cancel takes the children along; replay forgets the log")
    id = enqueue_one(db, "wait_for_a_nap", 60)
    with worker_processes(HERE, "a", options=(*SHORT_LEASE, "--grace", "0.1")):
        wait_until(lambda: (count(db, "waiting"), count(db, "running")) == (1, 1), "it waits")
        with db.autocommit.connect() as connection:
            Querier(connection).cancel_task(id=id)
        wait_until(lambda: count(db, "cancelled") == 2, "its child is cancelled as well")
    check(status(db, id) == "cancelled", "a cancelled task takes its children with it")
    app.outside.forget()
    id = enqueue_one(db, "fulfil", {"id": 9, "items": ["pen"]})
    with worker_processes(HERE, "a", options=SHORT_LEASE):
        wait_until(lambda: status(db, id) == "succeeded", "order 9 is fulfilled")
        with db.engine.begin() as connection:
            replay(connection, id)
        wait_until(lambda: status(db, id) == "succeeded", "order 9 is fulfilled again")
    check(effects("card charged") == 2, "a replay forgets the log: the card is charged again")


@contextmanager
def working(worker: Worker) -> Iterator[None]:
    """A worker in a thread of this process."""
    thread = threading.Thread(target=worker.run, daemon=True)
    thread.start()
    yield
    worker.stop()
    thread.join()


def ordinal(number: int) -> str:
    return {1: "first", 2: "second"}.get(number, f"{number}th")


def effects(what: str) -> int:
    return sum(f"{what}, key" in line for line in app.outside.effects())


SHORT_LEASE = ("--lease", "1")


def log_of(db: Database, id: int) -> list[LoadLogRow]:
    with db.autocommit.connect() as connection:
        return list(Querier(connection).load_log(task_id=id))


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


@main.command("retry")
@click.argument("id", type=int)
def retry_verb(id: int) -> None:
    """One more attempt for a failed task, which keeps its log."""
    with open_database(HERE) as db, db.engine.begin() as connection:
        try:
            retry(connection, id)
        except BadInput as error:
            raise click.ClickException(f"{error}; `status` shows the tasks") from None
    say(f"task {id} is queued, with its log")


@main.command("replay")
@click.argument("id", type=int)
def replay_verb(id: int) -> None:
    """Run a task that has ended once more, from an empty log."""
    with open_database(HERE) as db, db.engine.begin() as connection:
        try:
            replay(connection, id)
        except BadInput as error:
            raise click.ClickException(f"{error}; `status` shows the tasks") from None
    say(f"task {id} is queued, with an empty log")


@main.command("cancel")
@click.argument("id", type=int)
def cancel_verb(id: int) -> None:
    """End a task that has not ended, and its children."""
    with open_database(HERE) as db, db.autocommit.connect() as connection:
        if Querier(connection).cancel_task(id=id) == 0:
            raise click.ClickException(f"task {id} has ended; `status` shows the tasks")
    say(f"task {id} is cancelled")


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
