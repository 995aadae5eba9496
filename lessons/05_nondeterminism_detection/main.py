"""Lesson 05: a function that no longer fits its log is told so. --help lists the verbs."""

import json
import signal
import threading
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import click
import sqlalchemy as sa
from rich.table import Table
from rich.text import Text

import app
from db import models
from db.queries import LoadLogRow, Querier
from durable import Context
from shared.database import Database, open_database
from shared.processes import wait_until
from shared.story import check, console, say, say_logs, scene
from tasks import BadInput, Json, enqueue, limit_queue
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
            worker_id=worker_id, queue="default", at_most=1, limited=False
        )
        context = TrustingContext(queue, claimed, lambda statement: statement())
        output = app.swapped(context, json.loads(claimed.input))
    say(f"the swapped function returns: {output}")
    check("payment (order 7: 2 items" in output, "as feared: two answers are swapped, too")


class TrustingContext(Context):
    """Lesson 04's: whatever stands at this position is the answer."""

    def _compare(self, kind: str, name: str, input: Json) -> None:
        pass


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
    scene("What a log entry is known by, and what each edit comes to then")
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
        Querier(connection).wake_tasks()
    return id


def work_until(db: Database, id: int, version: str, *statuses: str) -> None:
    """A worker that has this version of the code."""
    app.version = version
    worker = Worker(db, version)
    thread = threading.Thread(target=worker.run, daemon=True)
    thread.start()
    wait_until(lambda: status(db, id) in statuses, f"the order is {' or '.join(statuses)}")
    worker.stop()
    thread.join()


def log_of(db: Database, id: int) -> list[LoadLogRow]:
    with db.autocommit.connect() as connection:
        return list(Querier(connection).load_log(task_id=id))


def enqueue_one(db: Database, name: str, input: Json, *, empty: bool = True, **options: Any) -> int:
    """Into an empty queue, unless told otherwise."""
    with db.engine.begin() as connection:
        if empty:
            connection.execute(sa.text("truncate tasks, workers, event_log"))
        return enqueue(connection, name, input, **options)


def get(db: Database, id: int) -> models.Task:
    with db.autocommit.connect() as connection:
        task = Querier(connection).get_task(id=id)
        assert task is not None
        return task


def status(db: Database, id: int) -> str:
    return get(db, id).status


def count(db: Database, *statuses: str) -> int:
    with db.autocommit.connect() as connection:
        counts = Querier(connection).count_tasks()
        return sum(row.tasks for row in counts if row.status in statuses)


# The verbs: the same in every lesson, to play every part by hand in several terminals.

DURATION = click.FloatRange(0.1, 1e6)  # seconds


@click.group(invoke_without_command=True)
@click.pass_context
def main(context: click.Context) -> None:
    """Without a verb: the story of this lesson, on fresh tables."""
    if context.invoked_subcommand is None:
        with open_database(HERE, reset=True) as db:
            story(db)


@main.command("worker")
@click.option("--name", default="by-hand", help="what the worker calls itself in what it prints")
@click.option("--queue", default="default", help="the queue from which it takes tasks")
@click.option("--slots", default=10, help="how many tasks it runs side by side")
@click.option("--lease", default=10.0, type=DURATION, help="seconds of silence until it is dead")
@click.option("--grace", default=30.0, type=DURATION, help="seconds for running tasks at the end")
@click.option("--version", type=click.Choice(list(app.VERSIONS)), default="original")
@click.option("--no-mail", is_flag=True, help="the mail server does not answer")
def worker_verb(
    name: str, queue: str, slots: int, lease: float, grace: float, version: str, no_mail: bool
) -> None:
    """Run tasks until Ctrl-C; a second Ctrl-C does not wait for those that are running."""
    app.version, app.mail_works = version, not no_mail
    say_logs()
    with open_database(HERE) as db:
        try:
            worker = Worker(
                db,
                name,
                queue=queue,
                slots=slots,
                lease=timedelta(seconds=lease),
                grace=timedelta(seconds=grace),
            )
        except BadInput as error:
            raise click.ClickException(str(error)) from None

        def stop(*_: object) -> None:
            worker.stop()

        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGTERM, stop)
        worker.run()


@main.command("enqueue")
@click.argument("name")
@click.argument("input", default="null")
@click.option("--queue", default="default", help="the queue into which it goes")
@click.option("--priority", default=0, help="higher goes first")
@click.option("--delay", type=DURATION, help="seconds until it may run")
@click.option("--timeout", type=DURATION, help="seconds that an attempt may take")
@click.option("--max-attempts", default=5, help="how often it is tried")
@click.option("--key", "idempotency_key", help="a second task with this key is not enqueued")
def enqueue_verb(
    name: str, input: str, delay: float | None, timeout: float | None, **options: Any
) -> None:
    """Put one task into the queue: enqueue send_receipt 7, enqueue divide '[6, 3]'."""
    with open_database(HERE) as db, db.autocommit.connect() as connection:
        try:
            id = enqueue(
                connection,
                name,
                json.loads(input),
                delay=None if delay is None else timedelta(seconds=delay),
                timeout=None if timeout is None else timedelta(seconds=timeout),
                **options,
            )
        except ValueError as error:  # BadInput is one; so is what json.loads raises
            raise click.ClickException(f"{error}\nThe input is JSON, in quotes: '[6, 3]'") from None
        say(f"task {id} is queued")


@main.command("limit")
@click.argument("max_running", type=int)
@click.option("--queue", default="default", help="the queue that is limited")
def limit_verb(max_running: int, queue: str) -> None:
    """Let at most so many tasks of a queue run at once; 0 pauses it."""
    with open_database(HERE) as db, db.autocommit.connect() as connection:
        try:
            limit_queue(connection, queue, max_running)
        except BadInput as error:
            raise click.ClickException(str(error)) from None
        say(f"queue {queue}: at most {max_running} tasks at once")


@main.command("retry")
@click.argument("id", type=int)
def retry_verb(id: int) -> None:
    """One more attempt for a failed task, which keeps its log."""
    with open_database(HERE) as db, db.autocommit.connect() as connection:
        if Querier(connection).revive_task(id=id) == 0:
            raise click.ClickException(f"task {id} has not failed; `status` shows the tasks")
        say(f"task {id} is queued")


@main.command("status")
def status_verb() -> None:
    """Show how many tasks there are in each status, and the newest ones."""
    with open_database(HERE) as db, db.autocommit.connect() as connection:
        queue = Querier(connection)
        table = Table("id", "task", "status", "attempt", "output or error")
        for task in queue.list_tasks(at_most=10):
            call = f"{task.name}({task.input})"
            attempt = f"{task.attempt} of {task.max_attempts}"
            table.add_row(str(task.id), Text(call), task.status, attempt, Text(task.outcome))
        console.print(table)
        console.print(", ".join(f"{row.tasks} {row.status}" for row in queue.count_tasks()))
        workers = [f"{worker.name} ({worker.id})" for worker in queue.list_workers()]
        console.print(f"workers: {', '.join(workers) or 'none'}")


if __name__ == "__main__":
    main()
