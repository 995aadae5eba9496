"""Lesson 14: throughput: what is committed together costs one commit. --help lists the verbs."""

import logging
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.event import listen, remove

import app
from bulk import enqueue_many
from claim import limit_queue
from control import cancel, fork, replay, retry
from db.queries import ClaimTasksRow, LoadLogRow, Querier
from events import emit
from listen import wait_for_result
from nondeterminism import NonDeterminismError
from rehearsal import export_log, rehearse
from results import Results
from run import run_task
from schedules import delete, pause, resume, set_schedule
from shared.database import Database
from shared.processes import SHORT_LEASE, WorkerProcess, wait_until, worker_processes, working
from shared.story import check, count, feared, get, log_of, say, say_logs, scene, status
from shared.verbs import verbs
from signals import send
from supervisor import supervise
from tasks import enqueue
from versions import move_version
from worker import Worker, log

HERE = Path(__file__).resolve().parent
TOO_EARLY = "WORKER_TOO_EARLY"  # a variable of the environment


def story(db: Database) -> None:
    alone = one_by_one(db)
    at_once(db)
    too_early(db)
    together(db, alone)
    many_slots(db)
    fan_out(db)
    disturbed(db)
    killed(db)


class OneByOne(Worker):
    """As in lesson 13: each slot has a connection, and sends what its task has to write."""

    def __init__(self, db: Database, slots: int) -> None:
        super().__init__(db, "one by one", slots=slots, connections=slots)
        self._writer.record = in_no_group

    def _run(self, task: ClaimTasksRow) -> None:
        self._store(task, run_task(self._writer, task, self.timing))


def in_no_group(task: ClaimTasksRow, entry: LoadLogRow) -> bool:  # noqa: ARG001
    return False


class TooEarly(Worker):
    """Says that a task has succeeded, has its slot run the next one, and stores 500 at once."""

    def run(self) -> None:
        self._results = Batch(self._has_stored, self._store_alone)
        super().run()

    def _run(self, task: ClaimTasksRow) -> None:
        super()._run(task)
        log.info("task %d succeeded", task.id)
        self._running.discard((task.id, task.attempt))
        self._look_again.set()


class Batch(Results):
    def store(self, connection: sa.Connection) -> bool:
        return len(self._waiting) >= 500 and super().store(connection)


class Cost:
    """What is sent while something is done, and how long it takes."""

    def __init__(self) -> None:
        self.statements = 0
        self.connections = 0
        self.seconds = 0.0  # of the clock
        self.waited = 0.0  # for answers, all threads together

    def of(self, tasks: int) -> str:
        return f"{self.statements / tasks:.2f} statements and commits a task, {self.seconds:.2f} s"


def one_by_one(db: Database) -> dict[str, Cost]:
    scene("One drain, as in lesson 13: ten slots, and each writes for itself")
    costs = {name: drained(db, name, OneByOne(db, 10)) for name in DRAINS}
    for name, cost in costs.items():
        say(f"{DRAINS[name][0]}: {cost.of(len(DRAINS[name][1]))}")
    cost = costs["pack"]
    waits = f"{10 * cost.waited / cost.seconds:.0f} % of the time"
    feared(cost.statements > 500, f"for {waits}, a slot waits until a statement is committed")
    return costs


DRAINS: dict[str, tuple[str, list[Any]]] = {
    "nothing": ("500 tasks that do nothing", [None] * 500),
    "pack": ("50 durable tasks of ten steps", [{"id": n, "items": 10} for n in range(50)]),
}


def at_once(db: Database) -> None:
    scene("100 tasks that each wait 50 ms for somebody else")
    fill(db, "sleep", [0.05] * 100)
    cost = drain(db, OneByOne(db, 50))
    say(f"50 slots: {cost.seconds:.2f} s, {cost.connections} connections")
    with db.connect() as connection:
        (limit,) = connection.execute("show max_connections").fetchone() or ("?",)
    feared(cost.connections > 25, f"each slot wants a connection, and this server has {limit}")


def too_early(db: Database) -> None:
    scene("A batch that acknowledges too early: four slots, and 500 results are stored at once")
    fill(db, "send_receipt", range(1000))
    os.environ[TOO_EARLY] = "1"
    with worker_processes(HERE, "a", options=("--slots", "4", *SHORT_LEASE)) as (worker,):
        del os.environ[TOO_EARLY]
        wait_until(lambda: said_of(worker) > 200, "it has said so of 200")
        worker.kill()
        said = said_of(worker)
    stored = count(db, "succeeded")
    say(f"it has said of {said} tasks that they have succeeded; then it is killed -9")
    feared(stored < said, f"the database knows of {stored}")
    twice = finish(db)
    feared(twice > 4, f"{twice} receipts were sent twice")


def together(db: Database, alone: dict[str, Cost]) -> None:
    scene("The same drain in groups, with 100 slots")
    for name, (what, inputs) in DRAINS.items():
        cost = drained(db, name, Worker(db, "a", slots=100))
        ratio = alone[name].seconds / cost.seconds
        say(f"{what}: {cost.of(len(inputs))}, {ratio:.1f} times as fast")
        check(4 * cost.statements < alone[name].statements, "less than a quarter of the statements")


def many_slots(db: Database) -> None:
    scene("1,000 tasks that each wait 50 ms for somebody else")
    fill(db, "sleep", [0.05] * 1000)
    cost = drain(db, Worker(db, "a", slots=250))
    say(f"250 slots: {cost.seconds:.2f} s, {cost.connections} connections")
    check(cost.connections < 20, "a slot is a thread, and no connection")


def fan_out(db: Database) -> None:
    children = 200
    scene(f"One task with {children} children")
    costs: list[Cost] = []
    for worker in (OneByOne(db, 10), Worker(db, "a", slots=100)):
        fill(db, "send_to_all", [children])
        costs.append(drain(db, worker))
        each = 1000 * costs[-1].seconds / children
        say(f"{costs[-1].of(children)}: {each:.1f} ms a child")
    alone, groups = costs
    check(2 * groups.statements < alone.statements, "they are spawned and stored together")


def disturbed(db: Database) -> None:
    scene("Ten tasks share their commits; one is cancelled, and psql holds the row of another")
    say_logs()
    log.setLevel(logging.WARNING)
    fill(db, "pack", [{"id": n, "items": 50} for n in range(1, 11)])
    with working(Worker(db, "a")), db.engine.begin() as psql:
        with db.engine.begin() as holder:
            holder.exec_driver_sql("lock table event_log in share mode")
            wait_until(lambda: len(done()) == 10, "each of them has done a step")
            with db.engine.begin() as connection:
                cancel(connection, 3)
            psql.exec_driver_sql("select from tasks where id = 7 for update")
        wait_until(lambda: count(db, "succeeded") == 8, "the others have ended")
        check(status(db, 7) == "running", "eight have succeeded, and the row is still held")
        put_in = sum(line.startswith("parcel 3:") for line in app.outside.effects())
        recorded = len(log_of(db, 3))
        say(f"of the cancelled one, {put_in} of 50 steps was done, and {recorded} are recorded")
        check(put_in - recorded <= 1, "its slot was told, and has stopped")
        psql.rollback()
        wait_until(lambda: status(db, 7) == "succeeded", "it goes on")
    check(get(db, 7).output == 50, "the one whose row was held has succeeded, too")


def killed(db: Database) -> None:
    scene("A death at the worst moment, with 20 slots")
    fill(db, "pack", [{"id": n, "items": 10} for n in range(50)])
    fill(db, "send_receipt", range(300), more=True)
    with worker_processes(HERE, "a", options=("--slots", "20", *SHORT_LEASE)) as (worker,):
        wait_until(lambda: count(db, "succeeded") > 5, "it is in the middle")
        with db.engine.begin() as psql:
            psql.exec_driver_sql("lock table event_log in share mode")
            time.sleep(0.3)  # each run does a step, and cannot record it
            worker.kill()
        said, stored = said_of(worker), count(db, "succeeded")
    say("for a moment psql keeps all steps from being recorded; then the worker is killed -9")
    say(f"it has said of {said} tasks that they have succeeded; {stored} are stored")
    check(said <= stored, "what it has said is true")
    twice = finish(db)
    say(f"of 800 receipts and steps {twice} were done twice")
    check(twice <= 20, "at most one in each slot")
    check(count(db, "succeeded") == 350 and len(done()) == 800, "and no task was lost")


def drained(db: Database, name: str, worker: Worker) -> Cost:
    fill(db, name, DRAINS[name][1])
    return drain(db, worker)


def fill(db: Database, name: str, inputs: Any, more: bool = False) -> None:
    """Fresh tables with these tasks; more: no fresh ones."""
    with db.engine.begin() as connection:
        if not more:
            app.outside.forget()
            connection.exec_driver_sql("truncate tasks, workers, event_log, messages")
            connection.exec_driver_sql("alter sequence tasks_id_seq restart")
        enqueue_many(connection, name, list(inputs))


def drain(db: Database, worker: Worker) -> Cost:
    """What it costs until all tasks have ended."""
    with db.connect(autocommit=True) as look:

        def ended() -> bool:
            left = look.execute(
                "select from tasks where status in ('queued', 'running', 'waiting') limit 1"
            )
            return left.rowcount == 0

        start = time.monotonic()
        with counting(db) as cost, working(worker):
            wait_until(ended, "all tasks have ended")
            cost.seconds = time.monotonic() - start
            sessions = look.execute(
                "select from pg_stat_activity"
                " where application_name = current_setting('application_name')"
            )
            cost.connections = sessions.rowcount - 2  # without this one, and that of the story
    if failed := count(db, "failed"):
        check(False, f"{failed} tasks have failed")
    return cost


@contextmanager
def counting(db: Database) -> Iterator[Cost]:
    cost = Cost()
    asked: dict[Any, float] = {}

    def before(_connection: Any, cursor: Any, *_: Any) -> None:
        asked[cursor] = time.monotonic()

    def after(_connection: Any, cursor: Any, *_: Any) -> None:
        cost.statements += 1
        cost.waited += time.monotonic() - asked.pop(cursor, time.monotonic())

    for engine in (db.engine, db.autocommit):
        engine.dispose()
        listen(engine, "before_cursor_execute", before)
        listen(engine, "after_cursor_execute", after)
    yield cost
    for engine in (db.engine, db.autocommit):
        remove(engine, "before_cursor_execute", before)
        remove(engine, "after_cursor_execute", after)


def said_of(worker: WorkerProcess) -> int:
    """Of how many tasks it has said that they have succeeded."""
    return len(set(re.findall(r"task (\d+) succeeded", worker.output())))


def finish(db: Database) -> int:
    """Let another worker do what is left; how many receipts and steps were done twice."""
    with worker_processes(HERE, "b", options=SHORT_LEASE):
        wait_until(lambda: not count(db, "queued", "running", "waiting"), "all have ended")
    return sum(times > 1 for times in done().values())


def done() -> Counter[str]:
    """How often each receipt was sent, and each step done."""
    return Counter(line.partition(" by process")[0] for line in app.outside.effects())


main = verbs(
    HERE,
    story,
    TooEarly if os.environ.get(TOO_EARLY) else Worker,
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
    supervise=supervise,
)

if __name__ == "__main__":
    main()
