"""Lesson 02: a queue's limit holds under a race, and one that cannot be meant is refused."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate

import pytest

from shared.processes import wait_until, within, worker_processes
from shared.testing import task_row, wait_for_status, waiting_for_a_lock, working
from tests.helpers import (
    called,
    claim_as,
    claim_as_worker,
    claim_ids,
    count,
    execute,
    limit,
    one_by_one,
    registered,
    run_program,
    run_verb,
    several,
    submitted,
)

# The limit


def count_on(connection, status):
    return connection.execute("select count(*) from tasks where status = %s", (status,)).fetchone()[
        0
    ]


def end(db, ids):
    execute(db, "update tasks set status = 'succeeded', output = 'null' where id = any (%s)", ids)


def most_at_once(effects):
    """How many ran at the same time, by the order of their starts and ends."""
    return max(accumulate(1 if effect.startswith("start") else -1 for effect in effects))


def test_the_limit_holds_under_eight_claimers(lesson, db):
    """Each counts right after its commit, and keeps its tasks until it has counted."""
    several(lesson, db, 500)
    limit(lesson, db, 5)
    start = threading.Barrier(8, timeout=within(60))

    def claimer(_):
        worker = registered(lesson, db)
        claimed, seen = [], []
        with db.autocommit.connect() as connection, db.connect(autocommit=True) as other:
            start.wait()
            while count_on(other, "queued"):
                ids = [task.id for task in claim_as(lesson, db, worker, connection, 3)]
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
    several(lesson, db, 10)
    limit(lesson, db, 3)
    with db.engine.connect() as one, ThreadPoolExecutor(1) as thread:
        assert lesson.queries.Querier(one).lock_limit(queue="default") == 3
        assert len(claim_ids(lesson, one, 3, limited=True)) == 3
        other = submitted(db, thread, claim_as_worker, lesson, db, 8)
        one.commit()
        assert other.result(timeout=within(20)) == []
    assert count(db, "running") == 3


def test_the_limit_holds_over_worker_processes(lesson, db):
    limit(lesson, db, 4)
    with worker_processes(lesson.path, "a", "b", "c", options=("--slots", "8")):
        several(lesson, db, 60, name="work", input=0.02)
        wait_until(lambda: count(db, "succeeded") == 60, "all tasks have succeeded")
    effects = lesson.app.outside.effects()
    assert Counter(effect.split()[0] for effect in effects) == {"start": 60, "end": 60}
    assert most_at_once(effects) <= 4


def test_no_limit_needs_no_lock(lesson, db):
    """What locks the limit of one queue keeps nobody else waiting."""
    several(lesson, db, 2, queue="free")
    limit(lesson, db, 1, queue="limited")
    with db.engine.connect() as holder, ThreadPoolExecutor(1) as thread:
        lesson.queries.Querier(holder).lock_limit(queue="limited")
        lesson.queries.Querier(holder).lock_limit(queue="free")
        other = thread.submit(claim_as_worker, lesson, db, 8, "free")
        assert len(other.result(timeout=within(20))) == 2


def test_a_limit_can_be_lowered_while_tasks_run(lesson, db):
    ids = several(lesson, db, 10)
    limit(lesson, db, 5)
    assert claim_as_worker(lesson, db, 8) == ids[:5]
    limit(lesson, db, 2)
    assert count(db, "running") == 5, "running tasks are left alone"
    assert claim_as_worker(lesson, db, 8) == []
    end(db, ids[:3])
    assert claim_as_worker(lesson, db, 8) == [], "two are running"
    end(db, ids[3:4])
    assert claim_as_worker(lesson, db, 8) == ids[5:6]


def test_a_limit_of_0_pauses_a_queue_until_it_is_raised(lesson, db):
    (id,) = several(lesson, db, 1)
    limit(lesson, db, 0)
    with working(lesson.worker.Worker(db, "w")):
        assert claim_as_worker(lesson, db, 8) == []
        assert task_row(db, id).status == "queued"
        limit(lesson, db, 1)
        wait_for_status(db, id, "succeeded")


def test_queues_are_separate(lesson, db):
    ours, theirs = several(lesson, db, 3, queue="a"), several(lesson, db, 3, queue="b")
    limit(lesson, db, 1, queue="a")
    assert claim_as_worker(lesson, db, 8, queue="a") == ours[:1]
    assert claim_as_worker(lesson, db, 8, queue="b") == theirs, "what runs in a does not count"
    assert claim_as_worker(lesson, db, 8, queue="a") == []
    assert claim_as_worker(lesson, db, 8) == []


def test_a_worker_that_is_stopped_while_it_waits_leaves_nothing_running(lesson, db):
    ids = several(lesson, db, 3)
    limit(lesson, db, 3)
    worker = lesson.worker.Worker(db, "w")
    with db.engine.connect() as holder, ThreadPoolExecutor(1) as thread:
        lesson.queries.Querier(holder).lock_limit(queue="default")
        # Not `working`: that would stop it a second time, which means "do not wait for the tasks".
        run = thread.submit(worker.run)
        try:
            wait_until(lambda: waiting_for_a_lock(db), "the dispatcher waits for the limit")
        finally:
            worker.stop()
            holder.rollback()
        run.result(timeout=within(20))
    assert count(db, "running") == 0
    assert {task_row(db, id).status for id in ids} <= {"queued", "succeeded"}


# At the door


@one_by_one("bad", [-1, 2**31, 1.5, True, "3", None])
def test_a_bad_limit_is_refused(lesson, db, bad):
    with db.autocommit.connect() as connection:
        with pytest.raises(lesson.inputs.BadInput, match="a limit is a whole number"):
            lesson.claim.limit_queue(connection, "default", bad)
        assert lesson.queries.Querier(connection).lock_limit(queue="default") is None


def test_a_task_goes_into_the_queue_that_is_named(lesson, db):
    ids = [*several(lesson, db, 2, queue="mail"), *several(lesson, db, 1)]
    queues = [*zip(ids, ["mail", "mail", "default"], strict=True)]
    assert execute(db, "select id, queue from tasks order by id") == queues


ODD_NAMES = ["", " ", "a b", "a\n", "kö", "a\0", "'; drop", "x" * 101]


@one_by_one("bad", ODD_NAMES)
def test_no_task_goes_into_a_queue_with_an_odd_name(lesson, db, bad):
    with pytest.raises(lesson.inputs.BadInput, match="a queue is named"):
        several(lesson, db, 1, queue=bad)
    assert count(db, "queued") == 0


@one_by_one("bad", ODD_NAMES)
def test_a_bad_queue_name_is_refused(lesson, db, bad):
    with pytest.raises(lesson.inputs.BadInput, match="a queue is named"):
        limit(lesson, db, 1, queue=bad)
    with pytest.raises(lesson.inputs.BadInput, match="a queue is named"):
        lesson.worker.Worker(db, "w", queue=bad)


@one_by_one("bad", [0, -1, 1001, 10**9, 2.5, True])
def test_a_bad_number_of_slots_is_refused(lesson, db, bad):
    with pytest.raises(lesson.inputs.BadInput, match="slots is a whole number"):
        lesson.worker.Worker(db, "w", slots=bad)


# The verbs


def test_the_verb_limit(lesson, db):
    done = run_program(lesson, "limit", "2", "--queue", "mail")
    assert (done.returncode, done.stderr) == (0, "")
    several(lesson, db, 3, queue="mail")
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


@one_by_one(
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


def test_a_look_for_work_locks_the_tables_in_the_order_of_a_limited_claim(lesson, db):
    """It waits for the limits, and holds nothing that somebody who has locked them may want."""
    with ThreadPoolExecutor(1) as thread, db.connect() as holder:
        holder.execute("lock table queue_limits")
        with db.autocommit.connect() as connection:
            queue = lesson.queries.Querier(connection)
            look = submitted(
                db, thread, lambda: called(queue.look_for_work, queue="default", worker_id=0)
            )
            assert not look.done()
            holder.execute("lock table tasks nowait")
            holder.rollback()
            assert look.result(timeout=within(20)) is False
