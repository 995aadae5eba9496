"""Tasks as a program sees them: registered functions, and a way into the queue."""

from collections.abc import Callable
from typing import Any, TypeVar

import sqlalchemy as sa

from db.queries import Querier
from inputs import BadInput, Json, check_function, to_json

# Workers look functions up here and nowhere else; a name in a row is never imported. Whoever can
# write to the table can run a registered function with any input, and no other code.
registry: dict[str, Callable[[Any], Json]] = {}

Function = TypeVar("Function", bound=Callable[[Any], Json])


def task(function: Function) -> Function:
    """Register `function`, which takes one JSON value and returns one, under its own name."""
    name = check_function(function, "a task is a def that takes one JSON value", None)
    if not name.isidentifier():
        raise BadInput(f"{name} is no name for a row to call it by: a task is made with def")
    if name in registry:
        raise BadInput(f"there is a task {name!r} already: give this function another name")
    registry[name] = function
    return function


def enqueue(connection: sa.Connection, name: str, input: Json) -> int:
    """Put a task into the queue and return its id. Raises BadInput.

    It is one INSERT on the caller's connection. In a transaction, the task is there for the workers
    when that transaction commits, and never was if it rolls back.
    """
    if name not in list(registry):  # not `in registry`: a dict as a name would be a TypeError
        known = ", ".join(sorted(registry)) or "none; import the module with the tasks"
        raise BadInput(f"there is no task {name!r}; registered: {known}")
    task_id = Querier(connection).enqueue_task(name=name, input=to_json(input))
    assert task_id is not None, "an INSERT ... RETURNING returns its row, or raises"
    return task_id
