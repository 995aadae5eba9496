"""Rehearsals: does an exported log fit the code as it is here? Nothing is done, nothing written."""

import json
import traceback
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any, TypeVar, cast
from uuid import UUID

import sqlalchemy as sa

from context import Context
from control import check_id
from db.queries import ClaimTasksRow, Querier
from event_log import Entry, EventLog
from fence import Fence, Hopeless, Interrupted
from inputs import BadInput, Json, describe, to_json
from nondeterminism import NonDeterminismError, innermost
from run import call_durable
from tasks import registry, running_key
from writer import Writer

T = TypeVar("T")
FIELDS = sorted(field.name for field in fields(Entry))


def export_log(connection: sa.Connection, id: int) -> Json:
    """A task and its log, for `rehearse`: from the database in production to a file in the tests.

    Raises BadInput.
    """
    check_id(id)
    queries = Querier(connection)
    task = queries.get_task(id=id)
    if task is None:
        raise BadInput(f"there is no task {id}")
    log = [vars(entry) for entry in queries.load_log(task_id=id)]
    return {"id": id, "name": task.name, "input": task.input, "status": task.status, "log": log}


def rehearse(history: Json) -> str:
    """Run the function as it is here against an exported log; how it goes on at the end of that.

    Raises NonDeterminismError if the log does not fit, BadInput if it is not what `export_log`
    returns.
    """
    task, log = read_history(history)
    registered = registry.get(task.name)
    if registered is None or registered.kind != "durable":
        raise BadInput(f"there is no durable task {task.name!r} here")
    running_key.set("a rehearsal")
    context = None
    try:
        context = Rehearsal(NoDatabase(task, log))
        call_durable(registered, context, json.loads(task.input))
    except EndOfLog as end:
        return str(end)
    except Hopeless as error:
        raise BadInput(str(error)) from None
    except Interrupted:
        raise
    except BaseException as error:
        assert context is not None, "what goes wrong before it is there, interrupts the run"
        context.failed(error)
        return f"it fails where the log ends: {describe(error)}"
    return "it returns where the log ends"


class EndOfLog(Interrupted):
    """The function asks for what is not in the log. The message says how it goes on."""


class Recorded(Querier):
    """What a run reads. Nobody else is there who could complete an entry meanwhile."""

    def __init__(self, log: list[Entry]) -> None:
        self._log = log

    def load_log(self, *, task_id: int) -> Iterator[Entry]:  # noqa: ARG002
        return iter(self._log)

    def catch_event(self, *, task_id: int, position: int) -> None:
        pass


class NoDatabase(Fence):
    """Answers from the log. The first thing that the run wants to write is the end of it."""

    def __init__(self, task: ClaimTasksRow, log: list[Entry]) -> None:
        super().__init__(cast(Writer, None), task)
        self.log = log

    def send(self, statement: Callable[[Querier], T]) -> T:
        return statement(Recorded(self.log))

    def try_to_write(self, statement: Callable[..., T], **values: Any) -> T:
        if statement is not Querier.suspend_task:
            self.interrupt(EndOfLog(f"it goes on after position {len(self.log)}"))
        awaits: list[int] = values["awaits"]
        entries = [self.log[position - 1] for position in awaits]
        waits = [f"{entry.kind} {entry.name} at position {entry.position}" for entry in entries]
        of = f"{values['wake_after']} of {len(waits)}: " if len(waits) > 1 else ""
        self.interrupt(EndOfLog(f"it waits for {of}{', '.join(waits)}"))


class RehearsedLog(EventLog):
    def next(self, kind: str, name: str, input: str) -> Entry | None:
        entry = super().next(kind, name, input)
        if entry is None:
            self._fence.interrupt(EndOfLog(f"it goes on after position {self.position - 1}"))
        return entry

    def _settle(self) -> None:
        """That the function goes on from an error need not be written here."""


class Rehearsal(Context):
    def __init__(self, fence: Fence) -> None:
        super().__init__(fence)
        self._log = RehearsedLog(fence)

    def failed(self, error: BaseException) -> None:
        """Raises NonDeterminismError if the log goes on: the run that wrote it did not fail."""
        if not self._log.is_at_end():
            raise NonDeterminismError(
                f"after position {self._log.position}, the function fails, and its log goes on: "
                f"{describe(error)}\n{innermost(traceback.extract_tb(error.__traceback__))}"
            ) from error


def read_history(history: Json) -> tuple[ClaimTasksRow, list[Entry]]:
    match history:
        case {"id": int(), "name": str(), "input": _, "log": list()}:
            log = [read_entry(number, entry) for number, entry in enumerate(history["log"], 1)]
        case _:
            raise BadInput("an export has an id, a name, an input and a log: `export ID` prints it")
    task = ClaimTasksRow(
        id=history["id"],
        name=history["name"],
        input=to_json(history["input"]),
        priority=0,
        attempt=2,  # the first attempt has no log
        max_attempts=2,
        log_id=UUID(int=0),
        uncounted=0,
        queue="default",
        completions=0,
    )
    return task, log


def read_entry(number: int, entry: Json) -> Entry:
    match entry:
        case {"position": int(), "kind": str(), "name": str(), "settled": bool()} if sorted(
            entry
        ) == FIELDS and isinstance(entry["completion"], int | None):
            return Entry(**entry)
        case _:
            raise BadInput(f"entry {number} of the log has not the fields {', '.join(FIELDS)}")
