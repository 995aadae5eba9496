"""The tasks of this lesson's story: what a user of the engine writes."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from context import Context, durable
from errors import StepError
from shared.outside import Outside
from tasks import NonRetryableError, task

outside = Outside(Path(__file__).parent)

Order = dict[str, Any]  # id; die_at: where the worker dies the first time that it comes there


@durable
def fulfil(ctx: Context, order: Order) -> str:
    payment = ctx.step(charge_card, order)
    parcel = ctx.step(reserve_items, order)
    ctx.step(send_confirmation, order)
    return f"order {order['id']}: {payment}, {parcel}"


@task
def fulfil_without_a_log(order: Order) -> str:
    key = "no key"
    payment = charge_card(key, order)
    parcel = reserve_items(key, order)
    send_confirmation(key, order)
    return f"order {order['id']}: {payment}, {parcel}"


@durable
def fulfil_or_cancel(ctx: Context, order: Order) -> str:
    try:
        ctx.step(charge_declined_card, order)
    except StepError as error:
        ctx.step(cancel_order, order)
        return f"cancelled: {error.type}"
    return "fulfilled"


@durable
def slowly(ctx: Context, steps: int) -> None:
    """Time to kill its worker, again and again."""
    for n in range(steps):
        ctx.step(take_a_second, n)


# The steps. Each has one effect outside the database, with the idempotency key that it was given.


def charge_card(key: str, order: Order) -> str:
    return effect("charge_card", key, order)


def reserve_items(key: str, order: Order) -> str:
    return effect("reserve_items", key, order)


def send_confirmation(key: str, order: Order) -> str:
    return effect("send_confirmation", key, order)


def charge_declined_card(key: str, order: Order) -> str:
    effect("charge_declined_card", key, order)
    raise NonRetryableError("the card is declined")


def cancel_order(key: str, order: Order) -> str:
    return effect("cancel_order", key, order)


def take_a_second(key: str, n: int) -> None:
    time.sleep(1)
    outside.record(f"step {n}, key {key}")


def effect(what: str, key: str, order: Order) -> str:
    die(f"before {what}", order)
    outside.record(f"order {order['id']}: {what}, key {key}")
    die(f"after {what}", order)
    return f"{what} done"


def die(where: str, order: Order) -> None:
    """kill -9 of this worker, by itself, if the order says so; only once for each order."""
    if order.get("die_at") == where:
        died = f"order {order['id']}: the worker dies {where}"
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
