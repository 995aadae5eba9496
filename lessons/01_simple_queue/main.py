"""Lesson 01: a queue that hands each task to one worker. --help lists the verbs."""

import threading
import time
from collections import Counter
from pathlib import Path

import sqlalchemy as sa

import app
from db.queries import CLAIM_TASK, Querier
from inputs import BadInput
from shared.database import Database
from shared.processes import wait_until, worker_processes
from shared.story import check, count, feared, say, scene, status
from shared.verbs import verbs
from tasks import enqueue, registry
from worker import Worker

HERE = Path(__file__).resolve().parent


def story(db: Database) -> None:
    two_statements(db)
    one_statement(db)
    a_year_later(db)
    in_the_callers_transaction(db)
    bad_tasks(db)
    killed_worker(db)


def two_statements(db: Database) -> None:
    scene("A claim in two statements: look for a queued task, then mark it")
    enqueue_receipts(db, 100)
    start = threading.Barrier(2)

    def naive_worker() -> None:
        with db.autocommit.connect() as connection:
            start.wait()
            while row := connection.execute(sa.text(NAIVE_LOOK)).first():
                time.sleep(0.001)  # here the other worker looks, and sees the same task
                connection.execute(sa.text(NAIVE_MARK), {"id": row.id})
                registry[row.name](row.input)

    workers = [threading.Thread(target=naive_worker) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    runs = len(app.outside.effects())
    say(f"100 tasks, two workers, {runs} receipts sent: {runs - 100} customers got two")
    feared(runs > 100, "as feared: two workers took the same task")


NAIVE_LOOK = "select id, name, input from tasks where status = 'queued' order by id limit 1"
NAIVE_MARK = "update tasks set status = 'running' where id = :id"


def one_statement(db: Database) -> None:
    scene("A claim in one statement, with a lock that others skip: ClaimTask")
    with worker_processes(HERE, "a", "b"):
        enqueue_receipts(db, 100)
        wait_until(lambda: count(db, "queued", "running") == 0, "100 receipts sent")
    runs = Counter(app.outside.effects())
    shares = Counter(effect.rpartition(" ")[2] for effect in runs)
    say(f"100 tasks, two worker processes, {runs.total()} receipts sent: {shares_of(shares)}")
    check(runs.total() == len(runs) == 100, "each task ran once, and none was lost")


def a_year_later(db: Database) -> None:
    scene("A year later: 25,000 tasks have succeeded, and two are queued")
    with db.engine.connect() as connection:
        connection.execute(sa.text(FINISHED))
        for order in (1, 2):
            enqueue(connection, "send_receipt", order)
        connection.execute(sa.text("analyze tasks"))
        say("explain analyze, with the index tasks_queued:")
        indexed = explain_claim(connection)
        connection.execute(sa.text("drop index tasks_queued"))
        say("and without it:")
        explain_claim(connection)
        connection.rollback()  # the index is there again, and the year has not passed
    check("using tasks_queued" in indexed, "the claim reads what it takes, and no finished task")


FINISHED = """
insert into tasks (name, input, status, output)
select 'send_receipt', 'null', 'succeeded', 'null' from generate_series(1, 25000)
"""


def explain_claim(connection: sa.Connection) -> str:
    explain = "explain (analyze, costs off, timing off, summary off, buffers off)"
    plan = connection.scalars(sa.text(f"{explain}\n{CLAIM_TASK}")).all()
    for line in plan:
        say(line)
    return "\n".join(plan)


def in_the_callers_transaction(db: Database) -> None:
    scene("An enqueue is one INSERT, in the caller's own transaction")
    before = count(db, "queued")
    with db.engine.connect() as connection:
        enqueue(connection, "send_receipt", 101)
        say("enqueued a receipt for order 101, not committed")
        connection.rollback()
        say("rolled back: the order was not paid after all")
    check(count(db, "queued") == before, "no task was left behind")


def bad_tasks(db: Database) -> None:
    scene("Bad input is refused at the door; a bad task fails alone")
    with db.autocommit.connect() as connection:
        for name, input in (("send_recipt", 1), ("divide", [1, float("nan")]), ("divide", (1, 2))):
            try:
                enqueue(connection, name, input)
            except BadInput as error:
                say(f"{name}({input}) refused: {error}")
        queue = Querier(connection)
        failing = enqueue(connection, "divide", [1, 0])
        unknown = queue.enqueue_task(name="format_disk", input="null")  # not through our door
        after = enqueue(connection, "divide", [1, 2])
        with worker_processes(HERE, "c"):
            wait_until(lambda: count(db, "queued", "running") == 0, "three tasks finished")
        for id in (failing, unknown, after):
            task = queue.get_task(id=id or 0)
            assert task is not None
            say(f"{task.name}({task.input}) {task.status}: {task.error or task.output}")
        check(count(db, "failed") == 2, "two tasks failed, and the one behind them succeeded")


def killed_worker(db: Database) -> None:
    scene("What this queue cannot do yet: a worker is killed in the middle of a task")
    with db.autocommit.connect() as connection:
        id = enqueue(connection, "sleep", 60)
        with worker_processes(HERE, "d") as (worker,):
            wait_until(lambda: count(db, "running") == 1, "worker d runs the task")
            worker.kill()
            say(f"kill -9 of worker d, {worker.exit_status}: its task is {status(db, id)}")
        with worker_processes(HERE, "e"):
            enqueue(connection, "divide", [6, 3])
            wait_until(lambda: count(db, "queued") == 0, "worker e emptied the queue")
            say(f"worker e has emptied the queue; the task of d is {status(db, id)}")
    feared(count(db, "running") == 1, "the row says running, for ever: lesson 03 mends this")


def enqueue_receipts(db: Database, orders: int) -> None:
    """Into an empty queue, and with no receipt sent yet."""
    app.outside.forget()
    with db.engine.begin() as connection:
        connection.execute(sa.text("truncate tasks"))
        for order in range(1, orders + 1):
            enqueue(connection, "send_receipt", order)


def shares_of(shares: Counter[str]) -> str:
    return ", ".join(f"{runs} by one" for runs in shares.values())


main = verbs(HERE, story, Worker, enqueue, Querier)

if __name__ == "__main__":
    main()
