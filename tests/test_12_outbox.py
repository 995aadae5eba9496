"""Lesson 12: enqueue() in SQL, for psql, triggers, and programs in other languages."""

from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from shared.processes import within, working
from shared.testing import task_row, wait_for_status
from tests.helpers import count, enqueue, execute, rests, submitted


def sql_enqueue(db, arguments="'nothing', 'null'"):
    """Its id. The arguments as SQL."""
    return execute(db, f"select enqueue({arguments})")[0][0]


def columns(db, id):
    """What is the same in two tasks that were enqueued alike."""
    row = vars(task_row(db, id))
    for own in ("id", "log_id", "created_at", "idempotency_key"):
        del row[own]
    row["run_at"] = row["run_at"] is not None
    return row


# What it does


def test_it_is_the_row_that_python_would_have_made(lesson, db):
    by_sql = sql_enqueue(db, """'divide', '[6, 3]'""")
    assert columns(db, by_sql) == columns(db, enqueue(lesson, db, "divide", [6, 3]))
    by_sql = sql_enqueue(
        db,
        "'divide', '[6, 3]', queue => 'q', priority => -7, max_attempts => 3,"
        " timeout => '5 s', delay => '1 h', idempotency_key => 'by sql'",
    )
    minutes = lesson.tasks.timedelta(minutes=1)
    options = {"queue": "q", "priority": -7, "max_attempts": 3, "timeout": minutes / 12}
    by_python = enqueue(
        lesson, db, "divide", [6, 3], delay=60 * minutes, idempotency_key="by python", **options
    )
    assert columns(db, by_sql) == columns(db, by_python)


def test_a_worker_runs_it(lesson, db):
    with working(lesson.worker.Worker(db, "w", slots=1)):
        id = sql_enqueue(db, "'divide', '[6, 3]'")
        assert wait_for_status(db, id, "succeeded").output == 2


def test_a_worker_that_rests_is_told(lesson, db):
    worker = lesson.worker.Worker(db, "w", slots=1, timing=lesson.timing.Timing(seldom=3600))
    with working(worker):
        rests(db, worker)
        id = sql_enqueue(db)
        wait_for_status(db, id, "succeeded")


def test_the_input_is_kept_as_it_was_written(db):
    id = sql_enqueue(db, """'nothing', '{"b": 1e300,  "a": "\\u00e4"}'""")
    ((text,),) = execute(db, "select cast(input as text) from tasks where id = %s", id)
    assert text == '{"b": 1e300,  "a": "\\u00e4"}'


def test_it_belongs_to_the_callers_transaction(db):
    with db.connect() as connection:
        connection.execute("select enqueue('nothing', 'null')")
        connection.rollback()
        assert count(db, "queued") == 0
        connection.execute("select enqueue('nothing', 'null')")
        assert count(db, "queued") == 0
        connection.commit()
    assert count(db, "queued") == 1


def test_a_trigger_calls_it(db):
    execute(db, "create table parcels (id int primary key)")
    execute(
        db,
        "create function ship() returns trigger language plpgsql as $$ begin"
        " perform enqueue('ship', to_json(new)); return null; end $$",
    )
    execute(db, "create trigger ship after insert on parcels for each row execute function ship()")
    with db.connect() as connection:
        connection.execute("insert into parcels values (1)")
        connection.rollback()
        connection.execute("insert into parcels values (2), (3)")
        connection.commit()
    found = execute(db, "select name, input from tasks order by id")
    assert found == [("ship", {"id": 2}), ("ship", {"id": 3})]


@pytest.mark.until(13, why="the shop is the story of this lesson")
def test_an_order_and_its_task_are_there_together(db):
    execute(db, "insert into accounts values ('ada', 100)")
    insert = "insert into orders (buyer, amount) values ('ada', 30) returning id"
    with db.connect() as connection:
        connection.execute(insert)
        connection.rollback()
        assert count(db, "queued") == 0
        (order,) = connection.execute(insert).fetchone()
        connection.commit()
    wanted = {"id": order, "buyer": "ada", "amount": 30, "paid": False}
    assert execute(db, "select name, input from tasks") == [("fulfil_order", wanted)]


# Keys


def test_a_key_is_one_task(db):
    keyed = "'nothing', '{\"a\": 1, \"b\": 2}', idempotency_key => 'k'"
    first = sql_enqueue(db, keyed)
    assert sql_enqueue(db, keyed) == first
    assert sql_enqueue(db, "'nothing', '{\"b\": 2, \"a\": 1}', idempotency_key => 'k'") == first
    assert sql_enqueue(db, keyed.replace("nothing", "other")) != first
    assert count(db, "queued") == 2


def test_it_is_one_task_for_python_and_sql_alike(lesson, db):
    id = enqueue(lesson, db, "divide", [6, 3], idempotency_key="k")
    assert sql_enqueue(db, "'divide', '[6, 3]', idempotency_key => 'k'") == id


def test_a_key_that_was_used_for_another_input(db):
    sql_enqueue(db, "'nothing', '1', idempotency_key => 'k'")
    with pytest.raises(psycopg.errors.UniqueViolation) as refused:
        sql_enqueue(db, "'nothing', '2', idempotency_key => 'k'")
    assert str(refused.value.diag.message_primary).startswith(
        "the key 'k' was used for another input: task "
    )


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_two_transactions_use_a_key_at_once(db, ends):
    keyed = "'nothing', '1', idempotency_key => 'k'"
    with db.connect() as first, ThreadPoolExecutor(1) as thread:
        (id,) = first.execute(f"select enqueue({keyed})").fetchone()
        second = submitted(db, thread, lambda: sql_enqueue(db, keyed))
        assert not second.done()
        getattr(first, ends)()
        assert (second.result(timeout=within(20)) == id) == (ends == "commit")
    assert count(db, "queued") == 1


# The door


NAME = "a task is named with 1 to 100 letters, digits and _"
QUEUE = "a queue is named with 1 to 100 letters, digits, _ . -"
KEY = "an idempotency key is 1 to 200 printable ASCII characters"
DELAY = "delay is an interval from 0 to 3,650 days"
TIMEOUT = "timeout is an interval from 0 to 3,650 days"
ATTEMPTS = "max_attempts is a whole number from 1"
DEEP = "lists and objects are nested more than 200 deep"
GREAT = "a number is greater than 1e308"
POISON = {  # arguments; SQLSTATE, and how the message begins
    "name: NULL": ("null, 'null'", "22023", f"{NAME}, not NULL"),
    "name: empty": ("'', 'null'", "22023", f"{NAME}, not ''"),
    "name: SQL": ("'drop table x', 'null'", "22023", f"{NAME}, not 'drop table x'"),
    "name: a digit first": ("'1a', 'null'", "22023", NAME),
    "name: a line break": ("E'a\\n', 'null'", "22023", NAME),
    "name: long": ("repeat('x', 101), 'null'", "22023", NAME),
    "queue: NULL": ("'x', 'null', queue => null", "22023", f"{QUEUE}, not NULL"),
    "queue: empty": ("'x', 'null', queue => ''", "22023", QUEUE),
    "queue: a space": ("'x', 'null', queue => 'a b'", "22023", f"{QUEUE}, not 'a b'"),
    "queue: long": ("'x', 'null', queue => repeat('x', 101)", "22023", QUEUE),
    "priority: NULL": ("'x', 'null', priority => null", "22023", "priority is a whole number"),
    "priority: great": ("'x', 'null', priority => 3000000000", "42883", "function enqueue"),
    "attempts: NULL": ("'x', 'null', max_attempts => null", "22023", ATTEMPTS),
    "attempts: 0": ("'x', 'null', max_attempts => 0", "22023", f"{ATTEMPTS}, not '0'"),
    "timeout: negative": ("'x', 'null', timeout => '-1 s'", "22023", TIMEOUT),
    "timeout: long": ("'x', 'null', timeout => '3651 days'", "22023", TIMEOUT),
    "delay: negative": ("'x', 'null', delay => '-1 s'", "22023", f"{DELAY}, not '-00:00:01'"),
    "delay: long": ("'x', 'null', delay => '1000 years'", "22023", DELAY),
    "key: empty": ("'x', 'null', idempotency_key => ''", "22023", KEY),
    "key: long": ("'x', 'null', idempotency_key => repeat('k', 201)", "22023", KEY),
    "key: not ASCII": ("'x', 'null', idempotency_key => 'ä'", "22023", KEY),
    "key: a tab": ("'x', 'null', idempotency_key => E'a\\t'", "22023", KEY),
    "input: NULL": ("'x', null", "22023", "the input is JSON, not NULL"),
    "input: no JSON": ("'x', 'yes'", "22P02", "invalid input syntax for type json"),
    "input: NaN": ("'x', 'NaN'", "22P02", "invalid input syntax for type json"),
    "input: NUL": ("""'x', '"\\u0000"'""", "22P05", "unsupported Unicode escape sequence"),
    "input: half a surrogate": ("""'x', '"\\ud800"'""", "22P02", "invalid input syntax"),
    "input: large": ("'x', to_json(repeat('x', 999999))", "22023", "1000001 bytes of JSON, and"),
    "input: deep": ("'x', cast(repeat('[', 201) || repeat(']', 201) as json)", "22023", DEEP),
    "input: deep objects": (
        """'x', cast(repeat('{"a":[', 101) || repeat(']}', 101) as json)""",
        "22023",
        DEEP,
    ),
    "input: very deep": ("'x', cast(repeat('[', 400000) as json)", "54001", "stack depth limit"),
    "input: an infinity": ("'x', '[1e309]'", "22023", GREAT),
    "input: less than that": ("""'x', '{"a": [-1e309]}'""", "22023", GREAT),
    "input: 5,000 digits": ("'x', cast(repeat('9', 5000) as json)", "22023", GREAT),
}


def test_what_no_worker_could_run_is_refused_at_the_door(db):
    for poison, (arguments, sqlstate, message) in POISON.items():
        try:
            sql_enqueue(db, arguments)
            answer = "let in"
        except psycopg.Error as refused:
            answer = f"{refused.sqlstate} {refused.diag.message_primary}"
        assert answer.startswith(f"{sqlstate} {message}"), poison
    assert count(db, "queued", "waiting") == 0


LIMITS = {
    "name": ("repeat('x', 100), 'null'", None),
    "queue": ("'x', 'null', queue => repeat('-', 100)", None),
    "key": ("'x', 'null', idempotency_key => repeat('~', 200)", None),
    "durations": ("'x', 'null', delay => '3650 days', timeout => '0 s'", None),
    "priority": ("'x', 'null', priority => 2147483647", None),
    "size": ("'x', to_json(repeat('x', 999998))", "x" * 999998),
    "depth": (
        "'x', cast(repeat('[', 200) || repeat(']', 200) as json)",
        lambda value: str(value) == "[" * 200 + "]" * 200,
    ),
    "numbers": ("'x', '[1e308, -1e308, 1e-400]'", [1e308, -1e308, 0.0]),
    "brackets in a string": ("'x', to_json(repeat('[', 1000))", "[" * 1000),
}


def test_what_is_just_within_the_limits_can_be_read(db):
    for limit, (arguments, input) in LIMITS.items():
        found = task_row(db, sql_enqueue(db, arguments)).input
        assert input(found) if callable(input) else found == input, limit


# Whose names it uses: it has the rights of the tables' owner


@pytest.fixture
def hostile(db):
    """A schema of a stranger's, with what the function could take for something else."""
    name = f"test_hostile_{uuid4().hex[:8]}"
    execute(db, f"create schema {name}")
    try:
        yield name
    finally:
        execute(db, f"drop schema {name} cascade")


def test_a_temporary_table_captures_nothing(db):
    with db.connect(autocommit=True) as connection:
        own = sql.Identifier(db.schema)
        connection.execute("create temporary table tasks (like tasks including all)")
        connection.execute(sql.SQL("set search_path = pg_temp, {}").format(own))
        call = sql.SQL("select {}.enqueue('x', 'null', idempotency_key => 'k')").format(own)
        assert connection.execute(call).fetchone() == connection.execute(call).fetchone()
        assert connection.execute("select count(*) from pg_temp.tasks").fetchone() == (0,)
    assert count(db, "queued") == 1


def test_nor_does_a_function_of_a_schema_that_comes_first(db, hostile):
    """Not even at the commit, when the trigger is fired that tells the workers."""
    with db.connect() as connection:
        for function in ("hashtext(text)", "left(text, int)", "clock_timestamp()"):
            connection.execute(
                f"create function {hostile}.{function} returns text language plpgsql as"
                " $$ begin raise exception 'captured'; end $$"
            )
        connection.execute(
            f"create function {hostile}.pg_notify(text, text) returns void language plpgsql as"
            " $$ begin raise exception 'captured'; end $$"
        )
        connection.execute(f"create table {hostile}.tasks (like {db.schema}.tasks including all)")
        connection.execute(f"set search_path = {hostile}, pg_catalog")
        connection.execute(f"select {db.schema}.enqueue('x', 'null')")
        connection.commit()
    assert count(db, "queued") == 1
