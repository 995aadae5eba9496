"""The tasks of this lesson's story: what a user of the engine writes."""

import os
import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import psycopg
import sqlalchemy as sa
from sqlalchemy.event import listen

from context import Context, durable
from errors import AtMostOnceError, WaitTimeout
from inputs import Json
from shared.database import open_database
from shared.outside import Outside
from tasks import NonRetryableError, task, task_key
from transactions import transactional

HERE = Path(__file__).parent
outside = Outside(HERE)

# id, items, buyer, amount; wait, patience, answers_after: in seconds. Once for each order: die_at,
# where the worker dies; stop_at, where it stands still; lose_answer, of a COMMIT
Order = dict[str, Any]


@durable
def fulfil_order(ctx: Context, order: Order) -> str:
    """The money exactly once, the parcel at least once, and at most one text message."""
    left = ctx.transaction(take_payment, order)
    parcel = ctx.step(book_parcel, order)
    try:
        text = ctx.at_most_once(send_text, order)
    except AtMostOnceError:
        text = "perhaps a text sent"
    return f"paid, {left} left; {parcel}; {text}"


def take_payment(connection: sa.Connection, order: Order) -> int:
    """From the buyer's account, in this database; what is left of it."""
    left = connection.execute(TAKE, order).scalar_one()
    connection.execute(PAID, order)
    disturb(connection, order)  # as the story wants it: kill -9, or a line that breaks
    return left


TAKE = sa.text(
    "update accounts set balance = balance - :amount where owner = :buyer returning balance"
)
PAID = sa.text("update orders set paid = true where id = :id")


@transactional
def pay_now(connection: sa.Connection, order: Order) -> int:
    """A whole task in one transaction: it ends with that."""
    return take_payment(connection, order)


@durable
def pay_in_a_step(ctx: Context, order: Order) -> int:
    """As in lesson 11: the step commits, and then it is recorded."""
    return ctx.step(commit_payment, order)


@durable
def pay_with_bookkeeping(ctx: Context, order: Order) -> int | None:
    """The step itself writes down which payments it has made."""
    return ctx.step(commit_payment_once, order)


@durable
def text_in_a_step(ctx: Context, order: Order) -> str:
    return ctx.step(send_text, order)


@durable
def text_at_most_once(ctx: Context, order: Order) -> str:
    return ctx.at_most_once(send_text, order)


def commit_payment(_key: str, order: Order) -> int:
    with open_database(HERE) as db, db.engine.begin() as connection:
        left = connection.execute(TAKE, order).scalar_one()
    stop("paid, not recorded", order)
    return left


def commit_payment_once(key: str, order: Order) -> int | None:
    """None if it was made before: what was left then, nobody has written down."""
    apply = sa.text("insert into applied_payments (key) values (:key) on conflict do nothing")
    with open_database(HERE) as db, db.engine.begin() as connection:
        is_first = connection.execute(apply, {"key": key}).rowcount == 1
        left = connection.execute(TAKE, order).scalar_one() if is_first else None
    stop("paid, not recorded", order)
    return left


def book_parcel(key: str, order: Order) -> str:
    return effect(key, "parcel booked", order)


def send_text(_key: str, order: Order) -> str:
    """The telephone company takes no key: two calls are two messages."""
    stop("text not sent", order)
    outside.record(f"order {order['id']}: text sent")
    stop("text sent, not recorded", order)
    return "text sent"


def stop(where: str, order: Order) -> None:
    """Stand still, if the order says so; only once for each order. Somebody kills the worker."""
    if order.get("stop_at") == where and first_time(f"stopped at: {where}", order):
        time.sleep(60)


def disturb(connection: sa.Connection, order: Order) -> None:
    """Let the payment be seen; then stop, or let its COMMIT arrive, and break the line at once."""
    outside.record(f"order {order['id']}: take_payment is called")
    stop("paid, not committed", order)
    if order.get("lose_answer") and first_time("the answer to COMMIT is lost", order):

        def commit_and_break(_: sa.Connection) -> None:
            line = cast("psycopg.Connection[Any]", connection.connection.driver_connection)
            line.commit()
            line.close()

        listen(connection, "commit", commit_and_break)


def calls(order: int) -> int:
    return outside.effects().count(f"order {order}: take_payment is called")


def first_time(what: str, order: Order) -> bool:
    line = f"order {order['id']}: {what}"
    if line in outside.effects():
        return False
    outside.record(line)
    return True


@durable
def fulfil(ctx: Context, order: Order) -> str:
    """Charge the card, reserve the items side by side, confirm. No item: a person decides."""
    payment = ctx.step(charge_card, order)
    reservations = [ctx.spawn(reserve, {**order, "item": item}) for item in order["items"]]
    parcel = ctx.gather(*reservations)
    ctx.step(send_confirmation, order)
    return f"{payment}; {', '.join(parcel)}"


@durable
def ship(ctx: Context, order: Order) -> str:
    """Charge the card, and send a parcel to where the customer lives."""
    ctx.step(charge_card, order)
    address = ctx.step(look_up_address, order)
    return ctx.step(send_parcel, order, address)


@durable
def refund(ctx: Context, order: Order) -> str:
    """Above 1,000 a person decides, is reminded, and in the end asked no longer."""
    if order["amount"] > 1000:
        ctx.step(ask, order)
        approval = ctx.signal("approval", timeout=timedelta(seconds=order["patience"]))
        reminder = ctx.timer(timedelta(seconds=order["reminder"]))
        if ctx.first_of(approval, reminder) == reminder:
            ctx.step(remind, order)
        try:
            who = ctx.result(approval)
        except WaitTimeout:
            return "nobody has decided: not paid"
        return f"approved by {who}; {ctx.step(pay, order)}"
    return ctx.step(pay, order)


@durable
def refund_by_looking(ctx: Context, order: Order) -> str:
    """As in lesson 10: a step looks for the answer, and then the next one does."""
    while not ctx.step(look_for_approval, order):
        time.sleep(0.1)
    return ctx.step(pay, order)


@durable
def send_when_open(ctx: Context, parcel: int) -> str:
    ship = ctx.wait_event("the harbour is open")
    return f"parcel {parcel} sent by {ship}"


@durable
def receive_one(ctx: Context, _: int) -> Json:
    return ctx.receive("a")


@task
def reserve(order: Order) -> str:
    """A child task: it is retried by itself, and runs on whichever worker has a free slot."""
    if order["item"] == "lamp" and "lamp: in stock" not in outside.effects():
        raise NonRetryableError("sold out")
    time.sleep(0.1)
    return effect(task_key(), f"{order['item']} reserved", order)


@durable
def fulfil_all(ctx: Context, orders: list[Order]) -> list[str]:
    """Durable tasks can be children themselves."""
    return ctx.gather(*(ctx.spawn(fulfil, order) for order in orders))


@durable
def wait_for_a_nap(ctx: Context, seconds: float) -> None:
    ctx.run(sleep, seconds, queue="default")


@durable
def ask_for_review(ctx: Context, order: Order) -> str:
    """Confirm the order; some time later, which may be a month, ask the customer for a review."""
    ctx.step(send_confirmation, order)
    ctx.sleep(timedelta(seconds=order["wait"]))
    return ctx.step(send_request, order)


@durable
def ask_after_a_step(ctx: Context, order: Order) -> str:
    """The same, as one could write it in lesson 08."""
    ctx.step(nap, order)
    return ctx.step(send_request, order)


@durable
def ask_by_my_clock(ctx: Context, order: Order) -> str:
    """The same, but the moment is computed by whoever runs it, in each run."""
    ctx.sleep_until(datetime.now(UTC) + timedelta(seconds=order["wait"]))
    return ctx.step(send_request, order)


@durable
def book_van(ctx: Context, order: Order) -> str:
    """Ask a carrier for an offer. If none comes in time, book the usual van."""
    offer = ctx.spawn(ask_carrier, order)
    try:
        carrier = ctx.result(offer, timeout=timedelta(seconds=order["patience"]))
    except WaitTimeout:
        carrier = "the usual van"
    booked = ctx.step(book, order, carrier)
    return f"{booked}; offered: {ctx.result(offer)}"


@durable
def ask_carrier(ctx: Context, order: Order) -> str:
    """The carrier takes its time."""
    ctx.sleep(timedelta(seconds=order["answers_after"]))
    return "an express van"


def charge_card(key: str, order: Order) -> str:
    return effect(key, "card charged", order)


def send_confirmation(key: str, order: Order) -> str:
    return effect(key, "confirmation sent", order)


def send_request(key: str, order: Order) -> str:
    return effect(key, "review asked for", order)


def nap(key: str, order: Order) -> None:
    effect(key, "nap begun", order)
    time.sleep(order["wait"])


def book(key: str, order: Order, carrier: str) -> str:
    return effect(key, f"booked {carrier}", order)


def look_up_address(_key: str, order: Order) -> str:
    moved = f"order {order['id']}: the customer has moved" in outside.effects()
    return "Oak Street" if moved else "Elm Street"


def send_parcel(key: str, order: Order, address: str) -> str:
    return effect(key, f"parcel sent to {address}", order)


def ask(key: str, order: Order) -> str:
    return effect(key, "asked for an approval", order)


def remind(key: str, order: Order) -> str:
    return effect(key, "reminder sent", order)


def pay(key: str, order: Order) -> str:
    return effect(key, "paid back", order)


def look_for_approval(_key: str, order: Order) -> bool:
    return f"order {order['id']}: approved" in outside.effects()


def effect(key: str, what: str, order: Order) -> str:
    die(f"before: {what}", order)
    outside.record(f"order {order['id']}: {what}, key {key}")
    die(f"after: {what}", order)
    return what


def die(where: str, order: Order) -> None:
    """kill -9 of this worker, by itself, if the order says so; only once for each order."""
    if order.get("die_at") == where and first_time(f"the worker dies, {where}", order):
        os.kill(os.getpid(), signal.SIGKILL)


@task
def send_receipt(order: int) -> str:
    """Send one e-mail; here, add a line to outside.log with the order and the process."""
    time.sleep(0.005)  # the mail server
    outside.record(f"receipt {order} by process {os.getpid()}")
    return f"receipt for order {order}"


@task
def send_report(what: str) -> str:
    """What a schedule starts; here, it adds a line to outside.log."""
    outside.record(f"report {what}")
    return f"report {what}"


@task
def divide(numbers: list[float]) -> float:
    dividend, divisor = numbers
    return dividend / divisor


@task
def work(seconds: float) -> None:
    """Say when it starts and when it ends, so that outside.log shows how many ran at once."""
    outside.record(f"start by process {os.getpid()}")
    time.sleep(seconds)
    outside.record(f"end by process {os.getpid()}")


@task
def flaky(fails: int) -> str:
    """Fails so many times, and then works."""
    outside.record(f"flaky {fails}")
    if outside.effects().count(f"flaky {fails}") <= fails:
        raise ConnectionError("no answer")
    return "an answer"


@task
def hopeless(_: None) -> None:
    raise NonRetryableError("there is no such address")


@task
def slow_once(name: str) -> int:
    """Takes a minute when it is run for the first time. Returns how often it was run."""
    outside.record(f"slow_once {name}")
    runs = outside.effects().count(f"slow_once {name}")
    if runs == 1:
        time.sleep(60)
    return runs


@task
def crash(_: None) -> None:
    """What a bug in a C library does: no exception, the process is gone."""
    outside.record("crash")
    os.kill(os.getpid(), signal.SIGKILL)


@task
def nothing(_: None) -> None:
    """For measuring what the queue itself costs."""


@task
def sleep(seconds: float) -> None:
    """A slow task: time to look at the table, and to kill its worker."""
    time.sleep(seconds)
