"""What became of every row, and by which statement: written by triggers, in the order of the locks.

A trigger writes while it holds the row's lock (that of a log's entry: while the writer holds its
task's), so of one task the history is in the order of the commits.
"""

from dataclasses import dataclass
from typing import Any, LiteralString

from psycopg import Connection
from psycopg.sql import Composed

from shared.database import Database

ENDED = ("succeeded", "failed", "cancelled")
AGAIN = ("revive_tasks", "replay_task")  # by hand

SQL = r"""
create table history (
    number    bigint generated always as identity primary key,
    commit    xid8 not null default pg_current_xact_id(),
    statement text not null,   -- its name in queries.sql
    change    text not null,   -- for people
    place     text not null,   -- the table
    before    jsonb,
    after     jsonb,
    task      jsonb,           -- of an entry in a log: its task at that moment
    at        timestamptz not null default clock_timestamp()
);

create function note_change() returns trigger language plpgsql as $$
declare
    was jsonb := case when tg_op <> 'INSERT' then to_jsonb(old) end;
    now jsonb := case when tg_op <> 'DELETE' then to_jsonb(new) end;
    row jsonb := coalesce(now, was);
    told jsonb;
    task jsonb;
    change text;
begin
    if tg_table_name = 'tasks' then
        if (was -> 'status', was -> 'attempt') is not distinct from
            (now -> 'status', now -> 'attempt') then
            return null;
        end if;
        change := format('task %s %s: %s%s', row ->> 'id', row ->> 'name',
            coalesce((was ->> 'status') || ' -> ', ''), now ->> 'status');
    elsif tg_table_name = 'event_log' then
        -- By a run itself; all other entries are opened, and completed by somebody else.
        told := jsonb_build_object(
            'recorded', row ->> 'kind' in ('step', 'once', 'transaction', 'patch'));
        -- In jsonb, an output that is null looks like none.
        was := was || told || jsonb_build_object('ended', num_nonnulls(old.output, old.error) > 0);
        now := now || told || jsonb_build_object('ended', num_nonnulls(new.output, new.error) > 0);
        select to_jsonb(tasks) into task from tasks where id = (row ->> 'task_id')::bigint;
        change := format('log of task %s: %s %s %s %s', row ->> 'task_id', row ->> 'position',
            row ->> 'kind', row ->> 'name', case
                when tg_op = 'DELETE' then 'deleted'
                when was -> 'settled' <> now -> 'settled' then 'settled'
                when now ->> 'error' is not null then 'failed'
                when now ->> 'output' is not null then '-> ' || (now ->> 'output')
                when now ->> 'kind' = 'timer' and now -> 'ended' = 'true' then '-> null'
                else ''
            end);
    elsif tg_table_name = 'messages' then
        change := format('message %s to task %s: %s', row ->> 'name', row ->> 'task_id',
            coalesce('read at ' || (row ->> 'position'), 'sent'));
    elsif tg_table_name = 'events' then
        change := format('event %s: %s', row ->> 'name',
            case when row -> 'told' = 'true' then 'told' else 'emitted' end);
    else
        change := format('worker %s: %s', row ->> 'name', lower(tg_op));
        if tg_op = 'UPDATE' then
            return null;  -- a heartbeat
        end if;
    end if;
    insert into history (statement, change, place, before, after, task)
    values (
        coalesce(substring(current_query() from '-- name: (\w+)'), 'by hand'), trim(change),
        tg_table_name, was, now, task
    );
    return null;
end
$$;

do $$
declare
    tracked text;
begin
    foreach tracked in array array['tasks', 'event_log', 'workers', 'messages', 'events'] loop
        if to_regclass(tracked) is not null then
            -- Its name comes before `deliver`: triggers fire in the order of their names.
            execute format('create trigger a_change after insert or update or delete on %I '
                'for each row execute function note_change()', tracked);
        end if;
    end loop;
end
$$;
"""

# Sentences, and queries that must find nothing.
LOGS: dict[str, LiteralString] = {
    "a step was recorded by an attempt that was not the task's": (
        "select after, task from history where place = 'event_log'"
        " and after -> 'recorded' = 'true'"
        " and coalesce(before -> 'settled', 'false') = after -> 'settled'"
        " and statement <> 'fork_task'"
        " and (after -> 'attempt' <> task -> 'attempt' or task ->> 'status' <> 'running')"
    ),
    "an error was settled by a run that was not the task's, or changed with that": (
        "select before, after, task from history"
        " where place = 'event_log' and before -> 'settled' <> after -> 'settled'"
        " and (before - 'settled' <> after - 'settled' or task ->> 'status' <> 'running')"
    ),
    # The same attempt may send it again, if it has not heard the answer.
    "a step was recorded twice": (
        "select before, after from history where place = 'event_log'"
        " and after -> 'recorded' = 'true'"
        " and before -> 'ended' = 'true' and before ->> 'error' is null"
        " and (before -> 'attempt', before -> 'output') <> (after -> 'attempt', after -> 'output')"
    ),
    "what was recorded in a transaction was changed": (
        "select before, after from history where before ->> 'kind' = 'transaction'"
        " and before ->> 'error' is null and before - 'settled' <> after - 'settled'"
    ),
    "what is done at most once was recorded by two attempts": (
        "select before, after from history where before ->> 'kind' = 'once'"
        " and before -> 'attempt' <> after -> 'attempt'"
    ),
    # Unless it was reopened by hand.
    "the end of a child was told twice": (
        "select after -> 'task_id', after -> 'child_id' from history"
        " where place = 'event_log' and after ->> 'kind' = 'child' group by 1, 2"
        " having not bool_or(statement = 'reopen_entries') and ("
        " count(distinct after -> 'output') filter (where after -> 'ended' = 'true') > 1"
        " or count(*) filter (where after -> 'ended' = 'true'"
        " and before -> 'ended' is distinct from 'true') > 1)"
    ),
    "an entry was opened by an attempt that was not the task's": (
        "select after, task from history where place = 'event_log'"
        " and after -> 'recorded' = 'false'"
        " and after -> 'ended' = 'false' and statement not in ('reopen_entries', 'fork_task')"
        " and (after -> 'attempt' <> task -> 'attempt' or task ->> 'status' <> 'running')"
    ),
    "a timer's moment was changed": (
        "select before, after from history where before ->> 'due_at' <> after ->> 'due_at'"
        " and statement <> 'reopen_entries'"
    ),
    "a timer rang before its time": (
        "select after, at from history where before ->> 'completion' is null"
        " and after ->> 'completion' is not null and at < (after ->> 'due_at')::timestamptz"
        " and (after ->> 'kind' = 'timer' or after -> 'error' ->> 'type' = 'WaitTimeout')"
    ),
    # Unless it was reopened by hand.
    "a timer rang twice": (
        "select after -> 'task_id', after -> 'position', count(*) from history"
        " where place = 'event_log' and after ->> 'kind' = 'timer'"
        " group by 1, 2, task -> 'log_id' having not bool_or(statement = 'reopen_entries')"
        " and count(*) filter (where before -> 'ended' is distinct from 'true'"
        " and after -> 'ended' = 'true') > 1"
    ),
    "a message was read twice, or changed": (
        "select before, after from history where place = 'messages' and after is not null"
        " and (before -> 'position' <> 'null' or before - 'position' <> after - 'position')"
    ),
    "an event was changed": (
        "select before, after from history where place = 'events'"
        " and before - 'told' <> after - 'told'"
    ),
    "a fork has changed what was there": (
        "select before, after from history where statement = 'fork_task' and before is not null"
    ),
    # Of a task that was never replayed.
    "a task does not count what was completed in its log": (
        "select id, row -> 'completions', coalesce(last, 0)"
        " from (select id, to_jsonb(tasks) as row from tasks) as each left join ("
        " select (after ->> 'task_id')::bigint as id, max((after ->> 'completion')::int) as last"
        " from history where place = 'event_log' group by 1) as completed using (id)"
        " where (row ->> 'completions')::int <> coalesce(last, 0) and id not in ("
        " select (after ->> 'id')::bigint from history where statement = 'replay_task')"
    ),
}

# From lesson 11 on. The first at any moment, the others when all tasks have ended.
BESIDE: tuple[str, LiteralString] = (
    "a signal is open beside a message that nobody has read",
    "select task_id, event_log.position, messages.id"
    " from event_log join messages using (task_id, name)"
    " where kind = 'signal' and completion is null and messages.position is null",
)
MESSAGES: dict[str, LiteralString] = {
    # Of a cancelled task, the run that would have looked may be gone.
    "an event has come, and somebody waits for it": (
        "select task_id, position, name from event_log join events using (name)"
        " where kind = 'event' and completion is null"
        " and task_id not in (select id from tasks where status = 'cancelled')"
    ),
    "somebody knows another payload of an event": (
        "select task_id, position, output, payload from event_log left join events using (name)"
        " where kind = 'event' and output is not null"
        " and output::text is distinct from payload::text"
    ),
    "a message has answered what it must not": (
        "select messages.id, event_log from messages"
        " left join event_log using (task_id, position) where messages.position is not null"
        " and (kind, event_log.name, coalesce(event_log.error ->> 'error', output::text))"
        " is distinct from ('signal', messages.name, coalesce(messages.error, payload::text))"
    ),
    "two messages have answered one signal": (
        "select task_id, position, count(*) from messages where position is not null"
        " group by 1, 2 having count(*) > 1"
    ),
    # A fork has the answers, and not the messages.
    "a signal has an answer that nobody has sent": (
        "select task_id, event_log.position, event_log.output from event_log"
        " join tasks on tasks.id = task_id and event_log.position > coalesce(fork_position, 0)"
        " left join messages using (task_id, position)"
        " where kind = 'signal' and event_log.output is not null and messages.id is null"
    ),
}


@dataclass(frozen=True)
class Change:
    commit: str
    statement: str
    change: str


def install(db: Database) -> None:
    """Add the table and the triggers to a lesson's schema."""
    rows(db, SQL)


def look_on(db: Database) -> Connection[Any]:
    return db.connect(autocommit=True, application_name="the witness")


def rows(db: Database, query: LiteralString | Composed, *parameters: Any) -> list[Any]:
    """What a query finds, on a connection of its own."""
    with look_on(db) as look:
        return ask(look, query, *parameters)


def ask(look: Connection[Any], query: LiteralString | Composed, *parameters: Any) -> list[Any]:
    cursor = look.execute(query, parameters or None)
    return cursor.fetchall() if cursor.description else []


def found(look: Connection[Any], sentence: str, query: LiteralString) -> list[str]:
    """A query that must find nothing: the sentence, with each of the first rows that it finds."""
    return [f"{sentence}: {row}" for row in ask(look, query)[:5]]


def changes(look: Connection[Any]) -> list[Change]:
    """All changes so far, the oldest first, but for what was enqueued."""
    query = (
        "select commit::text, statement, change from history"
        " where commit not in (select commit from history where statement = 'enqueue_task')"
        " order by number"
    )
    return [Change(*row) for row in ask(look, query)]


def violations(look: Connection[Any], at_most: int | None = None) -> list[str]:
    """What the history holds that must never be. at_most: so many tasks may run at once."""
    wrong = of_tasks(look, at_most)
    for sentence, query in LOGS.items():
        wrong += found(look, sentence, query)
    return wrong


def of_tasks(look: Connection[Any], at_most: int | None) -> list[str]:
    """One owner at a time, attempts that grow by one, and an end that is the end."""
    wrong: list[str] = []
    last: dict[int, tuple[str, int | None]] = {}
    running, most = set[int](), 0
    for id, was, status, was_attempt, attempt, statement in ask(
        look,
        "select (after ->> 'id')::bigint, before ->> 'status', after ->> 'status',"
        " (before ->> 'attempt')::int, (after ->> 'attempt')::int, statement from history"
        " where place = 'tasks' and after is not null order by number",
    ):
        before = last.get(id)
        if before != (None if was is None else (was, was_attempt)):
            wrong.append(f"task {id}: {before}, then from {was}, {was_attempt}")
        if was in ENDED and statement not in AGAIN:
            wrong.append(f"task {id} has left {was}: {status}")
        claimed = (was, status) == ("queued", "running")
        if statement == "fork_task":  # which counts as an attempt
            was_attempt = attempt
        # Lessons 01 and 02 have no attempts.
        if attempt is not None and attempt - (was_attempt or 0) != int(claimed):
            wrong.append(f"task {id}: {was} to {status}, {was_attempt} to {attempt}")
        if status == "running" and not claimed:
            wrong.append(f"task {id} runs, and was {was}")
        last[id] = (status, attempt)
        (running.add if status == "running" else running.discard)(id)
        most = max(most, len(running))
    if at_most is not None and most > at_most:
        wrong.append(f"{most} tasks ran at once, and the limit was {at_most}")
    return wrong
