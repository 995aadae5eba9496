"""Tasks as a program sees them: registered functions, JSON in and out, and a way into the queue."""

import json
from collections.abc import Callable
from typing import Any, TypeVar

import sqlalchemy as sa

from db.queries import Querier

Json = Any  # what json.loads can return
MAX_JSON_BYTES = 1_000_000
MAX_ERROR_CHARACTERS = 10_000

# Workers look functions up here and nowhere else; a name in a row is never imported. Whoever can
# write to the table can run a registered function with an input of their own, and no other code.
registry: dict[str, Callable[[Any], Json]] = {}

Function = TypeVar("Function", bound=Callable[[Any], Json])


class BadInput(ValueError):
    """Refused at the door: nothing was written. The message says what to change."""


def task(function: Function) -> Function:
    """Register `function`, which takes one JSON value and returns one, under its own name."""
    name = function.__name__
    if name in registry:
        raise BadInput(f"there is a task {name!r} already: give this function another name")
    registry[name] = function
    return function


def enqueue(connection: sa.Connection, name: str, input: Json) -> int:
    """Put a task into the queue and return its id. Raises BadInput.

    It is one INSERT on the caller's connection. In a transaction, the task is there for the workers
    when that transaction commits, and never was if it rolls back.
    """
    if name not in registry:
        known = ", ".join(sorted(registry)) or "none; import the module with the tasks"
        raise BadInput(f"there is no task {name!r}; registered: {known}")
    task_id = Querier(connection).enqueue_task(name=name, input=to_json(input))
    assert task_id is not None, "an INSERT ... RETURNING returns its row, or raises"
    return task_id


def to_json(value: Json) -> str:
    """`value` as JSON text that Postgres can store and that reads back as an equal value.

    Raises BadInput for what would fail later, or come back as something else.
    """
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        size = len(text.encode())
    except (TypeError, ValueError, RecursionError) as error:  # a set; NaN, half a surrogate; depth
        raise BadInput(f"not JSON: {error}") from None
    if size > MAX_JSON_BYTES:
        raise BadInput(
            f"{size:,} bytes of JSON, and {MAX_JSON_BYTES:,} is the most: "
            "keep large data elsewhere and pass its address"
        )
    if "\\u0000" in text.replace("\\\\", ""):
        raise BadInput("a string holds the character NUL, which Postgres cannot store")
    if json.loads(text) != value:
        raise BadInput("JSON would change it: use lists, not tuples, and strings as keys of a dict")
    return text


def describe(error: BaseException) -> str:
    """`error` as text that can be stored, whatever it holds: NUL, half a surrogate, megabytes."""
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:
        text = f"{type(error).__name__}, and its message cannot be read"
    text = text.encode(errors="backslashreplace").decode().replace("\0", "\\x00")
    return text[:MAX_ERROR_CHARACTERS]
