"""A lesson's own schema: made from the lesson's SQL, and not dropped while it is in use."""

import hashlib
from pathlib import Path
from typing import Any, LiteralString, cast

import psycopg
from psycopg import sql

from shared.processes import wait_until, within
from shared.session import LessonError, pooled

MARK = "durable-execution-the-hard-way"
SQL = ("schema.sql", "app.sql")  # the engine's tables; those of the story, if it has any
LOCK = "select pg_{}(hashtextextended(%s, 0))"

# What `drop schema ... cascade` would drop and is not in the schema. An object goes when one that
# it depends on goes; and when a part of it does, as the rule that makes a view of a table. Of the
# parts, only the whole is named.
DEPENDENTS = """
with recursive doomed (class, id) as (
    select cast(cast('pg_namespace' as regclass) as oid), oid
    from pg_namespace where nspname = %(schema)s
  union
    select next.class, next.id
    from doomed cross join lateral (
        select classid, objid from pg_depend
        where refclassid = doomed.class and refobjid = doomed.id
      union all
        select refclassid, refobjid from pg_depend
        where classid = doomed.class and objid = doomed.id and deptype = 'i'
    ) as next (class, id)
)
select object.type || ' ' || object.identity
from doomed
cross join lateral pg_identify_object(class, id, 0) as object
cross join lateral pg_identify_object_as_address(class, id, 0) as address
where class not in ('pg_namespace'::regclass, 'pg_default_acl'::regclass)
  and coalesce(object.schema, object_names[1]) not in (%(schema)s, 'pg_toast')
  and not exists (
      select from pg_depend where classid = class and objid = id and deptype = 'i'
  )
order by 1
"""


def prepare(keeper: psycopg.Connection[Any], lesson: Path, schema: str, *, reset: bool) -> None:
    """Make the schema if it is not there; with reset, drop it before. Raises LessonError.

    Users of the schema hold a shared lock on its name; whoever makes it, an exclusive one.
    """
    name = (schema,)
    if pooled():
        _prepare_by_a_pooler(keeper, lesson, schema, reset)
    elif reset:
        in_use = LessonError(
            f"{schema} is in use: a story or a worker of this lesson is still running. "
            "Stop it (Ctrl-C in its terminal) and try again."
        )
        # A process that has just ended may hold it still.
        keeper.execute("select set_config('lock_timeout', %s, false)", (f"{within(3):g}s",))
        try:
            keeper.execute(LOCK.format("advisory_lock"), name)
            # A worker whose first session was ended from outside has no lock any more.
            wait_until(lambda: not _sessions(keeper, schema), "nobody else is there", 3)
        except (psycopg.errors.LockNotAvailable, TimeoutError):
            raise in_use from None
        _make(keeper, lesson, schema)
    else:
        keeper.execute(LOCK.format("advisory_lock_shared"), name)
        if _mark(keeper, schema) is None:
            keeper.execute(LOCK.format("advisory_unlock_shared"), name)
            keeper.execute(LOCK.format("advisory_lock"), name)
            if _mark(keeper, schema) is None:
                _make(keeper, lesson, schema)
            reset = True
    if _mark(keeper, schema) != _expected_mark(lesson):
        raise LessonError(
            f"{' or '.join(p.name for p in files(lesson))} has changed since the tables were made. "
            "`python main.py` drops them and makes them again."
        )
    if reset and not pooled():  # from the exclusive lock to the shared one, without a gap
        keeper.execute(LOCK.format("advisory_lock_shared"), name)
        keeper.execute(LOCK.format("advisory_unlock"), name)


def _prepare_by_a_pooler(
    keeper: psycopg.Connection[Any], lesson: Path, schema: str, reset: bool
) -> None:
    """A lock would not last longer than a transaction: nobody can see whether it is in use."""
    with keeper.transaction():
        keeper.execute(LOCK.format("advisory_xact_lock"), (schema,))
        if _mark(keeper, schema) is None:
            _make(keeper, lesson, schema)
        elif reset:
            raise LessonError(
                f"there are tables in {schema}, and with a pooler it cannot be seen whether they "
                "are in use. When no worker runs, drop them: "
                f"`drop schema {schema} cascade`, and try again."
            )


def _sessions(keeper: psycopg.Connection[Any], schema: str) -> int:
    """How many sessions other processes, or this one, have on the schema; whoever they are."""
    return keeper.execute(
        "select from pg_stat_activity where datname = current_database()"
        " and starts_with(application_name, %s) and pid <> pg_backend_pid()",
        (f"{schema} ",),
    ).rowcount


def _mark(keeper: psycopg.Connection[Any], schema: str) -> str | None:
    """The schema's comment; None if there is no such schema."""
    row = keeper.execute(
        "select coalesce(obj_description(oid, 'pg_namespace'), '')"
        " from pg_namespace where nspname = %s",
        (schema,),
    ).fetchone()
    return None if row is None else str(row[0])


def _expected_mark(lesson: Path) -> str:
    text = b"".join(path.read_bytes() for path in files(lesson))
    return f"{MARK} {hashlib.sha256(text).hexdigest()[:16]}"


def files(lesson: Path) -> list[Path]:
    """What the tables are made from, in this order."""
    return [lesson / name for name in SQL if (lesson / name).exists()]


def _make(keeper: psycopg.Connection[Any], lesson: Path, name: str) -> None:
    """Drop and make the schema in one transaction: a mistake in the SQL leaves the old one."""
    mark = _mark(keeper, name)
    if mark is not None and not mark.startswith(MARK):
        raise LessonError(
            f"the database has a schema {name} that this course did not make. "
            "Rename the lesson's directory or use another DATABASE_URL."
        )
    if dependents := [row[0] for row in keeper.execute(DEPENDENTS, {"schema": name})]:
        raise LessonError(
            f"what is not in {name} depends on it, and would be dropped with it: "
            f"{', '.join(dependents)}. Drop it yourself, and try again."
        )
    path, schema = lesson / SQL[0], sql.Identifier(name)
    try:
        with keeper.transaction():
            keeper.execute("set local client_min_messages = warning")
            keeper.execute(sql.SQL("drop schema if exists {} cascade").format(schema))
            keeper.execute(sql.SQL("create schema {}").format(schema))
            keeper.execute(sql.SQL("set local search_path = {}").format(schema))
            for path in files(lesson):
                keeper.execute(cast(LiteralString, path.read_text()))
            keeper.execute(
                sql.SQL("comment on schema {} is {}").format(
                    schema, sql.Literal(_expected_mark(lesson))
                )
            )
    except psycopg.errors.LockNotAvailable:
        raise LessonError(
            f"somebody has locked tables of {name}: a psql with an open transaction? "
            "End it (`rollback;` or `\\q`) and try again."
        ) from None
    except psycopg.errors.InsufficientPrivilege as error:
        raise LessonError(
            f"{error}. docs/servers.md says which rights the role of DATABASE_URL needs."
        ) from None
    except psycopg.Error as error:
        raise LessonError(f"{path.name}: {error}") from None
