"""One run of a task: call its function, and store what came of it."""

import json
import logging
from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa

from context import Context
from db.queries import ClaimTasksRow, Querier
from event_log import Suspended
from fence import Fence, Hopeless, Interrupted, Misfit
from inputs import BadInput, Json, describe, to_json
from tasks import NonRetryableError, Registered, registry, running_key
from timing import Timing
from transactions import commit
from writer import Writer

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


@dataclass(frozen=True)
class Parked:
    """This code cannot run the task. It waits for other code, and the attempt does not count."""

    error: str


class UnknownTask(Misfit):
    """The code here has no function for the task."""


PARKED = """\
The task is parked, and this attempt does not count. It waits for other code: workers of another
version take it up by themselves, once `python main.py move-version` has moved it if this version
began it. `python main.py retry {id}` lets all try again at once."""

Outcome = Succeeded | Failed | Again | Suspended | Committed | Parked


def run_task(writer: Writer, task: ClaimTasksRow, timing: Timing) -> Outcome | None:
    """What came of it, and is to be stored now. None: nothing."""
    log.info("task %d, attempt %d: %s", task.id, task.attempt, task.name)
    try:
        return outcome_of(Fence(writer, task), timing)
    except Misfit as error:
        return Parked(f"{describe(error)}\n{PARKED.format(id=task.id)}")
    except Hopeless as error:
        return Failed(describe(error))
    except Interrupted as why:
        log.warning("%s: void", why)
        return None


def store_alone(writer: Writer, task: ClaimTasksRow, outcome: Outcome) -> None:
    """In a statement of its own."""
    fence = Fence(writer, task)
    try:
        try:
            store(fence, outcome)
        except Hopeless as error:
            store(fence, Failed(describe(error)))
    except Interrupted as why:
        log.warning("%s: void", why)


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

    A transactional task's gets a connection, and the task ends in its transaction. Raises
    UnknownTask.
    """
    task = fence.task
    if task.name not in registry:
        raise UnknownTask(f"this worker knows no task {task.name!r}")
    registered, input = registry[task.name], json.loads(task.input)
    running_key.set(str(task.log_id))
    if registered.kind == "durable":
        return ended_with(call_durable(registered, Context(fence), input))
    check_no_log(fence)
    if registered.kind == "plain":
        return ended_with(registered.function(input))

    def work(own: sa.Connection) -> Json:
        return registered.function(own, json.loads(task.input))  # not changed by an earlier try

    output = commit(fence, work, Querier.succeed_task)
    # If an earlier COMMIT has arrived, and only its answer was lost, the task has succeeded.
    if output is None and not fence.finds("succeeded"):
        fence.lost()
    return Committed()


def check_no_log(fence: Fence) -> None:
    """A function that was durable and is not any more would do its recorded steps again."""
    task = fence.task
    if task.attempt > 1 and fence.send(lambda queries: list(queries.load_log(task_id=task.id))):
        raise UnknownTask(f"the task has a log, and here {task.name!r} is not a durable task")


def call_durable(registered: Registered, context: Context, input: Json) -> Json:
    returned = False
    try:
        output = registered.function(context, input)
        returned = True
        return output
    finally:
        context.end(returned)


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
        case Parked(error):
            fence.write(Querier.park_task, error=error)
            log.warning("task %d is parked: %s", id, error)
        case Suspended():
            log.info("task %d %s", id, outcome)
