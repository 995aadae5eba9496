"""Lesson 11: what has happened once is told to all who wait for it, now or later."""

from datetime import timedelta

import psycopg
import pytest

from shared.processes import wait_until, working
from shared.testing import task_row, wait_for_status
from tests.helpers import (
    attempt,
    by_hand,
    claim_one,
    do_chores,
    due_chores,
    enqueue,
    execute,
    hurry,
    log_of,
    new_task,
    program,
    queries,
    several,
)
from tests.test_09_sleep import HOUR, asleep, ring
from tests.test_11_signals import due_now, ends, open_wait

MINUTE = timedelta(minutes=1)


def emit(lesson, db, name="e", payload=None):
    with db.engine.begin() as connection:
        return lesson.events.emit(connection, name, payload)


def tell(lesson, db, at_most=1000):
    """What the upkeep does: how many entries it has found."""
    with queries(lesson, db) as queue:
        found = len(list(queue.tell_events(at_most=at_most, skip=0)))
        queue.mark_told()
        return found


def told(db):
    return execute(db, "select name, payload, told from events order by name")


def waiting(ctx, **options):
    return ctx.wait_event("e", **options)


def test_all_who_wait_are_told_and_all_who_come_later(lesson, db):
    hurry(lesson, upkeep=600)
    program(lesson, lambda ctx, _: ctx.wait_event("e"))
    early = several(lesson, db, 5, "program")
    with working(lesson.worker.Worker(db, "a")), working(lesson.worker.Worker(db, "b")):
        for id in early:
            wait_for_status(db, id, "waiting")
        assert emit(lesson, db, payload={"x": 1})
        late = several(lesson, db, 5, "program")
        for id in early + late:
            assert wait_for_status(db, id, "succeeded").output == {"x": 1}
        wait_until(lambda: told(db) == [("e", {"x": 1}, True)], "nobody waits for it any more")


def test_an_event_by_hand_is_heard_at_once(lesson, db):
    hurry(lesson, upkeep=600)
    program(lesson, lambda ctx, _: ctx.wait_event("e"))
    id = enqueue(lesson, db, "program")
    with working(lesson.worker.Worker(db, "w")):
        wait_for_status(db, id, "waiting")
        execute(db, "insert into events (name) values ('e')")
        wait_for_status(db, id, "succeeded")


def test_the_first_payload_stays(lesson, db):
    assert emit(lesson, db, payload=1)
    assert not emit(lesson, db, payload=1)
    assert not emit(lesson, db, payload=2)
    assert told(db) == [("e", 1, False)]
    with pytest.raises(psycopg.errors.UniqueViolation):
        execute(db, "insert into events (name, payload) values ('e', '3')")
    id = new_task(lesson, db)
    for _ in range(2):
        with attempt(lesson, db, id) as (ctx, _):
            assert waiting(ctx) == 1


def test_what_is_emitted_in_a_transaction_that_fails_has_not_happened(lesson, db):
    id = new_task(lesson, db)
    asleep(lesson, db, id, waiting)
    with db.engine.connect() as connection:
        assert lesson.events.emit(connection, "e", 1)
        connection.rollback()
    assert tell(lesson, db) == 0
    assert emit(lesson, db, payload=2)


@pytest.mark.parametrize("name", ["", "é", "x" * 201, "a\n", None])
def test_a_name_that_is_none_is_refused(lesson, db, name):
    with pytest.raises(lesson.inputs.BadInput, match="is named with 1 to 200"):
        emit(lesson, db, name)
    if name:
        with pytest.raises(psycopg.errors.CheckViolation):
            execute(db, "insert into events (name) values (%s)", name)


def test_a_run_that_dies_before_it_looks_is_followed_by_one_that_does(lesson, db):
    """The event is told by nobody any more: it was marked before the entry was committed."""
    id = new_task(lesson, db)
    emit(lesson, db, payload=1)
    tell(lesson, db)
    task = claim_one(lesson, db, id)
    with queries(lesson, db) as queue:
        assert open_wait(queue, task, kind="event") == 1
    execute(db, "update event_log set name = 'e'")
    assert tell(lesson, db) == 0
    with attempt(lesson, db, id) as (ctx, _):
        assert waiting(ctx) == 1


def test_an_event_is_told_until_nobody_waits_for_it(lesson, db):
    """Somebody holds one of the tasks, and one look is for so many entries."""
    ids = several(lesson, db, 4, "nothing")
    for id in ids:
        asleep(lesson, db, id, waiting)
    other = new_task(lesson, db)
    asleep(lesson, db, other, lambda ctx: ctx.wait_event("another"))
    emit(lesson, db)
    with db.connect() as holder:
        holder.execute("select from tasks where id = %s for update", (ids[1],))
        assert tell(lesson, db, at_most=2) == 2
        assert told(db) == [("e", None, False)]
        assert tell(lesson, db) == 1
        assert told(db) == [("e", None, False)]
    assert tell(lesson, db) == 1
    assert told(db) == [("e", None, True)]
    assert {task_row(db, id).status for id in ids} == {"queued"}
    assert task_row(db, other).status == "waiting"


def test_a_task_that_has_ended_keeps_no_event_from_being_told(lesson, db):
    id = new_task(lesson, db)
    asleep(lesson, db, id, waiting)
    by_hand(lesson, db, "cancel", id)
    emit(lesson, db, payload=1)
    tell(lesson, db)
    assert told(db) == [("e", 1, True)]
    assert task_row(db, id).status == "cancelled"
    by_hand(lesson, db, "retry", id)
    with attempt(lesson, db, id) as (ctx, _):
        assert waiting(ctx) == 1


def test_the_upkeep_is_told_of_events_that_somebody_may_wait_for(lesson, db):
    emit(lesson, db)
    with queries(lesson, db) as queue:
        assert due_chores(queue) == ["tell"]
        do_chores(lesson, queue)
        assert due_chores(queue) == []


def test_an_event_that_does_not_come_in_time(lesson, db):
    id = new_task(lesson, db)

    def twice(ctx):
        with pytest.raises(lesson.errors.WaitTimeout, match=r"e: not within 3600\.0 s"):
            waiting(ctx, timeout=HOUR)
        return waiting(ctx)

    asleep(lesson, db, id, lambda ctx: waiting(ctx, timeout=HOUR))
    due_now(db)
    assert ring(lesson, db) == 1
    emit(lesson, db, payload=1)
    assert tell(lesson, db) == 0
    for _ in range(2):
        with attempt(lesson, db, id) as (ctx, _):
            assert twice(ctx) == 1


def test_a_retry_of_what_has_timed_out_finds_what_has_happened_since(lesson, db):
    id = new_task(lesson, db)
    asleep(lesson, db, id, lambda ctx: waiting(ctx, timeout=HOUR))
    due_now(db)
    ring(lesson, db)
    emit(lesson, db, payload=1)
    tell(lesson, db)
    ends(db, id)
    by_hand(lesson, db, "retry", id)
    with attempt(lesson, db, id) as (ctx, _):
        assert waiting(ctx, timeout=HOUR) == 1


def test_a_replay_and_a_fork_wait_for_the_same_event(lesson, db):
    id = new_task(lesson, db)
    asleep(lesson, db, id, waiting)
    with db.engine.begin() as connection:
        fork = lesson.control.fork(connection, id, 1)
    emit(lesson, db, payload=1)
    assert tell(lesson, db) == 2
    for each in (id, fork):
        with attempt(lesson, db, each) as (ctx, _):
            assert waiting(ctx) == 1
        ends(db, each)
    by_hand(lesson, db, "replay", id)
    with attempt(lesson, db, id) as (ctx, _):
        assert waiting(ctx) == 1
    assert [entry.completion for entry in log_of(db, id)] == [1]
