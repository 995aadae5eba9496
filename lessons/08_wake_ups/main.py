"""Lesson 07: running it again: cancel, retry, replay. --help lists the verbs."""

from pathlib import Path
from typing import Any

import sqlalchemy as sa

import app
from claim import limit_queue
from control import cancel, replay, retry
from db.queries import Querier
from inputs import Json
from shared.database import Database
from shared.processes import SHORT_LEASE, wait_until, worker_processes
from shared.story import check, count, feared, get, say, scene, status
from shared.verbs import verbs
from tasks import enqueue
from worker import Worker

HERE = Path(__file__).resolve().parent


def story(db: Database) -> None:
    failed_again(db)
    retried(db)
    cancelled(db)
    replayed(db)


def failed_again(db: Database) -> None:
    scene("An order fails: one of its items is sold out. Then there is a new one, and we try again")
    app.outside.forget()
    id = enqueue_one(db, "fulfil", {"id": 7, "items": ["pen", "lamp"]})
    with worker_processes(HERE, "a", options=SHORT_LEASE):
        wait_until(lambda: status(db, id) == "failed", "the order has failed")
        say(f"the order has {status(db, id)}: {get(db, id).error}")
        app.outside.record("lamp: in stock")
        with db.autocommit.connect() as connection:
            connection.execute(sa.text(PUT_BACK), {"id": id})
        say("there are lamps again; the order is put back into the queue, as in lesson 06")
        wait_until(lambda: get(db, id).attempt > 2 and status(db, id) == "failed", "it fails again")
        say(f"the order has {status(db, id)}: {get(db, id).error}")
    asked = effects("lamp reserved")
    feared(asked == 0, "nobody asked for a lamp: the child's failure is in the log, for ever")


PUT_BACK = "update tasks set status = 'queued', error = null where id = :id"


def retried(db: Database) -> None:
    scene("Retry: the log is kept, and what failed is tried again")
    order = id_of(db, "fulfil")
    with db.engine.begin() as connection:
        retry(connection, order)
    say(f"the order is {status(db, order)}, and so is {count(db, 'queued') - 1} child")
    with worker_processes(HERE, "a", options=SHORT_LEASE):
        wait_until(lambda: status(db, order) == "succeeded", "the order is fulfilled")
    say(f"{get(db, order).output}")
    check(effects("card charged") == 1, "charged once: what had succeeded was not done again")
    check(effects("pen reserved") == effects("lamp reserved") == 1, "each item was reserved once")


def cancelled(db: Database) -> None:
    scene("Cancel: a task that has not ended, and its children")
    id = enqueue_one(db, "wait_for_a_nap", 60)
    with worker_processes(HERE, "a", options=(*SHORT_LEASE, "--grace", "0.1")):
        wait_until(lambda: (count(db, "waiting"), count(db, "running")) == (1, 1), "it waits")
        with db.engine.begin() as connection:
            cancel(connection, id)
        wait_until(lambda: count(db, "cancelled") == 2, "its child is cancelled as well")
    check(status(db, id) == "cancelled", "a cancelled task takes its children with it")


def replayed(db: Database) -> None:
    scene("Replay: from the beginning, with an empty log and new keys")
    app.outside.forget()
    id = enqueue_one(db, "fulfil", {"id": 9, "items": ["pen"]})
    with worker_processes(HERE, "a", options=SHORT_LEASE):
        wait_until(lambda: status(db, id) == "succeeded", "order 9 is fulfilled")
        with db.engine.begin() as connection:
            replay(connection, id)
        wait_until(lambda: status(db, id) == "succeeded", "order 9 is fulfilled again")
    keys = {line.partition("key ")[2] for line in app.outside.effects() if "charged" in line}
    check(effects("card charged") == len(keys) == 2, "the card was charged again, under a new key")


def id_of(db: Database, name: str) -> int:
    with db.autocommit.connect() as connection:
        query = sa.text("select id from tasks where name = :name")
        return connection.execute(query, {"name": name}).scalar_one()


def effects(what: str) -> int:
    return sum(f"{what}, key" in line for line in app.outside.effects())


def enqueue_one(db: Database, name: str, input: Json, *, empty: bool = True, **options: Any) -> int:
    """Into an empty queue, unless told otherwise."""
    with db.engine.begin() as connection:
        if empty:
            connection.execute(sa.text("truncate tasks, workers, event_log"))
        return enqueue(connection, name, input, **options)


main = verbs(
    HERE, story, Worker, enqueue, Querier, limit=limit_queue, by_hand=[cancel, retry, replay]
)

if __name__ == "__main__":
    main()
