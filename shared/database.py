"""A lesson's database: where its tables are, and connections to them."""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import psycopg
import sqlalchemy as sa
from psycopg.types.json import set_json_loads
from sqlalchemy.event import listen

from shared import session
from shared.generated import stale
from shared.postgres import PostgresUnavailable, server
from shared.processes import stop_with_parent
from shared.session import LessonError as LessonError  # for those who open a database
from shared.tables import prepare


@dataclass(frozen=True)
class Database:
    """Where a lesson's tables are. Every connection made here sees them without a prefix."""

    lesson: Path
    schema: str
    conninfo: str = field(repr=False)  # there may be a password in it

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
        engine = sa.create_engine(
            "postgresql+psycopg://",
            creator=self.connect,
            pool_size=0,  # as many connections as are asked for
            pool_pre_ping=True,
            isolation_level=isolation_level,
            hide_parameters=True,
        )
        listen(engine, "handle_error", _without_rows)
        return engine

    def connect(self, **options: Any) -> psycopg.Connection[Any]:
        """A plain psycopg connection, outside the pool."""
        if session.pooled():  # the next statement may come to a server that has not prepared it
            options = {"prepare_threshold": None, **options}
        connection: psycopg.Connection[Any] = psycopg.connect(self.conninfo, **options)
        set_json_loads(json.loads, connection)  # whatever a program has set for all of its own
        return connection


def _without_rows(context: sa.engine.ExceptionContext) -> None:
    """Errors end up in logs and in tables, and their DETAIL and CONTEXT have data of rows in them.

    The message and the hint stay; so does everything in `error.orig.diag`.
    """
    error, wrapper = context.original_exception, context.sqlalchemy_exception
    if isinstance(error, psycopg.Error) and (primary := error.diag.message_primary):
        hint = error.diag.message_hint
        error.args = (f"{primary}\nHINT:  {hint}" if hint else primary,)
        if wrapper is not None:
            wrapper.args = (f"({type(error).__module__}.{type(error).__name__}) {error}",)


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
    db = Database(lesson, schema, session.conninfo(url, schema))
    keeper = session.connect(db.conninfo)
    with keeper:  # its lock says "this lesson is in use" until the process ends, however it ends
        session.check(keeper, schema)
        prepare(keeper, lesson, schema, reset=reset)
        if session.pooled():
            keeper.close()  # it has no lock, and is one connection less
        try:
            yield db
        finally:
            for name in {"engine", "autocommit"} & vars(db).keys():
                getattr(db, name).dispose()
