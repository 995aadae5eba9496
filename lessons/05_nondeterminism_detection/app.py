"""The tasks of this lesson's story: what a user of the engine writes, and edits later."""

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

from context import Context, durable
from shared.outside import Outside
from tasks import NonRetryableError, task

outside = Outside(Path(__file__).parent)

Order = dict[str, Any]  # id

# What this process has deployed, and what the world is like: options of `main.py worker`.
version = "original"
mail_works = True


@durable
def fulfil(ctx: Context, order: Order) -> str:
    """The code as it was when the task began, or as somebody has edited it since."""
    return VERSIONS[version](ctx, order)


def original(ctx: Context, order: Order) -> str:
    payment = ctx.step(charge_card, order["id"], 10)
    parcel = ctx.step(reserve_items, order["id"], 2)
    ctx.step(send_confirmation, order["id"])
    return f"payment ({payment}), parcel ({parcel})"


def inserted(ctx: Context, order: Order) -> str:
    ctx.step(check_for_fraud, order["id"])
    return original(ctx, order)


def removed(ctx: Context, order: Order) -> str:
    parcel = ctx.step(reserve_items, order["id"], 2)
    ctx.step(send_confirmation, order["id"])
    return parcel


def swapped(ctx: Context, order: Order) -> str:
    parcel = ctx.step(reserve_items, order["id"], 2)
    payment = ctx.step(charge_card, order["id"], 10)
    ctx.step(send_confirmation, order["id"])
    return f"payment ({payment}), parcel ({parcel})"


def renamed(ctx: Context, order: Order) -> str:
    payment = ctx.step(charge, order["id"], 10)
    parcel = ctx.step(reserve_items, order["id"], 2)
    ctx.step(send_confirmation, order["id"])
    return f"payment ({payment}), parcel ({parcel})"


def other_amount(ctx: Context, order: Order) -> str:
    payment = ctx.step(charge_card, order["id"], 20)
    parcel = ctx.step(reserve_items, order["id"], 2)
    ctx.step(send_confirmation, order["id"])
    return f"payment ({payment}), parcel ({parcel})"


def repeated(ctx: Context, order: Order) -> str:
    ctx.step(charge_card, order["id"], 10)
    return original(ctx, order)


def at_random(ctx: Context, order: Order) -> str:
    if random.random() < 2:  # true, for the story's sake; nobody knows what it was the last time
        ctx.step(give_discount, order["id"])
    return original(ctx, order)


def ends_early(ctx: Context, order: Order) -> str:
    return ctx.step(charge_card, order["id"], 10)


VERSIONS = {
    function.__name__: function
    for function in (
        original,
        inserted,
        removed,
        swapped,
        renamed,
        other_amount,
        repeated,
        at_random,
        ends_early,
    )
}


# The steps. Each has one effect outside the database, with the idempotency key that it was given.


def charge_card(key: str, order: int, amount: int) -> str:
    return effect(key, f"order {order}: {amount} charged")


def charge(key: str, order: int, amount: int) -> str:
    return charge_card(key, order, amount)


def reserve_items(key: str, order: int, items: int) -> str:
    return effect(key, f"order {order}: {items} items reserved")


def send_confirmation(key: str, order: int) -> str:
    if not mail_works:
        raise ConnectionError("the mail server does not answer")
    return effect(key, f"order {order}: confirmation sent")


def check_for_fraud(key: str, order: int) -> str:
    return effect(key, f"order {order}: no fraud")


def give_discount(key: str, order: int) -> str:
    return effect(key, f"order {order}: discount given")


def effect(key: str, what: str) -> str:
    outside.record(f"{what}, key {key}")
    return what


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
