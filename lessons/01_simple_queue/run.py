"""One run of a task: call its function, and store what came of it."""

import logging
from dataclasses import dataclass

from sqlalchemy.exc import DBAPIError

from db.queries import ClaimTaskRow, Querier
from inputs import Json, describe, to_json
from tasks import registry

log = logging.getLogger("worker")


@dataclass(frozen=True)
class Succeeded:
    output: str  # JSON


@dataclass(frozen=True)
class Failed:
    error: str


def run_task(queries: Querier, task: ClaimTaskRow) -> None:
    log.info("task %d: %s", task.id, task.name)
    outcome = outcome_of(task)
    try:
        store(queries, task.id, outcome)
    except DBAPIError as error:  # Postgres does not take what it returned: it is nested too deeply
        store(queries, task.id, Failed(f"Postgres cannot store the result: {error.orig}"))


def outcome_of(task: ClaimTaskRow) -> Succeeded | Failed:
    try:
        return Succeeded(to_json(call(task.name, task.input)))
    # A task that calls sys.exit() fails like any other; it does not take its worker along.
    except (Exception, SystemExit) as error:
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
