-- The queue is one table. A row's life:
--
--   EnqueueTask inserts it: queued. ClaimTasks gives it to one worker: running. The worker calls the
--   task's function and then SucceedTask stores what it returned, or FailTask what it raised.
--
--                 ClaimTasks            SucceedTask
--      queued  ---------------> running ---------------> succeeded
--                                  |       FailTask
--                                  +-------------------> failed
--
-- Nothing leaves succeeded or failed.

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
               constraint status_known check (status in ('queued', 'running', 'succeeded', 'failed')),
    output     json,            -- what it returned; JSON null if it returned None
    error      text,            -- what it raised
    created_at timestamptz not null default clock_timestamp(),
    constraint output_if_succeeded check ((status = 'succeeded') = (output is not null)),
    constraint error_if_failed check ((status = 'failed') = (error is not null))
);

comment on table tasks is 'One row of work: a name, a JSON input and a status.';

-- ClaimTasks reads the first entries of this index. A finished task is not in it: the claim stays as
-- fast with a million finished tasks in the table as with none.
create index tasks_queued on tasks (queue, id) where status = 'queued';

-- CountRunning counts the entries of one queue. There are never more of them than its limit.
create index tasks_running on tasks (queue) where status = 'running';

create table queue_limits (
    queue       text primary key,
    -- 0 pauses the queue.
    max_running int not null constraint limit_not_negative check (max_running >= 0)
);

comment on table queue_limits is 'How many tasks of a queue may run at once. No row: no limit.';
