"""Lesson 10: schedules: one task for each tick, whoever looks. --help lists the verbs."""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, LiteralString
from zoneinfo import ZoneInfo

import app as app  # its tasks
from claim import limit_queue
from control import cancel, fork, replay, retry
from db.queries import Querier
from listen import wait_for_result
from schedules import delete, next_tick, pause, resume, set_schedule
from shared.database import Database
from shared.processes import SHORT_LEASE, wait_until, worker_processes, working
from shared.story import check, feared, say, scene
from shared.verbs import verbs
from tasks import enqueue
from worker import Worker

HERE = Path(__file__).resolve().parent
EVERY_SECOND, SECOND = "* * * * * *", timedelta(seconds=1)
BERLIN = ZoneInfo("Europe/Berlin")


def story(db: Database) -> None:
    cron_in_each_worker(db)
    look_first(db)
    nights()
    downtime(db)
    four_workers(db)
    paused(db)


def cron_in_each_worker(db: Database) -> None:
    scene("Two workers, each with a cron of its own: a thread that sleeps until the next tick")
    in_threads(2, lambda over: cron(db, over), seconds=2.2)
    seen = ticks(db)
    say(f"{len(set(seen))} ticks, {len(seen)} tasks")
    feared(len(seen) > len(set(seen)), "each worker starts a task of its own")
    time.sleep(1.5)  # both are down
    in_threads(1, lambda over: cron(db, over), seconds=1.2)
    feared(holes(ticks(db)) > 0, "and the ticks at which none of them runs are gone")


def cron(db: Database, over: threading.Event) -> None:
    while True:
        at = next_tick(EVERY_SECOND, "UTC", datetime.now(UTC))
        if over.wait((at - datetime.now(UTC)).total_seconds()):
            return
        with db.autocommit.connect() as connection:
            enqueue(connection, "send_report", at.isoformat())


def look_first(db: Database) -> None:
    scene("A table of schedules, and four workers that look, enqueue, and then move next_at on")
    execute(db, "delete from tasks")
    put(db, "naive", EVERY_SECOND)
    in_threads(4, lambda over: naive(db, over), seconds=2.2)
    remove(db, "naive")
    seen = ticks(db)
    say(f"{len(set(seen))} ticks, {len(seen)} tasks")
    feared(len(seen) > len(set(seen)), "several have looked before the first of them moved it on")


def naive(db: Database, over: threading.Event) -> None:
    while not over.wait(0.01):
        with db.autocommit.connect() as connection:
            for schedule in list(Querier(connection).list_due_schedules()):
                enqueue(connection, "send_report", schedule.next_at.astimezone(UTC).isoformat())
                later = next_tick(schedule.cron, schedule.timezone, schedule.now)
                execute(db, "update schedules set next_at = %s", later)


def nights() -> None:
    scene("The nights in which the clock in Berlin is changed")
    autumn = ticks_after("30 2 * * *", datetime(2026, 10, 24, tzinfo=BERLIN))
    check(autumn[1:] == ["Oct 25 02:30 = 00:30 UTC", "Oct 26 02:30 = 01:30 UTC"], "once in autumn")
    spring = ticks_after("30 2 * * *", datetime(2026, 3, 28, tzinfo=BERLIN))
    check(spring[1] == "Mar 29 03:00 = 01:00 UTC", "as soon as it can be in spring")


def ticks_after(cron: str, at: datetime) -> list[str]:
    found: list[str] = []
    for _ in range(3):
        at = next_tick(cron, "Europe/Berlin", at)
        found.append(f"{at.astimezone(BERLIN):%b %d %H:%M} = {at:%H:%M} UTC")
    say(f"{cron}   {'   '.join(found)}")
    return found


def downtime(db: Database) -> None:
    scene("Once an hour, and nobody has looked for five hours")
    execute(db, "delete from tasks")
    minute = (datetime.now(UTC).minute + 30) % 60
    for missed in ("none", "latest", "all"):
        put(db, missed, f"{minute} * * * *", missed=missed)
    execute(db, "update schedules set next_at = next_at - interval '5 hours'")
    with working(Worker(db, "a")):
        wait_until(lambda: all_later(db), "a worker has looked")
    started = {
        name: sum(f" {name} " in key for key in keys(db)) for name in ("none", "latest", "all")
    }
    for name, number in started.items():
        say(f"missed={name!r} has started {number}")
        remove(db, name)
    check(started == {"none": 0, "latest": 1, "all": 5}, "as many as each of them wants")


def four_workers(db: Database) -> None:
    scene("Four workers, and a tick each second; one of them is killed")
    execute(db, "delete from tasks")
    with worker_processes(HERE, "a", "b", "c", "d", options=SHORT_LEASE) as workers:
        put(db, "s", EVERY_SECOND, missed="all")
        wait_until(lambda: len(keys(db)) >= 2, "two ticks")
        say("kill -9 a")
        workers[0].kill()
        wait_until(lambda: len(keys(db)) >= 4, "two more")
    remove(db, "s")
    found = keys(db)
    say(f"the last key: {found[-1]}")
    moments = [datetime.fromisoformat(key.split()[2]) for key in found]
    check(len(set(moments)) == len(moments), f"{len(found)} ticks, {len(found)} tasks")
    check(holes(moments) == 0, "and no tick is missing")


def paused(db: Database) -> None:
    scene("A pause")
    execute(db, "delete from tasks")
    put(db, "s", EVERY_SECOND)
    with working(Worker(db, "a")):
        wait_until(lambda: keys(db), "a tick")
        by_hand(db, pause, "s")
        before = len(keys(db))
        time.sleep(1.2)
        check(len(keys(db)) == before, "more than a second without a tick")
        put(db, "s", EVERY_SECOND)
        check(next_ticks(db) == [None], "a program that sets it again does not end the pause")
        by_hand(db, resume, "s")
        wait_until(lambda: len(keys(db)) > before, "a tick")
    say("resume: it ticks")


def put(db: Database, name: str, cron: str, **options: Any) -> None:
    with db.engine.begin() as connection:
        set_schedule(connection, name, cron, "send_report", name, **options)


def by_hand(db: Database, function: Callable[..., None], name: str) -> None:
    with db.engine.begin() as connection:
        function(connection, name)


def remove(db: Database, name: str) -> None:
    by_hand(db, delete, name)


def next_ticks(db: Database) -> list[Any]:
    return [at for (at,) in execute(db, "select next_at from schedules")]


def all_later(db: Database) -> bool:
    return all(at > datetime.now(UTC) for at in next_ticks(db))


def keys(db: Database) -> list[str]:
    found = execute(
        db, "select idempotency_key from tasks where idempotency_key is not null order by id"
    )
    return [key for (key,) in found]


def ticks(db: Database) -> list[datetime]:
    """For which tasks were enqueued without a key, by their inputs."""
    return sorted(
        datetime.fromisoformat(input) for (input,) in execute(db, "select input from tasks")
    )


def holes(moments: list[datetime]) -> int:
    """How many seconds between the first and the last have no tick."""
    return round((max(moments) - min(moments)) / SECOND) + 1 - len(set(moments))


def in_threads(number: int, work: Callable[[threading.Event], None], seconds: float) -> None:
    over = threading.Event()
    threads = [threading.Thread(target=work, args=(over,)) for _ in range(number)]
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    over.set()
    for thread in threads:
        thread.join()


def execute(db: Database, statement: LiteralString, *parameters: Any) -> list[Any]:
    with db.connect(autocommit=True) as connection:
        cursor = connection.execute(statement, parameters)
        return cursor.fetchall() if cursor.description else []


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
)

if __name__ == "__main__":
    main()
