"""Lesson 11: a task waits for what is sent to it; that is never lost, and never read twice."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import psycopg
import pytest
import sqlalchemy as sa

from shared.processes import wait_until, within, working
from shared.testing import task_row, wait_for_status, waiting_for_a_lock
from tests.helpers import (
    ENDED,
    attempt,
    by_hand,
    claim_one,
    define,
    enqueue,
    execute,
    hurry,
    log_of,
    name_of,
    new_task,
    one_by_one,
    program,
    queries,
    rests,
    submitted,
)
from tests.test_09_sleep import HOUR, asleep, ring

SOON = timedelta(seconds=0.05)
INSERT = "insert into messages (task_id, name, payload) values (%s, %s, %s)"


def send(lesson, db, id, name="a", payload=None, **options):
    with db.engine.begin() as connection:
        lesson.signals.send(connection, id, name, payload, **options)


def send_error(lesson, db, id, name="a", error="no", **options):
    with db.engine.begin() as connection:
        lesson.signals.send_error(connection, id, name, error, **options)


def put_off(lesson, db, id, name="a"):
    with db.engine.begin() as connection:
        lesson.signals.put_off(connection, id, name)


def due_now(db):
    """Move the database's clock: everything that the clock can complete is due."""
    execute(
        db,
        "update event_log set due_at = now(), recorded_at = recorded_at - (due_at - now())"
        " where completion is null and due_at is not null",
    )


def messages(db, id):
    """What was sent to the task, and at which position it was read."""
    return execute(db, "select payload, position from messages where task_id = %s order by id", id)


def open_beside_unread(db):
    """I21: an open signal, and a message of its name that nobody has read. There are never both."""
    return execute(
        db,
        "select messages.task_id, messages.name from messages join event_log"
        " on event_log.task_id = messages.task_id and event_log.name = messages.name"
        " where kind = 'signal' and completion is null and messages.position is null",
    )


def receiving(ctx, **options):
    return ctx.receive("a", **options)


# Who sends and who waits


def test_a_message_that_comes_before_and_one_that_comes_after(lesson, db):
    program(lesson, lambda ctx, _: ctx.receive("a"))
    before, after = enqueue(lesson, db, "program"), enqueue(lesson, db, "program")
    send(lesson, db, before, payload=[1])
    with working(lesson.worker.Worker(db, "w", slots=1)):
        assert wait_for_status(db, before, "succeeded").output == [1]
        wait_for_status(db, after, "waiting")
        send(lesson, db, after, "b", "of another name")
        assert task_row(db, after).status == "waiting"
        execute(db, INSERT, after, "a", '{"by": "psql"}')
        assert wait_for_status(db, after, "succeeded").output == {"by": "psql"}
    assert messages(db, after) == [("of another name", None), ({"by": "psql"}, 1)]


def test_who_waits_has_no_slot_and_costs_four_statements(lesson, db):
    """It opens the entry and suspends; then it is claimed, and loads its log."""
    program(lesson, lambda ctx, _: ctx.receive("a"))
    id = enqueue(lesson, db, "program")
    noted = []

    def note(_connection, _cursor, statement, *_):
        noted.append(name_of(statement))

    with working(lesson.worker.Worker(db, "w", slots=1)):
        sa.event.listen(db.autocommit, "before_cursor_execute", note)
        wait_for_status(db, id, "waiting")
        wait_for_status(db, enqueue(lesson, db), "succeeded")
        send(lesson, db, id)
        wait_for_status(db, id, "succeeded")
        sa.event.remove(db.autocommit, "before_cursor_execute", note)
    of_the_run = ("open_wait", "suspend_task", "claim_tasks", "load_log", "succeed_task")
    counted = [name for name in noted if name in of_the_run[:2] + of_the_run[3:]]
    assert counted == ["open_wait", "suspend_task", "succeed_task", "load_log", "succeed_task"]
    assert task_row(db, id).attempt == 2


def test_from_send_to_the_end_nobody_polls(lesson, db):
    hurry(lesson, seldom=600, upkeep=600)
    program(lesson, lambda ctx, _: ctx.receive("a"))
    worker = lesson.worker.Worker(db, "w")
    with working(worker):
        for _ in range(2):
            id = enqueue(lesson, db, "program")
            wait_for_status(db, id, "waiting")
            rests(db, worker)
            send(lesson, db, id)
            wait_for_status(db, id, "succeeded")


def test_messages_of_one_name_are_read_in_their_order_each_once(lesson, db):
    id = new_task(lesson, db)
    for n in (1, 2):
        send(lesson, db, id, payload=n)
    asleep(lesson, db, id, lambda ctx: [receiving(ctx) for _ in range(3)])
    send(lesson, db, id, payload=3)
    for _ in range(2):
        with attempt(lesson, db, id) as (ctx, _):
            assert [receiving(ctx) for _ in range(3)] == [1, 2, 3]
    assert messages(db, id) == [(1, 1), (2, 2), (3, 3)]
    assert task_row(db, id).completions == 3


def test_a_signal_takes_a_message_even_if_the_function_never_asks_for_it(lesson, db):
    id = new_task(lesson, db)

    def second(ctx):
        ctx.signal("a")
        return receiving(ctx)

    asleep(lesson, db, id, second)
    send(lesson, db, id, payload="first")
    assert task_row(db, id).status == "waiting"
    send(lesson, db, id, payload="second")
    with attempt(lesson, db, id) as (ctx, _):
        assert second(ctx) == "second"


def test_two_signals_that_are_awaited_in_the_other_order(lesson, db):
    id = new_task(lesson, db)

    def crosswise(ctx):
        a, b = ctx.signal("a"), ctx.signal("b")
        return [ctx.result(b), ctx.result(a)]

    asleep(lesson, db, id, crosswise)
    send(lesson, db, id, "a", 1)
    assert task_row(db, id).status == "waiting", "it waits for b first"
    send(lesson, db, id, "b", 2)
    with attempt(lesson, db, id) as (ctx, _):
        assert crosswise(ctx) == [2, 1]


@pytest.mark.parametrize("busy", ["in a step", "asleep"])
def test_a_message_that_comes_while_the_task_is_busy_with_something_else(lesson, db, busy):
    id = new_task(lesson, db)

    def sends(_key):
        send(lesson, db, id, payload="meanwhile")

    def work(ctx):
        answer = ctx.signal("a")
        if busy == "in a step":
            ctx.step(sends)
        else:
            ctx.sleep(HOUR)
        return ctx.result(answer)

    if busy == "asleep":
        asleep(lesson, db, id, work)
        send(lesson, db, id, payload="meanwhile")
        assert task_row(db, id).status == "waiting"
        due_now(db)
        ring(lesson, db)
    for _ in range(2):
        with attempt(lesson, db, id) as (ctx, _):
            assert work(ctx) == "meanwhile"


@pytest.mark.parametrize("first", ["the sender", "the run"])
def test_of_a_send_and_a_receive_at_the_same_moment_the_second_sees_the_first(lesson, db, first):
    id = new_task(lesson, db)
    task = claim_one(lesson, db, id)

    def insert(connection):
        connection.exec_driver_sql(INSERT, (id, "a", "5"))

    def ask(connection):
        assert open_wait(lesson.queries.Querier(connection), task) == 1

    one, two = (insert, ask) if first == "the sender" else (ask, insert)

    def second():
        with db.autocommit.connect() as connection:
            two(connection)

    with db.engine.connect() as connection, ThreadPoolExecutor(1) as thread:
        one(connection)
        future = submitted(db, thread, second)
        connection.commit()
        future.result(timeout=within(20))
    assert [(entry.output, entry.completion) for entry in log_of(db, id)] == [(5, 1)]
    assert open_beside_unread(db) == []


def test_two_senders_at_once_do_not_wait_for_each_other(lesson, db):
    """They would if each first locked the task's row weakly, as a foreign key does."""
    id = new_task(lesson, db)
    # Both have written their rows, and checked what is checked at once, before either goes on.
    execute(
        db,
        "create function meet() returns trigger language plpgsql as $$ begin"
        " perform pg_advisory_xact_lock_shared(hashtextextended('meet', 0)); return null; end $$;"
        " create trigger b_meet after insert on messages for each row execute function meet()",
    )

    def insert(n):
        execute(db, INSERT, id, "a", str(n))

    with db.connect() as holder, ThreadPoolExecutor(2) as threads:
        holder.execute("select pg_advisory_xact_lock(hashtextextended('meet', 0))")
        futures = [threads.submit(insert, n) for n in range(2)]
        wait_until(lambda: waiting_for_a_lock(db) == 2, "both have come so far")
        holder.commit()
        for future in futures:
            future.result(timeout=within(20))
    assert len(messages(db, id)) == 2


def test_what_is_sent_in_a_transaction_that_fails_was_never_sent(lesson, db):
    id = new_task(lesson, db)
    asleep(lesson, db, id, receiving)
    with db.engine.connect() as connection:
        lesson.signals.send(connection, id, "a", 1)
        connection.rollback()
    assert messages(db, id) == []
    assert task_row(db, id).status == "waiting"


# Keys


def test_a_second_message_with_a_key_is_the_first_one(lesson, db):
    id, other = new_task(lesson, db), new_task(lesson, db)
    for _ in range(2):
        send(lesson, db, id, payload={"x": 1, "y": 2}, key="k")
    send(lesson, db, id, payload={"y": 2, "x": 1}, key="k")
    send(lesson, db, other, payload="another task's", key="k")
    send(lesson, db, id, payload={"x": 1, "y": 2})
    assert messages(db, id) == [({"x": 1, "y": 2}, None)] * 2
    for change in ({"payload": 1}, {"payload": {"x": True, "y": 2}}, {"name": "b"}):
        with pytest.raises(lesson.inputs.BadInput, match="'k' was used for another message"):
            send(lesson, db, id, **{"payload": {"x": 1, "y": 2}, "key": "k", **change})
    with pytest.raises(lesson.inputs.BadInput, match="'k' was used for another message"):
        send_error(lesson, db, id, key="k")
    execute(db, "update tasks set status = 'cancelled' where id = %s", id)
    send(lesson, db, id, payload={"x": 1, "y": 2}, key="k")
    with pytest.raises(lesson.inputs.BadInput, match="has ended, or never was"):
        send(lesson, db, id, payload={"x": 1, "y": 2}, key="k2")


def test_two_senders_with_one_key_at_once(lesson, db):
    id = new_task(lesson, db)

    def second():
        send(lesson, db, id, payload=1, key="k")

    with db.engine.connect() as connection, ThreadPoolExecutor(1) as thread:
        lesson.signals.send(connection, id, "a", 1, key="k")
        future = submitted(db, thread, second)
        assert not future.done()
        connection.commit()
        future.result(timeout=within(20))
    assert messages(db, id) == [(1, None)]


# What is refused


@pytest.mark.parametrize("status", ["succeeded", "failed", "cancelled", "unknown"])
def test_what_nobody_would_read_is_refused_and_the_transaction_goes_on(lesson, db, status):
    id = new_task(lesson, db)
    if status == "unknown":
        execute(db, "delete from tasks")
    else:
        ends(db, id, status)
    with db.engine.begin() as connection:
        with pytest.raises(lesson.inputs.BadInput, match=f"task {id} has ended, or never was"):
            lesson.signals.send(connection, id, "a")
        connection.exec_driver_sql("select 1")
    with pytest.raises(psycopg.Error, match=f"task {id} has ended, or never was"):
        execute(db, INSERT, id, "a", "1")
    assert messages(db, id) == []


BAD = {
    "no id": ({"id": 0}, "a task's id"),
    "a name of nothing": ({"name": ""}, "is named with 1 to 200"),
    "a long name": ({"name": "x" * 201}, "is named with"),
    "a name with NUL": ({"name": "a\0"}, "is named with"),
    "a name of a line": ({"name": "a\n"}, "is named with"),
    "no text": ({"name": 7}, "is named with"),
    "NaN": ({"payload": float("nan")}, "not JSON"),
    "NUL": ({"payload": "\0"}, "NUL"),
    "a set": ({"payload": {1}}, "not JSON"),
    "a megabyte": ({"payload": "x" * 1_000_000}, "1,000,000 is the most"),
    "an empty key": ({"key": ""}, "an idempotency key is"),
    "a key that is no ASCII": ({"key": "é"}, "an idempotency key is"),
}


@one_by_one(("mistake", "why"), BAD.values())
def test_a_mistake_of_a_sender_is_refused(lesson, db, mistake, why):
    options = {"id": new_task(lesson, db), "name": "a", **mistake}
    with pytest.raises(lesson.inputs.BadInput, match=why):
        send(lesson, db, **options)
    assert execute(db, "select * from messages") == []


@pytest.mark.parametrize("error", ["", None, 7, ValueError("no")])
def test_an_error_is_a_text(lesson, db, error):
    with pytest.raises(lesson.inputs.BadInput, match="a text that is not empty"):
        send_error(lesson, db, new_task(lesson, db), error=error)


BY_HAND = {
    "a name of nothing": "(task_id, name) values (%s, '')",
    "a name that is no ASCII": "(task_id, name) values (%s, 'é')",
    "a name of a line": "(task_id, name) values (%s, E'a\n')",
    "an empty key": "(task_id, name, key) values (%s, 'a', '')",
    "an empty error": "(task_id, name, error) values (%s, 'a', '')",
    "a long error": "(task_id, name, error) values (%s, 'a', repeat('x', 10001))",
    "both": "(task_id, name, payload, error) values (%s, 'a', '1', 'no')",
    "no payload": "(task_id, name, payload) values (%s, 'a', null)",
}


@pytest.mark.parametrize("row", BY_HAND.values(), ids=BY_HAND.keys())
def test_a_row_by_hand_that_nobody_could_read_is_refused(lesson, db, row):
    id = new_task(lesson, db)
    asleep(lesson, db, id, receiving)
    with pytest.raises(psycopg.errors.IntegrityError):
        execute(db, f"insert into messages {row}", id)


@pytest.mark.parametrize("who", ["a sender", "a run"])
def test_an_old_snapshot_is_refused(lesson, db, who):
    id = new_task(lesson, db)
    task = claim_one(lesson, db, id)
    with db.engine.connect() as connection:
        connection = connection.execution_options(isolation_level="REPEATABLE READ")
        write = {
            "a sender": lambda: connection.exec_driver_sql(INSERT, (id, "a", "1")),
            "a run": lambda: open_wait(lesson.queries.Querier(connection), task),
        }[who]
        with pytest.raises(sa.exc.DBAPIError, match="READ COMMITTED"):
            write()
        connection.rollback()


SENDERS = {
    "no search_path": "set search_path to pg_catalog",
    "temporary tables of these names": "create temporary table tasks (id int); "
    "create temporary table messages (id int); create temporary table event_log (id int)",
    "a role that may only send": "create role {schema}_role; "
    "grant usage on schema {schema} to {schema}_role; "
    "grant insert on {schema}.messages to {schema}_role; set role {schema}_role",
}


@pytest.mark.parametrize("session", SENDERS.values(), ids=SENDERS.keys())
def test_whoever_may_insert_can_send(lesson, db, session):
    id = new_task(lesson, db)
    asleep(lesson, db, id, receiving)
    with db.connect() as connection:  # rolled back: a role is not of our tables
        connection.execute(session.format(schema=db.schema))
        insert = INSERT.replace("messages", f"{db.schema}.messages")
        connection.execute(insert, (id, "a", "7"))
        connection.execute(f"reset role; set search_path to {db.schema}, pg_temp")
        told = "select status, event_log.output from tasks join event_log on task_id = id"
        assert connection.execute(told).fetchall() == [("queued", 7)]
        connection.rollback()


def test_a_payload_that_python_cannot_read_fails_its_own_task_alone(lesson, db):
    program(lesson, lambda ctx, _: ctx.receive("a"))
    deep, long, well = (enqueue(lesson, db, "program") for _ in range(3))
    with working(lesson.worker.Worker(db, "w")):
        for id in (deep, long, well):
            wait_for_status(db, id, "waiting")
        execute(db, INSERT, long, "a", "1" * 5000)
        execute(db, INSERT, deep, "a", "[" * 3000 + "]" * 3000)
        execute(db, INSERT, well, "a", "1")
        assert wait_for_status(db, well, *ENDED).status == "succeeded"
        assert "cannot store this, or read it" in wait_for_status(db, long, *ENDED).error
        wait_for_status(db, deep, *ENDED)


# Nothing, and a failure, as an answer


def test_an_empty_payload(lesson, db):
    id = new_task(lesson, db)
    asleep(lesson, db, id, receiving)
    execute(db, "insert into messages (task_id, name) values (%s, 'a')", id)
    send(lesson, db, id)
    for _ in range(2):
        with attempt(lesson, db, id) as (ctx, _):
            assert [receiving(ctx), receiving(ctx)] == [None, None]


def test_a_failure_that_was_sent_is_an_error_in_every_run(lesson, db):
    id = new_task(lesson, db)
    send_error(lesson, db, id, error="card declined \0")
    for _ in range(2):
        with attempt(lesson, db, id) as (ctx, _):
            with pytest.raises(lesson.errors.SignalError, match=r"a: card declined \\x00") as why:
                receiving(ctx)
            assert why.value.type == "SignalError"
            ctx.step(lambda key: key)
    assert log_of(db, id)[0].settled


def test_a_failure_may_call_itself_anything_and_is_no_timeout(lesson, db):
    id = new_task(lesson, db)
    send_error(lesson, db, id, error="WaitTimeout: not within 5 s")
    with attempt(lesson, db, id) as (ctx, _), pytest.raises(lesson.errors.SignalError):
        receiving(ctx)


def test_a_failure_that_nobody_catches_fails_the_task_at_once(lesson, db):
    program(lesson, lambda ctx, _: ctx.receive("a"))
    id = enqueue(lesson, db, "program")
    execute(db, "insert into messages (task_id, name, error) values (%s, 'a', 'no')", id)
    with working(lesson.worker.Worker(db, "w")):
        row = wait_for_status(db, id, "failed")
    assert (row.error, row.attempt) == ("SignalError: a: no", 1)


# The clock


def test_a_timeout_is_an_answer_too_and_what_comes_later_is_for_the_next(lesson, db):
    id = new_task(lesson, db)

    def twice(ctx):
        with pytest.raises(lesson.errors.WaitTimeout, match=r"a: not within 3600.0 s"):
            receiving(ctx, timeout=HOUR)
        return receiving(ctx)

    asleep(lesson, db, id, lambda ctx: receiving(ctx, timeout=HOUR))
    assert ring(lesson, db) == 0
    due_now(db)
    assert ring(lesson, db) == 1
    send(lesson, db, id, payload="late")
    assert messages(db, id) == [("late", None)]
    for _ in range(2):
        with attempt(lesson, db, id) as (ctx, _):
            assert twice(ctx) == "late"
    assert messages(db, id) == [("late", 2)]


def test_a_message_in_time_leaves_the_clock_nothing_to_do(lesson, db):
    id = new_task(lesson, db)
    asleep(lesson, db, id, lambda ctx: receiving(ctx, timeout=HOUR))
    send(lesson, db, id, payload="in time")
    due_now(db)
    assert ring(lesson, db) == 0
    with attempt(lesson, db, id) as (ctx, _):
        assert receiving(ctx, timeout=HOUR) == "in time"


def test_a_signal_called_sleep_times_out_as_any_other(lesson, db):
    id = new_task(lesson, db)
    asleep(lesson, db, id, lambda ctx: ctx.receive("sleep", timeout=HOUR))
    due_now(db)
    ring(lesson, db)
    with attempt(lesson, db, id) as (ctx, _), pytest.raises(lesson.errors.WaitTimeout):
        ctx.receive("sleep", timeout=HOUR)


def test_the_clock_comes_in_time_though_the_upkeep_looks_hardly_ever(lesson, db):
    hurry(lesson, upkeep=600)
    program(lesson, lambda ctx, _: ctx.receive("a", timeout=SOON))
    with working(lesson.worker.Worker(db, "w")):
        row = wait_for_status(db, enqueue(lesson, db, "program"), "failed")
    assert row.error == "WaitTimeout: a: not within 0.05 s"


def test_a_wait_that_is_put_off_begins_again(lesson, db):
    id = new_task(lesson, db)
    asleep(lesson, db, id, lambda ctx: receiving(ctx, timeout=HOUR))
    execute(
        db,
        "update event_log set due_at = due_at - %s, recorded_at = recorded_at - %s",
        HOUR * 0.9,
        HOUR * 0.9,
    )
    put_off(lesson, db, id)
    (entry,) = log_of(db, id)
    ((left,),) = execute(db, "select due_at - clock_timestamp() from event_log")
    assert HOUR * 0.9 < left <= HOUR
    assert entry.due_at - entry.recorded_at <= HOUR
    due_now(db)
    put_off(lesson, db, id)
    assert ring(lesson, db) == 0, "even at the last moment"
    due_now(db)
    assert ring(lesson, db) == 1
    with pytest.raises(lesson.inputs.BadInput, match="no signal 'a' that is open"):
        put_off(lesson, db, id)


@pytest.mark.parametrize("what", ["no timeout", "another name", "an event", "ended", "unknown"])
def test_there_is_nothing_to_put_off(lesson, db, what):
    id = new_task(lesson, db)
    asleep(
        lesson,
        db,
        id,
        {
            "no timeout": lambda ctx: ctx.receive("a"),
            "another name": lambda ctx: ctx.receive("b", timeout=HOUR),
            "an event": lambda ctx: ctx.wait_event("a", timeout=HOUR),
        }.get(what, lambda ctx: ctx.receive("a", timeout=HOUR)),
    )
    if what == "ended":
        execute(db, "update tasks set status = 'cancelled'")
    before = log_of(db, id)
    with pytest.raises(lesson.inputs.BadInput, match="has no signal 'a' that is open"):
        put_off(lesson, db, id + (what == "unknown"))
    assert log_of(db, id) == before


def test_the_clock_does_not_complete_what_was_put_off_before_it_had_the_lock(lesson, db):
    id = new_task(lesson, db)
    asleep(lesson, db, id, lambda ctx: receiving(ctx, timeout=HOUR))
    due_now(db)
    with db.connect() as holder, ThreadPoolExecutor(1) as thread:
        # The clock has found the entry, and waits at the table of the tasks; nothing else does.
        execute(
            db,
            "create function slow(bigint) returns bigint language plpgsql as $$ begin"
            " perform pg_advisory_xact_lock_shared(hashtextextended('slow', 0));"
            " return $1; end $$",
        )
        holder.execute("select pg_advisory_xact_lock(hashtextextended('slow', 0))")
        text = lesson.queries.COMPLETE_DUE_ENTRIES.replace("\\:", ":")
        text = text.replace(":p1", "0").replace(":p2", "100")
        slow = text.replace("tasks.id = event_log.task_id", "tasks.id = slow(event_log.task_id)")
        assert slow != text

        def clock():
            with db.connect(autocommit=True) as connection:
                return connection.execute(slow.replace("%", "%%")).fetchall()

        future = submitted(db, thread, clock)
        assert not future.done()
        put_off(lesson, db, id)
        holder.rollback()
        assert future.result(timeout=within(20)) == []
    assert log_of(db, id)[0].completion is None


# Whichever is first


def test_what_came_first_is_the_same_in_every_run(lesson, db):
    double = define(lesson).double
    for first in ("child", "timer", "signal", "event"):
        id = new_task(lesson, db)

        def race(ctx, first=first):
            waits = {
                "child": ctx.spawn(double, 1),
                "timer": ctx.timer(HOUR),
                "signal": ctx.signal("a"),
                "event": ctx.event(f"e {first}"),
            }
            winner = ctx.first_of(*waits.values(), timeout=2 * HOUR)
            return next(kind for kind, wait in waits.items() if wait == winner)

        asleep(lesson, db, id, race)
        child = claim_one(lesson, db)

        def completes(kind, id=id, child=child, first=first):
            if kind == "child":
                with queries(lesson, db) as queue:
                    assert queue.succeed_task(id=child.id, attempt=1, output="2") == 1
            elif kind == "timer":
                execute(db, "update event_log set due_at = now() where name = 'sleep'")
                assert ring(lesson, db) == 1
            elif kind == "signal":
                send(lesson, db, id)
            else:
                emit_and_tell(lesson, db, f"e {first}")

        completes(first)
        assert task_row(db, id).status == "queued"
        for other in {"child", "timer", "signal", "event"} - {first}:
            completes(other)
        for _ in range(2):
            with attempt(lesson, db, id) as (ctx, _):
                assert race(ctx) == first
        execute(db, "update tasks set status = 'cancelled', error = null where id = %s", id)


def emit_and_tell(lesson, db, name, payload=None):
    with db.engine.begin() as connection:
        assert lesson.events.emit(connection, name, payload)
    with queries(lesson, db) as queue:
        list(queue.tell_events(at_most=1000, skip=0))


def test_first_of_has_an_end(lesson, db):
    id = new_task(lesson, db)

    def patient(ctx):
        return ctx.first_of(ctx.signal("a"), ctx.signal("b"), timeout=HOUR)

    asleep(lesson, db, id, patient)
    due_now(db)
    ring(lesson, db)
    send(lesson, db, id)
    with attempt(lesson, db, id) as (ctx, _), pytest.raises(lesson.errors.WaitTimeout):
        patient(ctx)


def test_a_failure_may_be_first(lesson, db):
    id = new_task(lesson, db)
    send_error(lesson, db, id, "b")
    with attempt(lesson, db, id) as (ctx, _):
        a, b = ctx.signal("a"), ctx.signal("b")
        assert ctx.first_of(a, b) == b
        with pytest.raises(lesson.errors.SignalError):
            ctx.result(b)


def test_gather_takes_signals_along(lesson, db):
    id = new_task(lesson, db)

    def all_of(ctx):
        return ctx.gather(ctx.signal("a"), ctx.signal("b"), ctx.spawn(define(lesson).double, 2))

    asleep(lesson, db, id, all_of)
    send(lesson, db, id, "b", "B")
    with queries(lesson, db) as queue:
        child = claim_one(lesson, db)
        queue.succeed_task(id=child.id, attempt=1, output="4")
    assert task_row(db, id).status == "waiting"
    send(lesson, db, id, "a", "A")
    with attempt(lesson, db, id) as (ctx, _):
        assert all_of(ctx) == ["A", "B", 4]


# Mistakes of the function


MISTAKES = {
    "a name of nothing": (lambda ctx: ctx.receive(""), "is named with 1 to 200"),
    "no name": (lambda ctx: ctx.signal(None), "is named with 1 to 200"),
    "an event's name": (lambda ctx: ctx.wait_event("é"), "is named with 1 to 200"),
    "a number": (lambda ctx: ctx.receive("a", timeout=5), "timeout is a timedelta"),
    "negative": (lambda ctx: ctx.wait_event("a", timeout=-HOUR), "timeout is a timedelta from 0"),
    "nothing": (lambda ctx: ctx.first_of(), "first_of"),
    "no wait": (lambda ctx: ctx.first_of("a"), "is no child to wait for"),
}


@one_by_one(("mistake", "why"), MISTAKES.values())
def test_a_mistake_is_refused_and_takes_no_position(lesson, db, mistake, why):
    id = new_task(lesson, db)
    with attempt(lesson, db, id) as (ctx, _):
        with pytest.raises(lesson.errors.FinalBadInput, match=why):
            mistake(ctx)
        assert log_of(db, id) == []


@pytest.mark.parametrize("wait", ["receive", "wait_event"])
def test_a_wait_in_a_step_is_refused(lesson, db, wait):
    id = new_task(lesson, db)
    with (
        attempt(lesson, db, id) as (ctx, _),
        pytest.raises(lesson.errors.StepError, match="InStep"),
    ):
        ctx.step(lambda _key: getattr(ctx, wait)("a"))


@pytest.mark.parametrize(
    "change",
    [
        lambda ctx: ctx.receive("b", timeout=HOUR),
        lambda ctx: ctx.receive("a", timeout=2 * HOUR),
        lambda ctx: ctx.receive("a"),
        lambda ctx: ctx.wait_event("a", timeout=HOUR),
    ],
)
def test_another_wait_than_the_recorded_one_is_told_with_the_line_that_asks(lesson, db, change):
    id = new_task(lesson, db)
    asleep(lesson, db, id, lambda ctx: receiving(ctx, timeout=HOUR))
    with attempt(lesson, db, id) as (ctx, _):
        with pytest.raises(lesson.nondeterminism.NonDeterminismError) as error:
            change(ctx)
        assert f'File "{__file__}"' in str(error.value)


# One statement, and the fence


def open_wait(queue, task, position=1, kind="signal", duration=None):
    return queue.open_wait(
        id=task.id,
        attempt=task.attempt,
        position=position,
        kind=kind,
        name="a",
        input="null",
        duration=duration,
    )


@pytest.mark.parametrize("kind", ["signal", "event"])
def test_a_wait_that_is_opened_twice_keeps_its_time_and_its_answer(lesson, db, kind):
    """The connection broke before the answer came, and the statement was sent again."""
    id = new_task(lesson, db)
    task = claim_one(lesson, db, id)
    with queries(lesson, db) as queue:
        assert open_wait(queue, task, kind=kind, duration=HOUR) == 1
        opened = log_of(db, id)
        assert open_wait(queue, task, kind=kind, duration=HOUR) == 1
        assert log_of(db, id) == opened, "how long it was to last, too: put_off asks for that"
        due_now(db)
        assert ring(lesson, db) == 1
        timed_out = log_of(db, id)[0]
        assert open_wait(queue, task, kind=kind, duration=HOUR) == 1
    again = log_of(db, id)[0]
    assert (again.completion, again.error, again.due_at) == (1, timed_out.error, timed_out.due_at)


def test_a_signal_is_opened_while_somebody_has_a_weak_lock_on_the_task(lesson, db):
    """Two who each have one, and then want the strong one, wait for each other."""
    task = claim_one(lesson, db, new_task(lesson, db))

    def open_it():
        with queries(lesson, db) as queue:
            return open_wait(queue, task)

    with db.connect() as other, ThreadPoolExecutor(1) as thread:
        other.execute("select from tasks where id = %s for share", (task.id,))
        future = submitted(db, thread, open_it)
        other.execute("select from tasks where id = %s for update", (task.id,))
        other.commit()
        assert future.result(timeout=within(20)) == 1


def test_an_attempt_that_is_over_opens_nothing_and_reads_nothing(lesson, db):
    id = new_task(lesson, db)
    send(lesson, db, id)
    old = claim_one(lesson, db, id)
    with attempt(lesson, db, id) as (_, queue):
        assert open_wait(queue, old) == 0
        old.attempt += 1
        assert open_wait(queue, old, position=2) == 0, "a log has no holes"
    assert log_of(db, id) == []
    assert messages(db, id) == [(None, None)]


def test_a_step_that_has_failed_gives_way_to_a_signal_whose_message_is_there(lesson, db):
    id = new_task(lesson, db)
    send(lesson, db, id, payload=7)

    def fail(_key):
        raise ValueError

    with attempt(lesson, db, id) as (ctx, _), pytest.raises(lesson.errors.StepError):
        ctx.step(fail)
    with attempt(lesson, db, id) as (ctx, _):
        assert receiving(ctx) == 7
    assert open_beside_unread(db) == []


def test_who_deletes_a_task_deletes_what_was_sent_to_it(lesson, db):
    id = new_task(lesson, db)
    send(lesson, db, id)
    execute(db, "delete from tasks where id = %s", id)
    assert messages(db, id) == []


# By hand


def ends(db, id, status="failed"):
    execute(
        db,
        "update tasks set status = %s, error = case when %s = 'failed' then 'E: no' end,"
        " output = case when %s = 'succeeded' then json 'null' end where id = %s",
        status,
        status,
        status,
        id,
    )


def test_a_retry_gives_a_signal_that_has_timed_out_its_time_again(lesson, db):
    id = new_task(lesson, db)
    asleep(lesson, db, id, lambda ctx: receiving(ctx, timeout=HOUR))
    due_now(db)
    ring(lesson, db)
    ends(db, id)
    by_hand(lesson, db, "retry", id)
    (entry,) = asleep(lesson, db, id, lambda ctx: receiving(ctx, timeout=HOUR))
    assert (entry.completion, entry.error) == (None, None)
    ((left,),) = execute(db, "select due_at - clock_timestamp() from event_log")
    assert HOUR - timedelta(minutes=1) < left
    send(lesson, db, id, payload="at last")
    with attempt(lesson, db, id) as (ctx, _):
        assert receiving(ctx, timeout=HOUR) == "at last"


def test_a_signal_that_a_retry_reopens_finds_the_message_that_came_too_late(lesson, db):
    id = new_task(lesson, db)
    asleep(lesson, db, id, lambda ctx: receiving(ctx, timeout=HOUR))
    due_now(db)
    ring(lesson, db)
    send(lesson, db, id, payload="late")
    ends(db, id)
    by_hand(lesson, db, "retry", id)
    assert open_beside_unread(db) == []
    with attempt(lesson, db, id) as (ctx, _):
        assert receiving(ctx, timeout=HOUR) == "late"


def test_a_retry_asks_again_where_a_failure_was_sent(lesson, db):
    """Unless the function has gone on from it."""
    id = new_task(lesson, db)
    for _ in range(2):
        send_error(lesson, db, id)

    def twice(ctx):
        with pytest.raises(lesson.errors.SignalError):
            receiving(ctx)
        return receiving(ctx)

    with attempt(lesson, db, id) as (ctx, _), pytest.raises(lesson.errors.SignalError):
        twice(ctx)
    ends(db, id)
    by_hand(lesson, db, "retry", id)
    asleep(lesson, db, id, twice)
    send(lesson, db, id, payload="well")
    with attempt(lesson, db, id) as (ctx, _):
        assert twice(ctx) == "well"


def test_a_cancelled_task_reads_nothing_until_it_is_retried(lesson, db):
    id = new_task(lesson, db)
    asleep(lesson, db, id, receiving)
    by_hand(lesson, db, "cancel", id)
    with pytest.raises(lesson.inputs.BadInput, match="has ended"):
        send(lesson, db, id)
    by_hand(lesson, db, "retry", id)
    send(lesson, db, id, payload=1)
    with attempt(lesson, db, id) as (ctx, _):
        assert receiving(ctx) == 1


def test_a_replay_reads_what_nobody_has_read_and_nothing_else(lesson, db):
    id = new_task(lesson, db)
    for n in (1, 2):
        send(lesson, db, id, payload=n, key=f"k{n}")
    with attempt(lesson, db, id) as (ctx, _):
        assert receiving(ctx) == 1
    ends(db, id, "succeeded")
    by_hand(lesson, db, "replay", id)
    assert messages(db, id) == [(2, None)]
    send(lesson, db, id, payload="k1 is free again", key="k1")
    with attempt(lesson, db, id) as (ctx, _):
        assert [receiving(ctx), receiving(ctx)] == [2, "k1 is free again"]


def test_a_fork_keeps_what_was_read_and_has_a_mailbox_of_its_own(lesson, db):
    id = new_task(lesson, db)

    def thrice(ctx):
        return [receiving(ctx), receiving(ctx, timeout=HOUR), receiving(ctx)]

    send(lesson, db, id, payload=1)
    asleep(lesson, db, id, thrice)
    before = log_of(db, id), messages(db, id)
    with db.engine.begin() as connection:
        fork = lesson.control.fork(connection, id, 2)
    assert [entry.due_at for entry in log_of(db, fork)] == [None, before[0][1].due_at]
    send(lesson, db, fork, payload="the fork's")
    asleep(lesson, db, fork, thrice)
    send(lesson, db, fork, payload="this one, too")
    assert (log_of(db, id), messages(db, id)) == before, "I25"
    with attempt(lesson, db, fork) as (ctx, _):
        assert thrice(ctx) == [1, "the fork's", "this one, too"]
    for n in (2, 3):
        send(lesson, db, id, payload=n)
    with attempt(lesson, db, id) as (ctx, _):
        assert thrice(ctx) == [1, 2, 3]
    assert len(messages(db, fork)) == 2
    assert open_beside_unread(db) == []
