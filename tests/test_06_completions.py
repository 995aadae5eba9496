"""Lesson 06: an entry that somebody else completes is completed once, and heard of at once."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import psycopg
import pytest
from psycopg import sql

from shared.processes import within
from shared.testing import task_row
from tests.helpers import (
    claim_one,
    context,
    define,
    enqueue,
    execute,
    finish,
    log_of,
    only,
    submitted,
    suspended,
)

COMPLETE = "select complete_entry(%s, 1, %s, null)"


def test_of_two_who_complete_one_entry_at_the_same_moment_one_is_refused(lesson, db):
    id, _ = suspended(lesson, db)
    with ThreadPoolExecutor(1) as thread, db.connect() as connection:
        assert connection.execute(COMPLETE, (id, "1")).fetchone() == (True,)
        second = submitted(db, thread, execute, db, COMPLETE, id, "2")
        assert not second.done(), "it waits for the first"
        connection.commit()
        assert second.result(timeout=within(20)) == [(False,)]
    row, (entry,) = task_row(db, id), log_of(db, id)
    assert (row.status, row.completions, row.wake_after) == ("queued", 1, 0)
    assert (entry.output, entry.completion) == (1, 1)


def test_an_entry_that_is_complete_stays_as_it_is(lesson, db):
    id, _ = suspended(lesson, db, 2)
    assert execute(db, COMPLETE, id, "1") == [(True,)]
    before = task_row(db, id), log_of(db, id)
    assert execute(db, COMPLETE, id, "2") == [(False,)]
    assert (task_row(db, id), log_of(db, id)) == before


def test_what_has_ended_is_not_told_upwards_again_when_its_child_ends(lesson, db):
    """It would lock the rows of all who are above it, and complete what was reopened meanwhile."""
    double = define(lesson).double
    id = enqueue(lesson, db, "run_run_double", 1)
    with context(lesson, db, claim_one(lesson, db, id)) as ctx:
        ctx.spawn(define(lesson).run_double, 1)
    parent = claim_one(lesson, db)
    with context(lesson, db, parent) as ctx:
        ctx.spawn(double, 1)
    assert finish(lesson, db, parent, "2") == 1
    child = claim_one(lesson, db, only(db, "double"))
    with ThreadPoolExecutor(1) as thread, db.connect() as holder:
        holder.execute("select from tasks where id = %s for update", (id,))
        end = submitted(db, thread, finish, lesson, db, child)
        assert end.done(), "it waits for nobody above its parent"
        assert end.result() == 1
    assert [task_row(db, one).completions for one in (id, parent.id)] == [1, 1]


CALL = "select {}.complete_entry(%s, 1, '1', null)"
END = "update {}.tasks set status = 'failed', error = 'E: no' where parent_id = %s"


@pytest.mark.parametrize("statement", [CALL, END], ids=["by hand", "by the end of a child"])
def test_an_entry_is_completed_whatever_the_search_path(lesson, db, statement):
    id, _ = suspended(lesson, db)
    with db.connect(autocommit=True) as connection:
        connection.execute("set search_path to pg_catalog")
        with suppress(psycopg.ProgrammingError):  # nothing has happened then
            connection.execute(sql.SQL(statement).format(sql.Identifier(db.schema)), (id,))
    row, (entry,) = task_row(db, id), log_of(db, id)
    assert (row.status, row.completions, entry.completion) == ("queued", 1, 1)
