"""The tasks of this lesson's story: what a user of the engine writes."""

import os
import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from context import Context, durable
from errors import WaitTimeout
from inputs import Json
from shared.outside import Outside
from tasks import NonRetryableError, task, task_key

outside = Outside(Path(__file__).parent)

# id, items; wait, patience, answers_after: in seconds; die_at: where the worker dies the first time
# it comes there
Order = dict[str, Any]


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


@durable
def pack(ctx: Context, parcel: dict[str, Any]) -> int:
    """So many steps, one after the other."""
    return sum(ctx.step(put_in, parcel["id"], n) for n in range(parcel["items"]))


@durable
def send_to_all(ctx: Context, customers: int) -> int:
    """A child for each customer; they run side by side, on whichever worker has a free slot."""
    return len(ctx.gather(*(ctx.spawn(send_receipt, n) for n in range(customers))))


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


def put_in(_key: str, parcel: int, item: int) -> int:
    outside.record(f"parcel {parcel}: item {item}")
    return 1


def effect(key: str, what: str, order: Order) -> str:
    die(f"before: {what}", order)
    outside.record(f"order {order['id']}: {what}, key {key}")
    die(f"after: {what}", order)
    return what


def die(where: str, order: Order) -> None:
    """kill -9 of this worker, by itself, if the order says so; only once for each order."""
    if order.get("die_at") == where:
        died = f"order {order['id']}: the worker dies, {where}"
        if died not in outside.effects():
            outside.record(died)
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
