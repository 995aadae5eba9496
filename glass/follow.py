"""Follow one lesson's schema: a snapshot, then what the server has committed since.

The commits are read from the write-ahead log, by a temporary replication slot and the plugin
test_decoding: not one is missed, however short its rows lasted. That needs wal_level=logical, and a
role that may replicate. Without them the tables are read again and again, and what lasted less is
not seen.
"""

import re
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from glass import activity
from glass.decoding import commits
from glass.history import MAX_ROWS, Commit, History, Schema, State, Table
from shared import session

Connection = psycopg.Connection[Any]

MADE = "select oid::bigint, xmin::text::bigint from pg_namespace where nspname = %s"
TABLES = """
select c.relname::text,
    array(select attname::text from pg_attribute
        where attrelid = c.oid and attnum > 0 and not attisdropped order by attnum),
    array(select attname::text from unnest(i.indkey) with ordinality as part (attnum, place)
        join pg_attribute a on a.attrelid = c.oid and a.attnum = part.attnum order by place)
from pg_class c join pg_namespace n on n.oid = c.relnamespace
left join pg_index i on i.indrelid = c.oid and i.indisprimary
where n.nspname = %s and c.relkind = 'r'
and c.relname <> 'history' -- what the crash points note (faults/witness.py) is not the lesson's
order by c.relname
"""
CHECKS = "select pg_get_constraintdef(oid) from pg_constraint where conrelid = to_regclass(%s)"
MARK = "select pg_log_standby_snapshot()"
GONE = (psycopg.InternalError, psycopg.ProgrammingError)  # a table that is dropped as we look


class Follower:
    """Two threads: one reads what was committed, the other who is connected and who waits."""

    def __init__(self, url: str, schema: str, history: History, slots: int = 1) -> None:
        self.schema, self.history = schema, history
        self._slots = slots
        # Set up as the lessons' sessions, but not called like one of theirs: it is in nobody's way.
        self._conninfo = make_conninfo(
            session.conninfo(url, schema), application_name=activity.ours(schema)
        )
        self._stopped = threading.Event()

    @contextmanager
    def running(self) -> Generator[None]:
        loops = (self._commits, self._activity)
        threads = [threading.Thread(target=self._keep, args=[loop]) for loop in loops]
        for thread in threads:
            thread.daemon = True  # one that waits for a slot cannot be told to stop
            thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            for thread in threads:
                thread.join(1)

    def _keep(self, loop: Callable[[Connection], None]) -> None:
        """Connect again whenever the connection is lost."""
        while not self._stopped.is_set():
            try:
                with self._connect() as connection:
                    loop(connection)
            except psycopg.Error as error:
                if loop == self._commits:
                    self.history.say(f"no connection: {first_line(error)}", connected=False)
                self._stopped.wait(0.3)

    def _connect(self) -> Connection:
        return psycopg.connect(self._conninfo, autocommit=True, prepare_threshold=None)

    def _rests(self, least: float, times: float) -> Generator[None]:
        """Rest between two looks: so many times as long as the last one took, or two seconds."""
        rest = least
        while not self._stopped.wait(rest):
            started = time.monotonic()
            yield
            rest = min(2, max(least, times * (time.monotonic() - started)))

    def _activity(self, db: Connection) -> None:
        for _ in self._rests(0.15, 9):
            self.history.look(activity.look(db, self.schema, self._slots, time.monotonic()))

    def _commits(self, db: Connection) -> None:
        with self._connect() as for_log:
            self._follow(db, self._open_log(for_log, db))

    def _follow(self, db: Connection, log: "Log | None") -> None:
        known: Snapshot | None = None
        pending: list[Commit] = []
        # What is in the log has to be read in any case; the tables are the same ones again.
        for _ in self._rests(0.1, 1) if log else self._rests(0.2, 9):
            if log:
                pending += commits(log.read(), self.schema)
            try:
                if known is None or log is None or self._is_new(db, known):
                    seen = snapshot(db, self.schema)
                else:
                    seen = known
            except GONE:  # what was read from the log is told when the new tables are there
                continue
            if known is None or seen.made[0] != known.made[0] or seen.schema != known.schema:
                if log:  # what was committed since it was read, and before the snapshot
                    pending += commits(log.read(), self.schema)
                self._renew(known, seen, pending)
                known = seen
            elif log is None:
                self.history.sample(seen.state)
            for commit in pending:
                if not known.has(commit):
                    self.history.add(commit)
            pending = []

    def _open_log(self, for_log: Connection, db: Connection) -> "Log | None":
        log, reason = None, "a pooler is between us and the server"
        if not session.pooled():
            self.history.say("waits until the transactions that are open now have ended")
            try:
                log, reason = Log(for_log, db), ""
            except psycopg.Error as error:
                if for_log.closed:
                    raise
                reason = first_line(error)
        self.history.sampled = reason
        self.history.say("")
        return log

    def _is_new(self, db: Connection, known: "Snapshot") -> bool:
        if made_of(db, self.schema)[0] != known.made[0]:
            return True
        if time.monotonic() < known.compared + 1:
            return False
        known.compared = time.monotonic()
        return introspect(db, self.schema) != known.schema

    def _renew(self, known: "Snapshot | None", seen: "Snapshot", pending: list[Commit]) -> None:
        """Go on with other tables, when the old ones' last commits are told."""
        note = "there are no rows yet"
        if self.history.schema.tables:
            note = "the connection was lost, and this is a new beginning"
        elif any(seen.state.values()):
            note = "these rows are there already"
        if known:
            note = "the tables are others now"
            if seen.made[0] != known.made[0]:
                seen.begin_empty()
            for commit in pending:
                if not known.has(commit) and seen.has(commit):
                    self.history.add(commit)
        self.history.renew(seen.schema, seen.state, note)
        self.history.say("" if seen.schema.tables else "there are no tables yet: run the lesson")


class Log:
    """A slot on a connection of its own. Making it waits for all transactions that are open.

    A temporary slot ends with its connection, and with the first statement there that fails. What
    may fail goes by the other connection.
    """

    def __init__(self, for_log: Connection, db: Connection) -> None:
        self._for_log, self._db = for_log, db
        self._slot = f"glass_{for_log.info.backend_pid}"
        make = "select pg_create_logical_replication_slot(%s, 'test_decoding', true)"
        for_log.execute(make, [self._slot])
        self._marks, self._marked = True, 0.0

    def read(self) -> list[str]:
        """What test_decoding prints of the commits since the last time."""
        lines = self._for_log.execute(
            "select data from pg_logical_slot_get_changes(%s, null, 20000,"
            " 'include-timestamp', '1', 'skip-empty-xacts', '1')",
            [self._slot],
        ).fetchall()
        self._mark()
        return [line for (line,) in lines]

    def _mark(self) -> None:
        """Note in the log which transactions are open, once a second.

        Each reading begins at the last such note, and the server makes one every 15 seconds. Where
        we may not (before Postgres 16, or without the right to), reading costs more.
        """
        if self._marks and time.monotonic() > self._marked + 1:
            self._marked = time.monotonic()
            try:
                self._db.execute(MARK)
            except psycopg.ProgrammingError:
                self._marks = False


@dataclass
class Snapshot:
    """made: the number of the schema, and of the transaction that made it; zeros: there is none."""

    made: tuple[int, int]
    schema: Schema
    state: State
    sees: Callable[[int], bool]  # does the state have what the transaction of this number did?
    compared: float = 0.0

    def has(self, commit: Commit) -> bool:
        return commit.xid is not None and self.sees(commit.xid)

    def begin_empty(self) -> None:
        """The tables were made as we followed: all that was done to them will be in the log."""
        creator = self.made[1]
        self.state, self.sees = {}, lambda xid: xid < creator


def snapshot(db: Connection, schema: str) -> Snapshot:
    with db.transaction():
        db.execute("set transaction isolation level repeatable read, read only")
        (text,) = db.execute("select pg_current_snapshot()::text").fetchone() or ("0:0:",)
        made, tables = made_of(db, schema), introspect(db, schema)
        state = {table.name: newest(db, schema, table) for table in tables.tables.values()}
    first, end, running = text.split(":")
    # The log has 32 bits of a number.
    low, high, *others = (int(x) & 0xFFFFFFFF for x in (first, end, *running.split(",")) if x)
    return Snapshot(made, tables, state, lambda x: x < low or (x < high and x not in others))


def newest(db: Connection, schema: str, table: Table) -> dict[tuple[str, ...], dict[str, Any]]:
    columns = sql.SQL(", ").join(
        sql.SQL("{}::text").format(sql.Identifier(c)) for c in table.columns
    )
    order = sql.SQL(", ").join(sql.SQL("{} desc").format(sql.Identifier(c)) for c in table.key)
    query = sql.SQL("select {} from {} order by {} limit {}").format(
        columns, sql.Identifier(schema, table.name), order, MAX_ROWS
    )
    rows = (
        dict(zip(table.columns, row, strict=True)) for row in reversed(db.execute(query).fetchall())
    )
    return {table.key_of(row): row for row in rows}


def made_of(db: Connection, schema: str) -> tuple[int, int]:
    return db.execute(MADE, [schema]).fetchone() or (0, 0)


def introspect(db: Connection, schema: str) -> Schema:
    """The tables that have a primary key, and the statuses in the order of the check constraint."""
    found = Schema()
    for name, columns, key in db.execute(TABLES, [schema]).fetchall():
        if key:
            found.tables[name] = Table(name, columns, key)
        else:  # the log does not say which of its rows has changed
            found.keyless.append(name)
    for (check,) in db.execute(CHECKS, [f"{schema}.tasks"]).fetchall():
        if re.match(r"CHECK \(\(status = ANY", check):
            found.statuses = re.findall(r"'(\w+)'::text", check)
    return found


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:100]
