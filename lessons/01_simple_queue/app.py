"""The tasks of this lesson's story: what a user of the queue writes."""

import os
import time
from pathlib import Path

from shared.outside import Outside
from tasks import task

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
def sleep(seconds: float) -> None:
    """A slow task: time to look at the table, and to kill its worker."""
    time.sleep(seconds)
