"""What a database session must be like: what each connection sets, and what is checked at the door.

A server, a database or a role (`alter role ... set`) may be set up in any way. Options of the
connection count more than those.
"""

import os
import time
from typing import Any, NamedTuple

import click
import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from shared.processes import within

POOLERS = "docs/servers.md says how to work with a pooler."


class LessonError(click.ClickException):
    """A lesson cannot start. The message says why and what to do; no traceback is shown."""


class Setting(NamedTuple):
    name: str
    value: str
    why: str


SETTINGS = (
    Setting("client_encoding", "UTF8", "what Python sends"),
    Setting("standard_conforming_strings", "on", "a backslash is a backslash"),
    Setting("DateStyle", "ISO, MDY", "what psycopg reads"),
    Setting("IntervalStyle", "postgres", "what psycopg reads"),
    Setting("TimeZone", "UTC", "a day has 24 hours, also in the night in which the clocks change"),
    Setting("default_transaction_isolation", "read committed", "what the statements are made for"),
    Setting("default_transaction_read_only", "off", "everything here writes"),
    Setting("synchronous_commit", "on", "what a worker was told is done outlives a crash"),
    Setting("statement_timeout", "0", "the engine has timeouts of its own"),
    Setting("lock_timeout", "0", "whoever waits for a row gets it in the end"),
    Setting("idle_in_transaction_session_timeout", "0", "a session ends when its process does"),
    Setting("idle_session_timeout", "0", "it would end the session that says: in use"),
)
# What a server behind a pooler may have instead, or the reader's URL.
AS_GOOD = {
    ("TimeZone", "Etc/UTC"),
    ("DateStyle", "ISO, DMY"),
    ("DateStyle", "ISO, YMD"),
    ("synchronous_commit", "remote_apply"),
}
# What a connection cannot set, or not on every version.
CHECKED = (
    Setting("server_encoding", "UTF8", "the text of any error can be stored"),
    Setting("session_replication_role", "origin", "without triggers, parents wait for ever"),
    Setting("transaction_timeout", "0", "the engine has timeouts of its own"),
)


def pooled() -> bool:
    """Is there a pooler in transaction mode, to which nothing can be said about the session?"""
    mode = os.environ.get("LESSON_POOLER", "")
    if mode not in ("", "transaction"):
        raise LessonError(f"LESSON_POOLER is {mode!r}, and can only be `transaction`. {POOLERS}")
    return mode != ""


def conninfo(url: str, schema: str) -> str:
    """The reader's URL, for a session that is set up as the engine wants it, on this schema."""
    name = {"client_encoding": "UTF8", "application_name": f"{schema} {os.getpid()}"}
    if pooled():
        return make_conninfo(url, connect_timeout=10, **name)
    # libpq sends these two variables after the options, and they would count more.
    os.environ.pop("PGTZ", None)
    os.environ.pop("PGDATESTYLE", None)
    given = str(conninfo_to_dict(url).get("options") or os.environ.get("PGOPTIONS", ""))
    ours = [_option("search_path", schema)]
    for setting in SETTINGS:
        if setting.name == "synchronous_commit" and "=remote_apply" in given:
            continue  # the reader's own choice, and as safe
        ours.append(_option(setting.name, setting.value))
    return make_conninfo(url, options=" ".join([given, *ours]), connect_timeout=10, **name)


def _option(name: str, value: str) -> str:
    return f"-c{name}={value}".replace(" ", "\\ ")


def connect(conninfo: str) -> psycopg.Connection[Any]:
    """A connection to a server that can be written to; during a failover it waits for one.

    Raises LessonError.
    """
    deadline, told = time.monotonic() + within(30), False
    while True:
        try:
            connection = psycopg.connect(conninfo, autocommit=True, prepare_threshold=None)
            standby = connection.execute("select pg_is_in_recovery()").fetchone()
            if standby == (False,):
                return connection
            connection.close()
            problem = "the server is a standby, and can only be read from"
        except (psycopg.Error, ValueError) as error:
            problem = str(error).strip()
            if not told and not _will_pass(problem):
                hint = f" {POOLERS}" if "startup parameter" in problem else ""
                raise LessonError(f"cannot connect to DATABASE_URL: {problem}{hint}") from None
        if time.monotonic() > deadline:
            raise LessonError(f"after {within(30):g} s there is still no primary: {problem}")
        if not told:
            click.echo(f"waiting for a primary, {within(30):g} s at most: {problem}", err=True)
            told = True
        time.sleep(0.5)


def _will_pass(problem: str) -> bool:
    """A server that starts, stops or recovers says so; no SQLSTATE comes with it."""
    signs = ("the database system is", "server is in hot standby", "session is read-only")
    return any(sign in problem for sign in signs)


def check(connection: psycopg.Connection[Any], schema: str) -> None:
    """Raises LessonError, with a line for each setting that is not as it must be."""
    found = {
        name: value or ""
        for name, value in connection.execute(
            "select name, current_setting(name, true) from unnest(%s::text[]) as name",
            ([setting.name for setting in (*SETTINGS, *CHECKED)],),
        )
    }
    row = connection.execute("show search_path").fetchone()
    first = str(row and row[0]).partition(",")[0].strip(' "')
    wrong = [setting for setting in CHECKED if found[setting.name] not in ("", setting.value)]
    wrong += [setting for setting in SETTINGS if not _as_wanted(setting, found[setting.name])]
    lines = [
        f"{name} is {found[name]!r} and must be {value!r}: {why}" for name, value, why in wrong
    ]
    if first != schema:
        lines.append(f"search_path is {first!r} and must be {schema!r}: the tables are made there")
    if lines:
        raise LessonError(
            "\n".join(["This session is not as it must be.", *lines])
            + "\nWhat the connection sets did not arrive, or the server, database or role is set up"
            " otherwise. docs/servers.md says what to do; also with a pooler."
        )


def _as_wanted(setting: Setting, found: str) -> bool:
    return found == setting.value or (setting.name, found) in AS_GOOD
