"""Lesson 12: wherever a process is killed, money moves exactly once, and a booking at most once."""

import random
from collections import Counter

from shared.outside import Outside
from shared.processes import WorkerProcess, wait_until
from shared.testing import task_row, wait_for_status
from tests.helpers import ENDED, announce, copy_of, enqueue, execute, immortal, log_of

ACCOUNTS = "abc"
ORDERS = 12
MORE_TASKS = """

import os
import signal
import time
from pathlib import Path

import sqlalchemy as sa

from context import durable
from errors import AtMostOnceError
from shared.outside import Outside
from transactions import transactional

witness = Outside(Path(__file__).parent)


def dies(order, place):
    line = f"{order['id']} dies {place}"
    if place in order["deaths"] and line not in witness.effects():
        witness.record(line)
        os.kill(os.getpid(), signal.SIGKILL)


def move(connection, order):
    for name, amount in zip(order["names"], (-1, 1)):
        change = sa.text("update kill_accounts set amount = amount + :amount where name = :name")
        connection.execute(change, {"amount": amount, "name": name})
    connection.execute(sa.text("insert into kill_ledger values (:id)"), {"id": order["id"]})
    dies(order, "before the commit")
    time.sleep(order.get("seconds", 0))
    return order["id"]


def book(_key, order):
    dies(order, "before the booking")
    witness.record(f"booked {order['id']}")
    dies(order, "after the booking")
    return "booked"


@durable
def transfer(ctx, order):
    moved = ctx.transaction(move, order)
    dies(order, "after the commit")
    try:
        return [moved, ctx.at_most_once(book, order)]
    except AtMostOnceError as error:
        return [moved, error.type]


@transactional
def transfer_now(connection, order):
    return move(connection, order)
"""
PLACES = ("before the commit", "after the commit", "before the booking", "after the booking")


def open_accounts(lesson, db):
    announce(lesson, "transfer", "transfer_now")
    execute(db, "create table kill_accounts (name text primary key, amount int)")
    execute(db, "insert into kill_accounts select unnest(array['a', 'b', 'c']), 100")
    execute(db, "create table kill_ledger (id int)")  # no key would keep a second row out


def amounts(db):
    return execute(db, "select sum(amount) from kill_accounts")[0][0]


def test_the_sum_stays_whoever_dies_and_each_transfer_is_done_once(lesson, db, tmp_path):
    """Each order dies at places of its own; and the sum is looked at all the while."""
    open_accounts(lesson, db)
    draw = random.Random(12)
    orders = {}
    for n in range(ORDERS):
        order = {"id": n, "names": draw.sample(ACCOUNTS, 2), "deaths": []}
        name = "transfer_now" if n % 4 == 0 else "transfer"
        if n % 3 == 0:
            places = PLACES[:1] if name == "transfer_now" else PLACES
            order["deaths"] = draw.sample(places, draw.choice([1, len(places) // 2 or 1]))
        orders[enqueue(lesson, db, name, order, max_attempts=20)] = order
    copy = copy_of(lesson, tmp_path, MORE_TASKS)
    with immortal(copy) as look_after:

        def all_ended():
            look_after()
            assert amounts(db) == 300
            return all(task_row(db, id).status in ENDED for id in orders)

        wait_until(all_ended, "all have ended, whoever was killed", 90)
    effects = Counter(Outside(tmp_path).effects())
    assert sum(" dies " in line for line in effects) >= ORDERS / 3, "each at least once"
    ledger = execute(db, "select id, count(*) from kill_ledger group by id order by id")
    assert ledger == [(n, 1) for n in range(ORDERS)], "each exactly once"
    balance = Counter(dict.fromkeys(ACCOUNTS, 100))
    for id, order in orders.items():
        payer, payee = order["names"]
        balance.subtract([payer])
        balance.update([payee])
        row = task_row(db, id)
        assert row.status == "succeeded", row.error
        if row.name == "transfer":
            unknown = any("the booking" in place for place in order["deaths"])
            assert row.output == [order["id"], "Unknown" if unknown else "booked"]
            booked = "before the booking" not in order["deaths"]
            assert effects[f"booked {order['id']}"] == int(booked), "at most once"
            assert [entry.kind for entry in log_of(db, id)] == ["transaction", "once"]
    assert dict(execute(db, "select * from kill_accounts")) == dict(balance)


def test_a_worker_that_stands_still_in_a_transaction(lesson, db, tmp_path):
    """It has the account's row. After 5 s Postgres ends its session, and the next attempt pays."""
    open_accounts(lesson, db)
    copy = copy_of(lesson, tmp_path, MORE_TASKS)
    order = {"id": 1, "names": ["a", "b"], "deaths": [], "seconds": 1}
    id = enqueue(lesson, db, "transfer_now", order)
    options = ("--slots", "1", "--lease", "1")
    still = WorkerProcess(copy, "still", *options)
    other = None
    try:
        inside = (
            "select pid from pg_stat_activity where state = 'idle in transaction'"
            " and application_name like current_schema() || ' %%' and query like '%%kill_ledger%%'"
        )
        wait_until(lambda: execute(db, inside), "it is in its transaction")
        still.pause()
        other = WorkerProcess(copy, "other", *options)
        row = wait_for_status(db, id, *ENDED)
        assert (row.status, row.attempt) == ("succeeded", 2)
        still.resume()
        wait_until(lambda: "void" in still.output(), "it learns that its task is another's")
    finally:
        for worker in filter(None, (still, other)):
            worker.kill()
    assert execute(db, "select count(*) from kill_ledger") == [(1,)]
    assert amounts(db) == 300
