"""The tests' fixtures, as a pytest plugin. A test that asks for `lesson` runs on several lessons.

tests/test_01_enqueue.py holds for lesson 01 and for every later one, up to the lesson that a
`@pytest.mark.until(3, why="...")` names. It runs on the first and on the last of these; with
--everywhere, on all of them. LESSON=01 or LESSON=work/01_mine tests that lesson alone.
A test in a lesson's exercises/ runs on the lesson in which it is.
"""

import importlib
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from select import select
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from psycopg import sql

from shared.database import Database, open_database, schema_name
from shared.lessons import BUILD, LESSONS, NoSuchLesson, find, lessons, number
from shared.postgres import PostgresUnavailable, server
from shared.processes import wait_until
from shared.processes import working as working  # for the tests
from shared.tables import MARK


class Lesson:
    """One lesson's modules, freshly loaded: `lesson.worker.Worker`, `lesson.queries.Querier`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.number = number(path)
        self._modules = load(path)

    def __getattr__(self, module: str) -> Any:
        found = getattr(self._modules, module)
        if isinstance(found, Exception):
            raise found
        return found


def load(path: Path) -> SimpleNamespace:
    """Import one lesson's modules. Every lesson has a `worker`, so the names are freed again.

    In a lesson that is being built, a module that cannot be imported yet fails who asks for it.
    """
    names = {file.stem for file in path.glob("*.py")}
    modules: dict[str, Any] = {}
    sys.path.insert(0, str(path))
    importlib.invalidate_caches()
    try:
        for name, module in [*((name, name) for name in sorted(names)), ("queries", "db.queries")]:
            try:
                modules[name] = importlib.import_module(module)
            except Exception as error:
                if not (path / BUILD).exists():
                    raise
                modules[name] = error
        return SimpleNamespace(**modules)
    finally:
        sys.path.remove(str(path))
        for name in [name for name in sys.modules if name.partition(".")[0] in {*names, "db"}]:
            del sys.modules[name]


def lessons_for(test_file: Path, until: int, everywhere: bool) -> list[Path]:
    """The lessons on which a test of this file runs; none, if it is of a lesson after the last."""
    if test_file.parents[1].name == "exercises":
        if test_file.is_relative_to(LESSONS):
            pytest.skip(
                "an exercise is solved in a copy: make work LESSON=01, and test that",
                allow_module_level=True,
            )
        return [test_file.parents[2]]
    chosen = os.environ.get("LESSON")
    try:
        known = [find(chosen)] if chosen else lessons()
    except NoSuchLesson as error:
        raise pytest.UsageError(f"LESSON={error}") from None
    of_file = re.match(r"test_(\d\d)_", test_file.name)
    first = int(of_file[1]) if of_file else 0
    paths = [path for path in known if first <= number(path) < until]
    return paths if everywhere or len(paths) < 3 else [paths[0], paths[-1]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--everywhere",
        action="store_true",
        help="run each test on every lesson for which it holds, not on the first and the last only",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "until(lesson, why): that lesson replaces this behaviour")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "lesson" not in metafunc.fixturenames:
        return
    until = metafunc.definition.get_closest_marker("until")
    everywhere = bool(metafunc.config.getoption("everywhere"))
    paths = lessons_for(metafunc.definition.path, until.args[0] if until else 100, everywhere)
    metafunc.parametrize("lesson", paths, ids=[path.name for path in paths], indirect=True)


@pytest.fixture
def lesson(request: pytest.FixtureRequest) -> Lesson:
    return Lesson(request.param)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """One server for all tests. Schemas that a killed test run left behind are dropped."""
    try:
        with server() as url:
            drop_test_schemas(url)
            yield url
            drop_test_schemas(url)
    except (PostgresUnavailable, psycopg.OperationalError) as error:
        pytest.fail(str(error), pytrace=False)  # a traceback would show the URL


def drop_test_schemas(url: str) -> None:
    """Drop the tests' schemas, but not those that another run has in use."""
    with psycopg.connect(url, autocommit=True) as connection:
        for (name,) in connection.execute(
            "select nspname from pg_namespace where nspname like 'test\\_%%'"
            " and obj_description(oid, 'pg_namespace') like %s"
            " and pg_try_advisory_lock(hashtextextended(nspname, 0))",
            (f"{MARK}%",),
        ).fetchall():
            drop = sql.SQL("drop schema if exists {} cascade").format(sql.Identifier(name))
            connection.execute(drop)


@pytest.fixture
def db(
    lesson: Lesson,
    postgres: str,  # noqa: ARG001  held for the whole session
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Database]:
    """Fresh tables of the lesson, in a schema that is this test run's own."""
    monkeypatch.setenv("LESSON_SCHEMA", f"test_{os.getpid()}_{schema_name(lesson.path)}"[:60])
    monkeypatch.setenv("LESSON_OUTSIDE", str(tmp_path / "outside.log"))
    with open_database(lesson.path, reset=True) as database:
        yield database
    while _kept:
        _kept.popitem()[1].close()


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Environment variables, for as long as the context lasts."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def scratch_database(lesson: Path, name: str) -> Iterator[Database]:
    """Fresh tables and an outside.log of its own: a story of the lesson may be running.

    Both are gone at the end.
    """
    schema = f"test_{os.getpid()}_{name}_{lesson.name}"[:60]
    with (
        tempfile.TemporaryDirectory() as home,
        environment(LESSON_SCHEMA=schema, LESSON_OUTSIDE=f"{home}/outside.log"),
        open_database(lesson, reset=True) as db,
    ):
        try:
            yield db
        finally:
            with db.connect(autocommit=True) as connection:
                connection.execute(sql.SQL("drop schema {} cascade").format(sql.Identifier(schema)))


_kept: dict[tuple[str, ...], psycopg.Connection[Any]] = {}


@contextmanager
def kept(db: Database, **name: str) -> Iterator[psycopg.Connection[Any]]:
    """The test's own connection, in AUTOCOMMIT: a new one costs more than most of its questions.

    Another thread gets one for itself: a statement of this one may wait for it.
    """
    options: dict[str, Any] = {**name, "autocommit": True, "prepare_threshold": None}
    if threading.current_thread() is not threading.main_thread():
        with db.connect(**options) as connection:
            yield connection
        return
    key = (db.conninfo, *name.values())
    connection = _kept.get(key)
    # It says something, and was not asked: that it was cut.
    if connection is None or connection.closed or select([connection], [], [], 0)[0]:
        connection = _kept[key] = db.connect(**options)
    yield connection


def task_row(db: Database, id: int) -> SimpleNamespace:
    """A row of `tasks`, all columns, as it is now."""
    # Under another name, so that a test that cuts the worker's connections does not cut this one.
    with kept(db, application_name="the test looks on") as connection:
        cursor = connection.execute("select * from tasks where id = %s", (id,))
        row = cursor.fetchone()
        assert row is not None
        assert cursor.description is not None
        return SimpleNamespace(**dict(zip((c.name for c in cursor.description), row, strict=True)))


def waiting_for_a_lock(db: Database) -> int:
    """How many connections of this process wait for a lock."""
    with kept(db) as connection:
        found = connection.execute(
            "select from pg_stat_activity where wait_event_type = 'Lock'"
            " and application_name = current_setting('application_name')"
        )
        return found.rowcount


def wait_for_status(db: Database, id: int, *statuses: str, seconds: float = 20) -> SimpleNamespace:
    """The row of the task once it has one of the statuses; TimeoutError as of `wait_until`."""
    what = f"task {id} is {' or '.join(statuses)}"
    wait_until(lambda: task_row(db, id).status in statuses, what, seconds)
    return task_row(db, id)
