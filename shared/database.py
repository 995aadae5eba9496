"""A lesson's own database schema on the server, made from the lesson's schema.sql."""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, LiteralString, cast

import click
import psycopg
import sqlalchemy as sa
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from shared.generated import stale
from shared.postgres import PostgresUnavailable, server
from shared.processes import stop_with_parent

MARK = "durable-execution-the-hard-way"


class LessonError(click.ClickException):
    """A lesson cannot start. The message says why and what to do; no traceback is shown."""


@dataclass(frozen=True)
class Database:
    """Where a lesson's tables are. Every connection made here sees them without a prefix."""

    lesson: Path
    schema: str
    conninfo: str

    @cached_property
    def engine(self) -> sa.Engine:
        """Statements share a transaction: `with db.engine.begin() as connection`.

        READ COMMITTED, whatever the server's default is: each statement sees what was committed
        when it began.
        """
        return self._engine("READ COMMITTED")

    @cached_property
    def autocommit(self) -> sa.Engine:
        """Every statement is a transaction of its own.

        Not `self.engine.execution_options(isolation_level=...)`: a connection of that one which
        breaks and is made again, inside a `with`, would come back without AUTOCOMMIT.
        """
        return self._engine("AUTOCOMMIT")

    def _engine(self, isolation_level: Literal["READ COMMITTED", "AUTOCOMMIT"]) -> sa.Engine:
        return sa.create_engine(
            "postgresql+psycopg://",
            creator=self.connect,
            pool_size=0,  # as many connections as are asked for
            pool_pre_ping=True,
            isolation_level=isolation_level,
        )

    def connect(self, **options: Any) -> psycopg.Connection[Any]:
        """A plain psycopg connection, outside the pool."""
        return psycopg.connect(self.conninfo, **options)


def schema_name(lesson: Path) -> str:
    """`lessons/01_simple_queue` -> `lesson_01_simple_queue`, `work/01_mine` -> `work_01_mine`."""
    parent = "lesson" if lesson.parent.name == "lessons" else lesson.parent.name
    name = re.sub(r"[^a-z0-9]+", "_", f"{parent}_{lesson.name}".lower()).strip("_")
    if len(name) <= 50:
        return name
    # Postgres cuts names at 63 bytes without an error, and two long names would become one.
    return f"{name[:40]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


@contextmanager
def open_database(lesson: Path, *, reset: bool = False) -> Iterator[Database]:
    """Start or join the server and open the lesson's schema.

    reset: drop the schema and make it again from schema.sql, so that an edited schema.sql always
    works. Without it, the schema is made only if it is not there.
    Raises LessonError if the server, the schema or the generated code cannot be used.
    """
    stop_with_parent()
    if problem := stale(lesson):
        raise LessonError(problem)
    try:
        with server() as url:
            yield from _open(url, lesson, reset)
    except PostgresUnavailable as error:
        raise LessonError(str(error)) from None


def _open(url: str, lesson: Path, reset: bool) -> Iterator[Database]:
    schema = os.environ.get("LESSON_SCHEMA") or schema_name(lesson)
    given = str(conninfo_to_dict(url).get("options") or "")
    conninfo = make_conninfo(
        url,
        options=f"{given} -csearch_path={schema}".strip(),
        application_name=f"{schema} {os.getpid()}",
        connect_timeout=10,
    )
    db = Database(lesson, schema, conninfo)
    try:
        keeper = db.connect(autocommit=True)
    except psycopg.Error as error:
        raise LessonError(f"cannot connect to DATABASE_URL: {error}") from None
    with keeper:  # its lock says "this lesson is in use" until the process ends, however it ends
        _prepare(keeper, db, reset)
        try:
            yield db
        finally:
            for name in {"engine", "autocommit"} & vars(db).keys():
                getattr(db, name).dispose()


def _prepare(keeper: psycopg.Connection[Any], db: Database, reset: bool) -> None:
    """Users of the schema hold a shared lock on its name; whoever makes it, an exclusive one."""
    name = (db.schema,)
    lock = "select pg_{}(hashtextextended(%s, 0))"
    if reset:
        keeper.execute("set lock_timeout = '3s'")  # a process that has just ended may hold it still
        try:
            keeper.execute(lock.format("advisory_lock"), name)
        except psycopg.errors.LockNotAvailable:
            raise LessonError(
                f"{db.schema} is in use: a story or a worker of this lesson is still running. "
                "Stop it (Ctrl-C in its terminal) and try again."
            ) from None
        _make(keeper, db)
    else:
        keeper.execute(lock.format("advisory_lock_shared"), name)
        if _mark(keeper, db) is None:
            keeper.execute(lock.format("advisory_unlock_shared"), name)
            keeper.execute(lock.format("advisory_lock"), name)
            if _mark(keeper, db) is None:
                _make(keeper, db)
            reset = True
        if _mark(keeper, db) != _expected_mark(db):
            raise LessonError(
                "schema.sql has changed since the tables were made. "
                "`python main.py` drops them and makes them again."
            )
    if reset:  # from the exclusive lock to the shared one, without a gap
        keeper.execute(lock.format("advisory_lock_shared"), name)
        keeper.execute(lock.format("advisory_unlock"), name)


def _mark(keeper: psycopg.Connection[Any], db: Database) -> str | None:
    """The schema's comment; None if there is no such schema."""
    row = keeper.execute(
        "select coalesce(obj_description(oid, 'pg_namespace'), '')"
        " from pg_namespace where nspname = %s",
        (db.schema,),
    ).fetchone()
    return None if row is None else str(row[0])


def _expected_mark(db: Database) -> str:
    return f"{MARK} {hashlib.sha256((db.lesson / 'schema.sql').read_bytes()).hexdigest()[:16]}"


def _make(keeper: psycopg.Connection[Any], db: Database) -> None:
    """Drop and make the schema in one transaction: a mistake in schema.sql leaves the old one."""
    mark = _mark(keeper, db)
    if mark is not None and not mark.startswith(MARK):
        raise LessonError(
            f"the database has a schema {db.schema} that this course did not make. "
            "Rename the lesson's directory or use another DATABASE_URL."
        )
    path, schema = db.lesson / "schema.sql", sql.Identifier(db.schema)
    try:
        with keeper.transaction():
            keeper.execute("set local client_min_messages = warning")
            keeper.execute(sql.SQL("drop schema if exists {} cascade").format(schema))
            keeper.execute(sql.SQL("create schema {}").format(schema))
            keeper.execute(cast(LiteralString, path.read_text()))
            keeper.execute(
                sql.SQL("comment on schema {} is {}").format(
                    schema, sql.Literal(_expected_mark(db))
                )
            )
    except psycopg.errors.LockNotAvailable:
        raise LessonError(
            f"somebody has locked tables of {db.schema}: a psql with an open transaction? "
            "End it (`rollback;` or `\\q`) and try again."
        ) from None
    except psycopg.Error as error:
        raise LessonError(f"{path.name}: {error}") from None
