"""What became of every row, and by which statement: written by triggers, in the order of the locks.

A trigger writes while it holds the row's lock, so of one task the history is in commit order.
"""

from dataclasses import dataclass

from shared.database import Database

ENDED = ("succeeded", "failed", "cancelled")

SQL = r"""
create table history (
    number    bigint generated always as identity primary key,
    commit    xid8 not null default pg_current_xact_id(),
    statement text not null,   -- its name in queries.sql
    change    text not null,   -- for people
    task_id   bigint,
    before    jsonb,
    after     jsonb
);

create function note_change() returns trigger language plpgsql as $$
declare
    was jsonb := case when tg_op <> 'INSERT' then to_jsonb(old) end;
    now jsonb := case when tg_op <> 'DELETE' then to_jsonb(new) end;
    row jsonb := coalesce(now, was);
    change text;
begin
    if tg_table_name = 'tasks' then
        if was ->> 'status' is not distinct from now ->> 'status' then
            return null;
        end if;
        change := format('task %s %s: %s%s', row ->> 'id', row ->> 'name',
            coalesce((was ->> 'status') || ' -> ', ''), now ->> 'status');
    elsif tg_table_name = 'event_log' then
        change := format('log of task %s: %s %s %s %s', row ->> 'task_id', row ->> 'position',
            row ->> 'kind', row ->> 'name', case
                when tg_op = 'DELETE' then 'deleted'
                when now ->> 'error' is not null then 'failed'
                when now ->> 'output' is not null then '-> ' || (now ->> 'output')
                else ''
            end);
    else
        change := format('worker %s: %s', row ->> 'name', lower(tg_op));
        if tg_op = 'UPDATE' then
            return null;  -- a heartbeat
        end if;
    end if;
    insert into history (statement, change, task_id, before, after)
    values (
        coalesce(substring(current_query() from '-- name: (\w+)'), 'by hand'), trim(change),
        case when tg_table_name = 'tasks' then (row ->> 'id')::bigint end, was, now
    );
    return null;
end
$$;

do $$
declare
    tracked text;
begin
    foreach tracked in array array['tasks', 'event_log', 'workers'] loop
        if to_regclass(tracked) is not null then
            execute format('create trigger note_change after insert or update or delete on %I '
                'for each row execute function note_change()', tracked);
        end if;
    end loop;
end
$$;
"""


@dataclass(frozen=True)
class Change:
    commit: str
    statement: str
    change: str


def install(db: Database) -> None:
    """Add the table and the triggers to a lesson's schema."""
    with db.connect(autocommit=True) as connection:
        connection.execute(SQL)


def changes(db: Database) -> list[Change]:
    """All changes so far, the oldest first."""
    with db.connect(autocommit=True) as connection:
        rows = connection.execute(
            "select commit::text, statement, change from history order by number"
        ).fetchall()
    return [Change(*row) for row in rows]


def violations(db: Database) -> list[str]:
    """Where a task left a terminal status, or its attempts went back; empty if all is well."""
    with db.connect(autocommit=True) as connection:
        rows = connection.execute(
            "select change, before ->> 'attempt', after ->> 'attempt' from history"
            " where task_id is not null and before is not null and ("
            " before ->> 'status' = any (%s)"
            " or (before ->> 'attempt')::int > (after ->> 'attempt')::int) order by number",
            (list(ENDED),),
        ).fetchall()
    return [f"it had ended, or its attempts went back: {row}" for row in rows]
