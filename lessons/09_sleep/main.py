"""Lesson 09: durable sleep: to wait for a moment holds no slot. --help lists the verbs."""

import statistics
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa

import app
from claim import limit_queue
from control import cancel, fork, replay, retry
from db.queries import Querier
from inputs import Json
from listen import wait_for_result
from shared.database import Database
from shared.processes import SHORT_LEASE, wait_until, worker_processes, working
from shared.story import check, count, feared, get, log_of, say, scene, status
from shared.verbs import verbs
from tasks import enqueue
from worker import Worker

HERE = Path(__file__).resolve().parent
SLEEPERS = 40


def story(db: Database) -> None:
    napping(db)
    a_moment_of_each_run(db)
    many_asleep(db)
    woken_elsewhere(db)
    timed_out(db)


def napping(db: Database) -> None:
    scene("Two orders sleep for 1.2 s in a step, as in lesson 08; the worker has two slots")
    forget(db)
    for order in (1, 2):
        enqueue_one(db, "ask_after_a_step", {"id": order, "wait": 1.2})
    with worker_processes(HERE, "a", options=(*SHORT_LEASE, "--slots", "2")) as (a,):
        wait_until(lambda: effects("nap begun") == 2, "both sleep")
        receipt = enqueue_one(db, "send_receipt", 3)
        time.sleep(0.6)
        say(f"a receipt that came 0.6 s ago is {status(db, receipt)}: both slots are asleep")
        a.kill()
        say("kill -9 of the worker, half-way")
    with worker_processes(HERE, "b", options=(*SHORT_LEASE, "--slots", "2")):
        wait_until(lambda: count(db, "succeeded") == 3, "all have ended")
    feared(effects("nap begun") == 4, "on the next worker they sleep from the beginning")


def a_moment_of_each_run(db: Database) -> None:
    scene("An order sleeps until 0.3 s from now, by the clock of whoever runs it")
    forget(db)
    id = enqueue_one(db, "ask_by_my_clock", {"id": 4, "wait": 0.3})
    with working(Worker(db, "a")):
        wait_until(lambda: status(db, id) == "failed", "the task has failed")
    first, *_, moments = get(db, id).error.splitlines()[:5]
    say(f"{first}\n{moments}")
    feared(effects("review asked for") == 0, "the run that wakes asks for a different moment")


def many_asleep(db: Database) -> None:
    scene(f"{SLEEPERS} orders sleep, each a little longer; the worker has two slots")
    forget(db)
    for n in range(SLEEPERS):
        enqueue_one(db, "ask_for_review", {"id": n, "wait": 1.4 + n / 50})
    with working(Worker(db, "a", slots=2)):
        wait_until(lambda: len(milliseconds_late(db)) == SLEEPERS, "each has begun to sleep")
        receipt = enqueue_one(db, "send_receipt", 5)
        wait_until(lambda: status(db, receipt) == "succeeded", "the receipt is sent")
        asleep = count(db, "waiting")
        say(f"{asleep} orders sleep, and a receipt has been sent")
        check(asleep > 2, "a sleeper holds no slot")
        wait_until(lambda: count(db, "succeeded") == SLEEPERS + 1, "all have woken")
    late = milliseconds_late(db)
    say(f"from the recorded moment to the next run: {statistics.median(late):.0f} ms in the median")
    check(min(late) >= 0, "nobody was woken early")


def woken_elsewhere(db: Database) -> None:
    scene("kill -9 of the worker on which an order fell asleep, for 2 s")
    forget(db)
    id = enqueue_one(db, "ask_for_review", {"id": 6, "wait": 2})
    with worker_processes(HERE, "a", options=SHORT_LEASE) as (a,):
        wait_until(lambda: status(db, id) == "waiting", "the order sleeps")
        recorded = log_of(db, id)[1].due_at
        a.kill()
        say("worker a is gone; nobody has to notice")
    with worker_processes(HERE, "b", options=SHORT_LEASE):
        wait_until(lambda: status(db, id) == "succeeded", "the order has woken")
    (late,) = milliseconds_late(db)
    say(f"worker b has run it {late:.0f} ms after the moment that worker a recorded")
    check(log_of(db, id)[1].due_at == recorded and late >= 0, "it has slept once, and long enough")
    check(effects("confirmation sent") == 1, "and what came before was not done again")


def timed_out(db: Database) -> None:
    scene("A carrier has 0.5 s to make an offer, and takes 2 s")
    forget(db)
    id = enqueue_one(db, "book_van", {"id": 7, "patience": 0.5, "answers_after": 2})
    with worker_processes(HERE, "a", options=SHORT_LEASE) as (a,):
        wait_until(lambda: effects("booked the usual van") == 1, "the order is booked")
        wait_until(lambda: status(db, id) != "running", "its run has ended")
        in_time = log_of(db, id)[0].completion is None
        check(in_time, "0.5 s are over, the usual van is booked, and there is no offer yet")
        a.kill()
        say("kill -9 of the worker")
    with worker_processes(HERE, "b", options=SHORT_LEASE):
        wait_until(lambda: status(db, id) in ("succeeded", "failed"), "the order has ended")
    say(f"on worker b: {get(db, id).output or get(db, id).error.partition(chr(10))[0]}")
    offer, timeout, *_ = log_of(db, id)
    say(f"in the log, the timeout is completion {timeout.completion}, the offer {offer.completion}")
    check(
        status(db, id) == "succeeded" and effects("booked") == 1,
        "the run on worker b found the offer in its log, and even so went the same way",
    )


def milliseconds_late(db: Database) -> list[float]:
    """How long after the recorded moment each run began that followed a sleep."""
    late = sa.text(
        "select cast(1000 * extract(epoch from started_at - due_at) as float)"
        " from event_log join tasks on tasks.id = task_id where kind = 'timer'"
    )
    with db.autocommit.connect() as connection:
        return list(connection.execute(late).scalars())


def effects(what: str) -> int:
    return sum(f": {what}" in line for line in app.outside.effects())


def forget(db: Database) -> None:
    app.outside.forget()
    with db.autocommit.connect() as connection:
        connection.execute(sa.text("truncate tasks, workers, event_log"))


def enqueue_one(db: Database, name: str, input: Json, **options: Any) -> int:
    with db.engine.begin() as connection:
        return enqueue(connection, name, input, **options)


main = verbs(
    HERE,
    story,
    Worker,
    enqueue,
    Querier,
    limit=limit_queue,
    by_hand=[cancel, retry, replay],
    fork=fork,
    result=wait_for_result,
)

if __name__ == "__main__":
    main()
