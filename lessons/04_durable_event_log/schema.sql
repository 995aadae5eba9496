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
--   A worker may die, or a run take too long: TakeBackTasks makes the task queued again, or failed
--   if that was its last attempt.
--
-- Nothing leaves succeeded or failed.

create table workers (
    id          bigint generated always as identity primary key,
    name        text not null,         -- for people; two workers may have the same
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
                   'queued', 'running', 'waiting', 'succeeded', 'failed'
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
    created_at timestamptz not null default clock_timestamp(),
    constraint output_if_succeeded check ((status = 'succeeded') = (output is not null)),
    constraint error_if_failed check (status <> 'failed' or error is not null),
    constraint error_of_an_attempt
        check (error is null or status = 'failed' or (attempt > 0 and status <> 'succeeded')),
    constraint waits_for_something check (status <> 'waiting' or run_at is not null),
    constraint run_by_a_worker check (
        status <> 'running' or (attempt > 0 and worker_id is not null and started_at is not null)
    )
);

comment on table tasks is 'One row of work: a name, a JSON input and a status.';

-- ClaimTasks reads the first entries of this index. A finished task is not in it: the claim stays as
-- fast with a million finished tasks in the table as with none.
create index tasks_queued on tasks (queue, priority desc, id) where status = 'queued';

-- WakeTasks: the first entries are those that are due.
create index tasks_waiting on tasks (run_at) where status = 'waiting';

-- CountRunning counts the entries of one queue. There are never more of them than its limit.
create index tasks_running on tasks (queue) where status = 'running';

-- One task for a name and a key. A task without a key has no entry here, and costs nothing; a unique
-- constraint would have one for it, and one more whenever its row changes.
create unique index tasks_keys on tasks (name, idempotency_key) where idempotency_key is not null;

create table queue_limits (
    queue       text primary key,
    -- 0 pauses the queue.
    max_running int not null constraint limit_not_negative check (max_running >= 0)
);

comment on table queue_limits is 'How many tasks of a queue may run at once. No row: no limit.';

-- What a durable task has done, in the order in which it did it. A row is written by the run that did
-- the step, and answers every later run. Two things may still happen to an error at the end of the log:
-- a later attempt does the step again, and the error gives way to what comes of it; or the function goes
-- on after it, and it is settled for good.
create table event_log (
    -- Whoever deletes a task deletes its log with it.
    task_id     bigint not null references tasks on delete cascade,
    position    int not null,     -- 1, 2, 3 ... in the order of the calls
    kind        text not null constraint kind_known check (kind in ('step')),
    name        text not null,    -- the step's function
    input       json not null,    -- its arguments, for people to read
    output      json,             -- what it returned
    error       json,             -- or what it raised: type, message, traceback
    settled     boolean not null default false,  -- an error that no run may undo: the function went on
    attempt     int not null,     -- by which run
    recorded_at timestamptz not null default clock_timestamp(),
    primary key (task_id, position),
    constraint output_or_error check ((output is null) <> (error is null)),
    constraint errors_are_settled check (not settled or error is not null)
);

comment on table event_log is 'One recorded step of a durable task.';
