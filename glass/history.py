"""What has happened, in the order of the commits, and the state at any moment of it."""

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from glass.activity import Activity, Wait

Row = dict[str, str | None]  # all values as Postgres prints them
Key = tuple[str, ...]
State = dict[str, dict[Key, Row]]  # the rows of each table

MAX_MOMENTS = 20_000
MAX_ROWS = 20_000  # of each table


@dataclass
class Table:
    name: str
    columns: list[str]
    key: list[str]

    def key_of(self, row: Row) -> Key:
        return tuple(str(row.get(column)) for column in self.key)


@dataclass
class Schema:
    tables: dict[str, Table] = field(default_factory=dict[str, Table])
    keyless: list[str] = field(default_factory=list[str])  # tables that cannot be followed
    statuses: list[str] = field(default_factory=list[str])  # in the order of the check constraint


@dataclass
class Written:
    """What one commit did to one row, as it was read: of a deleted row there is only the key."""

    verb: str  # insert, update, delete; truncate: all rows
    table: str
    row: Row


@dataclass
class Commit:
    xid: int | None  # None: not read from the log; it may be several in one
    at: str
    written: list[Written]


@dataclass
class Change:
    verb: str  # or evict: the row is too old to be kept here
    table: str
    key: Key
    before: Row | None
    after: Row | None


@dataclass
class Moment:
    """One entry of the time line: a commit, new tables, or that somebody waits or waits no more."""

    at: str
    xid: int | None = None
    changes: list[Change] = field(default_factory=list[Change])
    waits: list[Wait] | None = None
    note: str = ""
    replaced: tuple[Schema, State] | None = None  # by new tables


class History:
    """Written by the follower's threads, read by those of the page. All of it under the lock."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.schema = Schema()
        self.state: State = {}
        self.moments: list[Moment] = []
        self.forgotten = 0  # moments that are too long ago; their numbers are not used again
        self.activity = Activity()
        self.note = "looking for the tables"
        self.connected = True
        self.sampled = ""  # why not every change is seen
        self.cut = set[str]()  # tables of which the oldest rows are not here
        self.version = 0  # grows with every change

    @property
    def length(self) -> int:
        return self.forgotten + len(self.moments)

    def say(self, note: str, *, connected: bool = True) -> None:
        with self.lock:
            if (note, connected) != (self.note, self.connected):
                self.note, self.connected = note, connected
                self.version += 1

    def renew(self, schema: Schema, state: State, note: str) -> None:
        """Go on with these tables and rows."""
        with self.lock:
            replaced = (self.schema, self.state)
            self.schema, self.state = schema, state
            self.cut = {table for table, rows in state.items() if len(rows) >= MAX_ROWS}
            self._append(Moment(self.clock(), note=note, replaced=replaced))

    def add(self, commit: Commit) -> None:
        with self.lock:
            changes = [change for one in commit.written for change in self._apply(one)]
            if changes:
                self._append(Moment(commit.at, commit.xid, changes))

    def sample(self, state: State) -> None:
        """Without the log: what is different since the last look, as if it were one commit."""
        written = list[Written]()
        for table, rows in state.items():
            known = self.state.get(table, {})
            for key, row in rows.items():
                if known.get(key) != row:
                    written.append(Written("update" if key in known else "insert", table, row))
            verb = "evict" if len(rows) >= MAX_ROWS else "delete"
            gone = known.keys() - rows.keys()
            written = [Written(verb, table, known[key]) for key in gone] + written
        self.add(Commit(None, self.clock(), written))

    def look(self, activity: Activity) -> None:
        """Note who is connected and who waits now."""
        with self.lock:
            before, self.activity = self.activity, activity
            pairs = [wait.pair for wait in activity.waits]
            if pairs != [wait.pair for wait in before.waits]:
                self._append(Moment(self.clock(), waits=activity.waits))
            if activity.processes != before.processes or activity.waits:
                self.version += 1

    def clock(self) -> str:
        """The server's clock, as Postgres prints it."""
        return self.activity.clock(time.monotonic())

    def at(self, moment: int) -> tuple[Schema, State]:
        """The state after so many moments: the present, with all later moments undone."""
        schema, state = self.schema, {table: dict(rows) for table, rows in self.state.items()}
        for later in reversed(self.moments[max(0, moment - self.forgotten) :]):
            if later.replaced:
                schema, before = later.replaced
                state = {table: dict(rows) for table, rows in before.items()}
            for change in reversed(later.changes):
                put(state[change.table], change.key, change.before)
        return schema, state

    def _apply(self, written: Written) -> Iterable[Change]:
        table = self.schema.tables.get(written.table)
        if table is None:  # it has no primary key
            return
        rows = self.state.setdefault(table.name, {})
        if written.verb == "truncate":
            for key, row in list(rows.items()):
                put(rows, key, None)
                yield Change("truncate", table.name, key, row, None)
            return
        key = table.key_of(written.row)
        before = rows.get(key)
        # What an update leaves out is a long value that it did not change.
        gone = written.verb in ("delete", "evict")
        after = None if gone else {**(before or {}), **written.row}
        put(rows, key, after)
        yield Change(written.verb, table.name, key, before, after)
        if len(rows) > MAX_ROWS:  # a change like the others: it can be undone
            yield from self._apply(Written("evict", table.name, next(iter(rows.values()))))
        if written.verb == "evict":
            self.cut.add(table.name)

    def _append(self, moment: Moment) -> None:
        self.moments.append(moment)
        if len(self.moments) > MAX_MOMENTS:
            forgotten = MAX_MOMENTS // 20
            del self.moments[:forgotten]
            self.forgotten += forgotten
        self.version += 1


def put(rows: dict[Key, Row], key: Key, row: Row | None) -> None:
    if row is None:
        rows.pop(key, None)
    else:
        rows[key] = row
