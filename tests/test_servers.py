"""Servers, databases and roles that are set up in other ways: what is set, and what is refused."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from shared import session
from shared.database import Database, LessonError, open_database
from shared.lessons import LESSONS, find, lessons
from shared.processes import WorkerProcess, wait_until, working
from shared.session import SETTINGS
from shared.testing import Lesson, environment, task_row, wait_for_status
from tests.helpers import enqueue, execute, log_of, program
from tools.__main__ import cli

LAST = lessons()[-1]
# For each setting, one that a server may well have.
OTHERS = {
    "client_encoding": "LATIN1",
    "standard_conforming_strings": "off",
    "DateStyle": "German, DMY",
    "IntervalStyle": "iso_8601",
    "TimeZone": "Europe/Berlin",
    "default_transaction_isolation": "serializable",
    "default_transaction_read_only": "on",
    "synchronous_commit": "off",
    "statement_timeout": "1ms",
    "lock_timeout": "1ms",
    "idle_in_transaction_session_timeout": "1ms",
    "idle_session_timeout": "1ms",
}


@pytest.fixture
def admin(postgres):
    with psycopg.connect(postgres, autocommit=True) as connection:
        yield connection


@pytest.fixture
def schema(monkeypatch, admin):
    # Not test_...: another run drops those that no lock says are in use, and by a pooler none does.
    name = f"servers_{os.getpid()}"
    monkeypatch.setenv("LESSON_SCHEMA", name)
    yield name
    admin.execute(f"drop schema if exists {name} cascade")


@pytest.fixture
def role(admin, postgres, monkeypatch):
    """A role of its own, whose settings may be changed, and which DATABASE_URL names."""
    name = f"test_role_{os.getpid()}"
    admin.execute(f"create role {name} login superuser")
    monkeypatch.setenv("DATABASE_URL", make_conninfo(postgres, user=name))
    yield name
    admin.execute(f"drop owned by {name} cascade")
    admin.execute(f"drop role {name}")


def refused(lesson=LAST, *, reset=True):
    with pytest.raises(LessonError) as caught, open_database(lesson, reset=reset):
        pass
    return caught.value.message


def test_every_setting_is_tried():
    assert OTHERS.keys() == {setting.name for setting in SETTINGS}


def test_a_role_that_is_set_up_otherwise_makes_no_difference(role, schema, admin, monkeypatch):
    for name, value in OTHERS.items():
        admin.execute(f"alter role {role} set {name} = '{value}'")
    monkeypatch.setenv("PGTZ", "Asia/Tokyo")
    monkeypatch.setenv("PGDATESTYLE", "SQL")
    with open_database(LAST, reset=True) as db:
        for setting in SETTINGS:
            with db.connect() as connection:
                found = connection.execute(f"show {setting.name}").fetchone()[0]
                assert found == setting.value, setting.name
        with db.engine.begin() as connection:
            row = connection.execute(sa.text("select interval '90 min', now()")).one()
            assert (row[0], row[1].utcoffset()) == (timedelta(minutes=90), timedelta(0))
    assert schema == db.schema


def test_what_stands_in_the_url_counts_as_far_as_it_does_no_harm(postgres, schema, monkeypatch):
    options = "-cwork_mem=5MB -csynchronous_commit=remote_apply -cTimeZone=Asia/Tokyo"
    url = make_conninfo(postgres, options=options, client_encoding="LATIN1")
    monkeypatch.setenv("DATABASE_URL", url)
    with open_database(LAST, reset=True) as db, db.connect() as connection:
        for name, value in {
            "work_mem": "5MB",
            "synchronous_commit": "remote_apply",
            "TimeZone": "UTC",
            "client_encoding": "UTF8",
            "search_path": schema,
        }.items():
            assert connection.execute(f"show {name}").fetchone()[0] == value


@pytest.mark.parametrize(
    ("setting", "value"),
    [("session_replication_role", "replica"), ("transaction_timeout", "1min")],
)
def test_a_setting_that_a_connection_cannot_change_is_refused(role, schema, admin, setting, value):
    if not admin.execute("select current_setting(%s, true)", (setting,)).fetchone()[0]:
        pytest.skip(f"this server has no {setting}")
    admin.execute(f"alter role {role} set {setting} = '{value}'")
    assert f"{setting} is {value!r}" in refused()
    assert not exists(admin, schema)


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "EUC_JP"])
def test_a_database_that_cannot_store_every_text_is_refused(
    admin, postgres, schema, monkeypatch, encoding
):
    name = f"test_encoding_{os.getpid()}"
    admin.execute(f"create database {name} encoding '{encoding}' locale 'C' template template0")
    try:
        monkeypatch.setenv("DATABASE_URL", make_conninfo(postgres, dbname=name))
        assert f"server_encoding is '{encoding}'" in refused()
    finally:
        admin.execute(f"drop database {name} with (force)")
    assert not exists(admin, schema)


def exists(admin, schema):
    found = "select from pg_namespace where nspname = %s"
    return admin.execute(found, (schema,)).rowcount == 1


def test_a_role_that_may_make_nothing_is_told_what_it_needs(role, schema, admin):
    admin.execute(f"alter role {role} nosuperuser")
    assert "which rights" in refused()
    assert not exists(admin, schema)


def test_where_the_options_are_dropped_nothing_is_made(postgres, schema, admin, monkeypatch):
    """As a pooler does that has `ignore_startup_parameters = options`."""
    without = session.conninfo(postgres, schema)
    monkeypatch.setattr(session, "conninfo", lambda *_: make_conninfo(without, options=""))
    before = tables(admin, "public")
    assert f"search_path is '$user' and must be '{schema}'" in refused()
    assert tables(admin, "public") == before
    assert not exists(admin, schema)


def tables(admin, schema):
    found = "select relname from pg_class where relnamespace = to_regnamespace(%s) order by 1"
    return admin.execute(found, (schema,)).fetchall()


DEPENDENTS = {
    "view {other}.mine": "create view {other}.mine as select id from {schema}.tasks",
    "materialized view {other}.mine": (
        "create materialized view {other}.mine as select id from {schema}.tasks"
    ),
    "table constraint mine on {other}.notes": (
        "create table {other}.notes"
        " (task bigint constraint mine references {schema}.tasks on delete cascade)"
    ),
    "table {other}.copies": "create table {other}.copies (task {schema}.tasks)",
    "table {other}.heir": "create table {other}.heir () inherits ({schema}.tasks)",
    "function {other}.mine({schema}.tasks)": (
        "create function {other}.mine({schema}.tasks) returns int language sql return 1"
    ),
    "trigger mine on {other}.notes": (
        "create table {other}.notes (id int);"
        " create function {schema}.f() returns trigger language plpgsql as 'begin end';"
        " create trigger mine after insert on {other}.notes for each row"
        " execute function {schema}.f()"
    ),
    "default value for {other}.notes.id": (
        "create sequence {schema}.ids;"
        " create table {other}.notes (id int default nextval('{schema}.ids'))"
    ),
}


@pytest.mark.parametrize("dependent", DEPENDENTS)
def test_what_a_reader_has_made_elsewhere_is_not_dropped(schema, admin, dependent):
    other = f"{schema}_other"
    with open_database(LAST, reset=True) as db:
        pass
    admin.execute(f"create schema {other}")
    try:
        admin.execute(DEPENDENTS[dependent].format(schema=schema, other=other))
        before = tables(admin, other)
        assert dependent.format(schema=schema, other=other) in refused()
        assert tables(admin, other) == before
    finally:
        admin.execute(f"drop schema {other} cascade")
    admin.execute(f"create table {schema}.mine (task {schema}.tasks)")
    admin.execute(f"alter default privileges in schema {schema} grant select on tables to public")
    with open_database(LAST, reset=True):
        assert db.schema == schema


def test_a_worker_whose_first_session_was_ended_keeps_its_tables(schema, admin):
    """Whatever ends it, the lock that it held is gone."""
    with open_database(LAST, reset=True):
        pass
    worker = WorkerProcess(LAST, "w")
    try:
        wait_until(worker.has_started, "the worker has started")
        admin.execute(
            "select pg_terminate_backend(pid) from pg_locks"
            " where locktype = 'advisory' and pid in (select pid from pg_stat_activity"
            " where starts_with(application_name, %s))",
            (f"{schema} {worker.pid}",),
        )
        assert "is in use" in refused()
        assert worker.exit_status is None
    finally:
        assert worker.stop() == 0, worker.output()
    with open_database(LAST, reset=True):
        pass


SECRET = "s3cret"
BAD_URLS = [
    f"postgresql+psycopg://u:{SECRET}@localhost/db",
    f"mysql://u:{SECRET}@localhost/db?ssl=1",
    f"jdbc:postgresql://u:{SECRET}@localhost/db",
    f"postgresql://u:{SECRET}%zz@localhost/db",
    f"postgresql://u:a@{SECRET}@localhost/db",
    f"postgresql://u:a/{SECRET}@localhost/db",
    f"postgresql://u:{SECRET}/b@localhost/db",
    f"postgresql://u:12/{SECRET}@localhost/db",
    f"postgresql://u:{SECRET}@[::1/db",
    f"host=localhost password='{SECRET}",
    f"host=localhost passwort={SECRET}",
    f"u:{SECRET}@localhost",
    f"postgresql://u:{SECRET}@localhost/db\udcff",
]
GOOD_URLS = [  # in themselves; nobody is there
    f"postgresql://u:a?{SECRET}@127.0.0.1:1/db",
    f"postgresql://u:{SECRET}@127.0.0.1:1/db",
    f"host=no.such.host.invalid user=u password={SECRET}",
    f"host=127.0.0.1 port=1 password={SECRET} sslmode=nonsense",
    f"postgresql://u:{SECRET}@{'x' * 80}.invalid/db",
]


@pytest.mark.parametrize("url", BAD_URLS + GOOD_URLS)
def test_a_bad_url_gets_a_sentence_without_the_password(monkeypatch, url):
    monkeypatch.setenv("DATABASE_URL", url)
    story = Lesson(LAST).main.main
    verbs = [(story, []), (story, ["status"])]
    if url in BAD_URLS:  # of the others, psql has a sentence of its own
        verbs.append((cli, ["psql"]))
    for verb, arguments in verbs:
        shown = CliRunner().invoke(verb, arguments, catch_exceptions=False)
        assert shown.exit_code == 1
        assert "DATABASE_URL" in shown.stderr
        assert SECRET not in shown.output


def test_a_program_with_a_bad_url_ends_without_a_traceback():
    for command in (["main.py"], ["-m", "tools", "psql"]):
        process = subprocess.run(
            [sys.executable, *command],
            env=os.environ | {"DATABASE_URL": BAD_URLS[0]},
            cwd=LESSONS.parent if "psql" in command else LAST,
            capture_output=True,
            text=True,
            check=False,
        )
        assert process.returncode == 1
        assert "DATABASE_URL" in process.stderr
        for sign in ("Traceback", SECRET):
            assert sign not in process.stdout + process.stderr, process.stderr


def test_a_password_is_in_no_repr(postgres):
    conninfo = make_conninfo(postgres, password=SECRET)
    assert SECRET not in repr(Database(LAST, "schema", conninfo))


def test_psql_shows_no_password_to_those_who_list_processes(postgres, tmp_path):
    seen = tmp_path / "seen"
    program = tmp_path / "psql"
    program.write_text(
        '#!/bin/sh\n{ echo "$*"; echo "$PGPASSWORD"; cat "$PGSERVICEFILE"; } > ' + f"'{seen}'"
    )
    program.chmod(0o755)
    url = make_conninfo(postgres, password=f"{SECRET} 1", sslpassword=f"{SECRET} 2")
    path = f"{tmp_path}:{os.environ['PATH']}"
    subprocess.run(
        [sys.executable, "-m", "tools", "psql", "01"],
        env=os.environ | {"DATABASE_URL": url, "PATH": path},
        cwd=LESSONS.parent,
        check=True,
    )
    arguments, *rest = seen.read_text().splitlines()
    assert SECRET not in arguments
    assert "search_path=lesson_01_simple_queue" in arguments
    assert rest == [f"{SECRET} 1", "[secrets]", f"sslpassword={SECRET} 2"]


def test_errors_show_no_row_and_no_parameter(schema):
    card = "4111 1111 1111 1111"
    statements = {
        "insert into tasks (name, input, output) values ('pay', to_json(:card), to_json(:card))",
        "insert into tasks (name, input) values (:card, null)",
        "insert into tasks (name, input) values ('pay', cast(:card || '{' as json))",
    }
    with open_database(LAST, reset=True) as db:
        for statement in statements:
            for engine in (db.engine, db.autocommit):
                with engine.connect() as connection, pytest.raises(sa.exc.DBAPIError) as caught:
                    connection.execute(sa.text(statement), {"card": card})
                for text in (str(caught.value), str(caught.value.orig), repr(caught.value.orig)):
                    assert card not in text
    assert schema == db.schema


def listens(path):
    """The file is there a moment earlier than somebody who accepts."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


@pytest.fixture
def pooler(postgres, role):
    """PgBouncer in transaction mode: a function that starts it with more settings; its URL."""
    program = shutil.which("pgbouncer")
    if program is None:
        pytest.skip("pgbouncer is not installed")
    info = conninfo_to_dict(postgres)
    if not str(info["host"]).startswith("/"):
        pytest.skip("made for the embedded server")
    directory = Path(str(info["host"])).stat()
    owner, group = directory.st_uid, directory.st_gid  # who may reach the server's socket
    home = Path(tempfile.mkdtemp(prefix="pooler-"))
    os.chown(home, owner, -1)
    with ExitStack() as stack:

        def start(settings):
            config = home / "pgbouncer.ini"
            config.write_text(
                f"[databases]\npostgres = host={info['host']} port={info['port']} user={role}\n"
                f"[pgbouncer]\nlisten_port = 6432\nunix_socket_dir = {home}\nauth_type = any\n"
                f"pool_mode = transaction\ndefault_pool_size = 6\nmax_client_conn = 200\n{settings}"
            )
            other = {"user": owner, "group": group} if owner != os.geteuid() else {}
            process = stack.enter_context(subprocess.Popen([program, "-q", config], **other))
            stack.callback(process.kill)
            url = f"postgresql://{role}@/postgres?host={home}&port=6432"
            wait_until(lambda: listens(home / ".s.PGSQL.6432"), "the pooler listens")
            return url

        yield start
    shutil.rmtree(home)


def test_a_pooler_that_refuses_the_options(pooler, schema, admin, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", pooler(""))
    assert session.POOLERS in refused()
    assert not exists(admin, schema)


def test_a_pooler_that_drops_the_options(pooler, schema, admin, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", pooler("ignore_startup_parameters = options"))
    before = tables(admin, "public")
    assert f"and must be '{schema}'" in refused()
    assert tables(admin, "public") == before
    assert not exists(admin, schema)


@pytest.fixture
def pooled_schema(pooler, role, schema, admin, monkeypatch):
    """Everything goes through the pooler, and the server is set up for it."""
    monkeypatch.setenv("DATABASE_URL", pooler(""))
    monkeypatch.setenv("LESSON_POOLER", "transaction")
    assert f"and must be '{schema}'" in refused(), "the server is not set up for it yet"
    assert not exists(admin, schema)
    admin.execute(f"alter role {role} set search_path = {schema}")
    admin.execute(f"alter role {role} set timezone = 'Etc/UTC'")
    admin.execute(f"alter role {role} set idle_session_timeout = 0")
    admin.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where usename = %s", (role,)
    )
    return schema


def test_many_clients_behind_a_pooler(pooled_schema, role, admin):
    with open_database(LAST, reset=True) as db:
        workers = [WorkerProcess(LAST, f"w{n}", "--slots", "15") for n in range(4)]
        try:
            with db.autocommit.connect() as connection:
                connection.execute(
                    sa.text(
                        "insert into tasks (name, input)"
                        " select 'hopeless', 'null' from generate_series(1, 300)"
                    )
                )
            done = f"select from {pooled_schema}.tasks where status = 'failed'"
            wait_until(lambda: admin.execute(done).rowcount == 300, "all have ended", 60)
            sessions = "select from pg_stat_activity where usename = %s"
            assert admin.execute(sessions, (role,)).rowcount <= 6
        finally:
            for worker in workers:
                assert worker.stop() == 0, worker.output()
    assert "drop them" in refused(), "who uses them cannot be seen"
    assert admin.execute(done).rowcount == 300


def test_a_worker_behind_a_pooler_knows_that_it_hears_nothing(pooled_schema, caplog):
    """LISTEN succeeds there, and nothing comes: so it goes on polling."""
    assert pooled_schema
    with open_database(LAST, reset=True) as db:
        lesson = Lesson(LAST)
        timing = lesson.timing.Timing(seldom=600, probe=0.1)
        worker = lesson.worker.Worker(db, "w", slots=2, timing=timing)
        with working(worker):
            wait_until(lambda: "nothing comes through" in caplog.text, "it knows")
            assert not worker._listener.hears
            with db.autocommit.connect() as connection:
                id = lesson.tasks.enqueue(connection, "nothing", None)
            wait_for_status(db, id, "succeeded")
            assert lesson.listen.wait_for_result(db, id, timedelta(seconds=9)) is None


def test_the_pooler_has_one_mode(monkeypatch):
    monkeypatch.setenv("LESSON_POOLER", "session")
    assert "LESSON_POOLER is 'session'" in refused()


@pytest.fixture
def standby(own_server, monkeypatch):
    """A server that can be read from until it is promoted, as after the loss of its primary."""
    with open_database(LAST, reset=True):
        pass
    start_as_standby(own_server, monkeypatch)
    return own_server


def start_as_standby(own, monkeypatch):
    own.stop()
    marker = own.data / "standby.signal"
    marker.touch()
    os.chown(marker, own.user, own.group)
    monkeypatch.setattr(own, "answers", lambda: answers(own.url))
    own.start()


def promote(own):
    with psycopg.connect(own.url, autocommit=True) as connection:
        connection.execute("select pg_promote()")


def answers(url):
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        return False
    return True


def test_a_worker_that_starts_during_a_failover_waits_for_a_primary(standby):
    worker = WorkerProcess(LAST, "w")
    try:
        wait_until(lambda: "waiting for a primary" in worker.output(), "it says that it waits")
        assert worker.exit_status is None
        promote(standby)
        wait_until(worker.has_started, "it works")
        assert worker.exit_status is None, worker.output()
    finally:
        assert worker.stop() == 0, worker.output()
    assert worker.output().count("waiting for a primary") == 1


@pytest.mark.parametrize("options", [{}, {"target_session_attrs": "read-write"}])
def test_nobody_waits_for_a_primary_for_ever(standby, options):
    url = make_conninfo(standby.url, **options)
    with environment(DATABASE_URL=url, TEST_PATIENCE="0.05"):
        assert "after 1.5 s there is still no primary" in refused(reset=False)


@pytest.mark.parametrize("there_is", ["no server", "only a standby"])
def test_timers_that_come_due_while_nobody_can_write(own_server, monkeypatch, caplog, there_is):
    lesson = Lesson(find("09"))
    program(lesson, lambda ctx, seconds: ctx.sleep(timedelta(seconds=seconds)))
    with (
        open_database(lesson.path, reset=True) as db,
        working(lesson.worker.Worker(db, "w", slots=2)),
    ):
        ids = [enqueue(lesson, db, "program", 3600) for _ in range(3)]
        for id in ids:
            wait_for_status(db, id, "waiting")
        # The last one may come due when the server is there again.
        execute(db, "update event_log set due_at = clock_timestamp() + task_id * interval '1 s'")
        due = [log_of(db, id)[0].due_at for id in ids]
        if there_is == "no server":
            own_server.stop(signal.SIGQUIT)
        else:
            start_as_standby(own_server, monkeypatch)
        wait_until(lambda: datetime.now(UTC) > due[1], "two are due")
        if there_is == "no server":
            own_server.start()
        else:
            wait_until(lambda: "read-only" in caplog.text, "the worker is refused")
            assert [task_row(db, id).status for id in ids] == 3 * ["waiting"]
            promote(own_server)
        for id, moment in zip(ids, due, strict=True):
            assert wait_for_status(db, id, "succeeded").started_at >= moment
            assert log_of(db, id)[0].due_at == moment
