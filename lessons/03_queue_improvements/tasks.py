"""Tasks as a program sees them: registered functions, JSON in and out, and a way into the queue."""

import json
import re
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, TypeVar

import sqlalchemy as sa

from db.queries import Querier

Json = Any  # what json.loads can return
MAX_JSON_BYTES = 1_000_000
MAX_BATCH_CHARACTERS = 50_000_000
MAX_ERROR_CHARACTERS = 10_000
MAX_INT = 2**31 - 1
MAX_DURATION = timedelta(days=3650)

# Workers look functions up here and nowhere else; a name in a row is never imported. Whoever can
# write to the table can run a registered function with an input of their own, and no other code.
registry: dict[str, Callable[[Any], Json]] = {}

Function = TypeVar("Function", bound=Callable[[Any], Json])


class BadInput(ValueError):
    """Refused at the door: nothing was written. The message says what to change."""


class NonRetryableError(Exception):
    """Raised by a task's function: this will not get better, do not try again."""


def task(function: Function) -> Function:
    """Register `function`, which takes one JSON value and returns one, under its own name."""
    name = function.__name__
    if name in registry:
        raise BadInput(f"there is a task {name!r} already: give this function another name")
    registry[name] = function
    return function


def enqueue(
    connection: sa.Connection,
    name: str,
    input: Json,
    *,
    queue: str = "default",
    priority: int = 0,
    delay: timedelta | None = None,
    start_timeout: timedelta | None = None,
    timeout: timedelta | None = None,
    max_attempts: int = 5,
    idempotency_key: str | None = None,
) -> int:
    """Put a task into the queue and return its id. Raises BadInput.

    It is one INSERT on the caller's connection. In a transaction, the task is there for the workers
    when that transaction commits, and never was if it rolls back.

    priority: higher goes first. delay: not before. start_timeout: the task fails if no worker has
    begun it by then, counted from the end of the delay. timeout: for each attempt.
    idempotency_key: a second enqueue of this name with this key returns the first one's id.
    """
    check_name(name)
    check_options(queue, priority, max_attempts, timeout, delay, start_timeout)
    check_key(idempotency_key)
    queries = Querier(connection)
    task_id = queries.enqueue_task(
        queue=queue,
        name=name,
        input=to_json(input),
        priority=priority,
        delay=delay,
        start_timeout=start_timeout,
        timeout=timeout,
        max_attempts=max_attempts,
        idempotency_key=idempotency_key,
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


def enqueue_many(
    connection: sa.Connection,
    name: str,
    inputs: Iterable[Json],
    *,
    queue: str = "default",
    priority: int = 0,
    delay: timedelta | None = None,
    start_timeout: timedelta | None = None,
    timeout: timedelta | None = None,
    max_attempts: int = 5,
) -> list[int]:
    """Put a task for each of the inputs into the queue; their ids, in the same order.

    It is one INSERT, as with `enqueue`, and the options are the same for all. If one input is bad,
    nothing is written. Raises BadInput.
    """
    check_name(name)
    check_options(queue, priority, max_attempts, timeout, delay, start_timeout)
    if isinstance(inputs, str | bytes | dict):
        raise BadInput(f"inputs is a list with an input for each task, not {inputs!r:.50}")
    texts: list[str] = []
    for place, input in enumerate(inputs):
        try:
            texts.append(to_json(input))
        except BadInput as error:
            raise BadInput(f"inputs[{place}]: {error}") from None
    size = sum(map(len, texts))
    if size > MAX_BATCH_CHARACTERS:
        raise BadInput(
            f"{len(texts):,} inputs with {size:,} characters of JSON, and {MAX_BATCH_CHARACTERS:,} "
            "is the most for all together: enqueue them in parts"
        )
    ids = Querier(connection).enqueue_tasks(
        queue=queue,
        name=name,
        inputs=f"[{','.join(texts)}]",
        priority=priority,
        delay=delay,
        start_timeout=start_timeout,
        timeout=timeout,
        max_attempts=max_attempts,
    )
    return sorted(ids)


def limit_queue(connection: sa.Connection, queue: str, max_running: int) -> None:
    """Let at most `max_running` tasks of the queue run at once, over all workers; 0 pauses it.

    Running tasks are left alone. Workers keep to it from their next claim on; until the caller's
    transaction ends, they wait with that. Only a queue's very first limit lets the claims pass that
    are under way at that moment. Raises BadInput.
    """
    check_queue(queue)
    check_number("a limit", max_running, 0, MAX_INT)
    Querier(connection).limit_queue(queue=queue, max_running=max_running)


def check_name(name: str) -> None:
    if name not in registry:
        known = ", ".join(sorted(registry)) or "none; import the module with the tasks"
        raise BadInput(f"there is no task {name!r}; registered: {known}")


def check_queue(queue: str) -> None:
    """BadInput for a name that cannot be, or that would look like another one."""
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", queue):
        raise BadInput(f"a queue is named with 1 to 100 letters, digits, _ . -, not {queue!r}")


def check_options(
    queue: str,
    priority: int,
    max_attempts: int,
    timeout: timedelta | None,
    delay: timedelta | None = None,
    start_timeout: timedelta | None = None,
) -> None:
    """BadInput unless these options of a new task can be stored, and obeyed."""
    check_queue(queue)
    check_number("priority", priority, -MAX_INT, MAX_INT)
    check_number("max_attempts", max_attempts, 1, MAX_INT)
    check_duration("timeout", timeout)
    check_duration("delay", delay)
    check_duration("start_timeout", start_timeout)


def check_number(what: str, number: int, least: int, most: int) -> None:
    if type(number) is not int or not least <= number <= most:
        raise BadInput(f"{what} is a whole number from {least:,} to {most:,}, not {number!r}")


def check_duration(what: str, duration: object) -> None:
    """BadInput for no duration at all, and for one that leads to a year that Python cannot read."""
    if duration is None or (
        isinstance(duration, timedelta) and timedelta(0) <= duration <= MAX_DURATION
    ):
        return
    raise BadInput(
        f"{what} is a timedelta from 0 to {MAX_DURATION.days:,} days, not {duration!r:.50}"
    )


def check_key(key: object) -> None:
    """BadInput for an empty key, and for one that an index entry cannot hold."""
    if key is not None and not (isinstance(key, str) and re.fullmatch(r"[ -~]{1,200}", key)):
        raise BadInput(
            f"an idempotency key is 1 to 200 printable ASCII characters, not {key!r:.50}"
        )


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
