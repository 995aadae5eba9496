"""Lesson 04: a task whose finished steps are never run again. --help lists the verbs."""

from pathlib import Path
from typing import Any

import sqlalchemy as sa

import app
from claim import limit_queue
from db.queries import Querier
from inputs import Json
from shared.database import Database
from shared.processes import SHORT_LEASE, wait_until, worker_processes
from shared.story import check, feared, get, log_of, say, scene, status
from shared.verbs import verbs
from tasks import enqueue
from worker import Worker

HERE = Path(__file__).resolve().parent
STEPS = ("charge_card", "reserve_items", "send_confirmation")


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
    feared(len(charged) == 2, "as feared: the task has succeeded, and the card is charged twice")


def with_a_log(db: Database) -> None:
    scene("The same order as a durable task, and the same kill")
    id = enqueue_order(db, "fulfil", die_at="before send_confirmation")
    let_workers_die(db, id)
    tell_effects()
    for entry in log_of(db, id):
        say(f"event log: {entry.position} {entry.kind} {entry.name} -> {entry.output}")
    check(len(effects("charge_card")) == 1, "the card is charged once")
    done = [len(effects(step)) for step in STEPS]
    check(done == [1, 1, 1], "and the order is fulfilled: each effect has happened, and once")


def everywhere(db: Database) -> None:
    scene("A kill at every place: before and after each effect")
    places = [f"{when} {step}" for step in STEPS for when in ("before", "after")]
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
        times = [sum(f": {step}," in line for line in done) for step in STEPS]
        keys = len({line.rpartition(" ")[2] for line in done if ", key " in line})
        say(f"killed {place:24} effects: {times}, keys: {keys}")
        again = [1 + (place == f"after {step}") for step in STEPS]
        if times != again or keys != 3:
            check(False, f"expected {again} effects with 3 keys")
    check(True, "a recorded step is never done again; one that was not yet recorded is")
    say("Both tries of a step have the same key: only by that can the bank tell")


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


def enqueue_one(db: Database, name: str, input: Json, *, empty: bool = True, **options: Any) -> int:
    """Into an empty queue, unless told otherwise."""
    with db.engine.begin() as connection:
        if empty:
            connection.execute(sa.text("truncate tasks, workers, event_log"))
        return enqueue(connection, name, input, **options)


main = verbs(HERE, story, Worker, enqueue, Querier, limit=limit_queue)

if __name__ == "__main__":
    main()
