"""The tasks that are measured. They do nothing, and count how often they did it."""

import os
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from shared.testing import Lesson

Json = Any


class Tally:
    """A number that many threads add to. Reading takes no lock, so a signal handler may."""

    def __init__(self) -> None:
        self.count = 0
        self._lock = threading.Lock()

    def add(self, count: int = 1) -> None:
        with self._lock:
            self.count += count


runs = Tally()  # of `nothing` and of `step`, in this process
statements = Tally()  # that this process has sent


def nothing(_: Json) -> None:
    runs.add()


def now(_: Json) -> float:
    return time.time()


def hang_in(pid: int) -> float:
    """Hangs in the process that is going to be killed; says when it runs in any other."""
    if os.getpid() == pid:
        time.sleep(3600)
    return time.time()


def steps(ctx: Any, count: int) -> float:
    """Returns the seconds that the steps took."""
    start = time.perf_counter()
    for number in range(count):
        ctx.step(step, number)
    return time.perf_counter() - start


def step(key: str, number: int) -> int:  # noqa: ARG001
    runs.add()
    return number


def fan_out(ctx: Any, children: int) -> None:
    ctx.gather(*(ctx.spawn(nothing, None) for _ in range(children)))


def nap(ctx: Any, seconds: float) -> None:
    ctx.sleep(timedelta(seconds=seconds))


def load(path: Path) -> Lesson:
    """A lesson that knows these tasks and none of the story's, registered as its app.py does it."""
    lesson = Lesson(path)
    lesson.tasks.registry.clear()
    for function in (nothing, now, hang_in):
        lesson.app.task(function)
    if lesson.number >= 4:
        for function in (steps, fan_out):
            lesson.app.durable(function)
    if lesson.number >= 9:
        lesson.app.durable(nap)
    return lesson
