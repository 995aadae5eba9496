"""Lesson 06: an entry that somebody else completes is completed once, and heard of at once."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from shared.processes import within
from shared.testing import task_row
from tests.helpers import (
    MINUTE,
    claim_one,
    context,
    define,
    drop_workers,
    enqueue,
    execute,
    finish,
    log_of,
    only,
    queries,
    statuses,
    submitted,
    suspended,
    take_back,
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


# Whoever ends a child, and from wherever

LIKE = "create {where} table {place}{table} (like {schema}.{table} including all);"


def like_ours(where, place=""):
    return "".join(
        LIKE.format(where=where, place=place, table=table, schema="{schema}")
        for table in ("tasks", "event_log")
    )


SESSIONS = {
    "no search_path": "set search_path to pg_catalog",
    "other tables of these names": (
        "create schema {schema}_other;"
        + like_ours("", "{schema}_other.")
        + "set search_path to {schema}_other"
    ),
    "temporary tables of these names": like_ours("temporary"),
    "a role that may write to tasks only": (
        "create role {schema}_role; grant usage on schema {schema} to {schema}_role;"
        "grant select, update, delete on {schema}.tasks to {schema}_role; set role {schema}_role"
    ),
}
ENDS = {
    "succeeded": "update {schema}.tasks set status = 'succeeded', output = '7' where id = {child}",
    "failed": "update {schema}.tasks set status = 'failed', error = 'E: no' where id = {child}",
    "deleted": "delete from {schema}.tasks where id = {child}",
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("session", SESSIONS)
def test_the_end_of_a_child_is_told_whoever_ends_it(lesson, db, session, end):
    id, (child,) = suspended(lesson, db)
    with db.connect() as connection:  # rolled back: a role and a schema are not of our tables
        connection.execute(SESSIONS[session].format(schema=db.schema))
        connection.execute(ENDS[end].format(schema=db.schema, child=child))
        connection.execute(f"reset role; set search_path to {db.schema}, pg_temp")
        told = connection.execute(
            "select status, completions, completion, event_log.output, event_log.error ->> 'error'"
            " from tasks join event_log on task_id = id where id = %s",
            (id,),
        ).fetchone()
        connection.rollback()
    answer = {"succeeded": (7, None), "failed": (None, "E: no"), "deleted": (None, "Deleted")}[end]
    assert told == ("queued", 1, 1, *answer)


@pytest.mark.usefixtures("lesson")
def test_every_function_has_a_path_of_its_own_and_those_that_write_are_not_for_everybody(db):
    functions = execute(
        db,
        "select proname, proconfig, has_function_privilege('public', oid, 'execute') from pg_proc"
        " where pronamespace = current_schema()::regnamespace",
    )
    path = [f"search_path={db.schema}, pg_temp"]
    without = {name for name, its_path, _ in functions if its_path != path}
    hints = {"tell_workers", "tell_watchers", "tell_upkeep"}
    assert without <= hints, "these name no table"
    for_all = {name for name, _, for_all in functions if for_all}
    assert for_all <= {"has_living_children", "has_untried", *hints}


# What is deleted


@pytest.mark.parametrize("log", ["with its log", "its log first"])
@pytest.mark.parametrize("end", ["succeeds", "is lost for good", "is deleted"])
def test_a_parent_that_was_deleted_is_nobody_to_tell(lesson, db, end, log):
    id, (child,) = suspended(lesson, db)
    execute(db, "update tasks set max_attempts = 1, uncounted = 0 where id = %s", child)
    task = claim_one(lesson, db, child)
    if log == "its log first":
        execute(db, "delete from event_log where task_id = %s", id)
    execute(db, "delete from tasks where id = %s", id)
    assert log_of(db, id) == []
    if end == "succeeds":
        assert finish(lesson, db, task) == 1
    elif end == "is lost for good":
        drop_workers(db)
        assert take_back(lesson, db) == {child: "failed"}
    else:
        execute(db, "delete from tasks where id = %s", child)
    assert log_of(db, id) == []


@pytest.mark.parametrize("rows", ["id = %s or parent_id = %s", "%s <> %s"])
def test_a_parent_and_its_child_can_be_deleted_in_one_statement(lesson, db, rows):
    id, _ = suspended(lesson, db)
    execute(db, f"delete from tasks where {rows}", id, id if "or" in rows else 0)  # noqa: S608
    assert (statuses(db), log_of(db, id)) == ({}, [])


def test_a_parent_that_is_being_deleted_and_the_end_of_its_child(lesson, db):
    id, (child,) = suspended(lesson, db)
    task = claim_one(lesson, db, child)
    with ThreadPoolExecutor(1) as thread, db.connect() as connection:
        connection.execute("delete from tasks where id = %s", (id,))
        end = submitted(db, thread, finish, lesson, db, task)
        assert not end.done(), "it waits to see whether the parent is there"
        connection.commit()
        assert end.result(timeout=within(20)) == 1
    assert statuses(db) == {"succeeded": 1}


@pytest.mark.parametrize("status", ["queued", "running", "waiting"])
def test_a_parent_hears_that_its_child_was_deleted(lesson, db, status):
    id, (child, other) = suspended(lesson, db, 2)
    if status != "queued":
        task = claim_one(lesson, db, child)
    if status == "waiting":
        with queries(lesson, db) as queue:
            queue.retry_task(id=child, attempt=1, delay=MINUTE, error="E: not yet")
    execute(db, "delete from tasks where id = any (%s)", [child, other])
    if status == "running":
        assert finish(lesson, db, task) == 0
    with context(lesson, db, claim_one(lesson, db, id)) as ctx:
        with pytest.raises(lesson.children.ChildError, match=r"^double: Deleted$") as caught:
            ctx.run(define(lesson).double, 0)
        assert caught.value.type == "Deleted"


def test_to_delete_a_child_that_has_ended_changes_nothing(lesson, db):
    id, (child,) = suspended(lesson, db)
    finish(lesson, db, claim_one(lesson, db, child), "7")
    before = task_row(db, id), log_of(db, id)
    execute(db, "delete from tasks where id = %s", child)
    assert (task_row(db, id), log_of(db, id)) == before
