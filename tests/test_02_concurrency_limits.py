"""Lesson 02: a worker claims what it can run, and a queue's limit holds under a race."""

import asyncio
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from inspect import signature
from itertools import accumulate

import pytest
import sqlalchemy as sa

from shared.processes import wait_until, worker_processes
from shared.testing import task_row, wait_for_status, waiting_for_a_lock, working


def enqueue(lesson, db, tasks, name="nothing", input=None, **options):
    """So many tasks; their ids."""
    with db.engine.begin() as connection:
        return [lesson.tasks.enqueue(connection, name, input, **options) for _ in range(tasks)]


def limit(lesson, db, max_running, queue="default"):
    with db.autocommit.connect() as connection:
        lesson.tasks.limit_queue(connection, queue, max_running)


def claim(lesson, connection, at_most, queue="default", limited=False):
    """The ids that ClaimTasks returns, whatever else a later lesson wants to be told."""
    queries = lesson.queries.Querier(connection)
    more = {"limited": limited}
    if "worker_id" in signature(queries.claim_tasks).parameters:
        more["worker_id"] = queries.register_worker(name="w", lease=timedelta(minutes=1))
    return [task.id for task in queries.claim_tasks(queue=queue, at_most=at_most, **more)]


def make_worker(lesson, db, queue="default"):
    """One that may claim without being run: from lesson 03 on, that takes a lease."""
    worker = lesson.worker.Worker(db, "w", queue=queue)
    if hasattr(worker, "_register"):
        with db.autocommit.connect() as connection:
            worker._register(connection)
    return worker


def claim_as_worker(lesson, db, free_slots, queue="default"):
    """The ids that a worker claims when it has so many free slots."""
    worker = make_worker(lesson, db, queue)
    with db.autocommit.connect() as connection:
        return [task.id for task in worker._claim(connection, free_slots)]


def count(db, status):
    with db.connect() as connection:
        return count_on(connection, status)


def count_on(connection, status):
    return connection.execute("select count(*) from tasks where status = %s", (status,)).fetchone()[
        0
    ]


def finish(db, ids):
    with db.connect(autocommit=True) as connection:
        connection.execute(
            "update tasks set status = 'succeeded', output = 'null' where id = any (%s)", (ids,)
        )


def most_at_once(effects):
    """How many ran at the same time, by the order of their starts and ends."""
    return max(accumulate(1 if effect.startswith("start") else -1 for effect in effects))


# Claims in batches


def test_a_claim_takes_the_oldest_tasks_and_none_twice(lesson, db):
    ids = enqueue(lesson, db, 10)
    with db.autocommit.connect() as connection:
        assert sorted(claim(lesson, connection, 4)) == ids[:4]
        assert sorted(claim(lesson, connection, 0)) == []
        assert sorted(claim(lesson, connection, 100)) == ids[4:]
        assert claim(lesson, connection, 100) == []


def test_claimed_tasks_are_begun_in_their_order(lesson, db):
    ids = enqueue(lesson, db, 10)
    with db.connect(autocommit=True) as connection:
        for id in reversed(ids):  # now the table has them the other way round
            connection.execute("update tasks set input = 'true' where id = %s", (id,))
    with db.autocommit.connect() as connection:
        connection.exec_driver_sql("set enable_indexscan = off; set enable_bitmapscan = off")
        tasks = make_worker(lesson, db)._claim(connection, 10)
    assert [task.id for task in tasks] == ids


def test_a_batch_does_not_wait_for_another_batch(lesson, db):
    ids = enqueue(lesson, db, 6)
    with db.engine.connect() as one, db.engine.connect() as other:
        assert sorted(claim(lesson, one, 3)) == ids[:3]  # and holds the rows' locks
        other.exec_driver_sql("set statement_timeout = '2s'")
        assert sorted(claim(lesson, other, 3)) == ids[3:]


def test_two_batches_at_the_same_time_share_no_task(lesson, db):
    """The second claim starts while the first is not committed, and ends after it is."""
    ids = enqueue(lesson, db, 6)
    claimed = []

    def claim_too():
        with db.autocommit.connect() as connection:
            claimed.extend(claim(lesson, connection, 3))

    with db.engine.connect() as one:
        first = claim(lesson, one, 3)
        other = threading.Thread(target=claim_too)
        other.start()
        wait_until(lambda: claimed or waiting_for_a_lock(db), "the second claim is there")
        one.commit()
        other.join()
    assert sorted(first + claimed) == ids


def test_many_batches_at_once_take_every_task_once(lesson, db):
    ids = enqueue(lesson, db, 400)

    def claimer(_):
        mine = []
        with db.autocommit.connect() as connection:
            start.wait()
            while got := claim(lesson, connection, 7):
                mine += got
        return mine

    start = threading.Barrier(8)
    with ThreadPoolExecutor(8) as threads:
        claimed = [id for mine in threads.map(claimer, range(8)) for id in mine]
    # One that finds all the rest locked goes home early; but nobody gets what another has.
    assert len(claimed) == len(set(claimed))
    assert set(claimed) <= set(ids)


# Slots


def test_a_worker_never_has_more_tasks_than_slots(lesson, db):
    """Also while tasks end so fast that slots become free during a claim."""
    seen = []

    @lesson.tasks.task
    def look(_):
        seen.append(count(db, "running"))

    ids = enqueue(lesson, db, 150, name="look")
    with working(lesson.worker.Worker(db, "w", slots=3)):
        wait_until(lambda: count(db, "succeeded") == len(ids), "all tasks have succeeded")
    assert len(seen) == len(ids)
    assert max(seen) <= 3


def test_all_slots_run_at_the_same_time(lesson, db):
    everybody = threading.Barrier(4, timeout=20)

    @lesson.tasks.task
    def meet(_):
        everybody.wait()

    ids = enqueue(lesson, db, 8, name="meet")
    with working(lesson.worker.Worker(db, "w", slots=4)):
        for id in ids:
            assert wait_for_status(db, id, "succeeded", "failed").status == "succeeded"


def test_a_busy_worker_leaves_tasks_to_its_neighbour(lesson, db):
    release = threading.Event()

    @lesson.tasks.task
    def hold(_):
        release.wait(20)

    held = enqueue(lesson, db, 2, name="hold")
    try:
        with working(lesson.worker.Worker(db, "busy", slots=2)):
            for id in held:
                wait_for_status(db, id, "running")
            (later,) = enqueue(lesson, db, 1)
            with working(lesson.worker.Worker(db, "neighbour", slots=1)):
                wait_for_status(db, later, "succeeded")
            assert count(db, "running") == 2
            release.set()
    finally:
        release.set()


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
def test_whatever_a_task_raises_takes_no_slot_along(lesson, db, error):
    @lesson.tasks.task
    def fail(_):
        raise error("no more")

    (bad,) = enqueue(lesson, db, 1, name="fail")
    (good,) = enqueue(lesson, db, 1)
    with working(lesson.worker.Worker(db, "w", slots=1)):
        wait_for_status(db, good, "succeeded")
        wait_until(lambda: task_row(db, bad).error is not None, "the error is stored")
    assert task_row(db, bad).error == f"{error.__name__}: no more"


@pytest.mark.until(3, why="a worker whose connection breaks goes on")
def test_a_slot_that_cannot_store_a_result_ends_the_worker(lesson, db):
    """Loudly, and after the tasks of its neighbours: a worker that lost a slot is not well."""
    neighbour_runs = threading.Event()
    stored = threading.Event()

    @lesson.tasks.task
    def neighbour(_):
        neighbour_runs.set()
        stored.wait(20)

    @lesson.tasks.task
    def spoil(id):
        neighbour_runs.wait(20)
        with db.connect(autocommit=True) as connection:
            connection.execute(f"alter table tasks add check (output is null or name <> '{id}')")

    (other,) = enqueue(lesson, db, 1, name="neighbour")
    (bad,) = enqueue(lesson, db, 1, name="spoil", input="spoil")
    worker = lesson.worker.Worker(db, "w", slots=2)
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(worker.run)
        wait_until(lambda: worker._stopping, "the worker stops by itself")
        (later,) = enqueue(lesson, db, 1)
        stored.set()
        with pytest.raises(sa.exc.IntegrityError):
            running.result(timeout=20)
    assert task_row(db, bad).status == "running"
    assert task_row(db, other).status == "succeeded"
    assert task_row(db, later).status == "queued"


# The limit


def test_the_limit_holds_under_eight_claimers(lesson, db):
    """Each counts right after its commit, and keeps its tasks until it has counted."""
    enqueue(lesson, db, 500)
    limit(lesson, db, 5)
    start = threading.Barrier(8)

    def claimer(_):
        worker = make_worker(lesson, db)
        claimed, seen = [], []
        with db.autocommit.connect() as connection, db.connect(autocommit=True) as other:
            start.wait()
            while count_on(other, "queued"):
                ids = [task.id for task in worker._claim(connection, 3)]
                seen.append(count_on(other, "running"))
                other.execute(
                    "update tasks set status = 'succeeded', output = 'null' where id = any (%s)",
                    (ids,),
                )
                claimed += ids
        return claimed, max(seen, default=0)

    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(claimer, range(8)))
    assert max(most for _, most in results) <= 5
    assert sorted(id for claimed, _ in results for id in claimed) == list(range(1, 501))


def test_a_claim_that_has_waited_for_the_limit_counts_anew(lesson, db):
    """The second claim starts while the first is not committed, and ends after it is."""
    enqueue(lesson, db, 10)
    limit(lesson, db, 3)
    with db.engine.connect() as one, ThreadPoolExecutor(1) as thread:
        assert lesson.queries.Querier(one).lock_limit(queue="default") == 3
        assert len(claim(lesson, one, 3, limited=True)) == 3
        other = thread.submit(claim_as_worker, lesson, db, 8)
        wait_until(lambda: other.done() or waiting_for_a_lock(db), "the second claim is there")
        one.commit()
        assert other.result(timeout=20) == []
    assert count(db, "running") == 3


def test_the_limit_holds_over_worker_processes(lesson, db):
    limit(lesson, db, 4)
    with worker_processes(lesson.path, "a", "b", "c", options=("--slots", "8")):
        enqueue(lesson, db, 60, name="work", input=0.02)
        wait_until(lambda: count(db, "succeeded") == 60, "all tasks have succeeded")
    effects = lesson.app.outside.effects()
    assert Counter(effect.split()[0] for effect in effects) == {"start": 60, "end": 60}
    assert most_at_once(effects) <= 4


def test_no_limit_needs_no_lock(lesson, db):
    """What locks the limit of one queue keeps nobody else waiting."""
    enqueue(lesson, db, 2, queue="free")
    limit(lesson, db, 1, queue="limited")
    with db.engine.connect() as holder, ThreadPoolExecutor(1) as thread:
        lesson.queries.Querier(holder).lock_limit(queue="limited")
        lesson.queries.Querier(holder).lock_limit(queue="free")
        other = thread.submit(claim_as_worker, lesson, db, 8, "free")
        assert len(other.result(timeout=20)) == 2


def test_a_limit_can_be_lowered_while_tasks_run(lesson, db):
    ids = enqueue(lesson, db, 10)
    limit(lesson, db, 5)
    assert claim_as_worker(lesson, db, 8) == ids[:5]
    limit(lesson, db, 2)
    assert count(db, "running") == 5, "running tasks are left alone"
    assert claim_as_worker(lesson, db, 8) == []
    finish(db, ids[:3])
    assert claim_as_worker(lesson, db, 8) == [], "two are running"
    finish(db, ids[3:4])
    assert claim_as_worker(lesson, db, 8) == ids[5:6]


def test_a_limit_of_0_pauses_a_queue_until_it_is_raised(lesson, db):
    (id,) = enqueue(lesson, db, 1)
    limit(lesson, db, 0)
    with working(lesson.worker.Worker(db, "w")):
        assert claim_as_worker(lesson, db, 8) == []
        assert task_row(db, id).status == "queued"
        limit(lesson, db, 1)
        wait_for_status(db, id, "succeeded")


def test_queues_are_separate(lesson, db):
    ours, theirs = enqueue(lesson, db, 3, queue="a"), enqueue(lesson, db, 3, queue="b")
    limit(lesson, db, 1, queue="a")
    assert claim_as_worker(lesson, db, 8, queue="a") == ours[:1]
    assert claim_as_worker(lesson, db, 8, queue="b") == theirs, "what runs in a does not count"
    assert claim_as_worker(lesson, db, 8, queue="a") == []
    assert claim_as_worker(lesson, db, 8) == []


def test_a_worker_that_is_stopped_while_it_waits_leaves_nothing_running(lesson, db):
    ids = enqueue(lesson, db, 3)
    limit(lesson, db, 3)
    worker = lesson.worker.Worker(db, "w")
    with db.engine.connect() as holder, ThreadPoolExecutor(1) as thread:
        lesson.queries.Querier(holder).lock_limit(queue="default")
        # Not `working`: that would stop it a second time, which means "do not wait for the tasks".
        run = thread.submit(worker.run)
        wait_until(lambda: waiting_for_a_lock(db), "the dispatcher waits for the limit")
        worker.stop()
        holder.rollback()
        run.result(timeout=20)
    assert count(db, "running") == 0
    assert {task_row(db, id).status for id in ids} <= {"queued", "succeeded"}


# At the door


@pytest.mark.parametrize("bad", [-1, 2**31, 1.5, True, "3", None])
def test_a_bad_limit_is_refused(lesson, db, bad):
    with db.autocommit.connect() as connection:
        with pytest.raises(lesson.tasks.BadInput, match="a limit is a whole number"):
            lesson.tasks.limit_queue(connection, "default", bad)
        assert lesson.queries.Querier(connection).lock_limit(queue="default") is None


@pytest.mark.parametrize("bad", ["", " ", "a b", "a\n", "kö", "a\0", "'; drop", "x" * 101])
def test_a_bad_queue_name_is_refused(lesson, db, bad):
    with pytest.raises(lesson.tasks.BadInput, match="a queue is named"):
        enqueue(lesson, db, 1, queue=bad)
    with pytest.raises(lesson.tasks.BadInput, match="a queue is named"):
        limit(lesson, db, 1, queue=bad)
    with pytest.raises(lesson.tasks.BadInput, match="a queue is named"):
        lesson.worker.Worker(db, "w", queue=bad)
    assert count(db, "queued") == 0


@pytest.mark.parametrize("bad", [0, -1, 1001, 10**9, 2.5, True])
def test_a_bad_number_of_slots_is_refused(lesson, db, bad):
    with pytest.raises(lesson.tasks.BadInput, match="slots is a whole number"):
        lesson.worker.Worker(db, "w", slots=bad)


# The verbs


def run_verb(lesson, *arguments):
    return subprocess.run(
        [sys.executable, "main.py", *arguments],
        cwd=lesson.path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_verb_limit(lesson, db):
    done = run_verb(lesson, "limit", "2", "--queue", "mail")
    assert (done.returncode, done.stderr) == (0, "")
    enqueue(lesson, db, 3, queue="mail")
    assert len(claim_as_worker(lesson, db, 8, queue="mail")) == 2


def test_the_verbs_take_a_queue_and_slots(lesson, db):
    run_verb(lesson, "enqueue", "sleep", "60")
    for _ in range(3):
        done = run_verb(lesson, "enqueue", "sleep", "60", "--queue", "mail")
        assert (done.returncode, done.stderr) == (0, "")
    options = ("--queue", "mail", "--slots", "2")
    with worker_processes(lesson.path, "a", options=options) as (worker,):
        wait_until(lambda: count(db, "running") == 2, "the worker's two slots are in use")
        worker.kill()
    assert count(db, "queued") == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("limit", "--", "-1"), "a limit is a whole number"),
        (("limit", "99999999999"), "a limit is a whole number"),
        (("limit", "many"), "not a valid integer"),
        (("limit", "1", "--queue", "a b"), "a queue is named"),
        (("enqueue", "nothing", "--queue", ""), "a queue is named"),
        (("worker", "--slots", "0"), "slots is a whole number"),
        (("worker", "--slots", "1001"), "slots is a whole number"),
        (("worker", "--queue", "a b"), "a queue is named"),
    ],
)
def test_the_verbs_say_what_is_wrong(lesson, db, arguments, says):
    done = run_verb(lesson, *arguments)
    assert done.returncode != 0
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert count(db, "queued") == 0
