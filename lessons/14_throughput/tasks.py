"""Tasks as a program sees them: registered functions, options, and a way into the queue."""

import json
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypedDict, TypeVar, Unpack

import sqlalchemy as sa

from db.queries import Querier
from inputs import (
    MAX_INT,
    BadInput,
    Json,
    check_duration,
    check_function,
    check_key,
    check_number,
    check_queue,
    to_json,
)
from parsed import parse_once

Kind = Literal["plain", "durable", "transactional"]


@dataclass(frozen=True)
class Registered:
    """A durable function takes a context too, a transactional one a connection."""

    function: Callable[..., Json]
    kind: Kind


# Workers look functions up here and nowhere else; a name in a row is never imported. Whoever can
# write to the table can run a registered function with any input, and no other code.
registry: dict[str, Registered] = {}

parse_once()

Function = TypeVar("Function", bound=Callable[[Any], Json])


class NonRetryableError(Exception):
    """Raised by a task's function: this will not get better, do not try again."""


class TaskOptions(TypedDict, total=False):
    """What a new task can be given besides its input; check_options knows the defaults.

    priority: higher goes first. timeout: for each attempt.
    """

    queue: str
    priority: int
    max_attempts: int
    timeout: timedelta | None


def task(function: Function) -> Function:
    """Register `function`, which takes one JSON value and returns one, under its own name."""
    rule = "a task is a def that takes one JSON value"
    register(check_function(function, rule, None), function, kind="plain")
    return function


def register(name: str, function: Callable[..., Json], *, kind: Kind) -> None:
    if not name.isidentifier():
        raise BadInput(f"{name} is no name for a row to call it by: a task is made with def")
    if name in registry:
        raise BadInput(f"there is a task {name!r} already: give this function another name")
    registry[name] = Registered(function, kind)


def is_task(function: object) -> bool:
    """Is it registered? Another function of the same name is not."""
    registered = registry.get(getattr(function, "__name__", ""))
    return registered is not None and registered.function is function


# Set for each call of a task's function, by the code that calls it.
running_key: ContextVar[str] = ContextVar("running_key")


def task_key() -> str:
    """The idempotency key of the task that calls this, for what it does outside of the database.

    The same in each of its attempts, and no other task's. A durable task's steps get their own.
    """
    try:
        return running_key.get()
    except LookupError:
        raise NonRetryableError(
            "task_key() is for the function of a task, while a worker runs it. A thread that the "
            "function has started does not know it: hand the key over"
        ) from None


def enqueue(
    connection: sa.Connection,
    name: str,
    input: Json,
    *,
    delay: timedelta | None = None,
    idempotency_key: str | None = None,
    **options: Unpack[TaskOptions],
) -> int:
    """Put a task into the queue and return its id. Raises BadInput.

    It is one INSERT on the caller's connection. In a transaction, the task is there for the workers
    when that transaction commits, and never was if it rolls back.

    delay: it does not run before. idempotency_key: a second enqueue of this name with this key
    returns the first one's id.
    """
    check_task(name)
    chosen = check_options(**options)
    if delay is not None:
        check_duration("delay", delay)
    check_key(idempotency_key)
    queries = Querier(connection)
    task_id = queries.enqueue_task(
        name=name, input=to_json(input), delay=delay, idempotency_key=idempotency_key, **chosen
    )
    if task_id is not None:
        return task_id
    assert idempotency_key is not None, "without a key, the INSERT returns its row or raises"
    first = queries.find_task(name=name, idempotency_key=idempotency_key)
    if first is None:
        raise BadInput(f"the task with the key {idempotency_key!r} was just deleted: try again")
    # As text: in Python, 1 == True.
    if json.dumps(first.input, sort_keys=True) != json.dumps(input, sort_keys=True):
        raise BadInput(f"the key {idempotency_key!r} was used for another input: task {first.id}")
    return first.id


def check_task(name: str) -> None:
    if name not in list(registry):  # not `in registry`: a dict as a name would be a TypeError
        known = ", ".join(sorted(registry)) or "none; import the module with the tasks"
        raise BadInput(f"there is no task {name!r}; registered: {known}")


def check_options(
    *,
    queue: str = "default",
    priority: int = 0,
    max_attempts: int = 5,
    timeout: timedelta | None = None,
    **unknown: object,
) -> TaskOptions:
    """All options of a new task. BadInput unless they can be stored, and obeyed."""
    if unknown:
        known = ", ".join(TaskOptions.__annotations__)
        raise BadInput(f"there is no option {', '.join(unknown)}; there are {known}")
    check_queue(queue)
    check_number("priority", priority, -MAX_INT, MAX_INT)
    check_number("max_attempts", max_attempts, 1, MAX_INT)
    if timeout is not None:
        check_duration("timeout", timeout)
    return TaskOptions(queue=queue, priority=priority, max_attempts=max_attempts, timeout=timeout)
