"""Lesson 03: a queue that survives its workers. --help lists the verbs."""

import json
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
import sqlalchemy as sa
from rich.table import Table
from rich.text import Text

import app
from db import models
from db.queries import Querier
from shared.database import Database, open_database
from shared.processes import wait_until, worker_processes
from shared.story import check, console, say, say_logs, scene
from tasks import BadInput, Json, enqueue, enqueue_many, limit_queue
from worker import Worker, backoff

HERE = Path(__file__).resolve().parent


def story(db: Database) -> None:
    stuck_row(db)
    zombie_without_a_fence(db)
    zombie_with_a_fence(db)
    poison(db)
    tries_again(db)
    takes_too_long(db)
    order_and_delay(db)
    same_key(db)
    many_at_once(db)
    graceful_stop(db)


def stuck_row(db: Database) -> None:
    scene("A worker is killed in the middle of a task")
    app.outside.forget()
    id = enqueue_one(db, "slow_once", "report")
    with worker_processes(HERE, "a", options=SHORT_LEASE) as (worker,):
        wait_until(lambda: len(app.outside.effects()) == 1, "worker a runs the task")
        worker.kill()
    say(f"kill -9 of worker a; the task is {status(db, id)}, as in lesson 01")
    died = time.monotonic()
    with worker_processes(HERE, "b"):
        wait_until(lambda: status(db, id) == "succeeded", "worker b took the task over")
    seconds = time.monotonic() - died
    say(f"worker b has buried a and run attempt {get(db, id).attempt}, {seconds:.1f} s later")
    check(get(db, id).attempt == 2, "what a dead worker ran is run by another; its lease was 1 s")


def zombie_without_a_fence(db: Database) -> None:
    scene("A worker is not dead, only slow: without a fence")
    id = enqueue_one(db, "sleep", 0)
    with db.autocommit.connect() as connection:
        queue = Querier(connection)
        for name in ("slow", "quick"):
            worker_id = queue.register_worker(name=name, lease=timedelta(0)) or 0
            for task in queue.claim_tasks(
                worker_id=worker_id, queue="default", at_most=1, limited=False
            ):
                say(f"worker {name} claims the task: attempt {task.attempt}")
            if name == "slow":
                say("worker slow stands still for longer than its lease, and is taken for dead")
                list(queue.bury_workers())
                list(queue.take_back_tasks())
        slow = connection.execute(sa.text(NO_FENCE), {"id": id, "output": '"slow"'}).rowcount
        say(f"worker slow wakes up and stores its result: {slow} row changed")
        quick = connection.execute(sa.text(NO_FENCE), {"id": id, "output": '"quick"'}).rowcount
        say(f"worker quick stores its result: {quick} rows changed")
    check(get(db, id).output == "slow", "as feared: the void attempt 1 has ended attempt 2")


NO_FENCE = """
update tasks set status = 'succeeded', output = cast(:output as json), error = null
where id = :id and status = 'running'
"""


def zombie_with_a_fence(db: Database) -> None:
    scene("The same with the fence, and two processes: SIGSTOP, and SIGCONT after the lease")
    id = enqueue_one(db, "sleep", 0.7)
    with worker_processes(HERE, "slow", options=SHORT_LEASE) as (slow,):
        wait_until(lambda: status(db, id) == "running", "worker slow runs the task")
        slow.pause()
        say("worker slow is stopped in the middle of attempt 1")
        with worker_processes(HERE, "quick"):
            wait_until(lambda: get(db, id).attempt == 2, "worker quick has taken over")
            say("worker quick has buried it, and runs attempt 2")
            slow.resume()
            wait_until(lambda: "void" in slow.output(), "worker slow has noticed")
            say("worker slow goes on, finishes, and is refused: 'not ours any more: void'")
            wait_until(lambda: status(db, id) == "succeeded", "worker quick is done")
    check(get(db, id).attempt == 2, "the result is that of attempt 2")


def poison(db: Database) -> None:
    scene("A task that can only fail, and a queue that puts it back each time")
    bad = enqueue_one(db, "hopeless", None)
    behind = enqueue_one(db, "divide", [6, 3], empty=False)
    with db.autocommit.connect() as connection:
        queue = Querier(connection)
        worker_id = queue.register_worker(name="naive", lease=timedelta(minutes=1)) or 0
        for _ in range(100):
            for task in queue.claim_tasks(
                worker_id=worker_id, queue="default", at_most=1, limited=False
            ):
                connection.execute(sa.text(PUT_BACK), {"id": task.id})
    say(f"100 claims: {get(db, bad).attempt} of the poison task, and the one behind it is queued")
    check(get(db, behind).attempt == 0, "as feared: it is tried for ever, and others wait")


PUT_BACK = "update tasks set status = 'queued' where id = :id"


def tries_again(db: Database) -> None:
    scene("What failed is tried again later, and not for ever")
    waits = ", ".join(f"{backoff(attempt).total_seconds():.2f}" for attempt in (1, 2, 3, 4))
    say(f"for example after {waits} s; at most after 1, 2, 4, 8 s")
    app.outside.forget()
    flaky = enqueue_one(db, "flaky", 1)
    broken = enqueue_one(db, "flaky", 99, max_attempts=2, empty=False)
    hopeless = enqueue_one(db, "hopeless", None, empty=False)
    with worker_processes(HERE, "a"):
        wait_until(lambda: count(db, "queued", "running", "waiting") == 0, "all have ended")
    for id in (flaky, broken, hopeless):
        task = get(db, id)
        end = task.error or task.output
        say(f"attempt {task.attempt} of {task.max_attempts}: {task.status}, {end}")
    check(status(db, flaky) == "succeeded", "the second attempt succeeded")
    check(get(db, broken).attempt == 2, "the largest number of attempts ends it")
    check(get(db, hopeless).attempt == 1, "NonRetryableError ends it at once")


def takes_too_long(db: Database) -> None:
    scene("A task that does not end, and one behind it that is wanted soon or never")
    soon = timedelta(seconds=0.2)
    endless = enqueue_one(db, "sleep", 1.3, timeout=soon, max_attempts=1)
    late = enqueue_one(db, "sleep", 0, start_timeout=soon, empty=False)
    with worker_processes(HERE, "a", options=("--slots", "1")) as (worker,):
        wait_until(lambda: count(db, "queued", "running") == 0, "both have timed out")
        say(f"the endless one: {get(db, endless).error}")
        say(f"the one behind it: {get(db, late).error}")
        wait_until(lambda: "void" in worker.output(), "the endless task has ended")
    say("Python cannot stop a thread: the slot was busy to the end, and the result was refused")
    check(status(db, endless) == "failed", "a late result does not undo a timeout")


def order_and_delay(db: Database) -> None:
    scene("Priority and delay")
    app.outside.forget()
    with worker_processes(HERE, "a", options=("--slots", "1")):
        with db.engine.begin() as connection:  # all three become visible at once
            connection.execute(sa.text("truncate tasks"))
            for order, priority, delay in ((1, 0, 0), (2, 10, 0), (3, 20, 0.4)):
                later = timedelta(seconds=delay) if delay else None
                enqueue(connection, "send_receipt", order, priority=priority, delay=later)
        wait_until(lambda: count(db, "succeeded") == 3, "three receipts sent")
    sent = [line.split()[1] for line in app.outside.effects()]
    say(f"sent in the order {', '.join(sent)}; their priorities are 10, 0, 20, and 3 is delayed")
    check(sent == ["2", "1", "3"], "higher goes first, and nothing goes before its time")


def same_key(db: Database) -> None:
    scene("One order, two clicks: the idempotency key")
    first = enqueue_one(db, "send_receipt", 7, idempotency_key="order 7")
    second = enqueue_one(db, "send_receipt", 7, idempotency_key="order 7", empty=False)
    say(f"{count(db, 'queued')} task is queued")
    check(first == second, "the second enqueue returns the task of the first")
    try:
        enqueue_one(db, "send_receipt", 8, idempotency_key="order 7", empty=False)
    except BadInput as error:
        say(f"another order, refused: {str(error).partition(':')[0]}")


def many_at_once(db: Database) -> None:
    scene("A thousand receipts: as many statements, or one")
    orders = range(1000)
    start = time.monotonic()
    with db.autocommit.connect() as connection:
        for order in orders:
            enqueue(connection, "send_receipt", order)
    commits = time.monotonic()
    with db.engine.begin() as connection:
        for order in orders:
            enqueue(connection, "send_receipt", order)
    statements = time.monotonic()
    with db.engine.begin() as connection:
        ids = enqueue_many(connection, "send_receipt", orders)
    end = time.monotonic()
    say(f"a statement and a commit for each: {commits - start:.3f} s")
    say(f"a statement for each, one commit: {statements - commits:.3f} s")
    say(f"one statement: {end - statements:.3f} s")
    inputs = [get(db, id).input for id in (ids[0], ids[500], ids[999])]
    check(inputs == [0, 500, 999], "the ids are in the order of the inputs")


def graceful_stop(db: Database) -> None:
    scene("A worker is asked to stop")
    short = enqueue_one(db, "sleep", 1.2)
    long = enqueue_one(db, "sleep", 60, empty=False)
    with worker_processes(HERE, "a", options=(*SHORT_LEASE, "--grace", "1.7")) as (worker,):
        wait_until(lambda: count(db, "running") == 2, "worker a runs two tasks")
        worker.stop()
    say(f"SIGTERM; the task of 1.2 s, which is longer than the lease: {status(db, short)}")
    with db.autocommit.connect() as connection:
        list(Querier(connection).take_back_tasks())  # any other worker does so at once
    say(f"the task of 60 s, abandoned after the grace period of 1.7 s: {status(db, long)}")
    check(get(db, short).attempt == 1, "while it drained, nobody took the worker for dead")
    check(status(db, long) == "queued", "what it could not finish is there for another worker")
    with db.engine.begin() as connection:
        connection.execute(sa.text("truncate tasks, workers"))


SHORT_LEASE = ("--lease", "1")


def enqueue_one(db: Database, name: str, input: Json, *, empty: bool = True, **options: Any) -> int:
    """Into an empty queue, unless told otherwise."""
    with db.engine.begin() as connection:
        if empty:
            connection.execute(sa.text("truncate tasks, workers"))
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
