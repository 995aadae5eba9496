"""Which tasks a worker claims, and how many."""

from functools import partial

import sqlalchemy as sa

from connection import all_but_refused
from db.queries import ClaimTasksRow, Querier
from inputs import MAX_INT, check_number, check_queue
from shared.database import Database
from tasks import registry


def claim(
    db: Database,
    connection: sa.Connection,
    worker_id: int,
    queue: str,
    free_slots: int,
    *,
    look_first: bool = False,
) -> list[ClaimTasksRow]:
    """Claim tasks for the free slots, and no more than the queue's limit allows.

    The most urgent first, and the oldest among equals.
    """
    if free_slots == 0:
        return []
    queries = Querier(connection)
    if look_first and not queries.look_for_work(worker_id=worker_id, queue=queue):
        return []
    everywhere = partial(
        queries.claim_tasks,
        worker_id=worker_id,
        queue=queue,
        durable_names=durable_names(),
        limited=False,
    )
    tasks = all_but_refused(everywhere, free_slots)
    if not tasks:  # there is none, or the queue has a limit
        within_limit = partial(claim_within_limit, db, worker_id, queue)
        tasks = all_but_refused(within_limit, free_slots)
    return sorted(tasks, key=lambda task: (-task.priority, task.id))


def claim_within_limit(
    db: Database, worker_id: int, queue: str, *, at_most: int, skip: int
) -> list[ClaimTasksRow]:
    """Lock the limit, count, claim: in one transaction, so that nobody counts in between."""
    with db.engine.begin() as connection:
        queries = Querier(connection)
        queries.bound_idle_time()
        limit = queries.lock_limit(queue=queue)
        if limit is None:
            return []
        running = queries.count_running(queue=queue) or 0
        at_most = max(0, min(at_most, limit - running))
        return list(
            queries.claim_tasks(
                worker_id=worker_id,
                queue=queue,
                durable_names=durable_names(),
                at_most=at_most,
                skip=skip,
                limited=True,
            )
        )


def durable_names() -> list[str]:
    """Of the tasks that are bound to the version that begins them."""
    return [name for name, registered in registry.items() if registered.kind == "durable"]


def limit_queue(connection: sa.Connection, queue: str, max_running: int) -> None:
    """Let at most `max_running` tasks of the queue run at once, over all workers; 0 pauses it.

    Running tasks are left alone. Workers keep to it from their next claim on, and that claim waits
    until the caller's transaction ends. Only a queue's very first limit lets claims pass that are
    under way at that moment. Raises BadInput.
    """
    check_queue(queue)
    check_number("a limit", max_running, 0, MAX_INT)
    Querier(connection).limit_queue(queue=queue, max_running=max_running)
