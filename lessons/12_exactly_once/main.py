"""Lesson 12: exactly once, for work in this database. --help lists the verbs."""

from pathlib import Path
from typing import Any

import psycopg

import app
from claim import limit_queue
from control import cancel, fork, replay, retry
from db.queries import Querier
from events import emit
from listen import wait_for_result
from schedules import delete, pause, resume, set_schedule
from shared.database import Database
from shared.processes import SHORT_LEASE, wait_until, worker_processes, working
from shared.story import check, count, feared, get, say, scene, status
from shared.verbs import verbs
from signals import send
from tasks import enqueue
from worker import Worker

HERE = Path(__file__).resolve().parent


def story(db: Database) -> None:
    by_hand(db, ACCOUNTS)
    twice(db)
    three_promises(db)
    answer_lost(db)
    outbox(db)


ACCOUNTS = """\
insert into accounts (owner, balance)
select unnest(array['ada', 'bob', 'cem', 'dan', 'eve', 'fay', 'gil']), 100"""


def twice(db: Database) -> None:
    scene("Two steps take 30 from accounts in this database; kill -9 before they are recorded")
    by_hand(db, "create table applied_payments (key text primary key)")
    _, by_hand_id = killed(
        db,
        ("pay_in_a_step", payment(1, "ada", "paid, not recorded")),
        ("pay_with_bookkeeping", payment(2, "bob", "paid, not recorded")),
    )
    feared(balance(db, "ada") == 40, "ada had 100: 30 were asked for, and 60 are gone")
    check(balance(db, "bob") == 70, "bob's step has found its key in a table of its own")
    feared(get(db, by_hand_id).output is None, "but what it had returned is lost")


def three_promises(db: Database) -> None:
    scene("Three promises; kill -9 wherever it hurts")
    _, text, no_text, order, now = killed(
        db,
        ("text_in_a_step", payment(3, "ada", "text sent, not recorded")),
        ("text_at_most_once", payment(4, "ada", "text sent, not recorded")),
        ("text_at_most_once", payment(5, "ada", "text not sent")),
        ("fulfil_order", payment(6, "cem", "paid, not committed")),
        ("pay_now", payment(7, "dan", "paid, not committed")),
    )
    check(texts(3) == 2, "ctx.step, at least once: two texts were sent")
    check((texts(4), texts(5)) == (1, 0), "ctx.at_most_once: one text in one case, none in another")
    say(get(db, text).error)
    check(status(db, no_text) == "failed", "and nobody knows: both fail with this sentence")
    check(balance(db, "cem") == 70, f"ctx.transaction, exactly once: {get(db, order).output}")
    check(
        balance(db, "dan") == 70,
        f"@transactional, a whole task exactly once: {get(db, now).output} left",
    )


def answer_lost(db: Database) -> None:
    scene("The COMMIT arrives, and its answer does not")
    with working(Worker(db, "a")):
        for id, name, buyer in ((8, "fulfil_order", "eve"), (9, "pay_now", "fay")):
            task_id = enqueue_one(db, name, payment(id, buyer) | {"lose_answer": True})
            wait_until(lambda id=task_id: ended(db, id), "it has ended")
            task = get(db, task_id)
            check(
                (balance(db, buyer), task.status) == (70, "succeeded"),
                f"{name}: paid once, attempt {task.attempt}",
            )


def outbox(db: Database) -> None:
    scene("An order and its task are there together, or neither is; whoever inserts the order")
    order = "insert into orders (buyer, amount) values ('gil', 30)"
    for end in ("rollback", "commit"):
        before = count(db, "queued")
        say(f"  begin; {order}; {end}")
        by_hand(db, f"begin; {order}; {end}")
        tasks = count(db, "queued") - before
        check(tasks == (end == "commit"), f"{tasks} tasks")
    with working(Worker(db, "a")):
        wait_until(lambda: count(db, "queued", "running") == 0, "it is fulfilled")
    check(balance(db, "gil") == 70, "")
    for call in ("enqueue('send_receipt', '1', delay => '-1 s')", "enqueue('send receipt', '1')"):
        say(f"  select {call}")
        say(f"  {by_hand(db, f'select {call}')}")


def payment(id: int, buyer: str, stop_at: str | None = None) -> app.Order:
    return {"id": id, "buyer": buyer, "amount": 30, "stop_at": stop_at}


def killed(db: Database, *tasks: tuple[str, app.Order]) -> list[int]:
    """Kill the worker of these tasks when all stand still; another one does the rest. Their ids."""
    app.outside.forget()
    ids = [enqueue_one(db, name, order) for name, order in tasks]
    with worker_processes(HERE, "a", options=("--slots", "5", *SHORT_LEASE)) as (worker,):
        wait_until(lambda: stopped() == len(tasks), "they stand still")
        worker.kill()
    with worker_processes(HERE, "b", options=SHORT_LEASE):
        wait_until(lambda: all(ended(db, id) for id in ids), "they have ended")
    return ids


def stopped() -> int:
    return sum(": stopped at: " in line for line in app.outside.effects())


def ended(db: Database, id: int) -> bool:
    return status(db, id) in ("succeeded", "failed")


def balance(db: Database, owner: str) -> int:
    with db.connect() as connection:
        look = "select balance from accounts where owner = %s"
        return connection.execute(look, (owner,)).fetchall()[0][0]


def texts(order: int) -> int:
    return app.outside.effects().count(f"order {order}: text sent")


def by_hand(db: Database, statements: str) -> str:
    """What psql says to the statements, in its first line."""
    with db.connect(autocommit=True) as connection:
        try:
            return str(connection.execute(statements.encode()).statusmessage)
        except psycopg.Error as error:
            return f"ERROR {error.sqlstate}: {error.diag.message_primary}"


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
)

if __name__ == "__main__":
    main()
