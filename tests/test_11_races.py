"""Lesson 11: whoever comes at the same moment, nothing is lost and nothing is read twice."""

import os
import random
import threading
import time
from datetime import timedelta

import psycopg

from shared.processes import wait_until, within, working
from tests.helpers import (
    claim_tasks,
    count,
    enqueue,
    execute,
    in_threads,
    program,
    queries,
    register,
    retry_after,
    several,
)
from tests.test_11_signals import INSERT, open_beside_unread, open_wait

RACES = int(os.environ.get("RACES", "40"))  # of each kind; 400 take half a minute
NOW = timedelta(0)
LIVE = ("queued", "running", "waiting")


def running(lesson, db, tasks):
    """So many tasks that a test runs by hand, as ClaimTasks returns them."""
    program(lesson, lambda _ctx, _: None)
    several(lesson, db, tasks, "program")
    worker_id = register(lesson, db)
    with queries(lesson, db) as queue:
        return sorted(claim_tasks(queue, worker_id, at_most=tasks), key=lambda task: task.id)


def race(lesson, db, tasks, *rivals):
    """For each task, all rivals act at nearly the same moment, each on a connection of its own."""
    start = threading.Barrier(len(rivals), timeout=within(60))

    def run(rival, seed):
        chance = random.Random(seed)
        with queries(lesson, db) as queue:
            for task in tasks:
                start.wait()
                time.sleep(chance.uniform(0, 0.002))
                rival(queue, task)

    in_threads(*(lambda rival=rival, n=n: run(rival, n) for n, rival in enumerate(rivals)))


def suspend(queue, task):
    """0 rows: there is an answer already, and a run would go on."""
    queue.suspend_task(
        id=task.id, attempt=1, completions=0, awaits=[1], wake_after=1, deadline=None
    )


def check_completions(db):
    """I20: each entry has been completed once, and the task knows of it. I22: nobody sleeps."""
    assert (
        execute(
            db,
            "select id from tasks left join event_log on task_id = id group by id, completions"
            " having completions <> count(completion)"
            " or completions <> coalesce(max(completion), 0)",
        )
        == []
    )
    assert (
        execute(
            db,
            "select task_id from event_log where completion is null and (due_at < clock_timestamp()"
            " or kind = 'event' and name in (select name from events))",
        )
        == []
    )
    assert open_beside_unread(db) == [], "I21"


def test_of_a_message_a_wait_and_the_clock(lesson, db):
    tasks = running(lesson, db, RACES)

    def receives(queue, task):
        assert open_wait(queue, task, duration=NOW) == 1
        suspend(queue, task)

    def sends(queue, task):
        queue._conn.exec_driver_sql(INSERT, (task.id, "a", "1"))

    def clock(queue, _task):
        list(queue.complete_due_entries(at_most=1000, skip=0))

    race(lesson, db, tasks, receives, sends, clock)
    with queries(lesson, db) as queue:
        clock(queue, None)
    check_completions(db)
    assert count(db, "waiting") == 0
    entries = "select messages.position, event_log.output is null, event_log.error is null"
    found = execute(db, f"{entries} from messages join event_log using (task_id)")
    assert len(found) == RACES
    assert set(found) <= {(1, False, True), (None, True, False)}, "read, or too late: never both"


def test_of_an_event_and_a_wait(lesson, db):
    tasks = running(lesson, db, RACES)

    def waits(queue, task):
        assert open_wait(queue, task, kind="event") == 1
        queue.catch_event(task_id=task.id, position=1)
        suspend(queue, task)

    def emits(queue, task):
        assert queue.emit_event(name=f"e{task.id}", payload="1") == 1

    def tells(queue, _task):
        list(queue.tell_events(at_most=1000, skip=0))
        queue.mark_told()

    # Each task waits for its own event.
    execute(
        db,
        "create function its_own() returns trigger language plpgsql as"
        " $$ begin new.name := 'e' || new.task_id; return new; end $$;"
        " create trigger its_own before insert on event_log for each row"
        " execute function its_own()",
    )
    race(lesson, db, tasks, waits, emits, tells, tells)
    with queries(lesson, db) as queue:
        tells(queue, None)
    check_completions(db)
    assert count(db, "waiting") == 0
    assert execute(db, "select count(*) from events where not told") == [(0,)]


def test_nobody_waits_for_each_other(lesson, db):
    """Messages, events, the clock, and hands, on trees of tasks: no deadlock, and nothing lost."""
    retry_after(lesson, NOW)
    fractions = [timedelta(seconds=seconds) for seconds in (0.05, 0.1, 0.3)]

    def tree(ctx, depth):
        children = [ctx.spawn(tree, depth - 1) for _ in range(2)] if depth else []
        waits = [ctx.signal("a", timeout=fractions[0]), ctx.event("e", timeout=fractions[1])]
        try:
            ctx.gather(*children, *waits, timeout=fractions[2])
        except lesson.errors.StepError as error:
            return str(error)[:100]

    program(lesson, tree, "tree")
    for _ in range(4):
        enqueue(lesson, db, "tree", 2)
    end = time.monotonic() + within(1.5)
    wrong = []

    def meddle(seed):
        chance = random.Random(seed)
        with db.engine.connect() as connection:
            while time.monotonic() < end:
                try:
                    act(connection, chance)
                    connection.commit()
                except Exception as error:
                    connection.rollback()
                    cause = getattr(error, "orig", error)
                    refused = isinstance(
                        cause, lesson.inputs.BadInput | psycopg.errors.RaiseException
                    )
                    if not refused:
                        wrong.append(cause)

    def act(connection, chance):
        live = connection.exec_driver_sql(
            "select id from tasks where status = any (%s)", (list(LIVE),)
        )
        id = chance.choice(live.scalars().all() or [1])
        what = chance.choices(
            ("send", "insert", "emit", "cancel", "retry", "replay", "fork", "enqueue"),
            (6, 2, 1, 1, 1, 1, 1, 1),
        )[0]
        if what == "send":
            lesson.signals.send(connection, id, "a", 1)
        elif what == "insert":
            connection.exec_driver_sql(INSERT, (id, "a", "1"))
        elif what == "emit":
            lesson.events.emit(connection, chance.choice("ef"))
        elif what == "fork":
            lesson.control.fork(connection, id, chance.choice((0, 0, 1, 2)))
        elif what == "enqueue":
            lesson.tasks.enqueue(connection, "tree", 1)
        else:
            getattr(lesson.control, what)(connection, chance.randint(1, id))

    with working(lesson.worker.Worker(db, "a")), working(lesson.worker.Worker(db, "b")):
        in_threads(*(lambda seed=seed: meddle(seed) for seed in range(3)))
        wait_until(lambda: count(db, *LIVE) == 0, "all have ended", 60)
    assert wrong == []
    assert open_beside_unread(db) == []
