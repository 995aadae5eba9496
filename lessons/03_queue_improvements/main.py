"""Lesson 03: a queue that survives its workers. --help lists the verbs."""

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

import app
from claim import limit_queue
from db.queries import Querier
from inputs import BadInput, Json
from shared.database import Database
from shared.processes import SHORT_LEASE, wait_until, worker_processes
from shared.story import check, count, feared, get, say, scene, status
from shared.verbs import verbs
from tasks import enqueue
from timing import Timing
from worker import Worker

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
                worker_id=worker_id, queue="default", at_most=1, skip=0, limited=False
            ):
                say(f"worker {name} claims the task: attempt {task.attempt}")
            if name == "slow":
                say("worker slow stands still for longer than its lease, and is taken for dead")
                list(queue.bury_workers(worker_id=0))
                list(queue.take_back_tasks(at_most=1, skip=0))
        slow = connection.execute(sa.text(NO_FENCE), {"id": id, "output": '"slow"'}).rowcount
        say(f"worker slow wakes up and stores its result: {slow} row changed")
        quick = connection.execute(sa.text(NO_FENCE), {"id": id, "output": '"quick"'}).rowcount
        say(f"worker quick stores its result: {quick} rows changed")
    feared(get(db, id).output == "slow", "as feared: the void attempt 1 has ended attempt 2")


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
            say("worker slow goes on, ends, and is refused: 'not running in attempt 1 any more'")
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
                worker_id=worker_id, queue="default", at_most=1, skip=0, limited=False
            ):
                connection.execute(sa.text(PUT_BACK), {"id": task.id})
    say(f"100 claims: {get(db, bad).attempt} of the poison task, and the one behind it is queued")
    feared(get(db, behind).attempt == 0, "as feared: it is tried for ever, and others wait")


PUT_BACK = "update tasks set status = 'queued' where id = :id"


def tries_again(db: Database) -> None:
    scene("What failed is tried again later, and not for ever")
    waits = ", ".join(f"{Timing().backoff(n).total_seconds():.2f}" for n in (1, 2, 3, 4))
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
    scene("A task that does not end")
    endless = enqueue_one(db, "sleep", 1.3, timeout=timedelta(seconds=0.2), max_attempts=1)
    with worker_processes(HERE, "a", options=("--slots", "1")) as (worker,):
        wait_until(lambda: count(db, "queued", "running") == 0, "it has timed out")
        say(f"{get(db, endless).error}")
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


def graceful_stop(db: Database) -> None:
    scene("A worker is asked to stop")
    short = enqueue_one(db, "sleep", 2)
    long = enqueue_one(db, "sleep", 60, empty=False)
    options = (*SHORT_LEASE, "--grace", "2.5")
    with (
        worker_processes(HERE, "b", options=("--queue", "other")),  # buries, but claims nothing
        worker_processes(HERE, "a", options=options) as (worker,),
    ):
        wait_until(lambda: count(db, "running") == 2, "worker a runs two tasks")
        worker.stop()
    say(f"SIGTERM; the task of 2 s, which is longer than the lease: {status(db, short)}")
    with db.autocommit.connect() as connection:
        # Any other worker does so at once.
        list(Querier(connection).take_back_tasks(at_most=2, skip=0))
    say(f"the task of 60 s, abandoned after the grace period of 2.5 s: {status(db, long)}")
    check(status(db, short) == "succeeded", "while it drained, nobody took the worker for dead")
    check(status(db, long) == "queued", "what it could not finish is there for another worker")
    with db.engine.begin() as connection:
        connection.execute(sa.text("truncate tasks, workers"))


def enqueue_one(db: Database, name: str, input: Json, *, empty: bool = True, **options: Any) -> int:
    """Into an empty queue, unless told otherwise."""
    with db.engine.begin() as connection:
        if empty:
            connection.execute(sa.text("truncate tasks, workers"))
        return enqueue(connection, name, input, **options)


main = verbs(HERE, story, Worker, enqueue, Querier, limit=limit_queue)

if __name__ == "__main__":
    main()
