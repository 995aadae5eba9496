"""Lesson 05: a function that no longer fits its log is told so. --help lists the verbs."""

import json
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import click
import sqlalchemy as sa
from rich.table import Table

import app
import event_log
from claim import limit_queue
from context import Context
from db.queries import Querier
from fence import Fence
from inputs import BadInput, Json
from shared.database import Database
from shared.processes import wait_until, working
from shared.story import check, console, feared, get, log_of, say, scene, status
from shared.verbs import verbs
from tasks import enqueue
from worker import Worker

HERE = Path(__file__).resolve().parent


def story(db: Database) -> None:
    trusting_the_position(db)
    eight_edits(db)
    put_right(db)
    four_identities()


def trusting_the_position(db: Database) -> None:
    scene("An order is half-way. Its function is edited, two steps swapped; with lesson 04's log")
    id = order_under_way(db)
    for entry in log_of(db, id):
        outcome = f"failed: {entry.error['type']}" if entry.error else entry.output
        say(f"event log: {entry.position} {entry.name} -> {outcome}")
    with db.autocommit.connect() as connection:
        queue = Querier(connection)
        worker_id = queue.register_worker(name="trusting", lease=timedelta(seconds=10)) or 0
        (claimed,) = queue.claim_tasks(
            worker_id=worker_id, queue="default", at_most=1, skip=0, limited=False
        )
        with patch.object(event_log, "mismatch", no_mismatch):
            output = app.swapped(Context(Fence(connection, claimed)), json.loads(claimed.input))
    say(f"the swapped function returns: {output}")
    feared("payment (order 7: 2 items" in output, "as feared: two answers are swapped, too")


def no_mismatch(*_: object) -> None:
    """As in lesson 04: whatever stands at this position is the answer."""


def eight_edits(db: Database) -> None:
    scene("Eight edits of a function that is under way; with this lesson's log")
    for version in app.VERSIONS:
        if version == "original":
            continue
        id = order_under_way(db)
        effects = app.outside.effects()
        work_until(db, id, version, "succeeded", "failed")
        task = get(db, id)
        if version == "swapped":
            for line in (task.error or "").splitlines():
                say(line.replace(f"{HERE}/", ""))
        caught = (task.error or "").startswith("NonDeterminismError: at position")
        if not caught or app.outside.effects() != effects or task.attempt != 2:
            check(False, f"{version}: {task.status}, {task.error or task.output}")
        position = (task.error or "").split()[3].rstrip(",")
        say(f"{version}: {task.status}, at position {position}")
    check(True, "each was caught before anything was done, and was not tried again")


def put_right(db: Database) -> None:
    scene("The code is put back as it was, and the task is retried: its log is kept")
    id = order_under_way(db)
    work_until(db, id, "swapped", "failed")
    with db.autocommit.connect() as connection:
        say(f"retry: {Querier(connection).revive_task(id=id)} task queued again")
    work_until(db, id, "original", "succeeded")
    charged = [line for line in app.outside.effects() if "charged" in line]
    check(len(charged) == 1, f"{get(db, id).status}, and charged once")


def four_identities() -> None:
    scene("Four ways to recognise a log entry, and what each edit leads to")
    table = Table("edit", *IDENTITIES)
    for edit, program in EDITS.items():
        table.add_row(edit, *(verdict(program, known_by) for known_by in IDENTITIES.values()))
        table.add_section()
    console.width = max(console.width, 106)  # not less when the output is not a terminal's
    console.print(table)
    for title, known_by in IDENTITIES.items():
        verdicts = [verdict(program, known_by) for program in EDITS.values()]
        silent = sum(verdict not in ("goes on", "caught") for verdict in verdicts)
        say(f"known by {title}: {silent} of {len(EDITS) - 1} edits do harm, and nobody is told")
        expected = {"position": 5, "name": 3, "position and name": 1, "position, name, input": 0}
        if silent != expected[title]:
            check(False, f"expected {expected[title]}")
    check(
        True, "only the last tells in time, and it also stops edits that would have been harmless"
    )


class Step(NamedTuple):
    """In this experiment, a step is what the log knows of it, and the effect that it has."""

    name: str
    input: str
    effect: str


CHECK = Step("check", "", "check")
CHARGE = Step("charge", "10", "charge 10")
DEBIT = CHARGE._replace(name="debit")  # the same function by another name
CHARGE_20 = Step("charge", "20", "charge 20")
RESERVE = Step("reserve", "2", "reserve")
CONFIRM = Step("confirm", "", "confirm")

LOG = [CHARGE, RESERVE]  # and then the worker was killed
EDITS = {
    "none": [CHARGE, RESERVE, CONFIRM],
    "inserted": [CHECK, CHARGE, RESERVE, CONFIRM],
    "removed": [RESERVE, CONFIRM],
    "swapped": [RESERVE, CHARGE, CONFIRM],
    "renamed": [DEBIT, RESERVE, CONFIRM],
    "other input": [CHARGE_20, RESERVE, CONFIRM],
    "repeated": [CHARGE, CHARGE, RESERVE, CONFIRM],
}


class Caught(Exception):
    pass


# Each takes the steps up to the present one, and returns the entry that answers it, or None.
Identity = Callable[[list[Step]], Step | None]


def by_position(steps: list[Step]) -> Step | None:
    return LOG[len(steps) - 1] if len(steps) <= len(LOG) else None


def by_name(steps: list[Step]) -> Step | None:
    """The first `charge` is the first entry of that name, the second one the second."""
    entries = [entry for entry in LOG if entry.name == steps[-1].name]
    times = sum(step.name == steps[-1].name for step in steps)
    return entries[times - 1] if times <= len(entries) else None


def by_position_and_name(steps: list[Step]) -> Step | None:
    entry = by_position(steps)
    if entry and entry.name != steps[-1].name:
        raise Caught
    return entry


def by_position_name_and_input(steps: list[Step]) -> Step | None:
    entry = by_position_and_name(steps)
    if entry and entry.input != steps[-1].input:
        raise Caught
    return entry


IDENTITIES: dict[str, Identity] = {
    "position": by_position,
    "name": by_name,
    "position and name": by_position_and_name,
    "position, name, input": by_position_name_and_input,
}


def verdict(program: list[Step], known_by: Identity) -> str:
    """Run the edited program on the log. A step that the log does not answer is done."""
    effects, wrong = [entry.effect for entry in LOG], list[str]()
    try:
        for n, step in enumerate(program):
            entry = known_by(program[: n + 1])
            if entry is None:
                effects.append(step.effect)
            elif entry.effect != step.effect:
                wrong.append(step.effect)
    except Caught:
        return "caught"
    # Seen from outside: what has happened, and what the program says.
    happened, wanted = Counter(effects), Counter(step.effect for step in program)
    surplus = happened - wanted
    findings = {
        "wrong": wrong,
        "twice": [effect for effect in surplus if wanted[effect]],
        "left over": [effect for effect in surplus if not wanted[effect]],
        "never": list(wanted - happened),
    }
    lines = [f"{what}: {', '.join(which)}" for what, which in findings.items() if which]
    return "\n".join(lines) or "goes on"


def order_under_way(db: Database) -> int:
    """An order of which two steps are recorded; the third has failed, and is tried again later."""
    app.outside.forget()
    app.mail_works = False
    id = enqueue_one(db, "fulfil", {"id": 7})
    work_until(db, id, "original", "waiting")
    app.mail_works = True
    with db.autocommit.connect() as connection:
        connection.execute(sa.text("update tasks set run_at = clock_timestamp()"))  # time flies
        list(Querier(connection).wake_tasks(at_most=1, skip=0))
    return id


def work_until(db: Database, id: int, version: str, *statuses: str) -> None:
    """A worker that has this version of the code."""
    app.version = version
    with working(Worker(db, version)):
        wait_until(lambda: status(db, id) in statuses, f"the order is {' or '.join(statuses)}")


def enqueue_one(db: Database, name: str, input: Json, *, empty: bool = True, **options: Any) -> int:
    """Into an empty queue, unless told otherwise."""
    with db.engine.begin() as connection:
        if empty:
            connection.execute(sa.text("truncate tasks, workers, event_log"))
        return enqueue(connection, name, input, **options)


def retry(connection: sa.Connection, id: int) -> None:
    if Querier(connection).revive_task(id=id) == 0:
        raise BadInput(f"task {id} has not failed")


def set_in_app(_: click.Context, option: click.Parameter, value: object) -> None:
    setattr(app, str(option.name), value)


main = verbs(HERE, story, Worker, enqueue, Querier, limit=limit_queue, by_hand=[retry])
main.commands["worker"].params += [
    click.Option(
        ["--version"],
        type=click.Choice(list(app.VERSIONS)),
        default="original",
        expose_value=False,
        callback=set_in_app,
    ),
    click.Option(
        ["--no-mail", "mail_works"],
        default=True,
        flag_value=False,
        help="the mail server does not answer",
        expose_value=False,
        callback=set_in_app,
    ),
]

if __name__ == "__main__":
    main()
