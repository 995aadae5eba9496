"""Upkeep: what any worker does for the whole queue, again and again. Each chore is one function."""

import logging
from collections.abc import Callable

from db.queries import Querier

log = logging.getLogger("worker")


def wake(queries: Querier) -> None:
    queries.wake_tasks()


def take_back(queries: Querier) -> None:
    for lost in queries.take_back_tasks():
        log.warning("task %d, %s: %s", lost.id, lost.status, lost.error)


CHORES: list[Callable[[Querier], None]] = [wake, take_back]
