"""What a person does to a task: end it, give it one more attempt, run it again from the beginning.

In the caller's transaction, which must roll back on BadInput. Each looks first, then locks, and is
refused if what it saw has changed. A child is locked before its parent, a task before its log.
"""

import sqlalchemy as sa

from db.queries import Querier
from inputs import BadInput


def cancel(connection: sa.Connection, id: int) -> None:
    """End a task that has not ended. The upkeep cancels its children, and theirs."""
    if Querier(connection).cancel_task(id=id) == 0:
        raise BadInput(f"task {id} has ended, or never was")


def retry(connection: sa.Connection, id: int) -> None:
    """Give a failed or cancelled task one more attempt. Its log is kept; failed children too."""
    queries = Querier(connection)
    task = queries.get_task(id=id)
    if task is None or task.status not in ("failed", "cancelled"):
        raise BadInput(f"task {id} has not failed")
    entries = list(queries.list_failed_entries(task_id=id))
    for entry in entries:
        child = queries.get_task(id=entry.child_id)
        if child is not None and child.status in ("failed", "cancelled"):
            retry(connection, child.id)
        else:  # it has been retried by hand, and has perhaps succeeded
            queries.lock_task(id=entry.child_id)
    revived = queries.revive_task(id=id, attempt=task.attempt)
    # All is locked. What was seen above must still be so.
    if revived == 0 or list(queries.list_failed_entries(task_id=id)) != entries:
        raise BadInput(f"task {id} has changed meanwhile")
    for entry in entries:
        queries.reopen_entry(task_id=id, position=entry.position)
        queries.tell_again(id=entry.child_id)
    queries.drop_last_error(task_id=id)


def replay(connection: sa.Connection, id: int) -> None:
    """Run a task that has ended again, from an empty log. Its steps get new idempotency keys.

    Children of the old run that have not ended are cancelled.
    """
    queries = Querier(connection)
    task = queries.get_task(id=id)
    if task is None or task.status not in ("succeeded", "failed", "cancelled"):
        raise BadInput(f"task {id} has not ended")
    queries.detach_children(parent_id=id)
    if queries.replay_task(id=id, attempt=task.attempt) == 0:
        raise BadInput(f"task {id} has changed meanwhile")
    queries.delete_log(task_id=id)
