"""One run of a task: call its function, and store what came of it."""

import logging
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from connection import reason, repeat
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
    try:
        repeat(connection, lambda queries: store(queries, task.id, outcome))
    except DBAPIError as error:  # Postgres does not take what it returned: it is nested too deeply
        failed = Failed(f"Postgres cannot store the result: {reason(error)}")
        repeat(connection, lambda queries: store(queries, task.id, failed))


def outcome_of(task: ClaimTasksRow) -> Succeeded | Failed:
    try:
        return Succeeded(to_json(call(task.name, task.input)))
    # Even sys.exit(), and what asyncio raises when it is cancelled: a task must not end its slot.
    except BaseException as error:
        return Failed(describe(error))


def call(name: str, input: Json) -> Json:
    """Call the registered function. A row with a name that nobody registered fails only itself."""
    if name not in registry:
        raise LookupError(f"this worker knows no task {name!r}")
    return registry[name](input)


def store(queries: Querier, id: int, outcome: Succeeded | Failed) -> None:
    match outcome:
        case Succeeded(output):
            changed, what = queries.succeed_task(id=id, output=output), "succeeded"
        case Failed(error):
            changed, what = queries.fail_task(id=id, error=error), f"failed: {error}"
    if changed:
        log.info("task %d %s", id, what)
    else:
        log.warning("task %d was not running any more", id)
