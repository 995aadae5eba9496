"""Tables that a test has left: emptied, the next test gets them.

To drop them and make them again takes the server five times as long.
"""

from typing import Any, LiteralString

import psycopg

from shared.processes import wait_until

# What was defined in a schema. Whatever is changed gets a higher xmin; VACUUM and ANALYZE leave a
# number of rows; and tables that have grown answer more slowly.
STATE = """
with its as (
    select oid, xmin, reltuples from pg_class where relnamespace = %(schema)s::regnamespace
)
select
    count(*),
    sum(cast(cast(xmin as text) as bigint)),
    (select sum(reltuples) from its),
    (select sum(pg_relation_size(oid)) < 600000 from its)
from (
    select xmin from its
    union all select xmin from pg_namespace where oid = %(schema)s::regnamespace
    union all select xmin from pg_proc where pronamespace = %(schema)s::regnamespace
    union all select xmin from pg_constraint where connamespace = %(schema)s::regnamespace
    union all select xmin from pg_attribute where attrelid in (select oid from its)
    union all select xmin from pg_trigger where tgrelid in (select oid from its)
) as defined
"""
EMPTY = """
select 'set session_replication_role = replica;' || string_agg(  -- no trigger and no foreign key
    case relkind
        when 'r' then format('delete from %%s;', oid::regclass)
        else format('select setval(%%L, %%s, false);', oid::regclass, seqstart)
    end, ''
)
from pg_class left join pg_sequence on seqrelid = oid
where relnamespace = %(schema)s::regnamespace and relkind in ('r', 'S')
having sum(pg_relation_size(oid)) filter (where relkind = 'r') = 0  -- none is made with rows in it
"""
SESSIONS = """
select 1 from pg_stat_activity
where datname = current_database() and starts_with(application_name, %(schema)s || ' ')
"""


class Emptied:
    """connection: in AUTOCOMMIT, and of nobody else."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self._made: dict[str, tuple[Any, LiteralString]] = {}  # the state, and what empties it

    def note(self, schema: str) -> None:
        """It has just been made."""
        if emptying := self._ask(EMPTY, schema):
            self._made[schema] = (self._ask(STATE, schema), *emptying)

    def forget(self) -> None:
        """All are made again: what was deleted leaves pages behind."""
        self._made.clear()

    def empty(self, schema: str) -> bool:
        """False: it must be made again."""
        state, emptying = self._made.pop(schema, (None, ""))

        def is_free() -> bool:
            return not self._ask(SESSIONS, schema)

        try:
            wait_until(is_free, "nobody else is there", 3)
            if state is None or state != self._ask(STATE, schema):
                return False
            self._connection.execute(emptying)
        except (TimeoutError, psycopg.Error):  # whoever makes it says what is wrong
            return False
        self._made[schema] = (state, emptying)
        return True

    def _ask(self, query: LiteralString, schema: str) -> Any:
        return self._connection.execute(query, {"schema": schema}).fetchone()
