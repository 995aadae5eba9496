-- The queue is one table. A row's life:
--
--   EnqueueTask inserts it: queued, or waiting if it is not to run yet. WakeTasks makes it queued when
--   its time has come. ClaimTasks gives it to one worker: running. The worker calls the task's
--   function and then SucceedTask stores what it returned, or FailTask what it raised; RetryTask
--   sends it back to wait for another attempt.
--
--                 ClaimTasks            SucceedTask
--      queued  ---------------> running ---------------> succeeded
--        ^                       |   |       FailTask
--        | WakeTasks             |   +-----------------> failed
--        |            RetryTask  |
--      waiting <-----------------+
--
--   A durable task that needs the result of a child task suspends: SuspendTask makes it waiting, and
--   its slot is free. The child's end makes it queued again. CancelTask ends what has not ended.
--   One that waits for a moment suspends likewise, and the clock makes it queued: CompleteDueEntries.
--   One that waits for a message or an event does so, too. Whoever sends the message makes it queued, in
--   the transaction of the INSERT; of events the upkeep tells: TellEvents.
--
--   A worker's code may be unable to run a task: it does not know the name, or its function does not fit the
--   log. ParkTask makes it waiting, for nothing but other code: the task is parked. UnparkTasks makes it
--   queued when there is code that has not tried it.
--
--   A worker may die, or a run take too long: TakeBackTasks makes the task queued again, or failed
--   if that was its last attempt.
--
-- Nothing leaves succeeded, failed or cancelled, except by a retry or a replay by hand. ForkTask inserts
-- a new task, queued, whose log begins like that of an old one.

create table workers (
    id          bigint generated always as identity primary key,
    name        text not null,         -- for people; two workers may have the same
    queue       text not null default 'default',  -- from which it takes tasks
    version     text not null default '',         -- of its code; '' if nobody said
    -- What parked_by calls its code. Without a version, whatever starts may be other code.
    code        text not null generated always as (
                    case when version = '' then 'worker ' || cast(id as text) else version end
                ) stored,
    -- The lease. Until then the worker counts as alive, by this database's clock; no other clock
    -- decides anything here.
    alive_until timestamptz not null,
    created_at  timestamptz not null default clock_timestamp()
);

comment on table workers is 'A worker that is alive. No row: it is not, and what it runs is taken back.';

create table tasks (
    -- Ids are given out in the order of the inserts, and the queue is served in that order. It is
    -- not quite the order of the commits: a transaction that stays open shows its tasks late.
    id         bigint generated always as identity primary key,
    queue      text not null default 'default' constraint queue_named check (queue <> ''),
    name       text not null,   -- which function to call; the worker looks it up in its registry
    -- json keeps the text as it was written. jsonb would give 1e300 back as a whole number of 301
    -- digits, which is not equal to it in Python.
    input      json not null,   -- what to call it with
    status     text not null default 'queued'
               constraint status_known check (status in (
                   'queued', 'running', 'waiting', 'succeeded', 'failed', 'cancelled'
               )),
    output     json,            -- what it returned; JSON null if it returned None
    error      text,            -- what it raised, in its last attempt
    priority   int not null default 0,       -- higher goes first
    run_at     timestamptz,                  -- waiting until then
    -- How long an attempt may take. Bounded: one row with a million years would make the arithmetic
    -- of TakeBackTasks fail, for every row.
    timeout    interval constraint timeout_bounded
               check (timeout between interval '0' and interval '3650 days'),
    attempt    int not null default 0,       -- grows by one with every claim
    max_attempts int not null default 5 constraint one_attempt_at_least check (max_attempts > 0),
    uncounted  int not null default 0,       -- how many of its attempts do not count as tries
    worker_id  bigint,                       -- the worker that runs it, or ran it last
    started_at timestamptz,                  -- when its last attempt began
    idempotency_key text,
    log_id     uuid not null default gen_random_uuid(),  -- its steps' idempotency keys begin with it
    parent_id  bigint,                       -- the durable task that spawned it
    parent_position int,                     -- and where in that task's log
    completions int not null default 0,      -- how many entries of its log somebody else has completed
    awaits     int[],                        -- waiting for the entries at these positions
    wake_after int,                          -- until this many of them are complete
    deadline   int,                          -- or the entry at this position is
    swept      boolean not null default false,  -- cancelled, and its children have ended
    forked_from bigint,                      -- the task whose log its own began with
    fork_position int,                       -- up to this position
    watched    boolean not null default false,  -- somebody waits for its end, and wants a hint
    version    text not null default '',     -- of the code that began its log, and has to end it; '': any
    parked_by  text[] not null default '{}', -- the code that has tried it, and could not run it
    created_at timestamptz not null default clock_timestamp(),
    constraint output_if_succeeded check ((status = 'succeeded') = (output is not null)),
    constraint error_if_failed check (status <> 'failed' or error is not null),
    constraint error_of_an_attempt
        check (error is null or status = 'failed' or (attempt > 0 and status <> 'succeeded')),
    constraint waits_for_something
        check (status <> 'waiting' or run_at is not null or awaits is not null or parked_by <> '{}'),
    constraint run_by_a_worker check (
        status <> 'running' or (attempt > 0 and worker_id is not null and started_at is not null)
    )
)
-- A claim and an end each write a new version of the row. In the half of each page that inserts leave free, it
-- lands beside the old one, and the WAL holds only what differs.
-- Dead versions are taken away after so many rows have changed, however large the table is.
with (
    fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_cost_delay = 0
);

comment on table tasks is 'One row of work: a name, a JSON input and a status.';

-- ClaimTasks reads the first entries of this index. A finished task is not in it: the claim stays as
-- fast with a million finished tasks in the table as with none, and with a million of other versions.
create index tasks_queued on tasks (queue, version, priority desc, id) where status = 'queued';

-- has_untried, UnparkTasks: those that wait for nothing but other code, by the list of who has tried.
create index tasks_parked on tasks (queue, version, parked_by)
    where status = 'waiting' and run_at is null and awaits is null;

-- WakeTasks: the first entries are those that are due.
create index tasks_waiting on tasks (run_at) where status = 'waiting';

-- CountRunning counts the entries of one queue. There are never more of them than its limit.
create index tasks_running on tasks (queue) where status = 'running';

-- A parent has one child for each position of its log. SpawnChildren relies on it, and DetachChildren
-- finds all children of a task here.
create unique index tasks_positions on tasks (parent_id, parent_position)
    where parent_id is not null;

-- CancelOrphans: the tasks that were cancelled and may have children to cancel, and these children. There
-- are rarely any of the former.
create index tasks_cancelled on tasks (id) where status = 'cancelled' and not swept;
create index tasks_children on tasks (parent_id)
    where parent_id is not null and status in ('queued', 'running', 'waiting');

-- One task for a name and a key. A task without a key has no entry here, and costs nothing; a unique
-- constraint would have one for it, and one more whenever its row changes.
create unique index tasks_keys on tasks (name, idempotency_key) where idempotency_key is not null;

-- ListForks: what was forked from a task.
create index tasks_forks on tasks (forked_from) where forked_from is not null;

create table queue_limits (
    queue       text primary key,
    -- 0 pauses the queue.
    max_running int not null constraint limit_not_negative check (max_running >= 0)
);

comment on table queue_limits is 'How many tasks of a queue may run at once. No row: no limit.';

-- What a durable task has done, in the order in which it did it. Kind, name and input say what was
-- asked for; a later run must ask for the same in the same place. A step's row is written by the run that
-- did it, and answers every later run; but an error at the end of the log gives way when a later attempt
-- does the step again, unless it was settled, as the function had gone on. Of what is done at most once,
-- the row is there before it is begun, as an error that gives way only to what its own run makes of it. A
-- transaction commits its row with its work. All other entries are opened
-- by a run, and completed once, by somebody else. A retry by hand deletes a failed step at the end, and
-- reopens the entries of failed children, unless the function had gone on from them. A fork's log begins
-- with copies. A patch is a marker: from there on, the run does what the code of that patch does.
create table event_log (
    -- Whoever deletes a task deletes its log with it.
    task_id     bigint not null references tasks on delete cascade,
    position    int not null,     -- 1, 2, 3 ... in the order of the calls
    kind        text not null constraint kind_known check (
                    kind in ('step', 'once', 'transaction', 'child', 'timer', 'signal', 'event', 'patch')
                ),
    -- The function of the step, or of the child task; what a timer is for; of a message, event or patch.
    name        text not null,
    input       json not null,    -- its arguments; a duration in seconds, or a moment
    output      json,             -- what it returned
    error       json,             -- or what it raised: type, message, traceback
    settled     boolean not null default false,  -- an error that no run may undo: the function went on
    child_id    bigint,           -- of a child: its task
    due_at      timestamptz,      -- when the clock completes it, if nothing else has
    completion  int,              -- of what somebody else completes: its rank, in order of completion
    attempt     int not null,     -- by which run
    recorded_at timestamptz not null default clock_timestamp(),
    primary key (task_id, position),
    constraint output_or_error check (
        kind in ('child', 'timer', 'signal', 'event') or (output is null) <> (error is null)
    ),
    constraint completed_with_an_answer check (
        kind not in ('child', 'timer', 'signal', 'event')
        or (completion is null) = (output is null and error is null)
    ),
    constraint child_has_a_task check ((kind = 'child') = (child_id is not null)),
    constraint timer_has_a_time check (kind <> 'timer' or due_at is not null),
    constraint only_waits_are_due check (due_at is null or kind in ('timer', 'signal', 'event')),
    constraint errors_are_settled check (not settled or error is not null)
);

-- CompleteDueEntries: the first entries are those that are due. A timer that has rung is not in it.
create index event_log_due on event_log (due_at) where completion is null and due_at is not null;

-- TellEvents: who waits for an event.
create index event_log_events on event_log (name) where kind = 'event' and completion is null;

comment on table event_log is 'One entry: what a durable task has done, or waits for.';

-- Whatever may stand here, no worker may stop at it: rows are also typed into psql. What Postgres can check, it
-- checks. The rest is found when the schedule is due: then it is paused, and `error` says why.
create table schedules (
    name       text primary key
               constraint schedule_named check (name ~ '^[A-Za-z0-9_.-]{1,100}$'),
    cron       text not null constraint cron_bounded check (length(cron) <= 200),
    timezone   text not null constraint timezone_bounded check (length(timezone) <= 100),
    missed     text not null default 'latest'
               constraint missed_known check (missed in ('none', 'latest', 'all')),
    -- What its tasks are given. Bounded like the entries of the indexes on tasks.
    task       text not null constraint task_bounded check (length(task) between 1 and 200),
    input      json not null,
    queue      text not null default 'default'
               constraint schedule_queue_named check (length(queue) between 1 and 100),
    priority   int not null default 0,
    max_attempts int not null default 5
               constraint schedule_one_attempt_at_least check (max_attempts > 0),
    timeout    interval constraint schedule_timeout_bounded
               check (timeout between interval '0' and interval '3650 days'),
    -- The tick that comes next; null: paused. Bounded: a year that Python cannot read.
    next_at    timestamptz
               constraint next_at_bounded check (next_at between '2000-01-01Z' and '9000-01-01Z'),
    error      text,        -- why it was paused, if nobody asked for it
    created_at timestamptz not null default clock_timestamp()
);

comment on table schedules is 'A task that is started at each tick of a cron line.';

-- ListDueSchedules: the first entries are those that are due.
create index schedules_due on schedules (next_at) where next_at is not null;

-- What was sent to a task. A message answers one entry of its log, a signal of the same name: the oldest
-- that is open, or else the next to be opened. To send is an INSERT, in any language, in any transaction.
create table messages (
    id          bigint generated always as identity primary key,
    -- Checked at the commit. If it were checked at once, it would lock the task's row weakly, before deliver
    -- locks it strongly: two senders would each wait for the other.
    task_id     bigint not null references tasks on delete cascade deferrable initially deferred,
    name        text not null constraint message_named check (name ~ '^[ -~]{1,200}$'),
    payload     json not null default 'null',
    error       text constraint error_readable check (length(error) between 1 and 10000),
    key         text constraint key_printable check (key ~ '^[ -~]{1,200}$'),
    position    int,              -- the entry that it has answered; null: nobody has read it
    created_at  timestamptz not null default clock_timestamp(),
    constraint payload_or_error check (error is null or cast(payload as text) = 'null')
);

comment on table messages is 'Something that was sent to a task: a payload, or an error.';

-- One message for a task and a key.
create unique index messages_keys on messages (task_id, key) where key is not null;

-- deliver: the oldest message that nobody has read.
create index messages_unread on messages (task_id, name, id) where position is null;

-- What has happened, once and for all tasks. The first payload stays.
create table events (
    name        text primary key constraint event_named check (name ~ '^[ -~]{1,200}$'),
    payload     json not null default 'null',
    told        boolean not null default false,  -- all who waited for it know of it
    created_at  timestamptz not null default clock_timestamp()
);

comment on table events is 'Something that has happened; any number of tasks may wait for it.';

create index events_untold on events (created_at) where not told;

-- Pins the search_path of the functions below: their `tasks` is the one in this schema, whoever changes a
-- row, with whatever search_path. pg_temp is named, and last: where it is not named, it comes first.
select set_config('search_path', quote_ident(current_schema()) || ', pg_temp', false);

-- Answers entries. The tasks whose logs hold them learn of the answers, and are woken if they wait for
-- nothing else. Only the first answer to an entry counts. Returns how many of these are.
-- Both sides meet at one row, the task's. A run that wants to suspend changes the same row, and only if
-- `completions` is still what it knows: either it sees this completion, or this sees it waiting.
-- The locks come first, in a statement of their own: a statement that has waited for a lock still sees the log
-- as it was before the wait, and two sessions that complete one entry at once would both count. The greatest id
-- first, as in LockTasks, so children before their parents: in different orders, two sessions would wait for each
-- other.
create function complete_entries(its_tasks bigint[], its_positions int[], outputs json[], errors json[])
returns bigint language plpgsql set search_path from current as $$
declare
    counted bigint;
    woken bigint[];
begin
    perform from tasks where id = any (its_tasks) order by id desc for update;

    with answer as (
        select
            entry.task_id, entry.position, given.output, given.error,
            tasks.completions + row_number() over (partition by tasks.id order by entry.position) as completion
        from unnest(its_tasks, its_positions, outputs, errors) as given (task_id, position, output, error)
        join tasks on tasks.id = given.task_id
        cross join lateral (
            select task_id, position from event_log
            where task_id = given.task_id and position = given.position
            and kind in ('child', 'timer', 'signal', 'event') and completion is null
            -- So each is looked up by its key. As a join, a planner without statistics takes open entries for
            -- rare, and reads all of a log of ten thousand to find a hundred.
            limit 1
        ) as entry
    ), told as (
        update event_log as entry
        set output = answer.output, error = answer.error, completion = answer.completion
        from answer
        where entry.task_id = answer.task_id and entry.position = answer.position
        returning entry.task_id, entry.position
    ), news as (
        select task_id, array_agg(position) as positions from told group by task_id
    ), parent as (
        update tasks
        set completions = completions + cardinality(news.positions),
            wake_after = wake_after - cardinality(array(
                select unnest(awaits) intersect select unnest(news.positions)
            ))
        from news
        where tasks.id = news.task_id
        returning tasks.id, cardinality(news.positions) as counted, tasks.status = 'waiting' and (
            tasks.awaits && news.positions and tasks.wake_after <= 0
            or tasks.deadline = any (news.positions)
        ) as wakes
    )
    select coalesce(sum(parent.counted), 0), array_agg(parent.id) filter (where parent.wakes)
    into counted, woken from parent;
    -- Not in the update above: it would have tell_workers and tell_watchers give hints of what is old.
    update tasks set status = 'queued' where id = any (woken);
    return counted;
end
$$;

-- One entry. False: there was an answer before, or the task is gone.
create function complete_entry(its_task bigint, its_position int, its_output json, its_error json)
returns boolean language plpgsql set search_path from current as $$
begin
    return 1 = complete_entries(array[its_task], array[its_position], array[its_output], array[its_error]);
end
$$;

-- What a parent is told of a child that has not succeeded.
create function child_error(failure text) returns json language plpgsql set search_path from current as $$
begin
    return json_build_object(
        'type', split_part(failure, ':', 1), 'error', failure, 'traceback', '', 'final', true
    );
end
$$;

-- The end of a child completes its entry in the parent's log, in the transaction that ends it: whichever
-- statement that is, even one typed into psql. Rows are locked from the child to the parent, never the other
-- way round.
-- It is called once for each statement, with all rows that this has changed, before and after: the siblings that
-- end in one statement change their parent's row once, and not a hundred times.
-- `not in`, and no join: a session's first call decides on a plan for all of them, and for one row a join would look
-- through all old rows for each new one.
-- A child that is retried or replayed by hand may end again, and its parent may have gone on from the
-- first end: complete_entries counts only that one.
-- With the rights of the tables' owner: whoever may end a child need not be allowed to write into logs.
create function tell_parent() returns trigger
language plpgsql security definer set search_path from current as $$
begin
    perform complete_entries(
        array_agg(child.parent_id), array_agg(child.parent_position), array_agg(child.output),
        array_agg(case
            when child.status <> 'succeeded' then child_error(coalesce(child.error, 'Cancelled'))
        end)
    )
    from new_rows as child
    where child.parent_id is not null
    and child.status in ('succeeded', 'failed', 'cancelled')
    and child.id not in (
        select id from old_rows where status in ('succeeded', 'failed', 'cancelled')
    )
    having count(*) > 0;
    return null;
end
$$;

create trigger tell_parent after update on tasks
referencing old table as old_rows new table as new_rows
for each statement execute function tell_parent();

-- Even one that deletes a child that has not ended.
create function tell_parent_of_deletion() returns trigger
language plpgsql security definer set search_path from current as $$
begin
    perform complete_entries(
        array_agg(parent_id), array_agg(parent_position), array_agg(cast(null as json)),
        array_agg(child_error('Deleted'))
    )
    from old_rows
    where parent_id is not null and status in ('queued', 'running', 'waiting')
    having count(*) > 0;
    return null;
end
$$;

create trigger tell_parent_of_deletion after delete on tasks
referencing old table as old_rows
for each statement execute function tell_parent_of_deletion();

-- Makes a pair of the oldest unread message and the oldest open signal of a name, if there are both. It is
-- called after each insert of either, so the two are never left side by side. The task's row is locked in a
-- statement of its own, and only then does it look: of two that come at once, the second waits until the
-- first has committed, and its look, which is younger than that, finds what the first has written. Without the
-- lock, each would miss the other. A transaction that keeps to an old snapshot would miss it in spite of the
-- lock, and is refused.
-- With the rights of the tables' owner: whoever may send need not be allowed to write into logs.
create function deliver() returns trigger
language plpgsql security definer set search_path from current as $$
declare
    its_status text;
    its_position int;
    message messages;
begin
    if current_setting('transaction_isolation') <> 'read committed' then
        raise exception 'a message can be sent, and waited for, in a READ COMMITTED transaction only';
    end if;
    select status into its_status from tasks where id = new.task_id for update;
    if tg_table_name = 'messages' and (
        its_status is null or its_status in ('succeeded', 'failed', 'cancelled')
    ) then
        raise exception 'task % has ended, or never was: nobody would read the message', new.task_id;
    end if;

    select position into its_position from event_log
    where task_id = new.task_id and kind = 'signal' and name = new.name and completion is null
    order by position limit 1;
    select * into message from messages
    where task_id = new.task_id and name = new.name and position is null
    order by id limit 1;
    if its_position is not null and message.id is not null then
        update messages set position = its_position where id = message.id;
        perform complete_entry(
            new.task_id, its_position,
            case when message.error is null then message.payload end,
            case when message.error is not null then json_build_object(
                'type', 'SignalError', 'error', message.error, 'traceback', '', 'final', true
            ) end
        );
    end if;
    return null;
end
$$;

create trigger deliver after insert on messages for each row execute function deliver();

-- An update: a signal takes the place of a step that has failed, or is reopened by a retry.
create trigger deliver after insert or update on event_log for each row
when (new.kind = 'signal' and new.completion is null)
execute function deliver();

-- Or children of those that have ended: CancelOrphans ends these too.
-- Volatile, as functions are unless told otherwise: it sees what is committed when it is called, not what
-- was committed when the calling statement began.
create function has_living_children(its_task bigint) returns boolean
language plpgsql volatile set search_path from current as $$
begin
    return exists (
        with recursive ended (id) as (
            select its_task
            union all
            select tasks.id from ended
            join tasks on tasks.parent_id = ended.id
            where tasks.status in ('succeeded', 'failed')
        )
        select from ended
        join tasks on tasks.parent_id = ended.id
        where tasks.status in ('queued', 'running', 'waiting')
    );
end
$$;

-- Is there a parked task of this version that this code has not tried? Every worker asks often, and many tasks
-- may be parked for long. It goes from one list of who has tried to the next, reads one entry of the index
-- for each, and there are few lists.
create function has_untried(its_queue text, its_version text, its_code text)
returns boolean language plpgsql volatile set search_path from current as $$
declare
    tried text[] := '{}';
begin
    loop
        select min(parked_by) into tried from tasks
        where queue = its_queue and version = its_version
        and status = 'waiting' and run_at is null and awaits is null and parked_by > tried;
        if tried is null or its_code <> all (tried) then
            return tried is not null;
        end if;
    end loop;
end
$$;

-- By default everybody may call a function. These are for the triggers alone.
revoke execute on function
    complete_entries, complete_entry, child_error, tell_parent, tell_parent_of_deletion, deliver
from public;

-- A hint for whoever listens on the channel of this schema: the queue has something to do. Whatever makes a
-- task queued gives it, even an insert in psql.
-- A transaction that notifies takes one lock of the whole server when it commits, and holds it until its
-- commit is on the disk: if all notified, they would commit one after the other. So two at a time do, one
-- that commits and one that waits behind it. All others leave it to the latter, and commit side by side. If
-- one of them is even later than that, its task is found by a second look, or by a poll.
-- Try-locks: nobody waits here. They end with the transaction. Deferred to the commit: a transaction that
-- stays open for long would otherwise hold one of them all the while.
-- Each function is named with its schema: to set a search_path would cost each enqueue a tenth. Without either,
-- a caller could put a `hashtext` of his own first; and from Postgres 18 on, a deferred trigger has the rights of
-- whoever changed the row, which is the tables' owner if that was tell_parent.
create function tell_workers() returns trigger language plpgsql as $$
begin
    if pg_catalog.pg_try_advisory_xact_lock(
        pg_catalog.hashtext(pg_catalog.concat(tg_table_schema, ' 1')), pg_catalog.hashtext(new.queue)
    ) or pg_catalog.pg_try_advisory_xact_lock(
        pg_catalog.hashtext(pg_catalog.concat(tg_table_schema, ' 2')), pg_catalog.hashtext(new.queue)
    ) then
        perform pg_catalog.pg_notify(tg_table_schema, pg_catalog.left(new.queue, 100));  -- it has a limit
    end if;
    return null;
end
$$;

create constraint trigger tell_workers after insert or update of status on tasks
deferrable initially deferred for each row
when (new.status = 'queued')
execute function tell_workers();

-- A hint for the clients that wait for this task. Nobody waits: nothing is told, and tasks that end do not
-- queue up for the lock.
create function tell_watchers() returns trigger language plpgsql as $$
begin
    perform pg_catalog.pg_notify(tg_table_schema, pg_catalog.concat('end of ', new.id));
    return null;
end
$$;

create trigger tell_watchers after update of status on tasks for each row
when (new.watched and new.status in ('succeeded', 'failed', 'cancelled'))
execute function tell_watchers();

-- A hint for every worker's upkeep: something has happened. Two at a time, as above.
create function tell_upkeep() returns trigger language plpgsql as $$
begin
    if pg_catalog.pg_try_advisory_xact_lock(
        pg_catalog.hashtext(pg_catalog.concat(tg_table_schema, ' 1')), pg_catalog.hashtext('an event')
    ) or pg_catalog.pg_try_advisory_xact_lock(
        pg_catalog.hashtext(pg_catalog.concat(tg_table_schema, ' 2')), pg_catalog.hashtext('an event')
    ) then
        perform pg_catalog.pg_notify(tg_table_schema, 'an event');
    end if;
    return null;
end
$$;

create constraint trigger tell_upkeep after insert on events
deferrable initially deferred for each row
execute function tell_upkeep();

-- The outbox. What has to leave this database is written down as a task, in the transaction of its reason:
-- by psql, by a trigger on a table of the shop, by a service in another language. Whoever may execute this
-- needs no right on the tables: it has their owner's. It checks what `enqueue` in tasks.py checks, but for
-- the name: only a worker knows which tasks there are.
create function enqueue(
    name text,
    input json,
    queue text default 'default',
    priority int default 0,
    max_attempts int default 5,
    timeout interval default null,
    delay interval default null,
    idempotency_key text default null
) returns bigint language plpgsql security definer set search_path from current as $$
#variable_conflict use_column
declare
    problem text;
    its_id bigint;
    its_input json;
begin
    problem := case
        when name is null or name !~ '^[A-Za-z_][A-Za-z0-9_]{0,99}$'
            then format('a task is named with 1 to 100 letters, digits and _, not %L', left(name, 50))
        when queue is null or queue !~ '^[A-Za-z0-9_.-]{1,100}$'
            then format('a queue is named with 1 to 100 letters, digits, _ . -, not %L', left(queue, 50))
        when idempotency_key !~ '^[ -~]{1,200}$'
            then 'an idempotency key is 1 to 200 printable ASCII characters'
        when priority is null
            then 'priority is a whole number, not NULL'
        when max_attempts is null or max_attempts < 1
            then format('max_attempts is a whole number from 1, not %L', max_attempts)
        when timeout not between interval '0' and interval '3650 days'
            then format('timeout is an interval from 0 to 3,650 days, not %L', timeout)
        when delay not between interval '0' and interval '3650 days'
            then format('delay is an interval from 0 to 3,650 days, not %L', delay)
        when input is null
            then 'the input is JSON, not NULL: JSON has a null of its own'
        when octet_length(cast(input as text)) > 1000000
            then format('%s bytes of JSON, and 1,000,000 is the most: keep large data elsewhere and '
                'pass its address', octet_length(cast(input as text)))
    end;
    -- json lets in what no worker can read. jsonb refuses NUL and half a surrogate, with errors of its own.
    problem := coalesce(problem, case
        when jsonb_path_exists(
            cast(input as jsonb), 'strict $.**{200} ? (@.type() == "array" || @.type() == "object")'
        )
            then 'lists and objects are nested more than 200 deep'
        when jsonb_path_exists(cast(input as jsonb), 'strict $.** ? (@ > 1e308 || @ < -1e308)')
            then 'a number is greater than 1e308: pass it as a string'
    end);
    if problem is not null then
        raise exception using errcode = 'invalid_parameter_value', message = problem;
    end if;

    insert into tasks (
        queue, name, input, priority, max_attempts, timeout, idempotency_key, status, run_at
    )
    values (
        queue, name, input, priority, max_attempts, timeout, idempotency_key,
        case when delay is null then 'queued' else 'waiting' end, clock_timestamp() + delay
    )
    on conflict (name, idempotency_key) where idempotency_key is not null do nothing
    returning id into its_id;
    if its_id is not null then
        return its_id;
    end if;

    select tasks.id, tasks.input into its_id, its_input from tasks
    where tasks.name = enqueue.name and tasks.idempotency_key = enqueue.idempotency_key;
    if its_id is null then
        raise exception 'the task with the key % was just deleted: try again', quote_literal(idempotency_key);
    end if;
    if cast(its_input as jsonb) <> cast(input as jsonb) then
        raise exception using errcode = 'unique_violation', message = format(
            'the key %L was used for another input: task %s', idempotency_key, its_id
        );
    end if;
    return its_id;
end
$$;

revoke execute on function enqueue from public;
