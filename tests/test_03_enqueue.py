"""Lesson 03: which task is next, when it may begin, and what the door refuses."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial

import pytest
import sqlalchemy as sa

from shared.processes import wait_until, within
from shared.testing import task_row, wait_for_status, working
from tests.helpers import (
    ALL,
    BAD_OPTIONS,
    DAYS,
    claim,
    claim_as,
    count,
    enqueue,
    execute,
    one_by_one,
    queries,
    register,
    registered,
    run_verb,
    status_of,
    submitted,
    upkeep_rounds,
)

# Priority and delay


def test_higher_goes_first_and_the_oldest_among_equals(lesson, db):
    low, first, second, high = (enqueue(lesson, db, priority=p) for p in (-5, 0, 0, 7))
    worker = register(lesson, db)
    assert claim(lesson, db, worker) == [(high, 1)]
    assert claim(lesson, db, worker) == [(first, 1)]
    assert claim(lesson, db, worker) == [(second, 1)]
    assert claim(lesson, db, worker) == [(low, 1)]


def test_a_batch_is_started_in_order(lesson, db):
    """`update ... returning` gives no order; the dispatcher sorts."""
    began = []

    @lesson.tasks.task
    def note(n):
        began.append(n)

    for n in range(30):
        enqueue(lesson, db, "note", n, priority=n % 3)
    wanted = sorted(range(30), key=lambda n: (-(n % 3), n))
    worker = registered(lesson, db, slots=30)
    with db.autocommit.connect() as connection:
        connection.exec_driver_sql("set enable_indexscan = off; set enable_bitmapscan = off")
        claimed = claim_as(lesson, db, worker, connection, 30)
        assert [json.loads(task.input) for task in claimed] == wanted
    execute(db, "update tasks set status = 'queued'")
    with working(lesson.worker.Worker(db, "w", slots=1)):
        wait_until(lambda: len(began) == 30, "all have run")
    assert began == wanted


def test_a_low_priority_starves_as_long_as_higher_ones_keep_coming(lesson, db):
    """No fairness is promised, and here is none."""
    low = enqueue(lesson, db, priority=0)
    worker = register(lesson, db)
    for _ in range(50):
        high = [enqueue(lesson, db, priority=1) for _ in range(2)]
        assert [id for id, _ in claim(lesson, db, worker, at_most=2)] == high
    assert task_row(db, low).attempt == 0
    assert claim(lesson, db, worker, at_most=2) == [(low, 1)]


def test_a_delayed_task_waits_for_its_time(lesson, db):
    id = enqueue(lesson, db, "divide", [6, 3], delay=timedelta(hours=1), priority=100)
    with working(lesson.worker.Worker(db, "w")):
        upkeep_rounds(lesson, db, 2)
        task = task_row(db, id)
        assert (task.status, task.attempt) == ("waiting", 0)
        execute(db, "update tasks set run_at = clock_timestamp() where id = %s", id)
        assert wait_for_status(db, id, "succeeded").attempt == 1
    assert timedelta(minutes=59) < task.run_at - task.created_at < timedelta(minutes=61)


def test_waking_waits_for_nobody(lesson, db):
    ids = [enqueue(lesson, db, delay=timedelta(0)) for _ in range(4)]
    with db.connect() as holder, queries(lesson, db) as queue:
        holder.execute("select from tasks where id = any (%s) for update", (ids[:2],))
        assert len(list(queue.wake_tasks(**ALL))) == 2
    assert [status_of(db, id) for id in ids] == ["waiting"] * 2 + ["queued"] * 2


# Idempotency keys


def test_the_same_key_again_returns_the_first_task(lesson, db):
    first = enqueue(lesson, db, "divide", [6, 3], idempotency_key="order 7")
    assert enqueue(lesson, db, "divide", [6, 3], idempotency_key="order 7") == first
    with working(lesson.worker.Worker(db, "w")):
        wait_for_status(db, first, "succeeded")
    assert enqueue(lesson, db, "divide", [6, 3], idempotency_key="order 7") == first, "for good"
    assert enqueue(lesson, db, "divide", [6, 3]) != first
    assert enqueue(lesson, db, "divide", [6, 3], idempotency_key="order 8") != first
    assert enqueue(lesson, db, "nothing", [6, 3], idempotency_key="order 7") != first
    assert count(db, "queued", "succeeded") == 4


@pytest.mark.parametrize(
    ("first", "second"),
    [([6, 3], [6, 2]), (1, True), (0, False), ({"a": 1}, {"a": 1, "b": 2}), (None, 0), (1, "1")],
)
def test_a_key_that_was_used_for_another_input_is_refused(lesson, db, first, second):
    id = enqueue(lesson, db, "nothing", first, idempotency_key="k")
    with pytest.raises(lesson.inputs.BadInput, match=f"another input: task {id}"):
        enqueue(lesson, db, "nothing", second, idempotency_key="k")
    assert count(db, "queued") == 1


def test_the_order_of_an_inputs_keys_does_not_matter(lesson, db):
    id = enqueue(lesson, db, "nothing", {"a": 1, "b": 2}, idempotency_key="k")
    assert enqueue(lesson, db, "nothing", {"b": 2, "a": 1}, idempotency_key="k") == id


def test_sixteen_enqueues_at_once_make_one_task(lesson, db):
    start = threading.Barrier(16, timeout=within(30))

    def click():
        with db.autocommit.connect() as connection:
            for n in range(20):
                start.wait()
                yield lesson.tasks.enqueue(
                    connection, "divide", [n, 1], idempotency_key=f"order {n}"
                )

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda _: list(click()), range(16)))
    assert len({tuple(ids) for ids in answers}) == 1, "16 equal ids, in each of 20 rounds"
    assert len(set(answers[0])) == count(db, "queued") == 20


def test_the_key_of_a_rolled_back_enqueue_is_free_again(lesson, db):
    with db.engine.connect() as connection:
        first = lesson.tasks.enqueue(connection, "divide", [6, 3], idempotency_key="k")
        connection.rollback()
    second = enqueue(lesson, db, "divide", [1, 1], idempotency_key="k")
    assert second != first
    assert count(db, "queued") == 1


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_the_key_of_an_open_transaction_makes_the_second_wait(lesson, db, end):
    with db.engine.connect() as connection, ThreadPoolExecutor(1) as thread:
        first = lesson.tasks.enqueue(connection, "divide", [6, 3], idempotency_key="k")
        again = partial(enqueue, lesson, db, "divide", [6, 3], idempotency_key="k")
        second = submitted(db, thread, again)
        assert not second.done()
        getattr(connection, end)()
        assert (second.result(timeout=within(20)) == first) == (end == "commit")
    assert count(db, "queued") == 1


def test_a_key_that_a_transaction_cannot_see_is_an_error_and_no_second_task(lesson, db):
    engine = db.engine.execution_options(isolation_level="REPEATABLE READ")
    with engine.connect() as connection:
        connection.exec_driver_sql("select 1 from tasks").all()  # takes the snapshot
        enqueue(lesson, db, "divide", [6, 3], idempotency_key="k")
        with pytest.raises(sa.exc.OperationalError, match="could not serialize"):
            lesson.tasks.enqueue(connection, "divide", [6, 3], idempotency_key="k")
    assert count(db, "queued") == 1


# At the door


@one_by_one("bad", BAD_OPTIONS)
def test_a_bad_option_is_refused_at_the_door(lesson, db, bad):
    options, why = BAD_OPTIONS[bad]
    with pytest.raises(lesson.inputs.BadInput, match=why):
        enqueue(lesson, db, "divide", [6, 3], **options)
    assert execute(db, "select * from tasks") == []


def test_the_widest_options_are_good(lesson, db):
    most = 2**31 - 1
    long = 3650 * DAYS
    for priority in (most, -most):
        id = enqueue(
            lesson,
            db,
            "divide",
            [6, 3],
            priority=priority,
            delay=long,
            timeout=long,
            max_attempts=most,
            idempotency_key=f"{priority:~>200}",
        )
        execute(db, "update tasks set run_at = clock_timestamp() where id = %s", id)
    with working(lesson.worker.Worker(db, "w")):
        wait_until(lambda: count(db, "succeeded") == 2, "both have run")
        upkeep_rounds(lesson, db, 1)


# The verbs


def test_the_verb_enqueue_takes_the_options(lesson, db):
    done = run_verb(
        lesson,
        *("enqueue", "divide", "[6, 3]", "--priority", "7", "--delay", "60", "--timeout", "5"),
        *("--max-attempts", "3", "--key", "order 7"),
    )
    assert (done.returncode, done.stderr) == (0, "")
    ((id,),) = execute(db, "select id from tasks")
    task = task_row(db, id)
    assert (task.status, task.priority, task.max_attempts) == ("waiting", 7, 3)
    assert (task.timeout, task.idempotency_key) == (timedelta(seconds=5), "order 7")
    again = run_verb(lesson, "enqueue", "divide", "[6, 2]", "--key", "order 7")
    assert "another input" in again.stderr
    assert "Traceback" not in again.stderr


def test_the_verb_status_shows_attempts_and_workers(lesson, db):
    enqueue(lesson, db, "divide", [6, 0], max_attempts=3)
    claim(lesson, db, register(lesson, db, "ada"))
    shown = run_verb(lesson, "status").stdout
    assert "1 of 3" in shown
    assert "1 running" in shown
    assert "workers: ada (1)" in shown
