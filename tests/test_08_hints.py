"""Lesson 08: an idle worker hears of a task at once, and finds it even if nobody tells it."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta

import sqlalchemy as sa

from shared.processes import wait_until, within, working
from shared.testing import wait_for_status
from tests.helpers import count, define, enqueue, execute, hurry, rests, several

LONG = 600  # seconds: a poll that comes to nobody's help


def silence(db):
    """From here on, no hint comes from the table."""
    execute(db, "alter table tasks disable trigger tell_workers")


def listeners(db):
    """The server processes of the connections that listen."""
    return [
        pid
        for (pid,) in execute(
            db,
            "select pid from pg_stat_activity where query like 'listen%%'"
            " and application_name = current_setting('application_name')",
        )
    ]


@contextmanager
def asked(db, query):
    """The statements of that name which this process sends."""
    found = []

    def note(_connection, _cursor, statement, *_):
        if query in statement:
            found.append(statement)

    sa.event.listen(db.autocommit, "before_cursor_execute", note)
    yield found
    sa.event.remove(db.autocommit, "before_cursor_execute", note)


def test_an_idle_worker_starts_a_task_without_a_poll(lesson, db):
    hurry(lesson, seldom=LONG)
    worker = lesson.worker.Worker(db, "w")
    with working(worker):
        for _ in range(2):
            rests(db, worker)
            wait_for_status(db, enqueue(lesson, db), "succeeded")


def test_whatever_makes_a_task_queued_is_heard(lesson, db):
    """A child's end that wakes its parent, a delay that is over, psql."""
    hurry(lesson, seldom=LONG, upkeep=0.05)
    define(lesson)
    worker = lesson.worker.Worker(db, "w")
    with working(worker):
        rests(db, worker)
        wait_for_status(db, enqueue(lesson, db, "run_double", 1), "succeeded")
        rests(db, worker)
        wait_for_status(db, enqueue(lesson, db, delay=timedelta(0)), "succeeded")
        rests(db, worker)
        execute(db, "insert into tasks (name, input) values ('nothing', 'null')")
        wait_until(lambda: count(db, "queued", "running") == 0, "it has run")


def test_a_hint_comes_with_the_commit(lesson, db):
    hurry(lesson, seldom=LONG)
    worker = lesson.worker.Worker(db, "w")
    with working(worker):
        rests(db, worker)
        with db.engine.connect() as connection:
            lesson.tasks.enqueue(connection, "nothing", None)
            connection.rollback()
        with db.engine.begin() as connection:
            ids = [lesson.tasks.enqueue(connection, "nothing", None) for _ in range(500)]
        wait_until(lambda: count(db, "succeeded") == len(ids), "all have run")


def test_nothing_is_lost_if_no_hint_ever_arrives(lesson, db):
    silence(db)
    worker = lesson.worker.Worker(db, "w")
    with working(worker):
        rests(db, worker)
        wait_for_status(db, enqueue(lesson, db), "succeeded", seconds=5)


def test_an_open_transaction_that_has_enqueued_keeps_nobody_from_notifying(lesson, db):
    hurry(lesson, seldom=LONG)
    worker = lesson.worker.Worker(db, "w")
    with working(worker):
        rests(db, worker)
        with db.engine.begin() as a, db.engine.begin() as b:
            open_ids = [lesson.tasks.enqueue(c, "nothing", None) for c in (a, b)]
            wait_for_status(db, enqueue(lesson, db), "succeeded", seconds=10)
        for id in open_ids:
            wait_for_status(db, id, "succeeded")


def test_two_transactions_at_a_time_notify(lesson, db):
    """Those that are about to commit; the third leaves it to them. In another queue, it does it."""
    with lesson.listen.listening(db) as listener, db.connect() as a, db.connect() as b:
        for connection in (a, b):
            connection.execute("insert into tasks (name, input) values ('nothing', 'null')")
            connection.execute("set constraints tell_workers immediate")
        enqueue(lesson, db)
        enqueue(lesson, db, queue="another")
        assert lesson.listen.hear(listener, within(5)) == ["another"]
        for connection in (a, b):
            connection.commit()
            assert lesson.listen.hear(listener, within(5)) == ["default"]
        enqueue(lesson, db)  # the locks are free again
        assert lesson.listen.hear(listener, within(5)) == ["default"]


def test_a_hint_calls_no_function_of_the_callers(lesson, db):
    """It may have more rights than the caller, who could give himself some."""
    id = enqueue(lesson, db)
    signatures = {
        "hashtext(text)": "int",
        "pg_try_advisory_xact_lock(int, int)": "boolean",
        "pg_notify(text, text)": "void",
        "left(text, int)": "text",
    }
    with db.connect() as connection:  # rolled back: a schema is not of our tables
        connection.execute(f"create schema {db.schema}_own")
        for function, returned in signatures.items():
            connection.execute(
                f"create function {db.schema}_own.{function} returns {returned} language plpgsql"
                f" as $$ begin raise exception 'the caller''s {function}'; end $$"
            )
        connection.execute(f"set search_path to {db.schema}_own, {db.schema}, pg_catalog")
        connection.execute("insert into tasks (name, input) values ('nothing', 'null')")
        connection.execute("update tasks set watched = true where id = %s", (id,))
        connection.execute("update tasks set status = 'cancelled' where id = %s", (id,))
        if hasattr(lesson.queries.Querier, "emit_event"):
            connection.execute("insert into events (name) values ('it rains')")
        connection.execute("set constraints all immediate")
        connection.rollback()


def test_claims_and_ends_tell_nobody(lesson, db):
    """The drain pays for no hints."""
    ids = several(lesson, db, 3)
    with lesson.listen.listening(db) as listener:
        with working(lesson.worker.Worker(db, "w")):
            for id in ids:
                wait_for_status(db, id, "succeeded")
        execute(db, "select pg_notify(current_schema(), 'the last one')")
        heard = []
        while "the last one" not in heard:
            heard += lesson.listen.hear(listener, 1)
    assert [hint for hint in heard if not hint.startswith("probe ")] == ["the last one"]


def test_a_worker_looks_twice_after_a_hint(lesson, db):
    """The row was locked when the hint came, and is free a moment later."""
    hurry(lesson, poll=within(1), seldom=LONG)
    id = enqueue(lesson, db)
    worker = lesson.worker.Worker(db, "w")
    with db.connect() as holder:
        holder.execute("select from tasks where id = %s for update", (id,))
        with working(worker):
            rests(db, worker)
            with asked(db, "claim_tasks") as claims:
                execute(db, "select pg_notify(current_schema(), 'default')")
                wait_until(lambda: claims, "it has looked")
            holder.commit()
            wait_for_status(db, id, "succeeded")


def test_a_worker_that_hears_nothing_listens_anew_and_polls_meanwhile(lesson, db):
    """Its backend is ended, and then stopped: a line that is half-open shows no error."""
    hurry(lesson, poll=0.1, seldom=LONG, probe=within(0.5))
    worker = lesson.worker.Worker(db, "w")
    with working(worker):
        rests(db, worker)
        (pid,) = listeners(db)
        execute(db, "select pg_terminate_backend(%s)", pid)
        wait_until(lambda: listeners(db) not in ([], [pid]), "it listens again")
        rests(db, worker)
        (pid,) = listeners(db)
        os.kill(pid, signal.SIGSTOP)
        try:
            wait_until(lambda: not worker._listener.hears, "it notices")
            wait_for_status(db, enqueue(lesson, db), "succeeded")
            rests(db, worker)
            wait_for_status(db, enqueue(lesson, db), "succeeded")
        finally:
            os.kill(pid, signal.SIGCONT)


def test_what_was_enqueued_while_nobody_listened_is_found_when_somebody_does(lesson, db):
    hurry(lesson, seldom=LONG)
    worker = lesson.worker.Worker(db, "w")
    with working(worker):
        rests(db, worker)
        silence(db)
        id = enqueue(lesson, db)
        (pid,) = listeners(db)
        execute(db, "select pg_terminate_backend(%s)", pid)
        wait_for_status(db, id, "succeeded")


def test_a_worker_polls_until_it_has_heard_itself(lesson, db):
    """Nobody answers: a LISTEN that succeeds proves nothing."""
    hurry(lesson, poll=0.02, seldom=LONG)
    worker = lesson.worker.Worker(db, "w")
    worker._listener.probe = lambda _: None
    with working(worker):
        wait_until(lambda: listeners(db), "it listens")
        with asked(db, "look_for_work") as looks:
            wait_until(lambda: len(looks) >= 10, "it looks often")


def test_a_stop_does_not_wait_for_the_long_pause(lesson, db):
    hurry(lesson, seldom=LONG)
    worker = lesson.worker.Worker(db, "w")
    with ThreadPoolExecutor(1) as thread:
        run = thread.submit(worker.run)
        rests(db, worker)
        start = time.monotonic()
        worker.stop()
        run.result(timeout=within(20))
    assert time.monotonic() - start < within(2)
    assert listeners(db) == []


def test_hints_that_mean_nothing_do_no_harm(lesson, db):
    """A stranger sends to the channel what he likes, and much of it."""
    worker = lesson.worker.Worker(db, "w")
    with working(worker), db.connect(autocommit=True) as stranger:
        rests(db, worker)
        strange = ["", "x" * 7999, "probe ", "end of 0", '"; drop table tasks', "default" * 9]
        for payload in [*strange, *map(str, range(3000))]:
            stranger.execute("select pg_notify(current_schema(), %s)", (payload,))
            if payload == "1500":
                first = enqueue(lesson, db)
        stranger.execute(
            "select pg_notify(current_schema(), 'default ' || n) from generate_series(1, 50000) n"
        )
        for id in (first, enqueue(lesson, db)):
            wait_for_status(db, id, "succeeded")


def test_a_queue_with_a_name_that_no_worker_may_have(db):
    """Longer than a payload may be: the hint must not make the insert fail."""
    execute(db, "insert into tasks (queue, name, input) values (repeat('ü', 9000), 'nothing', '1')")
    assert count(db, "queued") == 1
