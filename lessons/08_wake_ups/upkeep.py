"""Upkeep: what any worker does for the whole queue, again and again. Each chore is one function."""

import logging
import random
from collections.abc import Callable

from connection import all_but_refused
from db.queries import Querier
from inputs import MAX_INT

log = logging.getLogger("worker")
Chore = Callable[[Querier], None]


def wake(queries: Querier) -> None:
    all_but_refused(queries.wake_tasks)


def take_back(queries: Querier) -> None:
    for lost in all_but_refused(queries.take_back_tasks, MAX_INT):
        log.warning("task %d, %s: %s", lost.id, lost.status, lost.error)


def cancel_orphans(queries: Querier) -> None:
    while all_but_refused(queries.cancel_orphans):  # their own children are next
        pass
    queries.mark_swept()


CHORES: dict[str, Chore] = {"wake": wake, "cancel": cancel_orphans, "take back": take_back}


class Upkeep:
    """What is due, one chore at a time: one that cannot be done does not stop the others.

    chores: by the name that LookForChores has for each. seconds: between two looks.
    """

    def __init__(self, chores: dict[str, Chore], seconds: float) -> None:
        self._chores = chores
        self._seconds = seconds
        self._due: list[Chore] = []

    def next(self, queries: Querier, worker_id: int) -> None:
        """The next chore that is due; if there is no more, a look at what is."""
        if self._due:
            self._due.pop(0)(queries)
            return
        self._due = list(self._chores.values())  # a look that is refused must not end the upkeep
        due = list(queries.look_for_chores(worker_id=worker_id))
        self._due = [chore for name, chore in self._chores.items() if name in due]

    def pause(self) -> float:
        if self._due:
            return 0
        return random.uniform(0.5, 1.5) * self._seconds  # not all workers at the same moment
