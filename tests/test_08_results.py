"""Lesson 08: a client waits for a task's end, and is told of it."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from shared.processes import wait_until, within, working
from shared.testing import task_row
from tests.helpers import (
    by_hand,
    claim_one,
    enqueue,
    execute,
    fail,
    finish,
    in_threads,
)

SOON = timedelta(seconds=0.2)


def result(lesson, db, id, timeout=None):
    if timeout is None:
        timeout = timedelta(seconds=within(20))
    return lesson.listen.wait_for_result(db, id, timeout)


def test_a_client_gets_what_the_task_returns(lesson, db):
    lesson.listen.LOOK_SECONDS = 600
    id = enqueue(lesson, db, "divide", [6, 3])
    got = []
    client = threading.Thread(target=lambda: got.append(result(lesson, db, id)))
    client.start()
    wait_until(lambda: task_row(db, id).watched, "somebody waits")
    with working(lesson.worker.Worker(db, "w")):
        client.join(timeout=within(10))
    assert got == [2]
    assert result(lesson, db, id) == 2, "it has ended already"


def test_an_end_that_is_no_success_is_an_error(lesson, db):
    failed, cancelled = enqueue(lesson, db), enqueue(lesson, db)
    fail(lesson, db, failed)
    by_hand(lesson, db, "cancel", cancelled)
    with pytest.raises(lesson.listen.TaskError, match=f"task {failed} failed: E: no"):
        result(lesson, db, failed)
    with pytest.raises(lesson.listen.TaskError, match=f"task {cancelled} cancelled: by hand"):
        result(lesson, db, cancelled)


def test_a_client_gives_up_in_time(lesson, db):
    id = enqueue(lesson, db)
    with pytest.raises(TimeoutError, match=f"task {id} is still queued"):
        result(lesson, db, id, SOON)


def test_a_client_gives_up_in_time_even_if_somebody_holds_the_row(lesson, db):
    id = enqueue(lesson, db)
    with ThreadPoolExecutor(1) as thread, db.connect() as holder:
        holder.execute("select from tasks where id = %s for update", (id,))
        client = thread.submit(result, lesson, db, id, SOON)
        with pytest.raises(TimeoutError, match="is still queued"):
            client.result(timeout=within(5))


def test_what_is_no_task(lesson, db):
    for id in (1, 0, -1, 2**63, "1", None, True):
        with pytest.raises(lesson.inputs.BadInput):
            result(lesson, db, id)
    id = enqueue(lesson, db)
    for timeout in (5, None, timedelta(seconds=-1)):
        with pytest.raises(lesson.inputs.BadInput):
            lesson.listen.wait_for_result(db, id, timeout)


def test_a_task_that_is_deleted_meanwhile(lesson, db):
    lesson.listen.LOOK_SECONDS = 0.05
    id = enqueue(lesson, db)

    def delete():
        wait_until(lambda: task_row(db, id).watched, "somebody waits")
        execute(db, "delete from tasks where id = %s", id)

    def wait():
        with pytest.raises(lesson.inputs.BadInput, match="there is no task"):
            result(lesson, db, id)

    in_threads(wait, delete)


def test_an_end_without_a_hint_is_found(lesson, db):
    lesson.listen.LOOK_SECONDS = 0.05
    id = enqueue(lesson, db)
    execute(db, "alter table tasks disable trigger tell_watchers")

    def end():
        wait_until(lambda: task_row(db, id).watched, "somebody waits")
        finish(lesson, db, claim_one(lesson, db, id), "7")

    got = []
    in_threads(end, lambda: got.append(result(lesson, db, id)))
    assert got == [7]


def test_an_end_and_a_client_at_the_same_moment(lesson, db):
    """Whichever comes first, and whichever waits for the other: nobody sleeps through it."""
    lesson.listen.LOOK_SECONDS = 600
    for _ in range(20):
        task = claim_one(lesson, db, enqueue(lesson, db))
        got = []
        in_threads(
            lambda id=task.id, got=got: got.append(result(lesson, db, id)),
            lambda task=task: finish(lesson, db, task, "7"),
        )
        assert got == [7]


def test_an_end_that_holds_the_row_when_the_client_comes(lesson, db):
    """The client passes over it, has no mark, and so looks again soon."""
    lesson.listen.LOOK_SECONDS = 600
    task = claim_one(lesson, db, enqueue(lesson, db))
    with db.engine.connect() as ending:
        lesson.queries.Querier(ending).succeed_task(id=task.id, attempt=1, output="7")
        got = []
        client = threading.Thread(target=lambda: got.append(result(lesson, db, task.id)))
        client.start()
        looks = (
            "select 1 from pg_stat_activity where query like '%%get_task%%' and state = 'idle'"
            " and application_name = current_setting('application_name')"
        )
        wait_until(lambda: execute(db, looks), "the client has looked")
        ending.commit()
    client.join(timeout=within(10))
    assert got == [7]


def test_only_the_end_of_what_is_waited_for_is_told(lesson, db):
    with lesson.listen.listening(db) as listener:
        watched, other = enqueue(lesson, db), enqueue(lesson, db)
        with pytest.raises(TimeoutError):
            result(lesson, db, watched, timedelta(0))
        for id in (watched, other):
            finish(lesson, db, claim_one(lesson, db, id))
        execute(db, "select pg_notify(current_schema(), 'the last one')")
        heard = []
        while "the last one" not in heard:
            heard += lesson.listen.hear(listener, 1)
    assert [hint for hint in heard if hint != "default"] == [f"end of {watched}", "the last one"]


def test_a_watched_task_goes_its_way(lesson, db):
    """It is claimed, retried and replayed as any other, and each end is told."""
    id = enqueue(lesson, db)
    with pytest.raises(TimeoutError):
        result(lesson, db, id, timedelta(0))
    fail(lesson, db, id)
    by_hand(lesson, db, "retry", id)
    with lesson.listen.listening(db) as listener:
        finish(lesson, db, claim_one(lesson, db, id), "1")
        assert lesson.listen.hear(listener, within(5)) == [f"end of {id}"]
    assert result(lesson, db, id) == 1


def test_a_client_waits_on_two_connections_and_leaves_none(lesson, db):
    id = enqueue(lesson, db)
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        result(lesson, db, id, SOON)
    assert time.monotonic() - start >= SOON.total_seconds()
    assert db.autocommit.pool.checkedout() == 0
    assert (
        execute(
            db,
            "select 1 from pg_stat_activity where query like 'listen%%'"
            " and application_name = current_setting('application_name')",
        )
        == []
    )
