"""Upkeep: what any worker does for the whole queue, again and again. Each chore is one function."""

import logging
import math
import random
import time
from collections.abc import Callable
from threading import Event

from connection import all_but_refused
from db.queries import CompleteDueEntriesRow, Querier, TellEventsRow
from inputs import MAX_INT
from schedules import tick

LEAST_SECONDS = 0.01  # between two looks: what is due one after the other is done together

log = logging.getLogger("worker")
Chore = Callable[[Querier], object]  # true: something was due, and something may follow soon


def wake(queries: Querier) -> list[int]:
    return all_but_refused(queries.wake_tasks)


def complete_due_entries(queries: Querier) -> list[CompleteDueEntriesRow]:
    return all_but_refused(queries.complete_due_entries)


def tell_events(queries: Querier) -> list[TellEventsRow]:
    told = all_but_refused(queries.tell_events)
    queries.mark_told()
    return told


def take_back(queries: Querier) -> None:
    for lost in all_but_refused(queries.take_back_tasks, MAX_INT):
        log.warning("task %d, %s: %s", lost.id, lost.status, lost.error)


def cancel_orphans(queries: Querier) -> None:
    while all_but_refused(queries.cancel_orphans):  # their own children are next
        pass
    queries.mark_swept()


CHORES: dict[str, Chore] = {
    "wake": wake,
    "complete": complete_due_entries,
    "tick": tick,
    "tell": tell_events,
    "cancel": cancel_orphans,
    "take back": take_back,
}


class Upkeep:
    """What is due, one chore at a time: one that cannot be done does not stop the others.

    chores: by the name that LookForChores has for each. seconds: between two looks, at the most;
    less if something will be due before. hint: it may be due before the upkeep knows of it.
    """

    def __init__(self, chores: dict[str, Chore], seconds: float) -> None:
        self._chores = chores
        self._seconds = seconds
        self.hint = Event()
        self._due: list[Chore] = []
        self._next = 0.0  # when something will be due, by the clock that measures pauses

    def next(self, queries: Querier, worker_id: int) -> None:
        """The next chore that is due; if there is no more, a look at what is."""
        if self._due:
            if self._due.pop(0)(queries):
                self._next = 0  # the look did not say what is due after that
            return
        self._due = list(self._chores.values())  # a look that is refused must not end the upkeep
        if self.hint.is_set():
            time.sleep(LEAST_SECONDS)  # one look for many hints
            self.hint.clear()  # before the look, which may miss what comes after it
        looked = time.monotonic()
        seconds = {row.chore: row.seconds for row in queries.look_for_chores(worker_id=worker_id)}
        self._due = [chore for name, chore in self._chores.items() if seconds.get(name, 1) <= 0]
        self._next = looked + min([left for left in seconds.values() if left > 0], default=math.inf)

    def pause(self) -> float:
        if self._due:
            return 0
        pause = random.uniform(0.5, 1.5) * self._seconds  # not all workers at the same moment
        return max(LEAST_SECONDS, min(pause, self._next - time.monotonic()))
