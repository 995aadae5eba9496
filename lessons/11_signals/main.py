"""Lesson 09: durable sleep: to wait for a moment holds no slot. --help lists the verbs."""

import random
import statistics
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, LiteralString

from sqlalchemy.event import listen, remove

import app as app  # its tasks
from claim import limit_queue
from control import cancel, fork, replay, retry
from db.queries import Querier
from listen import wait_for_result
from shared.database import Database
from shared.processes import wait_until, working
from shared.story import check, feared, get, say, scene, status
from shared.verbs import verbs
from tasks import enqueue
from timing import Timing
from worker import Worker

HERE = Path(__file__).resolve().parent
CLIENTS, EACH = 16, 12


def story(db: Database) -> None:
    slow = polled(db)
    notified_by_all(db)
    hinted(db, slow)
    silent(db)
    waited_for(db)


def polled(db: Database) -> float:
    scene("An idle worker that polls, as in lesson 07: ten looks for work a second")
    execute(db, "alter table tasks disable trigger tell_workers")
    with working(Worker(db, "a", timing=Timing(seldom=Timing.poll))):
        looks = looks_per_second(db)
        say(f"{looks:.0f} looks a second for nothing")
        slow = median_wait(db)
    feared(looks > 4, f"and even so a task waits for {slow:.0f} ms until somebody looks")
    execute(db, "alter table tasks enable trigger tell_workers")
    return slow


def notified_by_all(db: Database) -> None:
    scene(f"{CLIENTS} clients enqueue; each commit takes 2 ms longer, as on a slow disk")
    if not is_superuser(db):
        say("skipped: only a superuser may set commit_delay")
        return
    rates = dict.fromkeys(TRIGGERS, 0.0)
    for _ in range(2):  # the better one: something else may use the machine
        for name, trigger in TRIGGERS.items():
            execute(db, "truncate tasks, workers, event_log")
            execute(db, "alter table tasks disable trigger tell_workers")
            execute(db, trigger)
            rates[name] = max(rates[name], crowd(db))
            execute(db, "drop trigger if exists naive on tasks")
    execute(db, "alter table tasks enable trigger tell_workers")
    for name, rate in rates.items():
        say(f"{name:32} {rate:5.0f} tasks a second")
    nobody, everybody, two = rates.values()
    feared(everybody < nobody / 2, "if every transaction notifies, they commit one after the other")
    check(two > 1.5 * everybody, "if two at a time notify, most commit side by side")


TRIGGERS: dict[str, LiteralString] = {
    "nobody notifies": "select 1",
    "every transaction notifies": """
        create or replace function notify_all() returns trigger language plpgsql as
        $$ begin perform pg_notify('naive', new.queue); return null; end $$;
        create trigger naive after insert on tasks for each row execute function notify_all()
    """,
    "two at a time: tell_workers": "alter table tasks enable trigger tell_workers",
}


def hinted(db: Database, slow: float) -> None:
    scene("An idle worker that listens")
    with working(Worker(db, "a")):
        looks = looks_per_second(db)
        say(f"{looks:.1f} looks a second")
        wait = median_wait(db)
    say(f"a task waits for {wait:.0f} ms")
    check(looks < 4 and wait < slow / 2, "it asks less, and starts sooner")


def silent(db: Database) -> None:
    scene("No hint arrives")
    worker = Worker(db, "a")
    with working(worker):
        looks_per_second(db)
        execute(db, "alter table tasks disable trigger tell_workers")
        id = enqueue_one(db)
        wait_until(lambda: status(db, id) == "succeeded", "the task has run")
        execute(db, "alter table tasks enable trigger tell_workers")
    task = get(db, id)
    say(f"the task has waited for {(task.started_at - task.created_at).total_seconds():.1f} s")
    check(task.status == "succeeded", "nothing is lost: the worker looks once a second even so")


def waited_for(db: Database) -> None:
    scene("A client waits for a result")
    with working(Worker(db, "a")):
        id = enqueue_one(db, "sleep", 0.5)
        start = time.monotonic()
        wait_for_result(db, id, timedelta(seconds=20))
        say(f"it is there after {time.monotonic() - start:.2f} s; the task took 0.50 s")
    check(get(db, id).watched, "its end was told, because somebody waited for it")


def looks_per_second(db: Database) -> float:
    """Of the worker of this process, once it is idle and hears whatever it can hear."""
    looks: list[float] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "look_for_work" in statement:
            looks.append(time.monotonic())

    time.sleep(1.5)
    listen(db.autocommit, "before_cursor_execute", note)
    time.sleep(2)
    remove(db.autocommit, "before_cursor_execute", note)
    return len(looks) / 2


def median_wait(db: Database) -> float:
    """Milliseconds from the insert to the start, by the database's clock."""
    ids: list[int] = []
    for _ in range(12):
        time.sleep(random.uniform(0.1, 0.2))  # at any point of the worker's pause
        ids.append(enqueue_one(db))
    wait_until(lambda: status(db, ids[-1]) == "succeeded", "all have run")
    tasks = [get(db, id) for id in ids]
    return 1000 * statistics.median(
        (task.started_at - task.created_at).total_seconds() for task in tasks
    )


def crowd(db: Database) -> float:
    """Tasks a second, enqueued by many clients that begin at the same moment."""
    begin = threading.Barrier(CLIENTS + 1)

    def client() -> None:
        with db.connect(autocommit=True) as connection:
            connection.execute("set commit_delay = 2000; set commit_siblings = 0")
            begin.wait()
            for _ in range(EACH):
                connection.execute("insert into tasks (name, input) values ('nothing', 'null')")

    clients = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in clients:
        thread.start()
    begin.wait()
    start = time.monotonic()
    for thread in clients:
        thread.join()
    return CLIENTS * EACH / (time.monotonic() - start)


def is_superuser(db: Database) -> bool:
    with db.autocommit.connect() as connection:
        return connection.exec_driver_sql("show is_superuser").scalar_one() == "on"


def execute(db: Database, statement: LiteralString) -> None:
    with db.connect(autocommit=True) as connection:
        connection.execute(statement)


def enqueue_one(db: Database, name: str = "nothing", input: Any = None) -> int:
    with db.engine.begin() as connection:
        return enqueue(connection, name, input)


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
)

if __name__ == "__main__":
    main()
