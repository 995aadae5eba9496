"""Lesson 13: changing code under running work. --help lists the verbs."""

import hashlib
import inspect
import os
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click

import app
import run
from claim import limit_queue
from control import cancel, fork, replay, retry
from db.queries import Querier
from events import emit
from fence import Fence
from listen import wait_for_result
from nondeterminism import NonDeterminismError
from rehearsal import export_log, rehearse
from schedules import delete, pause, resume, set_schedule
from shared.database import Database
from shared.processes import wait_until, worker_processes
from shared.story import check, feared, get, log_of, say, scene, status
from shared.verbs import verbs
from signals import send
from tasks import enqueue, registry
from timing import Timing
from versions import move_version
from worker import Worker

HERE = Path(__file__).resolve().parent
NEW_TASK = """\
insert into tasks (name, input, max_attempts) values ('send_coupon', '1', 2) returning id"""


def story(db: Database) -> None:
    app.outside.forget()
    failed(db)
    parked(db)
    pinned(db)
    hashed()
    rehearsed()


def failed(db: Database) -> None:
    scene("An order is charged, and its function is edited; as in lesson 12")
    with worker_processes(HERE, "old", options=("--no-parking",)):
        order = begin(db, "sell", {"id": 1})
        coupon = new_task(db)
        wait_until(lambda: status(db, coupon) == "failed", "its tries are used up")
    feared(
        status(db, coupon) == "failed",
        "a worker with the old code has used up the tries of a new task:",
    )
    say_error(db, coupon)
    with worker_processes(HERE, "new", options=("--no-parking", "--deploy", "edited")):
        packed(db, order)
        wait_until(lambda: status(db, order) == "failed", "it does not fit")
    feared(effects("order 1: card charged") == 1, "an order has failed that was charged:")
    say_error(db, order)


def parked(db: Database) -> None:
    scene("The same with this lesson: what the code at hand cannot run is parked")
    with worker_processes(HERE, "old"):
        order = begin(db, "sell", {"id": 2})
        coupon = new_task(db)
        wait_until(lambda: get(db, coupon).parked_by, "nobody knows it")
    say(f"the new task is parked by {get(db, coupon).parked_by}; {tries(db, coupon)}")
    with worker_processes(HERE, "a", "b", options=("--deploy", "edited", "--version", "2")):
        packed(db, order)
        wait_until(lambda: status(db, coupon) == "succeeded", "somebody knows it")
        wait_until(lambda: get(db, order).parked_by, "it does not fit")
        once = get(db, order).attempt
        time.sleep(1)  # in which both workers look after what is parked
    say(f"version 2 has ended it, and the order is parked by {get(db, order).parked_by}")
    check(get(db, order).attempt == once, "of its two workers, one has tried the order once")
    with worker_processes(HERE, "c", options=("--deploy", "patched", "--version", "3")):
        wait_until(lambda: status(db, order) == "succeeded", "it fits")
    check(effects("order 2: card charged") == 1, "version 3 has ended it, and charged it once")
    check("attempt 1 " in tries(db, order), f"no attempt was used up: it is {tries(db, order)}")


def pinned(db: Database) -> None:
    scene("A task belongs to the version that has begun it")
    with worker_processes(HERE, "a", options=("--version", "1")):
        third, fourth = (begin(db, "sell", {"id": id}) for id in (3, 4))
        parcels = begin(db, "send_all", {"id": 5})
    with worker_processes(HERE, "b", options=("--deploy", "edited", "--version", "2")):
        packed(db, third)
        new = begin(db, "sell", {"id": 6})
        packed(db, new)
        wait_until(lambda: status(db, new) == "succeeded", "it is sold")
        check(status(db, third) == "queued", "version 2 leaves alone what version 1 has begun")
        for line in versions(db):
            say(f"  {line}")
    with worker_processes(HERE, "a", options=("--version", "1")):
        wait_until(lambda: status(db, third) == "succeeded", "it is sold")
    say("a worker of version 1 has ended order 3; order 4 may wait for weeks: move-version 1 3")
    moved(db, "1", "3")
    patched(db, fourth, parcels)


def patched(db: Database, old: int, parcels: int) -> None:
    scene("A patch: order 4 began before there was one, order 7 begins after that")
    with worker_processes(HERE, "c", options=("--deploy", "patched", "--version", "3")):
        packed(db, old)
        tell(db, parcels, "more boxes")
        new = begin(db, "sell", {"id": 7})
        wait_until(lambda: status(db, old) == status(db, parcels) == "succeeded", "both have ended")
    say(f"log of order 4: {', '.join(names(db, old))}")
    say(f"log of order 7: {', '.join(names(db, new))}")
    weighed = sum("weighed" in line for line in app.outside.effects())
    check(weighed == 0, f"in a loop of four rounds, half done before: {weighed} took the new way")
    moved(db, "3", "4")
    with worker_processes(HERE, "d", options=("--deploy", "cleaned", "--version", "4")):
        packed(db, new)
        wait_until(lambda: status(db, new) == "succeeded", "it is sold")
    check(True, "order 7 has ended with code from which the patch is gone")


def hashed() -> None:
    scene("A hash of its source as a function's version")
    source = inspect.getsource(app.sell)
    with_comment = source.replace("\n", "\n    # nothing new\n", 1)
    say(f"{digest(source)}; with a comment {digest(with_comment)}")
    feared(digest(source) != digest(with_comment), "a comment makes a new version")
    with patch.object(app, "charge_card", app.pay):
        same = digest(inspect.getsource(app.sell)) == digest(source)
    feared(same, "another function in the place of charge_card makes none")


def rehearsed() -> None:
    scene("Rehearsals of what is half-way in production, before a deploy and without a database")
    fits: dict[str, bool] = {}
    for deploy in ("edited", "patched"):
        say(f"$ python main.py rehearse --deploy {deploy} logs/*.json")
        logs = sorted(f"logs/{path.name}" for path in (HERE / "logs").glob("*.json"))
        done = subprocess.run(
            [sys.executable, "main.py", "rehearse", "--deploy", deploy, *logs],
            cwd=HERE,
            env={**os.environ, "DATABASE_URL": "postgresql://nowhere.invalid/"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for line in done.stdout.splitlines():
            if line.startswith("logs/"):
                say(f"  {line}")
        fits[deploy] = done.returncode == 0
    check(fits == {"edited": False, "patched": True}, "one edit does not fit, the other does")


def begin(db: Database, name: str, input: Any) -> int:
    """A new task, once it is half-way: it waits for somebody."""
    with db.engine.begin() as connection:
        id = enqueue(connection, name, input)
    wait_until(lambda: status(db, id) == "waiting", f"{name} is half-way")
    return id


def new_task(db: Database) -> int:
    """From a program that has newer code than this one, which does not know the name."""
    with db.connect(autocommit=True) as connection:
        (id,) = connection.execute(NEW_TASK).fetchone() or (0,)
        return id


def tell(db: Database, id: int, name: str) -> None:
    with db.engine.begin() as connection:
        send(connection, id, name)


def packed(db: Database, id: int) -> None:
    tell(db, id, "packed")


def moved(db: Database, old: str, new: str) -> None:
    with db.engine.begin() as connection:
        move_version(connection, old, new)


def versions(db: Database) -> list[str]:
    with db.autocommit.connect() as connection:
        return [
            f"version {row.version}: {row.unfinished} unfinished, {row.workers} workers"
            for row in Querier(connection).list_versions()
        ]


def names(db: Database, id: int) -> list[str]:
    return [f"{entry.kind} {entry.name}" for entry in log_of(db, id)]


def say_error(db: Database, id: int) -> None:
    """Its first line, and what differs."""
    first, *lines = get(db, id).error.splitlines()
    for line in [first, *(line for line in lines if "≠" in line)]:
        say(f"  {line}")


def tries(db: Database, id: int) -> str:
    task = get(db, id)
    return f"attempt {task.attempt - task.uncounted} of {task.max_attempts}"


def effects(what: str) -> int:
    return sum(line.startswith(what) for line in app.outside.effects())


def digest(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()[:8]


def deploy(_: click.Context, __: click.Parameter, name: str | None) -> None:
    """As if this file of deploys/ had been put in the place of what app.py has."""
    if name is not None:
        del registry["sell"], registry["send_all"]
        import_module(f"deploys.{name}")


def as_in_lesson_12(_: click.Context, __: click.Parameter, wanted: bool) -> None:
    """What does not fit fails the task. An unknown name fails the attempt."""
    store = run.store

    def without_parking(fence: Fence, outcome: run.Outcome) -> None:
        if isinstance(outcome, run.Parked):
            if fence.task.name in registry:
                outcome = run.Failed(outcome.error)
            else:
                unknown = LookupError(f"this worker knows no task {fence.task.name!r}")
                outcome = run.failure(fence.task, Timing(), unknown)
        store(fence, outcome)

    if wanted:
        run.store = without_parking


main = verbs(
    HERE,
    story,
    Worker,
    enqueue,
    Querier,
    limit=limit_queue,
    by_hand=[cancel, retry, replay],
    fork=fork,
    result=wait_for_result,
    schedule=set_schedule,
    of_schedules=[pause, resume, delete],
    send=send,
    emit=emit,
    move_version=move_version,
    export=export_log,
    rehearse=rehearse,
    misfit=NonDeterminismError,
)
DEPLOYS = click.Choice([path.stem for path in sorted((HERE / "deploys").glob("*.py"))])
for verb in ("worker", "rehearse"):
    main.commands[verb].params.append(
        click.Option(["--deploy"], type=DEPLOYS, expose_value=False, callback=deploy)
    )
main.commands["worker"].params.append(
    click.Option(["--no-parking"], is_flag=True, expose_value=False, callback=as_in_lesson_12)
)

if __name__ == "__main__":
    main()
