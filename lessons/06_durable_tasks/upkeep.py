"""Upkeep: what any worker does for the whole queue, again and again. Each chore is one function."""

import logging
from collections.abc import Callable

from connection import all_but_refused
from db.queries import Querier
from inputs import MAX_INT

log = logging.getLogger("worker")


def wake(queries: Querier) -> None:
    all_but_refused(queries.wake_tasks)


def take_back(queries: Querier) -> None:
    for lost in all_but_refused(queries.take_back_tasks, MAX_INT):
        log.warning("task %d, %s: %s", lost.id, lost.status, lost.error)


CHORES: list[Callable[[Querier], None]] = [wake, take_back]
