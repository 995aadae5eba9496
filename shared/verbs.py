"""The verbs of the lessons' main.py, to play every part by hand in several terminals."""

import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any, Unpack, get_args, get_origin, get_type_hints

import click
import sqlalchemy as sa
from rich.table import Table
from rich.text import Text

from shared.database import Database, open_database
from shared.processes import stop_with_parent, within
from shared.story import console, give_up_output, printable, say, say_logs

# A keyword parameter of the lesson's Worker or enqueue is an option if it has a text here.
WORKER = {
    "queue": "the queue from which it takes tasks",
    "version": "of its code: a durable task is ended by the version that begins it",
    "slots": "how many tasks it runs side by side",
    "lease": "seconds of silence until it is dead",
    "grace": "seconds for running tasks at the end",
    "connections": "how many of them all slots share",
}
ENQUEUE = {
    "queue": "the queue into which it goes",
    "priority": "higher goes first",
    "delay": "seconds until it may run",
    "timeout": "seconds that an attempt may take",
    "max_attempts": "how often it is tried",
    "idempotency_key": "a second task with this key is not enqueued",
}
SCHEDULE = {
    "timezone": "whose clock the cron line means",
    "missed": "which ticks are made up for: none, latest, all",
    **{name: ENQUEUE[name] for name in ("queue", "priority", "timeout", "max_attempts")},
}
# What a verb by hand does, and what the task is then.
BY_HAND = {
    "retry": ("One more attempt for a failed task, which keeps its log.", "queued, with its log"),
    "replay": (
        "Run a task that has ended once more, from an empty log.",
        "queued, with an empty log",
    ),
    "cancel": ("End a task that has not ended, and its children.", "cancelled"),
}

OF_SCHEDULES = {
    "pause": ("No more ticks, until it is resumed.", "paused"),
    "resume": ("Go on with the next tick from now.", "on again"),
    "delete": ("Delete it; its tasks stay.", "deleted"),
}

ID = click.IntRange(1, 2**63 - 1)

# An entry without an outcome: its child has not ended.
LOG = """
select position, kind, name, 0 as depth,
    left(coalesce(error ->> 'error', cast(output as text)), 200) as outcome
from event_log
where task_id = :id
order by position
"""
TREE = """
with recursive tree as (
    select event_log.*, array[position] as path from event_log where task_id = :id
    union all
    select event_log.*, tree.path || event_log.position
    from tree join event_log on event_log.task_id = tree.child_id
    where cardinality(tree.path) < 100
)
select position, kind, name, cardinality(path) - 1 as depth,
    left(coalesce(error ->> 'error', cast(output as text)), 200) as outcome
from tree
order by path
limit 10000
"""

Story = Callable[[Database], None]
ByHand = Callable[[sa.Connection, int], None]
Fork = Callable[[sa.Connection, int, int], int]
OfSchedule = Callable[[sa.Connection, str], None]


@contextmanager
def refused(remedy: str = "") -> Iterator[None]:
    """What the lesson says is bad becomes a sentence in the terminal, with what to do."""
    try:
        yield
    except ValueError as error:
        raise click.ClickException(f"{error}{remedy}") from None


def out_of_time(error: TimeoutError) -> click.ClickException:
    more = f"TEST_PATIENCE={4 * within(1):g} in the environment waits four times as long"
    return click.ClickException(f"{error}; on a slow machine, {more}")


def group(lesson: Path, story: Story) -> click.Group:
    """`python main.py` alone tells the story; `@main.command(...)` adds a verb."""

    @click.group(invoke_without_command=True)
    @click.pass_context
    def main(context: click.Context) -> None:
        """Without a verb: the story of this lesson, on fresh tables."""
        if context.invoked_subcommand is None:
            with open_database(lesson, reset=True) as db:
                try:
                    story(db)
                except TimeoutError as error:
                    raise out_of_time(error) from None

    @main.command("reset")
    def reset_verb() -> None:
        """Make the tables anew, and empty, without the story."""
        with open_database(lesson, reset=True):
            say("the tables are empty")

    return main


def verbs(
    lesson: Path,
    story: Story,
    worker: type[Any],
    enqueue: Callable[..., int],
    querier: type[Any],
    *,
    limit: Callable[[sa.Connection, str, int], None] | None = None,
    by_hand: Sequence[ByHand] = (),
    fork: Fork | None = None,
    result: Callable[[Database, int, timedelta], Any] | None = None,
    schedule: Callable[..., None] | None = None,
    of_schedules: Sequence[OfSchedule] = (),
    send: Callable[..., None] | None = None,
    emit: Callable[[sa.Connection, str, Any], bool] | None = None,
    move_version: Callable[[sa.Connection, str, str], int] | None = None,
    export: Callable[[sa.Connection, int], Any] | None = None,
    rehearse: Callable[[Any], str] | None = None,
    misfit: type[BaseException] = ValueError,
    supervise: Callable[[list[str], int], None] | None = None,
) -> click.Group:
    """The group with all the verbs of a lesson, whose functions say with a ValueError what is bad.

    by_hand: what a person does to one task, in a transaction; the verb has the function's name.
    fork: a new task from one's log up to a position; returns its id.
    result: waits for a task's end, until the time is over.
    schedule: sets one. of_schedules: what else is done to one; the verb has the function's name.
    send: a message to one task. emit: an event for all; False: it had happened before.
    move_version: from one version to another; how many tasks it was. export: a task's log, as JSON.
    rehearse: how the code goes on after such a log; raises `misfit` if the log does not fit.
    supervise: keeps so many processes running, each of which the command starts.
    """
    main = group(lesson, story)
    add_worker(main, lesson, worker)
    if supervise is not None:
        add_workers(main, lesson, worker, supervise)
    add_enqueue(main, lesson, enqueue)
    add_status(main, lesson, querier)
    if hasattr(querier, "load_log"):
        add_log(main, lesson, "log", LOG, "Show the event log of a durable task.")
    if hasattr(querier, "suspend_task"):
        add_log(main, lesson, "tree", TREE, "Show a task's log, and below each child the child's.")
    if limit is not None:
        add_limit(main, lesson, limit)
    for function in by_hand:
        add_by_hand(main, lesson, function)
    if fork is not None:
        add_fork(main, lesson, fork)
        add_forks(main, lesson, querier)
    if result is not None:
        add_result(main, lesson, result)
    if schedule is not None:
        add_schedule(main, lesson, querier, schedule, of_schedules)
    if send is not None:
        add_send(main, lesson, send)
    if emit is not None:
        add_emit(main, lesson, emit)
    if move_version is not None:
        add_versions(main, lesson, querier)
        add_move_version(main, lesson, move_version)
    if export is not None:
        add_export(main, lesson, export)
    if rehearse is not None:
        add_rehearse(main, rehearse, misfit)
    return main


def add_worker(main: click.Group, lesson: Path, worker: type[Any]) -> None:
    params = options(worker.__init__, WORKER)
    has_grace = any(param.name == "grace" for param in params)
    second = "; a second Ctrl-C does not wait for those that are running" if has_grace else ""
    name = click.Option(
        ["--name"], default="by-hand", help="what the worker calls itself in what it prints"
    )

    @main.command("worker", params=[name, *params], help=f"Run tasks until Ctrl-C{second}.")
    def worker_verb(name: str, **given: Any) -> None:
        say_logs()
        with open_database(lesson) as db:
            with refused():
                running = worker(db, name, **without_none(given))

            def stop(*_: object) -> None:
                running.stop()

            signal.signal(signal.SIGINT, stop)
            signal.signal(signal.SIGTERM, stop)
            try:
                running.run()
            finally:
                give_up_output()


def add_workers(
    main: click.Group,
    lesson: Path,
    worker: type[Any],
    supervise: Callable[[list[str], int], None],
) -> None:
    processes = click.Option(
        ["--processes"],
        type=click.IntRange(1, 100),
        default=2,
        show_default=True,
        help="how many workers",
    )
    params = options(worker.__init__, WORKER)
    stop = "Ctrl-C stops them all; a second one does not wait for what is running"

    @main.command("workers", params=[processes, *params], help=f"Several worker processes. {stop}.")
    def workers_verb(processes: int, **given: Any) -> None:
        stop_with_parent()
        say_logs()
        # Once, and not by each worker, again and again.
        with open_database(lesson) as db, refused():
            worker(db, "checked", **without_none(given))
        command = [sys.executable, str(lesson / "main.py"), "worker"]
        for name, value in without_none(given).items():
            seconds = isinstance(value, timedelta)
            command += [flag(name), str(value.total_seconds() if seconds else value)]
        supervise(command, processes)
        give_up_output()


def add_enqueue(main: click.Group, lesson: Path, enqueue: Callable[..., int]) -> None:
    @main.command("enqueue", params=options(enqueue, ENQUEUE))
    @click.argument("name")
    @click.argument("input", default="null")
    def enqueue_verb(name: str, input: str, **given: Any) -> None:
        """Put one task into the queue: enqueue send_receipt 7, enqueue divide '[6, 3]'."""
        with open_database(lesson) as db, db.autocommit.connect() as connection:
            with refused("\nThe input is JSON, in quotes: '[6, 3]'"):
                id = enqueue(connection, name, json.loads(input), **without_none(given))
            say(f"task {id} is queued")


def add_limit(
    main: click.Group, lesson: Path, limit: Callable[[sa.Connection, str, int], None]
) -> None:
    @main.command("limit")
    @click.argument("max_running", type=int)
    @click.option("--queue", default="default", help="the queue that is limited")
    def limit_verb(max_running: int, queue: str) -> None:
        """Let at most so many tasks of a queue run at once; 0 pauses it."""
        with open_database(lesson) as db, db.autocommit.connect() as connection:
            with refused():
                limit(connection, queue, max_running)
            say(f"queue {queue}: at most {max_running} tasks at once")


def add_by_hand(main: click.Group, lesson: Path, function: ByHand) -> None:
    help_text, then = BY_HAND[function.__name__]

    @main.command(function.__name__, help=help_text)
    @click.argument("id", type=ID)
    def by_hand_verb(id: int) -> None:
        with (
            open_database(lesson) as db,
            db.engine.begin() as connection,
            refused("; `status` shows the tasks"),
        ):
            function(connection, id)
        say(f"task {id} is {then}")


def add_fork(main: click.Group, lesson: Path, fork: Fork) -> None:
    @main.command("fork")
    @click.argument("id", type=ID)
    @click.argument("position", type=int)
    def fork_verb(id: int, position: int) -> None:
        """Run a task again from a position of its log, as a new task. 0: from the beginning."""
        with (
            open_database(lesson) as db,
            db.engine.begin() as connection,
            refused(f"; `log {id}` shows the positions"),
        ):
            fork_id = fork(connection, id, position)
        say(f"task {fork_id} is queued: a fork of task {id} at position {position}")


def add_forks(main: click.Group, lesson: Path, querier: type[Any]) -> None:
    @main.command("forks")
    @click.argument("id", type=ID)
    def forks_verb(id: int) -> None:
        """Show a task, what was forked from it, and what from that."""
        with open_database(lesson) as db, db.autocommit.connect() as connection:
            for task in querier(connection).list_forks(id=id):
                of = (
                    f", from {task.forked_from} at {task.fork_position}" if task.forked_from else ""
                )
                arrow = "" if task.outcome is None else f" -> {task.outcome}"
                line = f"{2 * task.depth * ' '}task {task.id}{of}: {task.status}{arrow}"
                console.print(Text(printable(line).replace("\n", " ")))


def add_result(
    main: click.Group, lesson: Path, result: Callable[[Database, int, timedelta], Any]
) -> None:
    @main.command("result")
    @click.argument("id", type=ID)
    @click.option("--timeout", type=Seconds(0.1, 1e6), default=60, help="seconds")
    def result_verb(id: int, timeout: timedelta) -> None:
        """Wait for a task's end, and print what it returned."""
        with open_database(lesson) as db:
            try:
                output = result(db, id, timeout)
            except Exception as error:
                raise click.ClickException(str(error)) from None
        console.print(Text(printable(json.dumps(output))))


def add_schedule(
    main: click.Group,
    lesson: Path,
    querier: type[Any],
    put: Callable[..., None],
    others: Sequence[OfSchedule],
) -> None:
    @main.group("schedule")
    def schedules() -> None:
        """Start a task again and again: set, list, pause, resume, delete."""

    @schedules.command("set", params=options(put, SCHEDULE))
    @click.argument("name")
    @click.argument("cron")
    @click.argument("task")
    @click.argument("input", default="null")
    def set_verb(name: str, cron: str, task: str, input: str, **given: Any) -> None:
        """Create or change one: schedule set nightly '30 2 * * *' send_report '"sales"'."""
        with (
            open_database(lesson) as db,
            db.autocommit.connect() as connection,
            refused("\nThe cron line is one argument, in quotes: '30 2 * * *'"),
        ):
            put(connection, name, cron, task, json.loads(input), **without_none(given))
        say(f"schedule {name} is set; `schedule list` shows when it ticks")

    @schedules.command("list")
    def list_verb() -> None:
        """Show all of them, and when each ticks next."""
        with open_database(lesson) as db, db.autocommit.connect() as connection:
            for row in querier(connection).list_schedules():
                tick = "paused" if row.next_at is None else f"next {row.next_at.astimezone(UTC)}"
                what = f"{row.cron} in {row.timezone}, {row.task}({row.input})"
                line = f"{row.name}: {what}, missed {row.missed}, {tick}  {row.error}"
                console.print(Text(printable(line).strip().replace("\n", " ")))

    for function in others:
        add_of_schedule(schedules, lesson, function)


def add_of_schedule(group: click.Group, lesson: Path, function: OfSchedule) -> None:
    help_text, then = OF_SCHEDULES[function.__name__]

    @group.command(function.__name__, help=help_text)
    @click.argument("name")
    def of_schedule_verb(name: str) -> None:
        with (
            open_database(lesson) as db,
            db.autocommit.connect() as connection,
            refused("; `schedule list` shows them"),
        ):
            function(connection, name)
        say(f"schedule {name} is {then}")


def payload_of(text: str, example: str) -> Any:
    with refused(f"\nThe payload is JSON, in quotes: '\"{example}\"'"):
        return json.loads(text)


def add_send(main: click.Group, lesson: Path, send: Callable[..., None]) -> None:
    @main.command("send")
    @click.argument("id", type=ID)
    @click.argument("name")
    @click.argument("payload", default="null")
    @click.option("--key", help="a second message to the task with this key is the first one")
    def send_verb(id: int, name: str, payload: str, key: str | None) -> None:
        """Send a message to a task: send 7 approval '"Ann"'."""
        with open_database(lesson) as db, db.autocommit.connect() as connection:
            with refused():
                send(connection, id, name, payload_of(payload, "Ann"), key=key)
            say(f"sent to task {id}")


def add_emit(
    main: click.Group, lesson: Path, emit: Callable[[sa.Connection, str, Any], bool]
) -> None:
    @main.command("emit")
    @click.argument("name")
    @click.argument("payload", default="null")
    def emit_verb(name: str, payload: str) -> None:
        """Say that something has happened: emit 'the harbour is open' '"Ada"'."""
        with open_database(lesson) as db, db.autocommit.connect() as connection:
            with refused():
                first = emit(connection, name, payload_of(payload, "Ada"))
            say("it has happened" if first else "it had happened before; the first payload stays")


def add_versions(main: click.Group, lesson: Path, querier: type[Any]) -> None:
    @main.command("versions")
    def versions_verb() -> None:
        """Show what each version of the code has begun and not ended, and its living workers."""
        with open_database(lesson) as db, db.autocommit.connect() as connection:
            rows = list(querier(connection).list_versions())
        shown = Table("version", "unfinished", "of these parked", "workers")
        for row in rows:
            cells = (row.version or "(none)", row.unfinished, row.parked, row.workers)
            shown.add_row(*(Text(printable(str(cell))) for cell in cells))
        console.print(shown)


def add_move_version(
    main: click.Group, lesson: Path, move: Callable[[sa.Connection, str, str], int]
) -> None:
    @main.command("move-version")
    @click.argument("old")
    @click.argument("new")
    def move_version_verb(old: str, new: str) -> None:
        """Let version NEW end what version OLD has begun; '' lets all versions try."""
        with (
            open_database(lesson) as db,
            db.engine.begin() as connection,
            refused("; `versions` shows them"),
        ):
            moved = move(connection, old, new)
        say(f"{moved} tasks of version {old} are " + (f"of {new} now" if new else "of none now"))


def add_export(
    main: click.Group, lesson: Path, export: Callable[[sa.Connection, int], Any]
) -> None:
    @main.command("export")
    @click.argument("id", type=ID)
    def export_verb(id: int) -> None:
        """Print a task and its log as JSON: export 7 > 7.json."""
        with (
            open_database(lesson) as db,
            db.autocommit.connect() as connection,
            refused("; `status` shows the tasks"),
        ):
            history = export(connection, id)
        click.echo(json.dumps(history, indent=1))


def add_rehearse(
    main: click.Group, rehearse: Callable[[Any], str], misfit: type[BaseException]
) -> None:
    @main.command("rehearse")
    @click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
    def rehearse_verb(files: tuple[Path, ...]) -> None:
        """Run the code against exported logs, without effects. Exit status 1: one does not fit."""
        fit = True
        for file in files:
            try:
                verdict = f"it fits: {rehearse(json.loads(file.read_text()))}"
            except misfit as error:
                fit, verdict = False, f"it does not fit: {error}"
            except (OSError, ValueError) as error:
                fit, verdict = False, f"it cannot be rehearsed: {error}"
            console.print(Text(printable(f"{file}: {verdict}")))
        if not fit:
            sys.exit(1)


def add_status(main: click.Group, lesson: Path, querier: type[Any]) -> None:
    @main.command("status")
    def status_verb() -> None:
        """Show how many tasks there are in each status, and the newest ones."""
        with open_database(lesson) as db, db.autocommit.connect() as connection:
            queries = querier(connection)
            console.print(table(list(queries.list_tasks(at_most=10))))
            console.print(", ".join(f"{row.tasks} {row.status}" for row in queries.count_tasks()))
            if hasattr(queries, "list_workers"):  # from lesson 03 on
                workers = [f"{worker.name} ({worker.id})" for worker in queries.list_workers()]
                console.print(Text(printable(f"workers: {', '.join(workers) or 'none'}")))


def table(tasks: Sequence[Any]) -> Table:
    """The columns that the lesson's ListTasks has: tries from lesson 03 on, parents from 06.

    Versions from lesson 13 on, and only if there is one.
    """
    extra = [name for name in ("worker", "parent") if any(hasattr(t, f"{name}_id") for t in tasks)]
    versions = ["version"] if any(getattr(task, "version", "") for task in tasks) else []
    tries = ["tries"] if any(hasattr(task, "tries") for task in tasks) else []
    table = Table("id", "task", "status", *tries, *extra, *versions, "output or error")
    for task in tasks:
        cells = [str(task.id), f"{task.name}({task.input})", task.status]
        cells += [f"{task.tries} of {task.max_attempts}" for _ in tries]
        cells += [str(getattr(task, f"{name}_id") or "") for name in extra]
        cells += [task.version for _ in versions]
        table.add_row(*(Text(printable(cell)) for cell in (*cells, task.outcome)))
    return table


def add_log(main: click.Group, lesson: Path, name: str, query: str, help_text: str) -> None:
    @main.command(name, help=help_text)
    @click.argument("id", type=ID)
    def log_verb(id: int) -> None:
        with open_database(lesson) as db, db.autocommit.connect() as connection:
            look = sa.text("select name, status from tasks where id = :id")
            task = connection.execute(look, {"id": id}).first()
            if task is None:
                raise click.ClickException(f"there is no task {id}; `status` shows the tasks")
            lines = [f"task {id} {task.name}: {task.status}"]
            for entry in connection.execute(sa.text(query), {"id": id}):
                arrow = "" if entry.outcome is None else f" -> {entry.outcome}"
                indent = 2 * (entry.depth + 1) * " "
                lines.append(f"{indent}{entry.position} {entry.kind} {entry.name}{arrow}")
        for line in lines:
            console.print(Text(printable(line).replace("\n", " ")))


class Seconds(click.FloatRange):
    """A number of seconds, for a timedelta."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return timedelta(seconds=super().convert(value, param, ctx))


def options(function: Callable[..., Any], texts: dict[str, str]) -> list[click.Parameter]:
    """Those of the function's parameters that have a text; the default is the function's own."""
    types = get_type_hints(function)
    for hint in list(types.values()):
        if get_origin(hint) is Unpack:  # **options: Unpack[TaskOptions]
            types |= get_type_hints(get_args(hint)[0])
    return [
        click.Option([flag(name), name], type=click_type(types[name]), help=text)
        for name, text in texts.items()
        if name in types
    ]


def click_type(hint: Any) -> Any:
    if timedelta in (hint, *get_args(hint)):  # or None
        return Seconds(0.1, 1e6)
    return int if hint is int else str


def flag(name: str) -> str:
    return "--key" if name == "idempotency_key" else f"--{name.replace('_', '-')}"


def without_none(given: dict[str, Any]) -> dict[str, Any]:
    """What stands on the command line."""
    return {name: value for name, value in given.items() if value is not None}
