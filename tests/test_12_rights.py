"""Lesson 12: what a producer may do, and a worker; tried as these roles."""

import logging
import shutil
import subprocess
from contextlib import ExitStack
from datetime import timedelta
from types import SimpleNamespace
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from shared.database import Database
from shared.processes import wait_until, working
from shared.testing import wait_for_status
from tests.helpers import ENDED, by_hand, enqueue, execute, limit, program, status_of
from tools.postgres import wheel_psql

EVERYTHING = ("select", "insert", "update", "delete", "truncate", "references", "trigger")
WORKER = {
    "tasks": "select insert update",
    "event_log": "select insert update",
    "events": "select insert update",
    "messages": "select insert",
    "workers": "select insert update delete",
    "queue_limits": "select update",
    "schedules": "select update",
}
FUNCTIONS = {
    "producer": {"enqueue"},
    # Two of them from 13 and 14 on.
    "worker": {"complete_entry", "complete_entries", "has_living_children", "has_untried"},
}


@pytest.fixture
def roles(lesson, db):
    """Two roles, and what each is called; they have what grants.sql gives them."""
    names = SimpleNamespace(
        producer=f"test producer {uuid4().hex[:8]}", worker=f"test_worker_{uuid4().hex[:8]}"
    )
    try:
        for name in vars(names).values():
            execute(db, sql.SQL("create role {}").format(sql.Identifier(name)))
    except psycopg.errors.InsufficientPrivilege:
        pytest.skip("the role of DATABASE_URL cannot create roles")
    try:
        variables = [f"-v{variable}={name}" for variable, name in vars(names).items()]
        command = [shutil.which("psql") or wheel_psql(), "-X", "-vON_ERROR_STOP=1", *variables]
        done = subprocess.run(
            [*command, "-f", lesson.path / "grants.sql", "-d", db.conninfo],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        yield names
    finally:
        for name in vars(names).values():
            execute(db, sql.SQL("drop owned by {}").format(sql.Identifier(name)))
            execute(db, sql.SQL("drop role {}").format(sql.Identifier(name)))


def as_role(db, role):
    """The database for this role."""
    options = conninfo_to_dict(db.conninfo).get("options") or ""
    role = role.replace(" ", "\\ ")
    return Database(
        db.lesson, db.schema, make_conninfo(db.conninfo, options=f"{options} -c role={role}")
    )


def tables(db):
    """The engine's; those of the story are its own matter."""
    return [
        name
        for (name,) in execute(
            db,
            "select relname from pg_class where relkind = 'r'"
            " and relnamespace = cast(current_schema() as regnamespace)",
        )
        if name not in ("accounts", "orders")
    ]


def test_each_role_has_these_rights_on_tables_and_no_others(db, roles):
    found = execute(
        db,
        "select role, name, string_agg(privilege, ' ' order by position)"
        " from unnest(%s::text[]) as name, unnest(%s::text[]) as role,"
        " unnest(%s::text[]) with ordinality as of (privilege, position)"
        " where has_table_privilege(role, name, privilege) group by role, name",
        tables(db),
        ["public", *vars(roles).values()],
        list(EVERYTHING),
    )
    assert {table: rights for role, table, rights in found} == WORKER
    assert {role for role, _, _ in found} == {roles.worker}
    assert set(WORKER) == set(tables(db))


def test_each_role_may_call_these_functions_and_no_others(db, roles):
    for role, name in [("public", "public"), *vars(roles).items()]:
        found = execute(
            db,
            "select proname, has_function_privilege(%s, oid, 'execute') from pg_proc"
            " where pronamespace = cast(current_schema() as regnamespace)",
            name,
        )
        there = {function for function, _ in found}
        assert {function for function, may in found if may} == FUNCTIONS.get(role, set()) & there


def test_neither_may_create_anything_here(db, roles):
    for name in ("public", *vars(roles).values()):
        may_create = "select has_schema_privilege(%s, current_schema(), 'create')"
        assert execute(db, may_create, name) == [(False,)]


def test_before_any_grant_nobody_may_enqueue(db):
    nobody = "select has_function_privilege('public', cast('enqueue' as regproc), 'execute')"
    assert execute(db, nobody) == [(False,)]


def test_without_its_grant_a_producer_may_not_enqueue(db, roles):
    stranger = sql.Identifier(roles.producer)
    execute(db, sql.SQL("revoke execute on function enqueue from {}").format(stranger))
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        execute(as_role(db, roles.producer), "select enqueue('nothing', 'null')")


STATEMENTS = {
    "select": "select from {}",
    "insert": "insert into {} default values",
    "lock": "select from {} for update",
    "delete": "delete from {}",
    "truncate": "truncate {} cascade",
    "drop": "drop table {} cascade",
    "add a trigger": "create trigger t after insert on {} for each row execute function deliver()",
}


def may(connection, statement):
    try:
        connection.execute(statement)
    except psycopg.errors.InsufficientPrivilege:
        return False
    return True


def allowed(db, role, *statements):
    """Which of these statements a role may send, each for every table."""
    with as_role(db, role).connect(autocommit=True) as connection:
        return [
            (statement, table)
            for statement in statements
            for table in tables(db)
            if may(connection, sql.SQL(STATEMENTS[statement]).format(sql.Identifier(table)))
        ]


def test_a_producer_enqueues_and_does_nothing_else(db, roles):
    ((id,),) = execute(as_role(db, roles.producer), "select enqueue('nothing', '7')")
    assert status_of(db, id) == "queued"
    assert allowed(db, roles.producer, *STATEMENTS) == []


CALLS = (
    "complete_entry(1, 1, 'null', null)",
    "has_living_children(1)",
    "tell_parent()",
    "deliver()",
    "tell_workers()",
)


def test_a_producer_calls_nothing_else(db, roles):
    with as_role(db, roles.producer).connect(autocommit=True) as connection:
        assert [call for call in CALLS if may(connection, f"select {call}")] == []


def test_a_worker_neither_truncates_nor_changes_tables(db, roles):
    assert allowed(db, roles.worker, "truncate", "drop", "add a trigger") == []


def test_a_worker_runs_everything_with_its_own_rights(lesson, db, roles, caplog):
    """All kinds of tasks and of entries; every chore has something to do."""
    execute(db, "create table bank (balance int)")
    execute(db, "insert into bank values (100)")
    execute(db, f"grant select, update on bank to {roles.worker}")

    def take(connection):
        connection.exec_driver_sql("update bank set balance = balance - 10")
        lesson.tasks.enqueue(connection, "nothing", None)

    def pay(connection, _):
        take(connection)

    def fails_once(key):
        if not seen:
            seen.append(key)
            raise ConnectionError("no answer")

    def function(ctx, _):
        ctx.step(fails_once)
        ctx.transaction(take)
        ctx.at_most_once(lambda key: key)
        waits = [ctx.signal("a"), ctx.event("b"), ctx.timer(timedelta(0))]
        child = ctx.spawn(lesson.app.divide, [6, 3])
        with pytest.raises(lesson.children.ChildError):
            ctx.run(lesson.app.hopeless, None)
        ctx.transaction(lambda connection: lesson.events.emit(connection, "b", 1) and None)
        ctx.transaction(lambda connection: lesson.signals.send(connection, waiting[0], "a"))
        with pytest.raises(lesson.errors.WaitTimeout):
            ctx.receive("c", timeout=timedelta(0))
        return [*ctx.gather(*waits), ctx.result(child), ctx.receive("from a person")]

    seen, waiting = [], []
    lesson.transactions.transactional(pay)
    program(lesson, function)
    waiting.append(enqueue(lesson, db, "program"))
    others = [enqueue(lesson, db, "pay"), enqueue(lesson, db, "nothing", delay=timedelta(0))]
    limit(lesson, db, 3)
    # A dead worker's task; a cancelled one with a child.
    execute(db, "insert into workers (name, alive_until) values ('dead', '-infinity')")
    others.append(enqueue(lesson, db, "nothing"))
    execute(
        db,
        "update tasks set status = 'running', attempt = 1, started_at = now(),"
        " worker_id = (select id from workers) where id = %s",
        others[-1],
    )
    above = enqueue(lesson, db, "nothing", queue="nobodys")
    child = enqueue(lesson, db, "nothing", queue="nobodys")
    execute(db, "update tasks set parent_id = %s, parent_position = 1 where id = %s", above, child)
    by_hand(lesson, db, "cancel", above)
    with db.autocommit.connect() as connection:
        lesson.schedules.set_schedule(connection, "s", "* * * * *", "nothing", None)
    execute(db, "update schedules set next_at = date_trunc('minute', now())")
    lesson.timing.Timing.backoff = lambda *_: timedelta(0)
    caplog.set_level(logging.WARNING, "worker")
    own = as_role(db, roles.worker)
    with ExitStack() as stack:
        stack.callback(own.engine.dispose)
        stack.callback(own.autocommit.dispose)
        stack.enter_context(working(lesson.worker.Worker(own, "w", slots=3)))
        asked = "select 1 from event_log where name = 'from a person'"
        wait_until(lambda: execute(db, asked), "it waits")
        with db.engine.begin() as connection:
            lesson.signals.send(connection, waiting[0], "from a person", "Ann")
        row = wait_for_status(db, waiting[0], *ENDED)
        for id in others:
            assert wait_for_status(db, id, *ENDED).status == "succeeded"
        wait_until(lambda: status_of(db, child) == "cancelled", "the orphan is found")
        ticked = "select 1 from tasks where idempotency_key is not null"
        wait_until(lambda: execute(db, ticked), "the schedule has ticked")
    assert (row.status, row.output) == ("succeeded", [None, 1, None, 2, "Ann"])
    assert execute(db, "select balance from bank") == [(80,)]
    said = {record.getMessage() for record in caplog.records}
    assert said <= {
        "worker dead is dead",
        f"task {others[-1]}, queued: WorkerDied: the worker that ran it is gone",
    }
