"""Lesson 02: a worker claims what it can run, and a queue has a limit. --help lists the verbs."""

import threading
import time
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import sqlalchemy as sa

import app
from claim import limit_queue
from db.queries import Querier
from inputs import to_json
from run import call
from shared.database import Database
from shared.processes import wait_until, worker_processes, working
from shared.story import check, count, feared, say, scene
from shared.verbs import verbs
from tasks import enqueue
from worker import Worker

HERE = Path(__file__).resolve().parent


def story(db: Database) -> None:
    greedy_worker(db)
    free_slots(db)
    count_then_claim(db)
    lock_and_count_in_one_statement(db)
    lock_then_count(db)
    what_a_limit_costs(db)


def greedy_worker(db: Database) -> None:
    scene("A worker that claims more than it can run starves its neighbour")
    enqueue_work(db, [0.1] * 20)
    with db.autocommit.connect() as connection:
        queue = Querier(connection)
        tasks = list(queue.claim_tasks(queue="default", at_most=100, limited=False))
        say(f"worker greedy has one slot and claims {len(tasks)} tasks, all there are")
        with worker_processes(HERE, "idle"):
            started = time.monotonic()
            for task in tasks:
                queue.succeed_task(id=task.id, output=to_json(call(task.name, task.input)))
            seconds = time.monotonic() - started
    say(f"it runs them one after the other, {seconds:.1f} s; worker idle has 10 slots and looks on")
    feared(len(by_process()) == 1, "as feared: 20 tasks, two workers, one of them did everything")


def free_slots(db: Database) -> None:
    scene("A worker claims as many tasks as it has free slots")
    with worker_processes(HERE, "a", "b", options=("--slots", "2")):
        enqueue_work(db, [0.1] * 40)
        wait_until(lambda: count(db, "queued", "running") == 0, "40 tasks are done")
    say(f"two workers with two slots each, 40 tasks: {shares()}")
    at_once = [most_at_once(effects) for effects in by_process().values()]
    check(len(at_once) == 2 and max(at_once) <= 2, "both worked, on at most two tasks at once")


def count_then_claim(db: Database) -> None:
    scene("A limit of 3 for the whole queue: count, then claim as many as there is room for")
    enqueue_work(db, [0] * 20)
    with db.autocommit.connect() as one, db.autocommit.connect() as other:
        workers = (Querier(one), Querier(other))
        for worker in workers:
            say(f"a worker counts {worker.count_running(queue='default')} running tasks")
        for worker in workers:
            tasks = list(worker.claim_tasks(queue="default", at_most=3, limited=False))
            say(f"a worker claims {len(tasks)} tasks")
    feared(count(db, "running") == 6, "as feared: 6 tasks are running, and the limit is 3")


def lock_and_count_in_one_statement(db: Database) -> None:
    scene("One statement that locks the limit, counts and claims")
    enqueue_work(db, [0] * 20, limit=3)
    with db.engine.connect() as one, db.engine.connect() as other:
        say(f"the first worker claims {one.execute(sa.text(ONE_STATEMENT)).rowcount} tasks")
        second = threading.Thread(target=lambda: other.execute(sa.text(ONE_STATEMENT)))
        second.start()
        wait_until(lambda: waiting_for_a_lock(db), "the second worker waits")
        say("the second worker waits for the lock on the limit")
        one.commit()
        second.join()
        other.commit()
        say("the first has committed; the second goes on with the count it took before it waited")
    feared(count(db, "running") == 6, "as feared: 6 tasks are running, and the limit is 3")


ONE_STATEMENT = """
with queue_limit as materialized (
    select max_running from queue_limits where queue = 'default' for update
), next as materialized (
    select id from tasks where status = 'queued' order by id
    limit (select max_running from queue_limit)
        - (select count(*) from tasks where status = 'running')
    for update skip locked
)
update tasks set status = 'running' from next where tasks.id = next.id
"""


def lock_then_count(db: Database) -> None:
    scene("Lock the limit, and then count in a statement of its own: LockLimit, CountRunning")
    seen: list[int] = []

    def look() -> bool:
        seen.append(count(db, "running"))
        time.sleep(0.05)
        return count(db, "queued", "running") == 0

    with worker_processes(HERE, "a", "b", options=("--slots", "8")):
        enqueue_work(db, [0.05, 0.1, 0.15] * 12, limit=5)
        wait_until(look, "36 tasks are done")
    say("limit 5, two workers with 8 slots each; how many were running, every 0.05 s:")
    say(" ".join(str(number) for number in seen))
    say(f"36 tasks: {shares()}")
    most = max(*seen, most_at_once(app.outside.effects()))
    check(most <= 5 and count(db, "succeeded") == 36, "never more than 5 at once, and all were run")


def what_a_limit_costs(db: Database) -> None:
    scene("What it costs: 2,000 tasks that do nothing, two workers with 10 slots each")
    for limit in (None, 1000, 5):
        enqueue_work(db, [None] * 2000, limit)
        started = time.monotonic()
        with working(Worker(db, "a")), working(Worker(db, "b")):
            wait_until(lambda: count(db, "queued", "running") == 0, "2,000 tasks are done")
            seconds = time.monotonic() - started
        reached = {None: "no limit", 1000: "a limit of 1,000, never reached", 5: "a limit of 5"}
        say(f"{reached[limit]}: {2000 / seconds:,.0f} tasks a second")


def enqueue_work(db: Database, seconds: Sequence[float | None], limit: int | None = None) -> None:
    """A task for each of `seconds`, into an empty queue; None for a task that does nothing."""
    app.outside.forget()
    with db.engine.begin() as connection:
        # In the order in which a worker locks them: the opposite order can end in a deadlock.
        connection.execute(sa.text("truncate queue_limits, tasks"))
        if limit is not None:
            limit_queue(connection, "default", limit)
        for length in seconds:
            enqueue(connection, "nothing" if length is None else "work", length)


def by_process() -> dict[str, list[str]]:
    """What each process did to the outside world: its starts and ends, in their order."""
    effects: dict[str, list[str]] = {}
    for effect in app.outside.effects():
        effects.setdefault(effect.rpartition(" ")[2], []).append(effect)
    return effects


def shares() -> str:
    return ", ".join(f"{len(effects) // 2} by one" for effects in by_process().values())


def most_at_once(effects: list[str]) -> int:
    """How many tasks ran at the same time."""
    return max(accumulate(1 if effect.startswith("start") else -1 for effect in effects))


def waiting_for_a_lock(db: Database) -> bool:
    """Is one of this process's own connections waiting?"""
    with db.connect() as connection:
        return connection.execute(
            "select exists (select from pg_stat_activity where wait_event_type = 'Lock'"
            " and application_name = current_setting('application_name'))"
        ).fetchone() == (True,)


main = verbs(HERE, story, Worker, enqueue, Querier, limit=limit_queue)

if __name__ == "__main__":
    main()
