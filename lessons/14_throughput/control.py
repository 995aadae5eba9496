"""What a person does to a task: end it, give it another attempt, run it again from any point.

In the caller's transaction, which must roll back on BadInput. One rule for all that change tasks:
lock the rows, then look, then act. Children are locked before their parents, the greatest id first;
a task before its log. To know which rows to lock takes a look, too: if that look gives something
else once they are locked, the operation is refused. A fork changes nothing, and locks nothing.
"""

import sqlalchemy as sa

from db.queries import Querier
from inputs import MAX_INT, BadInput, check_number


def cancel(connection: sa.Connection, id: int) -> None:
    """End a task that has not ended. The upkeep cancels its children, and theirs."""
    check_id(id)
    if Querier(connection).cancel_task(id=id) == 0:
        raise BadInput(f"task {id} has ended, or never was")


def retry(connection: sa.Connection, id: int) -> None:
    """Give a failed or cancelled task the attempts that it has left, or one more if it has none.

    Its log is kept. Children whose failure it has not gone on from are retried too, and theirs.
    A task that waits for other code: all may try again, even the code that could not run it.
    """
    check_id(id)
    queries = Querier(connection)
    if queries.retry_parked(id=id):
        return
    parent_id = check(queries, id, "failed", "cancelled")
    tree = list(queries.list_retried(id=id))
    for task in tree:
        if task.status is None:
            raise BadInput(f"the child {task.id} of task {task.of} was deleted: replay that")
    ids = [task.id for task in tree]
    queries.lock_tasks(ids=[*ids, parent_id])
    check(queries, id, "failed", "cancelled")
    if list(queries.list_retried(id=id)) != tree:
        raise BadInput(f"task {id} has changed meanwhile: look again")
    revived = [task.id for task in tree if task.status in ("failed", "cancelled")]
    queries.revive_tasks(ids=revived)
    queries.drop_last_errors(ids=revived)
    queries.reopen_entries(ids=revived, child_ids=ids)
    queries.tell_again(ids=ids)


def replay(connection: sa.Connection, id: int) -> None:
    """Run a task that has ended again, from an empty log, with all its attempts.

    Its steps get new idempotency keys. Children of the old run that have not ended are cancelled.
    """
    queries = Querier(connection)
    parent_id = check(queries, id, "succeeded", "failed", "cancelled")
    family = list(queries.list_replayed(id=id))
    queries.lock_tasks(ids=[*(task.id for task in family), parent_id])
    check(queries, id, "succeeded", "failed", "cancelled")
    if list(queries.list_replayed(id=id)) != family:
        raise BadInput(f"task {id} has changed meanwhile: look again")
    queries.detach_children(parent_id=id)
    queries.replay_task(id=id)
    queries.delete_log(task_id=id)
    queries.delete_read_messages(task_id=id)


def fork(connection: sa.Connection, id: int, position: int) -> int:
    """Run a task again from this position of its log, as a new task; its id.

    The new log begins with copies of the entries up to there. What comes after them is done again,
    under new idempotency keys. The old task, its log and its children stay as they are.
    """
    check_id(id)
    check_number("a position", position, 0, MAX_INT)
    fork_id = Querier(connection).fork_task(id=id, position=position)
    if fork_id is None:
        raise BadInput(f"there is no task {id}, or its log has no position {position}")
    return fork_id


def check(queries: Querier, id: int, *statuses: str) -> int:
    """BadInput unless the task may run again. The id of its parent; 0 if it has none."""
    check_id(id)
    task = queries.get_task(id=id)
    if task is None or task.status not in statuses:
        raise BadInput(f"task {id} has not {'ended' if 'succeeded' in statuses else 'failed'}")
    parent = queries.get_task(id=task.parent_id or 0)
    if parent is not None and parent.status == "cancelled":
        raise BadInput(f"task {id} is a child of task {parent.id}, which is cancelled: retry that")
    return task.parent_id or 0


def check_id(id: int) -> None:
    check_number("a task's id", id, 1, 2**63 - 1)
