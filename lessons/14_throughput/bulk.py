"""Many tasks at once."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Unpack

import sqlalchemy as sa

from db.queries import Querier
from inputs import BadInput, Json, check_duration, to_json
from tasks import TaskOptions, check_options, check_task

MAX_MANY_CHARACTERS = 100_000_000  # Postgres takes 1 GB in a statement, and both sides hold it


def enqueue_many(
    connection: sa.Connection,
    name: str,
    inputs: Sequence[Json],
    *,
    delay: timedelta | None = None,
    **options: Unpack[TaskOptions],
) -> list[int]:
    """A task for each input, as `enqueue` makes one; their ids, in the same order.

    It is one INSERT on the caller's connection: all of them are there, or none. Raises BadInput.
    """
    check_task(name)
    chosen = check_options(**options)
    if delay is not None:
        check_duration("delay", delay)
    if not isinstance(inputs, list | tuple):
        raise BadInput(f"inputs is a list, with one input for each task, not {inputs!r:.50}")
    texts = [input_as_json(place, input) for place, input in enumerate(inputs)]
    size = sum(map(len, texts))
    if size > MAX_MANY_CHARACTERS:
        most = f"{MAX_MANY_CHARACTERS:,} is the most"
        raise BadInput(f"{size:,} characters of JSON, and {most}: enqueue them in several calls")
    rows = Querier(connection).enqueue_tasks(
        name=name, inputs=f"[{','.join(texts)}]", delay=delay, **chosen
    )
    return sorted(rows)


def input_as_json(place: int, input: Json) -> str:
    try:
        return to_json(input)
    except BadInput as error:
        raise BadInput(f"inputs[{place}]: {error}") from None
