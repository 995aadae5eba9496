"""Lesson 11: signals and events: a task waits for a person. --help lists the verbs."""

import statistics
import time
from pathlib import Path
from typing import Any

import psycopg

import app
from claim import limit_queue
from control import cancel, fork, replay, retry
from db.queries import Querier
from events import emit
from inputs import BadInput
from listen import wait_for_result
from schedules import delete, pause, resume, set_schedule
from shared.database import Database
from shared.processes import SHORT_LEASE, wait_until, worker_processes, working
from shared.story import check, count, feared, get, log_of, say, scene, status
from shared.verbs import verbs
from signals import send
from supervisor import supervise
from tasks import enqueue
from worker import Worker

HERE = Path(__file__).resolve().parent


def story(db: Database) -> None:
    looked_for(db)
    approved(db)
    too_late(db)
    happened(db)
    sent_and_done(db)


def looked_for(db: Database) -> None:
    scene("A refund above 1,000 wants a person: a step looks for the answer, as in lesson 10")
    app.outside.forget()
    with working(Worker(db, "a", slots=1)):
        first = enqueue_one(db, "refund_by_looking", {"id": 1, "amount": 1500})
        wait_until(lambda: status(db, first) == "running", "it looks")
        second = enqueue_one(db, "refund_by_looking", {"id": 2, "amount": 2500})
        app.outside.record("order 2: approved")
        time.sleep(2)
        feared(status(db, second) == "queued", "order 2 is approved, and its refund still queued")
        looks = len(log_of(db, first))
        feared(looks > 5, f"order 1 has the slot, and a log of {looks} entries, one for each look")
        app.outside.record("order 1: approved")
        wait_until(lambda: count(db, "succeeded") == 2, "both are paid")


def approved(db: Database) -> None:
    scene("The refund waits for a signal; after two seconds, the person is reminded")
    app.outside.forget()
    big = {"id": 3, "amount": 1500, "reminder": 2, "patience": 60} | KILLED
    with worker_processes(HERE, "a", options=("--slots", "1", *SHORT_LEASE)) as (worker,):
        id = enqueue_one(db, "refund", big)
        wait_until(lambda: status(db, id) == "waiting", "it waits")
        small = enqueue_one(db, "refund", {"id": 4, "amount": 20})
        wait_until(lambda: status(db, small) == "succeeded", "a small one needs nobody")
        check(status(db, id) == "waiting", "it holds no slot: a small refund is paid meanwhile")
        wait_until(lambda: worker.exit_status is not None, "the worker is killed")
        say("the timer has come first; the worker is killed -9, before the reminder is sent")
    say("no worker is alive; somebody types the approval into psql, twice:")
    say(f"  {APPROVAL % id}")
    for _ in range(2):
        say(f"  {by_hand(db, APPROVAL % id)}")
    with worker_processes(HERE, "b", options=SHORT_LEASE):
        wait_until(lambda: status(db, id) == "succeeded", "it is paid")
    say(f"{get(db, id).output}")
    check(effects("order 3: reminder sent") == 1, "the timer is still first: the reminder was sent")
    check(effects("order 3: paid back") == 1, "one key, one message: it was paid once")


KILLED = {"die_at": "before: reminder sent"}
APPROVAL = """\
insert into messages (task_id, name, payload, key) values (%s, 'approval', '"Ann"', 'ann-1')"""


def by_hand(db: Database, statement: str) -> str:
    """What psql says to the statement, in its first line."""
    with db.connect(autocommit=True) as connection:
        try:
            return str(connection.execute(statement.encode()).statusmessage)
        except psycopg.Error as error:
            return f"ERROR: {error.diag.message_primary}"


def too_late(db: Database) -> None:
    scene("Nobody decides, and the clock is first")
    with working(Worker(db, "a")):
        id = enqueue_one(db, "refund", {"id": 5, "amount": 9000, "reminder": 0.2, "patience": 0.4})
        wait_until(lambda: status(db, id) == "succeeded", "it has an end")
    say(f"{get(db, id).output}")
    try:
        with db.engine.begin() as connection:
            send(connection, id, "approval", "Ann")
        refusal = ""
    except BadInput as error:
        refusal = str(error)
    say(f"then Ann approves: {refusal}")
    check("has ended" in refusal, "whoever sends too late is told so")
    check(effects("order 5: paid back") == 0, "nothing was paid")


def happened(db: Database) -> None:
    scene("Three parcels wait for one event, and later a fourth one")
    with working(Worker(db, "a")), db.autocommit.connect() as connection:
        ids = [enqueue_one(db, "send_when_open", n) for n in (1, 2, 3)]
        wait_until(lambda: all(status(db, id) == "waiting" for id in ids), "they wait")
        firsts = [emit(connection, "the harbour is open", ship) for ship in ("Ada", "Bea")]
        wait_until(lambda: all(status(db, id) == "succeeded" for id in ids), "they are sent")
        ids.append(enqueue_one(db, "send_when_open", 4))
        wait_until(lambda: status(db, ids[-1]) == "succeeded", "the last one is sent, too")
    say(f"emitted twice: {firsts}")
    say("; ".join(get(db, id).output for id in ids))
    check({get(db, id).output.split(" by ")[1] for id in ids} == {"Ada"}, "the first payload stays")


def sent_and_done(db: Database) -> None:
    scene("How long from the message to the end of the task?")
    waits: list[float] = []
    with working(Worker(db, "a")), db.autocommit.connect() as connection:
        for n in range(15):
            id = enqueue_one(db, "receive_one", n)
            wait_until(lambda id=id: status(db, id) == "waiting", "it waits")
            time.sleep(0.15)  # the worker rests
            start = time.monotonic()
            send(connection, id, "a", n)
            while status(db, id) != "succeeded":
                time.sleep(0.001)
            waits.append(1000 * (time.monotonic() - start))
    say(f"{statistics.median(waits):.0f} ms, the median of {len(waits)}")


def effects(what: str) -> int:
    return sum(line.startswith(what) for line in app.outside.effects())


def enqueue_one(db: Database, name: str, input: Any) -> int:
    with db.engine.begin() as connection:
        return enqueue(connection, name, input)


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
    schedule=set_schedule,
    of_schedules=[pause, resume, delete],
    send=send,
    emit=emit,
    supervise=supervise,
)

if __name__ == "__main__":
    main()
