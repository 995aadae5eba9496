"""Lesson 07: running it again: cancel, retry, replay, fork. --help lists the verbs."""

from pathlib import Path
from typing import Any

import sqlalchemy as sa

import app
from claim import limit_queue
from control import cancel, fork, replay, retry
from db.queries import Querier
from inputs import BadInput, Json
from shared.database import Database
from shared.processes import SHORT_LEASE, wait_until, worker_processes
from shared.story import check, count, feared, get, log_of, say, scene, status
from shared.verbs import verbs
from tasks import enqueue
from worker import Worker

HERE = Path(__file__).resolve().parent


def story(db: Database) -> None:
    failed_again(db)
    retried(db)
    cancelled(db)
    replayed(db)
    forked(db)


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
    scene("Replay: a parcel went to a wrong address, and it is all done again")
    id = send_to_wrong_address(db, 9)
    with worker_processes(HERE, "a", options=SHORT_LEASE):
        try:
            with db.engine.begin() as connection:
                retry(connection, id)
        except BadInput as refusal:
            say(f"retry: {refusal}")
        with db.engine.begin() as connection:
            replay(connection, id)
        wait_until(lambda: status(db, id) == "succeeded", "order 9 is shipped again")
    say(f"replay: {get(db, id).output}")
    keys = {line.partition("key ")[2] for line in app.outside.effects() if "charged" in line}
    check(effects("card charged") == len(keys) == 2, "the card was charged again, under a new key")
    feared(addresses(db, id) == ["Oak Street"], "of the first parcel, the log knows nothing more")


def forked(db: Database) -> None:
    scene("Fork: a new task keeps the charge, which is entry 1, and does the rest again")
    id = send_to_wrong_address(db, 10)
    with db.engine.begin() as connection:
        new = fork(connection, id, 1)
    with worker_processes(HERE, "a", options=SHORT_LEASE):
        wait_until(lambda: status(db, new) == "succeeded", "order 10 is shipped again")
    say(f"task {new}, forked from task {id}: {get(db, new).output}")
    check(effects("card charged") == 1, "charged once")
    found = addresses(db, id), addresses(db, new)
    check(found == (["Elm Street"], ["Oak Street"]), "each log says where its parcel went")


def send_to_wrong_address(db: Database, order: int) -> int:
    app.outside.forget()
    id = enqueue_one(db, "ship", {"id": order})
    with worker_processes(HERE, "a", options=SHORT_LEASE):
        wait_until(lambda: status(db, id) == "succeeded", f"order {order} is shipped")
    say(f"{get(db, id).output}; but the customer has moved to Oak Street")
    app.outside.record(f"order {order}: the customer has moved")
    return id


def addresses(db: Database, id: int) -> list[str]:
    return [entry.output for entry in log_of(db, id) if entry.name == "look_up_address"]


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
    HERE,
    story,
    Worker,
    enqueue,
    Querier,
    limit=limit_queue,
    by_hand=[cancel, retry, replay],
    fork=fork,
)

if __name__ == "__main__":
    main()
