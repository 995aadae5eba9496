"""One run of a task: call its function, and store what came of it."""

import logging
from dataclasses import dataclass

import sqlalchemy as sa

from connection import repeat
from db.queries import ClaimTasksRow, Querier
from inputs import Json, describe, to_json
from tasks import registry

log = logging.getLogger("worker")


@dataclass(frozen=True)
class Succeeded:
    output: str  # JSON


@dataclass(frozen=True)
class Failed:
    error: str


def run_task(connection: sa.Connection, task: ClaimTasksRow) -> None:
    log.info("task %d: %s", task.id, task.name)
    outcome = outcome_of(task)
    if repeat(connection, lambda queries: store(queries, task.id, outcome)) == 0:
        log.warning("task %d was not running any more", task.id)


def outcome_of(task: ClaimTasksRow) -> Succeeded | Failed:
    try:
        return Succeeded(to_json(call(task.name, task.input)))
    # Also sys.exit(), and what asyncio raises when it is cancelled: a task takes no slot along.
    except BaseException as error:
        return Failed(describe(error))


def call(name: str, input: Json) -> Json:
    """Call the registered function. A row with a name that nobody registered fails only itself."""
    if name not in registry:
        raise LookupError(f"this worker knows no task {name!r}")
    return registry[name](input)


def store(queries: Querier, id: int, outcome: Succeeded | Failed) -> int:
    """Returns how many rows were changed: 1, or 0 if the task is not running any more."""
    match outcome:
        case Succeeded(output):
            log.info("task %d succeeded", id)
            return queries.succeed_task(id=id, output=output)
        case Failed(error):
            log.info("task %d failed: %s", id, error)
            return queries.fail_task(id=id, error=error)
