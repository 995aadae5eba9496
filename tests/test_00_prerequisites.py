"""Lesson 00: a transaction is all or nothing, and skip locked lets two workers pass each other."""

import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psycopg
import pytest
import sqlalchemy as sa

from shared.processes import wait_until, within
from tests.helpers import (
    patiently,
    run_program,
    run_verb,
)

seats_only = pytest.mark.until(1, why="lesson 01 has tasks, and no seats")


def sold(db):
    with db.connect() as connection:
        return dict(
            connection.execute("select number, sold_to from seats where sold_to is not null")
        )


def can_lock(db, number):
    """Whether a transaction that starts now could lock that seat without waiting."""
    with db.connect() as connection:
        query = "select 1 from seats where number = %s for update skip locked"
        return connection.execute(query, (number,)).fetchone() is not None


def waits_for_a_lock(db, pid):
    with db.connect() as connection:
        query = "select wait_event_type from pg_stat_activity where pid = %s"
        return connection.execute(query, (pid,)).fetchone() == ("Lock",)


@contextmanager
def selling(lesson, *arguments):
    """`main.py sell ...` in a process of its own. It has marked its first seat and waits."""
    with subprocess.Popen(
        [sys.executable, "main.py", "sell", *arguments],
        cwd=lesson.path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert "is marked" in process.stdout.readline()
            yield process
        finally:
            process.kill()


# A transaction is all or nothing


@seats_only
def test_a_process_that_is_killed_in_a_transaction_leaves_nothing(lesson, db):
    with selling(lesson, "Ada", "1", "2") as process:
        assert sold(db) == {}
        process.kill()
        assert process.wait() == -signal.SIGKILL
    wait_until(lambda: can_lock(db, 1), "the killed transaction has let go of seat 1")
    assert sold(db) == {}


@seats_only
def test_without_a_transaction_it_leaves_half(lesson, db):
    with selling(lesson, "--autocommit", "Ada", "1", "2") as process:
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert sold(db) == {1: "Ada"}


@seats_only
def test_others_see_a_sale_when_it_has_committed(lesson, db):
    with selling(lesson, "Ada", "1", "2") as process:
        assert sold(db) == {}
        process.communicate("\n\n", timeout=within(20))
        assert process.returncode == 0
    assert sold(db) == {1: "Ada", 2: "Ada"}


@seats_only
@pytest.mark.parametrize("number", ["2", "7"])
def test_one_seat_that_cannot_be_sold_undoes_the_sale(lesson, db, number):
    """Seat 2 is sold, and there is no seat 7."""
    with db.autocommit.connect() as connection:
        assert lesson.queries.Querier(connection).sell_seat(customer="Zoe", number=2) == 1
    with selling(lesson, "Ada", "1", number) as process:
        _, errors = process.communicate("\n\n", timeout=within(20))
        assert process.returncode == 1
    assert f"seat {number} is not free" in errors
    assert sold(db) == {2: "Zoe"}


@seats_only
def test_a_seat_is_sold_once(lesson, db):
    with selling_seat_1_to_ada_and_bea(lesson, db) as (ada, beas_answer):
        ada.commit()
        assert beas_answer.result(timeout=within(20)) == 0
    assert sold(db) == {1: "Ada"}


@seats_only
def test_a_sale_that_rolls_back_leaves_the_seat_to_the_next(lesson, db):
    with selling_seat_1_to_ada_and_bea(lesson, db) as (ada, beas_answer):
        ada.rollback()
        assert beas_answer.result(timeout=within(20)) == 1
    assert sold(db) == {1: "Bea"}


@contextmanager
def selling_seat_1_to_ada_and_bea(lesson, db):
    """Bea's sale has started, and waits because Ada's has changed the row and is not committed."""
    with ThreadPoolExecutor() as pool, db.engine.connect() as bea, db.engine.connect() as ada:
        ada_queries, bea_queries = (lesson.queries.Querier(each) for each in (ada, bea))
        pid = bea_queries.backend_pid()
        assert ada_queries.sell_seat(customer="Ada", number=1) == 1
        answer = pool.submit(bea_queries.sell_seat, customer="Bea", number=1)
        wait_until(lambda: waits_for_a_lock(db, pid), "Bea's sale waits for Ada's")
        yield ada, answer
        bea.commit()


# Locks


@seats_only
def test_for_update_waits(lesson, db):
    with ThreadPoolExecutor() as pool, db.engine.connect() as two, db.engine.connect() as one:
        first, second = (lesson.queries.Querier(connection) for connection in (one, two))
        first_pid, second_pid = first.backend_pid(), second.backend_pid()
        assert first.first_free_seat() == 1
        answer = pool.submit(second.first_free_seat)
        wait_until(lambda: waits_for_a_lock(db, second_pid), "the second waits for the first")
        with db.autocommit.connect() as connection:
            queries = lesson.queries.Querier(connection)
            assert queries.waits_for(pid=second_pid) == [first_pid]
            assert queries.waits_for(pid=first_pid) is None
        one.rollback()
        assert answer.result(timeout=within(20)) == 1


@seats_only
def test_skip_locked_does_not_wait(lesson, db):
    with db.engine.connect() as one, db.engine.connect() as other:
        assert lesson.queries.Querier(one).first_unlocked_seat() == 1
        patiently(other, 2)
        assert lesson.queries.Querier(other).first_unlocked_seat() == 2


@seats_only
def test_skip_locked_finds_nothing_when_everything_is_locked(lesson, db):
    with db.engine.connect() as one, db.engine.connect() as other:
        one.execute(sa.text("select number from seats for update")).all()
        patiently(other, 2)
        assert lesson.queries.Querier(other).first_unlocked_seat() is None
        with pytest.raises(sa.exc.OperationalError, match="statement timeout") as caught:
            lesson.queries.Querier(other).first_free_seat()
        assert isinstance(caught.value.orig, psycopg.errors.QueryCanceled)


# The program


@seats_only
@pytest.mark.usefixtures("postgres")
def test_the_story_holds(lesson, monkeypatch):
    monkeypatch.setenv("LESSON_SCHEMA", f"test_{os.getpid()}_story_00")
    done = run_program(lesson)
    assert (done.returncode, done.stderr) == (0, "")
    assert (done.stdout.count("✓"), done.stdout.count(" ! ")) == (7, 1)
    assert "✗" not in done.stdout
    shown = run_verb(lesson, "status")
    assert re.findall(r"seat (\d): (\w+)", shown.stdout)[:2] == [("1", "Ada"), ("2", "free")]


@seats_only
def test_sell_says_what_is_wrong(lesson, db):
    done = run_verb(lesson, "sell", "Ada", "7")
    assert done.returncode == 1
    assert done.stderr == "Error: seat 7 is not free\n"
    assert sold(db) == {}
