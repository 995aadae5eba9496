"""Lesson 12: exactly once, for work in this database. --help lists the verbs."""

import re
from pathlib import Path
from textwrap import fill
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
    held_back(db)


ACCOUNTS = """\
insert into accounts (owner, balance)
select unnest(array['ada', 'bob', 'cem', 'dan', 'eve', 'fay', 'gil']), 100"""


def twice(db: Database) -> None:
    scene("Two steps take 30 from accounts in this database; kill -9 before they are recorded")
    by_hand(db, "create table applied_payments (key text primary key)")
    _, with_bookkeeping = killed(
        db,
        ("pay_in_a_step", payment(1, "ada", "paid, not recorded")),
        ("pay_with_bookkeeping", payment(2, "bob", "paid, not recorded")),
    )
    feared(balance(db, "ada") == 40, "ada had 100: 30 were asked for, and 60 are gone")
    check(balance(db, "bob") == 70, "bob has 70: his step has found its key in applied_payments")
    feared(get(db, with_bookkeeping).output is None, "but what it returned at first is lost")


def three_promises(db: Database) -> None:
    scene("Three promises, and kill -9 where it hurts")
    _, text, no_text, order, now = killed(
        db,
        ("text_in_a_step", payment(3, "ada", "text sent, not recorded")),
        ("text_at_most_once", payment(4, "ada", "text sent, not recorded")),
        ("text_at_most_once", payment(5, "ada", "text not sent")),
        ("fulfil_order", payment(6, "cem", "paid, not committed")),
        ("pay_now", payment(7, "dan", "paid, not committed")),
    )
    check(texts(3) == 2, "ctx.step, at least once: two texts were sent")
    check((texts(4), texts(5)) == (1, 0), "ctx.at_most_once: one text here, and no text there")
    error = get(db, text).error
    check(error == get(db, no_text).error, "and nobody knows which; both tasks have failed:")
    say(fill(error, 90))
    check(balance(db, "cem") == 70, f"ctx.transaction, exactly once: {get(db, order).output}")
    check(
        same_transaction(db, order, "cem"),
        "one transaction wrote account and log: one xmin",
    )
    check(balance(db, "dan") == 70, f"@transactional: the task returned {get(db, now).output}")


def answer_lost(db: Database) -> None:
    scene("A COMMIT arrives, and the line breaks before its answer does")
    ids = [
        enqueue_one(db, "fulfil_order", payment(8, "eve") | {"lose_answer": True}),
        enqueue_one(db, "pay_now", payment(9, "fay") | {"lose_answer": True}),
    ]
    with worker_processes(HERE, "a"):
        wait_until(lambda: all(ended(db, id) for id in ids), "they have ended")
    for id, order, buyer in zip(ids, (8, 9), ("eve", "fay"), strict=True):
        task = get(db, id)
        say(f"{task.name}: take_payment was called {app.calls(order)} times, in attempt 1")
        left = balance(db, buyer)
        paid_once = (left, task.status, task.attempt) == (70, "succeeded", 1)
        check(paid_once, f"{buyer} had 100, and has {left}")


def outbox(db: Database) -> None:
    scene("An order and its task are there together, or neither is: typed into psql")
    order = "insert into orders (buyer, amount) values ('gil', 30)"
    for end, tasks in (("rollback", 0), ("commit", 1)):
        say(f"begin; {order}; {end}")
        by_hand(db, f"begin; {order}; {end}")
        check(count(db, "queued") == tasks, f"tasks: {tasks}")
    with working(Worker(db, "a")):
        wait_until(lambda: count(db, "queued", "running") == 0, "it is fulfilled")
    check(balance(db, "gil") == 70, "gil's order is paid")
    for call in ("enqueue('send receipt', '7')", "enqueue('send_receipt', '7', delay => '-1 s')"):
        say(f"select {call}")
        say(f"  {by_hand(db, f'select {call}')}")


def held_back(db: Database) -> None:
    scene("A transaction pays and stays open, while 100 tasks are done")
    with db.engine.begin() as connection, working(Worker(db, "a")):
        connection.execute(app.TAKE, payment(10, "gil"))
        with db.engine.begin() as its_own:
            ids = [enqueue(its_own, "nothing", None) for _ in range(100)]
        wait_until(lambda: all(ended(db, id) for id in ids[-10:]), "they are done")
        kept = dead_rows(db)
        feared(kept >= 200, f"vacuum has to keep {kept} old versions of their rows")


def dead_rows(db: Database) -> int:
    """How many VACUUM has to leave in `tasks`, since a transaction might still see them."""
    said: list[str] = []
    with db.connect(autocommit=True) as connection:
        connection.add_notice_handler(lambda notice: said.append(notice.message_primary or ""))
        connection.execute("vacuum (verbose) tasks")
    return int(re.findall(r"(\d+) are dead but not yet removable", "\n".join(said))[0])


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


def same_transaction(db: Database, task: int, owner: str) -> bool:
    """Has one transaction written the account's row and the first entry of the task's log?"""
    with db.connect() as connection:
        look = """select accounts.xmin = event_log.xmin from accounts, event_log
            where owner = %s and task_id = %s and position = 1"""
        return connection.execute(look, (owner, task)).fetchall()[0][0]


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
