"""Lesson 06, statement by statement: entries that somebody else completes, without a worker."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from shared.testing import task_row
from tests.helpers import (
    claim_one,
    claimed,
    drop_workers,
    execute,
    finish,
    log_of,
    new_task,
    opened,
    queries,
    spawn,
    submitted,
    suspend,
    take_back,
)

COMPLETE = "select complete_entry(%s, %s, %s, null)"


def waiting(lesson, db, awaits):
    """A task with two children that waits for the entries at these positions, and its children."""
    id = new_task(lesson, db)
    children = [new_task(lesson, db) for _ in range(2)]
    for position, child in enumerate(children, 1):
        execute(
            db,
            "update tasks set queue = 'nobodys', parent_id = %s, parent_position = %s"
            " where id = %s",
            id,
            position,
            child,
        )
        execute(
            db,
            "insert into event_log (task_id, position, kind, name, input, child_id, attempt)"
            " values (%s, %s, 'child', 'nothing', '0', %s, 1)",
            id,
            position,
            child,
        )
    execute(
        db,
        "update tasks set status = 'waiting', attempt = 1, awaits = %s, wake_after = %s"
        " where id = %s",
        awaits,
        len(awaits),
        id,
    )
    return id, children


def state(db, id):
    row = task_row(db, id)
    return row.status, row.completions, row.wake_after


# The function in the database


def test_the_last_entry_that_a_task_waits_for_wakes_it(lesson, db):
    id, _ = waiting(lesson, db, [1, 2])
    assert execute(db, COMPLETE, id, 2, '"pen"') == [(True,)]
    assert state(db, id) == ("waiting", 1, 1)
    assert execute(db, COMPLETE, id, 1, '"book"') == [(True,)]
    assert state(db, id) == ("queued", 2, 0)
    log = [(entry.output, entry.completion) for entry in log_of(db, id)]
    assert log == [("book", 2), ("pen", 1)]


def test_an_entry_that_nobody_waits_for_wakes_nobody(lesson, db):
    id, _ = waiting(lesson, db, [2])
    assert execute(db, COMPLETE, id, 1, '"book"') == [(True,)]
    assert state(db, id) == ("waiting", 1, 1)


def test_the_first_answer_counts(lesson, db):
    id, _ = waiting(lesson, db, [1, 2])
    execute(db, COMPLETE, id, 1, '"book"')
    assert execute(db, COMPLETE, id, 1, '"another"') == [(False,)]
    assert execute(db, COMPLETE, id + 100, 1, '"nobody"') == [(False,)]
    assert state(db, id) == ("waiting", 1, 1)
    assert log_of(db, id)[0].output == "book"


def test_a_claim_and_the_log_tell_what_is_complete(lesson, db):
    id, _ = waiting(lesson, db, [2])
    execute(db, COMPLETE, id, 2, '"pen"')
    assert claim_one(lesson, db, id).completions == 1
    with queries(lesson, db) as queue:
        assert [entry.completion for entry in queue.load_log(task_id=id)] == [None, 1]


# The trigger


@pytest.mark.parametrize(
    ("end", "answer"),
    [
        ("update tasks set status = 'succeeded', output = '7' where id = %s", 7),
        ("update tasks set status = 'failed', error = 'E: no' where id = %s", "E"),
        ("delete from tasks where id = %s", "Deleted"),
    ],
)
def test_the_end_of_a_child_completes_its_entry(lesson, db, end, answer):
    id, (_, child) = waiting(lesson, db, [2])
    execute(db, end, child)
    entry = log_of(db, id)[1]
    assert (entry.output or entry.error["type"], entry.completion) == (answer, 1)
    assert state(db, id) == ("queued", 1, 0)


def test_an_end_is_told_in_the_transaction_that_ends_the_child(lesson, db):
    id, (child, _) = waiting(lesson, db, [1])
    with db.connect() as connection:
        connection.execute(
            "update tasks set status = 'failed', error = 'E' where id = %s", (child,)
        )
        query = "select status from tasks where id = %s"
        assert connection.execute(query, (id,)).fetchone() == ("queued",)
        connection.rollback()
    assert state(db, id) == ("waiting", 0, 1)


# The statements of a run


def test_a_child_and_its_entry_come_to_be_together(lesson, db):
    id = new_task(lesson, db)
    task = claim_one(lesson, db, id)
    with queries(lesson, db) as queue:
        child = spawn(queue, task)
        (entry,), row = log_of(db, id), task_row(db, child)
        assert (entry.kind, entry.position, entry.child_id) == ("child", 1, child)
        assert (row.status, row.parent_id, row.parent_position) == ("queued", id, 1)
        execute(db, "update tasks set attempt = attempt + 1 where id = %s", id)
        assert spawn(queue, task, position=2) is None, "the fence"
    assert len(log_of(db, id)) == 1


def test_a_task_suspends_if_it_knows_of_all_that_is_complete(lesson, db):
    id = new_task(lesson, db)
    task = claim_one(lesson, db, id)
    with queries(lesson, db) as queue:
        child = spawn(queue, task)
        assert suspend(queue, id) == 1
        row = task_row(db, id)
        assert (row.status, row.awaits, row.wake_after, row.uncounted) == ("waiting", [1], 1, 1)
        assert suspend(queue, id) == 0, "it does not run any more"
        assert finish(lesson, db, claim_one(lesson, db, child)) == 1
        assert claim_one(lesson, db, id).completions == 1
        execute(db, "update tasks set attempt = 1 where id = %s", id)
        assert suspend(queue, id) == 0, "it does not know of the end"
        (news,) = queue.load_completions(task_id=id, after_completion=0)
        assert (news.position, news.completion) == (1, 1)
        assert list(queue.load_completions(task_id=id, after_completion=1)) == []


def test_what_waits_for_the_clock_is_not_woken_by_an_entry(lesson, db):
    id, _ = waiting(lesson, db, [1, 2])
    execute(db, "update tasks set status = 'queued', wake_after = 1 where id = %s", id)
    task = claim_one(lesson, db, id)
    with queries(lesson, db) as queue:
        hour = timedelta(hours=1)
        assert queue.retry_task(id=id, attempt=task.attempt, delay=hour, error="E: no") == 1
    execute(db, COMPLETE, id, 1, '"book"')
    assert task_row(db, id).status == "waiting"


# The log of a run


def test_the_log_opens_an_entry_once(lesson, db):
    id = new_task(lesson, db)
    for _ in range(2):
        with claimed(lesson, db, id) as (fence, _):
            assert opened(lesson, lesson.event_log.EventLog(fence), 2) == [1, 2]
    query = "select count(*) from tasks where parent_id = %s"
    assert execute(db, query, id) == [(2,)]


def test_the_log_waits_until_enough_is_complete(lesson, db):
    id = new_task(lesson, db)
    with claimed(lesson, db, id) as (fence, _):
        log = lesson.event_log.EventLog(fence)
        opened(lesson, log, 2)
        with pytest.raises(lesson.event_log.Suspended):
            log.wait([1, 2], enough=2)
        with pytest.raises(lesson.event_log.Suspended):
            log.check()  # whatever the function has made of it
    assert state(db, id) == ("waiting", 0, 2)
    execute(db, COMPLETE, id, 2, '"pen"')
    execute(db, COMPLETE, id, 1, '"book"')
    with claimed(lesson, db, id) as (fence, _):
        log = lesson.event_log.EventLog(fence)
        opened(lesson, log, 2)
        assert [entry.output for entry in log.wait([1, 2], enough=2)] == ["pen", "book"]


def test_a_wait_that_is_refused_asks_for_the_news(lesson, db):
    id = new_task(lesson, db)
    with claimed(lesson, db, id) as (fence, _):
        log = lesson.event_log.EventLog(fence)
        opened(lesson, log, 1)
        execute(db, COMPLETE, id, 1, '"book"')
        assert [entry.output for entry in log.wait([1], enough=1)] == ["book"]
    assert task_row(db, id).status == "running"


def test_a_wait_of_a_run_that_has_lost_its_task_ends_it(lesson, db):
    id = new_task(lesson, db)
    with claimed(lesson, db, id) as (fence, _):
        log = lesson.event_log.EventLog(fence)
        opened(lesson, log, 1)
        execute(db, "update tasks set attempt = attempt + 1 where id = %s", id)
        with pytest.raises(lesson.fence.LostTask):
            log.wait([1], enough=1)
    assert task_row(db, id).status == "running"


# A worker is gone


def test_to_take_back_waits_for_no_parent(lesson, db):
    """A child that fails is told to its parent, whose row somebody holds."""
    parent, plain = new_task(lesson, db), new_task(lesson, db)
    with queries(lesson, db) as queue:
        child = spawn(queue, claim_one(lesson, db, parent))
        assert suspend(queue, parent) == 1
    execute(db, "update tasks set max_attempts = 1 where id = %s", child)
    claim_one(lesson, db, plain)
    claim_one(lesson, db, child)
    with ThreadPoolExecutor(1) as thread, db.connect() as holder:
        holder.execute("select from tasks where id = %s for update", (parent,))
        drop_workers(db)
        taken = submitted(db, thread, take_back, lesson, db)
        assert taken.done(), "it waits for the parent"
        assert taken.result() == {plain: "queued"}
    assert take_back(lesson, db) == {child: "failed"}
    assert task_row(db, parent).status == "queued"
