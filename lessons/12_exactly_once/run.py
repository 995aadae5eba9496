"""One run of a task: call its function, and store what came of it."""

import json
import logging
from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa

from context import Context
from db.queries import ClaimTasksRow, Querier
from event_log import Suspended
from fence import Fence, Hopeless, Interrupted
from inputs import BadInput, Json, describe, to_json
from shared.database import Database
from tasks import NonRetryableError, registry, running_key
from timing import Timing
from transactions import commit

log = logging.getLogger("worker")


@dataclass(frozen=True)
class Succeeded:
    output: str  # JSON


@dataclass(frozen=True)
class Failed:
    error: str


@dataclass(frozen=True)
class Again:
    """This attempt has failed. There is another one after the delay."""

    error: str
    delay: timedelta


@dataclass(frozen=True)
class Committed:
    """The task has succeeded, in the transaction of its own function."""


Outcome = Succeeded | Failed | Again | Suspended | Committed


def run_task(db: Database, connection: sa.Connection, task: ClaimTasksRow, timing: Timing) -> bool:
    """True: the task waits now, perhaps for a moment that the upkeep does not know of yet."""
    log.info("task %d, attempt %d: %s", task.id, task.attempt, task.name)
    fence = Fence(connection, task, db.engine)
    try:
        try:
            outcome = outcome_of(fence, timing)
            store(fence, outcome)
            return isinstance(outcome, Again | Suspended)
        except Hopeless as error:
            store(fence, Failed(describe(error)))
    except Interrupted as why:
        log.warning("%s: void", why)
    return False


def outcome_of(fence: Fence, timing: Timing) -> Outcome:
    """Raises Interrupted."""
    try:
        return call(fence)
    except Suspended as suspended:
        return suspended
    except Interrupted:
        raise
    # Even sys.exit(), and what asyncio raises when it is cancelled: a task must not end its slot.
    except BaseException as error:
        return failure(fence.task, timing, error)


def ended_with(output: Json) -> Succeeded | Failed:
    """What is no JSON will be none in the next attempt either."""
    try:
        return Succeeded(to_json(output))
    except BadInput as error:
        return Failed(describe(error))


def failure(task: ClaimTasksRow, timing: Timing, error: BaseException) -> Failed | Again:
    tried = task.attempt - task.uncounted
    if issubclass(type(error), NonRetryableError) or tried >= task.max_attempts:
        return Failed(describe(error))
    return Again(describe(error), timing.backoff(tried))


def call(fence: Fence) -> Outcome:
    """Call the registered function; a durable task's gets a context to do its steps with.

    A transactional task's gets a connection, and the task ends in its transaction.

    A row with a name that nobody registered fails only itself.
    """
    task = fence.task
    if task.name not in registry:
        raise LookupError(f"this worker knows no task {task.name!r}")
    registered, input = registry[task.name], json.loads(task.input)
    running_key.set(str(task.log_id))
    if registered.kind == "transactional":

        def work(own: sa.Connection) -> Json:
            return registered.function(own, json.loads(task.input))  # not changed by an earlier try

        output = commit(fence, work, Querier.succeed_task)
        # If an earlier COMMIT has arrived, and only its answer was lost, the task has succeeded.
        if output is None and not fence.finds("succeeded"):
            fence.lost()
        return Committed()
    if registered.kind == "plain":
        return ended_with(registered.function(input))
    context = Context(fence)
    returned = False
    try:
        output = registered.function(context, input)
        returned = True
    finally:
        context.end(returned)
    return ended_with(output)


def store(fence: Fence, outcome: Outcome) -> None:
    """Raises Interrupted: the outcome is void."""
    id = fence.task.id
    match outcome:
        case Succeeded(output):
            fence.write(Querier.succeed_task, output=output)
            log.info("task %d succeeded", id)
        case Committed():
            log.info("task %d succeeded", id)
        case Failed(error):
            fence.write(Querier.fail_task, error=error)
            log.info("task %d failed: %s", id, error)
        case Again(error, delay):
            fence.write(Querier.retry_task, delay=delay, error=error)
            log.info("task %d, again in %s: %s", id, delay, error)
        case Suspended():
            log.info("task %d %s", id, outcome)
