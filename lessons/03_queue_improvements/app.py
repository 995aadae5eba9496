"""The tasks of this lesson's story: what a user of the queue writes."""

import os
import signal
import time
from pathlib import Path

from shared.outside import Outside
from tasks import NonRetryableError, task

outside = Outside(Path(__file__).parent)


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
