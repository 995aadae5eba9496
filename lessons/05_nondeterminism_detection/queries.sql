-- name: EnqueueTask :one
-- No row: there is a task of this name with this idempotency key. If another transaction has
-- inserted it and is still open, this statement waits to see whether it commits.
insert into tasks (
    queue, name, input, priority, max_attempts, timeout, idempotency_key, status, run_at
)
values (
    @queue, @name, cast(@input as json), @priority, @max_attempts, sqlc.narg(timeout),
    sqlc.narg(idempotency_key),
    case when sqlc.narg(delay)::interval is null then 'queued' else 'waiting' end,
    clock_timestamp() + sqlc.narg(delay)::interval
)
on conflict (name, idempotency_key) where idempotency_key is not null do nothing
returning id;

-- name: FindTask :one
select id, input from tasks
where name = @name and idempotency_key = cast(@idempotency_key as text);

-- name: LimitQueue :exec
insert into queue_limits (queue, max_running)
values (@queue, @max_running)
on conflict (queue) do update set max_running = excluded.max_running;

-- name: BoundIdleTime :exec
-- For this transaction. A worker that stands still between LockLimit and its COMMIT would keep all
-- others from claiming. After 5 s without a statement Postgres ends its connection, and the lock.
select set_config('idle_in_transaction_session_timeout', '5s', true);

-- name: LockLimit :one
-- No row: the queue has no limit, and nothing is locked. Otherwise the row stays locked until the
-- caller's transaction ends: between counting and claiming, nobody else counts.
select max_running from queue_limits
where queue = @queue
for update;

-- name: CountRunning :one
-- Must be a statement of its own, after LockLimit: a statement sees what was committed when it
-- began, and one that has waited for a lock began before the wait.
select count(*) as running from tasks
where queue = @queue and status = 'running';

-- name: LookForWork :one
-- Asked by a worker that has found nothing: a claim in a queue with a limit takes five statements.
-- Nothing is locked here, and the answer may be wrong a moment later. The claim itself counts again.
-- The limit comes first, as in a claim within it: otherwise this and a statement that locks both
-- tables, as truncate does, could wait for each other.
-- `order by`, for the index: Postgres might otherwise look for the first queued row through the table.
select cast(
    coalesce((
        select max_running > (
            select count(*) from tasks where tasks.queue = @queue and status = 'running'
        )
        from queue_limits where queue_limits.queue = @queue
    ), true)
    and exists (
        select from (
            select from tasks where tasks.queue = @queue and status = 'queued'
            order by priority desc, id
            limit 1
        ) as first
    )
    as boolean) as found;

-- name: ClaimTasks :many
-- The most urgent queued tasks, the oldest first, at most so many. `returning` keeps no order: the
-- caller sorts.
-- `for update` locks the row that was found: a second claim cannot take it too, and waits.
-- `skip locked` lets it pass over rows that somebody has locked, and take the next one instead.
-- The lock lasts until this statement commits; from then on, status = 'running' keeps others away.
-- `array(...)` is evaluated once, before the update. `id in (select ...)` might be evaluated again for
-- each row that it is compared with, and would lock other rows each time.
-- limited: the caller has locked the queue's limit, and counted. Without that, a claim gets nothing
-- from a queue that has a limit.
-- A worker that was taken for dead gets nothing until it has registered again: others would take its
-- tasks back at once.
-- skip: how many to pass over, at the head of the queue; see all_but_refused.
-- The input as text: one that Python cannot parse (5,000 digits) must fail its own task, not the claim.
update tasks
set status = 'running', attempt = attempt + 1, worker_id = cast(@worker_id as bigint),
    started_at = clock_timestamp()
where id = any (array(
    select id from tasks
    where tasks.queue = @queue and status = 'queued'
    and cast(@limited as boolean) = exists (
        select from queue_limits where queue_limits.queue = @queue
    )
    and exists (select from workers where workers.id = cast(@worker_id as bigint))
    order by priority desc, id
    limit sqlc.arg(at_most) offset sqlc.arg(skip)
    for update skip locked
))
returning id, name, cast(input as text) as input, priority, attempt, max_attempts, uncounted, log_id;

-- name: SucceedTask :execrows
-- The fence: only the attempt that the task is in may finish it. A worker that was taken for dead
-- and has woken up holds an older attempt, changes 0 rows, and learns that its result is void.
update tasks
set status = 'succeeded', output = cast(@output as json), error = null
where id = @id and attempt = @attempt and status = 'running';

-- name: FailTask :execrows
update tasks
set status = 'failed', error = cast(@error as text)
where id = @id and attempt = @attempt and status = 'running';

-- name: RetryTask :execrows
update tasks
set status = 'waiting', run_at = clock_timestamp() + cast(@delay as interval),
    error = cast(@error as text)
where id = @id and attempt = @attempt and status = 'running';

-- name: WakeTasks :many
-- `(select clock_timestamp())` is evaluated once. Without the `select` it could change from row to
-- row, so no index could be searched for it, and every waiting task would be looked at.
update tasks
set status = 'queued'
where id = any (array(
    select id from tasks
    where status = 'waiting' and run_at <= (select clock_timestamp())
    order by run_at
    limit sqlc.arg(at_most) offset sqlc.arg(skip)
    for update skip locked
))
returning id;

-- name: TakeBackTasks :many
-- Runs that took too long, and those whose worker is not alive. Every worker calls this, and several
-- do so at once. `skip locked`: none waits for a task that another is taking back. The attempt: between
-- the look and the lock, the other may have committed, and the task may run again, on a worker that is
-- well. What was found lost is lost in that attempt only.
-- A worker's death is held against the task only if its run has recorded nothing that stays. Otherwise
-- the count starts again: max_attempts bounds the deaths since the log last grew, not those of a long life.
with lost as materialized (
    select tasks.id, tasks.attempt, case
        when workers.id is null and exists (
            select from event_log
            where event_log.task_id = tasks.id and event_log.attempt = tasks.attempt
            and event_log.error is null
        )
        then tasks.attempt
        else tasks.uncounted
    end as uncounted
    from tasks
    left join workers on workers.id = tasks.worker_id
    where tasks.status = 'running'
    and (workers.id is null or tasks.started_at < clock_timestamp() - tasks.timeout)
    order by tasks.started_at
    limit sqlc.arg(at_most) offset sqlc.arg(skip)
)
update tasks
set status = case when tasks.attempt - lost.uncounted < max_attempts then 'queued' else 'failed' end,
    uncounted = lost.uncounted,
    error = case
        when started_at < clock_timestamp() - timeout then 'Timeout: the run took too long'
        else 'WorkerDied: the worker that ran it is gone'
    end
from lost
where lost.id = tasks.id and tasks.id = any (array(
    select tasks.id from tasks
    join lost on lost.id = tasks.id and lost.attempt = tasks.attempt
    where tasks.status = 'running'
    order by tasks.id
    for update of tasks skip locked
))
returning tasks.id, name, status, tasks.attempt, error;

-- name: GiveBackTasks :many
-- Of one worker: what it does not run, though the row says so. The answer to a claim never arrived, or
-- the database refused what a run had to store. Only the worker itself can know; to everybody else these
-- tasks look as if they were running. The attempt does not count: the task is not to blame.
-- running: task and attempt, as in '7/2'. An older attempt of the same task may still be running here.
update tasks
set status = 'queued', uncounted = uncounted + 1
where id = any (array(
    select id from tasks
    where worker_id = cast(@worker_id as bigint) and status = 'running'
    and format('%s/%s', id, attempt) <> all (cast(@running as text[]))
    and started_at < clock_timestamp() - cast(@older_than as interval)
    order by started_at
    limit sqlc.arg(at_most) offset sqlc.arg(skip)
    for update skip locked
))
returning id, attempt;

-- name: RegisterWorker :one
insert into workers (name, alive_until)
values (@name, clock_timestamp() + cast(@lease as interval))
returning id;

-- name: Heartbeat :execrows
-- 0 rows: the worker was taken for dead, and its tasks are being taken back.
update workers
set alive_until = clock_timestamp() + cast(@lease as interval)
where id = @id;

-- name: BuryWorkers :many
-- A heartbeat at the same moment either waits for the row's lock and then finds no row, or holds the
-- lock, and the row is passed over here: a worker is never both alive and buried.
-- The worker that asks is alive, even if its lease has run out: its machine may have slept.
delete from workers
where id = any (array(
    select id from workers
    where alive_until < clock_timestamp() and workers.id <> @worker_id
    order by id
    for update skip locked
))
returning id, name;

-- name: UnregisterWorker :exec
delete from workers
where id = @id;

-- name: ListWorkers :many
select id, name from workers
order by id;

-- name: ReviveTask :execrows
-- Retry, by hand: a failed task gets one more attempt, and keeps its log.
update tasks
set status = 'queued', error = null
where id = @id and status = 'failed';

-- name: GetTask :one
select * from tasks
where id = @id;

-- name: ListTasks :many
-- The newest tasks, for people to look at. As text, and cut short: one row that Python cannot read,
-- or a megabyte in each, must not keep anybody from seeing the others.
select id, left(name, 100) as name, left(cast(input as text), 200) as input, status,
    cast(attempt - uncounted as int) as tries, max_attempts,
    worker_id,
    left(coalesce(error, cast(output as text), ''), 1000) as outcome
from tasks
order by id desc
limit sqlc.arg(at_most);

-- name: CountTasks :many
select status, count(*) as tasks from tasks
group by status
order by status;

-- name: LoadLog :many
select position, kind, name, input, output, error, settled from event_log
where task_id = @task_id
order by position;

-- name: RecordStep :execrows
-- Fence and record are one statement. `for share` locks the task's row: a claim by another worker,
-- which changes that row, comes wholly before this (and then 0 rows are written) or wholly after.
-- A mere `exists (...)` would look at a snapshot in which the task may still be ours.
-- Behind the last entry, or in its place: a log has no holes, and nothing is written below its end.
-- On conflict: either this attempt has recorded the step already and never heard of it, because the
-- connection broke; or the step failed in an earlier attempt, and nothing came after it.
with run as (
    select tasks.id from tasks
    where tasks.id = @id and tasks.attempt = @attempt and tasks.status = 'running'
    for share
)
insert into event_log (task_id, position, kind, name, input, output, error, attempt)
select
    run.id, @position, @kind, @name, cast(@input as json), cast(sqlc.narg(output) as json),
    cast(sqlc.narg(error) as json), @attempt
from run
where (select coalesce(max(last.position), 0) from event_log as last where last.task_id = run.id)
    in (cast(@position as int) - 1, @position)
on conflict (task_id, position) do update
set kind = excluded.kind, name = excluded.name, input = excluded.input, output = excluded.output,
    error = excluded.error, attempt = excluded.attempt, recorded_at = excluded.recorded_at
where event_log.attempt = excluded.attempt or event_log.error is not null;

-- name: SettleErrors :execrows
-- The function goes on from these errors. Fenced like a step.
with run as (
    select tasks.id from tasks
    where tasks.id = @id and tasks.attempt = @attempt and tasks.status = 'running'
    for share
)
update event_log
set settled = true
from run
where event_log.task_id = run.id and event_log.position = any (cast(@positions as int[]));
