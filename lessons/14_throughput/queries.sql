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

-- name: EnqueueTasks :many
-- One name, one set of options, many inputs. The ids are given out in the order of the inputs: that is what
-- `order by` is for. `returning` keeps no order: the caller sorts.
insert into tasks (queue, name, input, priority, max_attempts, timeout, status, run_at)
select
    @queue, @name, given.input, @priority, @max_attempts, cast(sqlc.narg(timeout) as interval),
    case when cast(sqlc.narg(delay) as interval) is null then 'queued' else 'waiting' end,
    clock_timestamp() + cast(sqlc.narg(delay) as interval)
from json_array_elements(cast(@inputs as json)) with ordinality as given (input, place)
order by given.place
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
        select from workers, lateral (select workers.version union select '') as mine (version),
        lateral (
            select from tasks
            where tasks.queue = @queue and tasks.version = mine.version and status = 'queued'
            and workers.code <> all (tasks.parked_by)
            order by priority desc, id
            limit 1
        ) as first
        where workers.id = cast(@worker_id as bigint)
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
-- Of two kinds: what this worker's version has begun, and what any may run. Each kind is read from its own
-- part of the index, so that the tasks of other versions cost nothing; what of both is less urgent than the
-- rest stays locked until this statement commits, and is passed over by others until then.
-- code: what it could not run before, it leaves to other code. Without this, it would try for ever.
-- A durable task with an empty log begins here: from now on, it is of this worker's version. If its log is not
-- empty, it was begun by workers without a version, or is a fork, and any version may try it.
-- The input as text: one that Python cannot parse (5,000 digits) must fail its own task, not the claim.
update tasks
set status = 'running', attempt = attempt + 1, worker_id = cast(@worker_id as bigint),
    started_at = clock_timestamp(),
    version = case
        when name = any (cast(@durable_names as text[]))
        and not exists (select from event_log where event_log.task_id = tasks.id)
        then (select workers.version from workers where workers.id = cast(@worker_id as bigint))
        else version
    end
where id = any (array(
    select head.id
    from workers, lateral (select workers.version union select '') as mine (version), lateral (
        select tasks.id, tasks.priority from tasks
        where tasks.queue = @queue and tasks.version = mine.version and status = 'queued'
        and workers.code <> all (tasks.parked_by)
        order by priority desc, id
        limit cast(@at_most as int) + cast(@skip as int)
        for update skip locked
    ) as head
    where workers.id = cast(@worker_id as bigint)
    and cast(@limited as boolean) = exists (
        select from queue_limits where queue_limits.queue = @queue
    )
    order by head.priority desc, head.id
    limit cast(@at_most as int) offset cast(@skip as int)
))
returning id, name, cast(input as text) as input, priority, attempt, max_attempts, log_id,
    uncounted, queue, completions;

-- name: SucceedTask :execrows
-- The fence: only the attempt that the task is in may finish it. A worker that was taken for dead
-- and has woken up holds an older attempt, changes 0 rows, and learns that its result is void.
update tasks
set status = 'succeeded', output = cast(@output as json), error = null
where id = @id and attempt = @attempt and status = 'running';

-- name: SucceedTasks :many
-- Results of many tasks in one statement and one commit, each behind its own fence. What is not returned is
-- not stored, for whatever reason; SucceedTask stores it, alone.
-- So this waits for nobody: one row that somebody holds would keep all other results from being stored. A
-- child's end changes its parent's row, which is locked here too. Of both, `skip locked`.
-- The attempt is compared with each row that is given: a worker may still run an old attempt of a task beside
-- the new one, and both may end at once.
with given as materialized (
    select
        cast(result ->> 'id' as bigint) as id, cast(result ->> 'attempt' as int) as attempt,
        result -> 'output' as output
    from json_array_elements(cast(@results as json)) as result
), alone as materialized (
    select tasks.id from tasks
    join given on given.id = tasks.id and given.attempt = tasks.attempt
    where tasks.status = 'running'
    and not exists (select from tasks as parent where parent.id = tasks.parent_id)
    for update of tasks skip locked
), child as materialized (
    select tasks.id from tasks
    join given on given.id = tasks.id and given.attempt = tasks.attempt
    join tasks as parent on parent.id = tasks.parent_id
    where tasks.status = 'running'
    for update of tasks, parent skip locked
)
update tasks
set status = 'succeeded', output = given.output, error = null
from given
where tasks.id = given.id and tasks.attempt = given.attempt
and tasks.id = any (array(select id from alone union all select id from child))
returning tasks.id, tasks.attempt;

-- name: FailTask :execrows
update tasks
set status = 'failed', error = cast(@error as text)
where id = @id and attempt = @attempt and status = 'running';

-- name: RetryTask :execrows
update tasks
set status = 'waiting', run_at = clock_timestamp() + cast(@delay as interval), awaits = null,
    deadline = null, error = cast(@error as text)
where id = @id and attempt = @attempt and status = 'running';

-- name: ParkTask :execrows
-- The code of this worker cannot run the task, and other code may. It keeps its log, and the attempt does
-- not count. awaits, deadline: what completes an entry of its log must not wake it, and finds it again by the log.
-- Each start of a worker without a version is other code: those that are gone are left out, or the list would
-- grow with each start. A worker that was taken for dead has no row; then it counts as one without a version.
update tasks
set status = 'waiting', run_at = null, awaits = null, deadline = null, uncounted = uncounted + 1,
    error = cast(@error as text),
    parked_by = array(
        select code from unnest(parked_by) as tried (code)
        where code not like 'worker %' or code in (select workers.code from workers)
    ) || coalesce(
        (select workers.code from workers where workers.id = tasks.worker_id),
        'worker ' || cast(worker_id as text)
    )
where tasks.id = @id and tasks.attempt = @attempt and tasks.status = 'running';

-- name: UnparkTasks :many
-- What this worker may claim, and its code has not tried. Every worker calls this. The list of who has tried
-- stays: a claim goes by it, and two versions that both cannot run a task do not pass it to and fro for ever.
update tasks
set status = 'queued'
where id = any (array(
    select parked.id
    from workers, lateral (select workers.version union select '') as mine (version), lateral (
        select tasks.id from tasks
        where tasks.queue = workers.queue and tasks.version = mine.version
        and tasks.status = 'waiting' and tasks.run_at is null and tasks.awaits is null
        and workers.code <> all (tasks.parked_by)
        for update skip locked
    ) as parked
    where workers.id = cast(@worker_id as bigint)
    limit sqlc.arg(at_most) offset sqlc.arg(skip)
))
returning id;

-- name: RetryParked :execrows
-- Retry, by hand, of a task that waits for other code: parked, or queued for what is gone by now. All may
-- try again.
update tasks
set status = 'queued', parked_by = '{}', error = null
where id = @id and parked_by <> '{}' and (
    status = 'queued' or status = 'waiting' and run_at is null and awaits is null
);

-- name: ListVersions :many
-- May the last worker of a version go? What it has begun and not ended, and how much of that is parked.
-- '': what no version has begun, and workers without one.
with unfinished as (
    select version, count(*) as tasks,
        count(*) filter (where status = 'waiting' and run_at is null and awaits is null) as parked
    from tasks
    where status in ('queued', 'running', 'waiting')
    group by version
), alive as (
    select version, count(*) as workers from workers
    where alive_until > clock_timestamp()
    group by version
)
select cast(coalesce(unfinished.version, alive.version) as text) as version,
    coalesce(unfinished.tasks, 0) as unfinished, coalesce(unfinished.parked, 0) as parked,
    coalesce(alive.workers, 0) as workers
from unfinished
full join alive on alive.version = unfinished.version
order by 1;

-- name: MoveVersion :execrows
-- Other code has to end what this version has begun: by hand. What runs now is moved, too, and its run goes on:
-- only who may claim it next is different. The rows are locked in the order that LockTasks has.
update tasks
set version = @to_version, parked_by = '{}',
    status = case
        when status = 'waiting' and run_at is null and awaits is null then 'queued' else status
    end
where tasks.id = any (array(
    select tasks.id from tasks
    where tasks.version = @from_version and tasks.status in ('queued', 'running', 'waiting')
    order by tasks.id desc
    for update
));

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
-- A child that fails is told to its parent, whose row is locked here too: without it, this statement
-- would wait for a parent that somebody holds, and all other lost tasks with it.
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
where lost.id = tasks.id and (
    tasks.id = any (array(
        select tasks.id from tasks
        join lost on lost.id = tasks.id and lost.attempt = tasks.attempt
        where tasks.status = 'running' and (
            tasks.attempt - lost.uncounted < tasks.max_attempts
            or not exists (select from tasks as parent where parent.id = tasks.parent_id)
        )
        order by tasks.id
        for update of tasks skip locked
    ))
    or tasks.id = any (array(
        select tasks.id from tasks
        join lost on lost.id = tasks.id and lost.attempt = tasks.attempt
        join tasks as parent on parent.id = tasks.parent_id
        where tasks.status = 'running' and tasks.attempt - lost.uncounted >= tasks.max_attempts
        order by tasks.id
        for update of tasks, parent skip locked
    ))
)
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
insert into workers (name, queue, version, alive_until)
values (@name, @queue, @version, clock_timestamp() + cast(@lease as interval))
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

-- name: LockTasks :exec
-- The greatest id first: a child's is greater than its parent's. So every operation by hand, and the end
-- of a child, locks the rows of a tree in the same order, and no two of them wait for each other.
select id from tasks
where id = any (cast(@ids as bigint[]))
order by id desc
for update;

-- name: ListRetried :many
-- What a retry looks at: the task; the children whose failure is in its log, unless the function has gone
-- on from it and must find it again; and, for those that have not succeeded since, their children likewise.
-- status: null if the child was deleted.
with recursive retried (id, of) as (
    select cast(@id as bigint), cast(null as bigint)
    union all
    select event_log.child_id, tasks.id from retried
    join tasks on tasks.id = retried.id and tasks.status in ('failed', 'cancelled')
    join event_log on event_log.task_id = tasks.id
    where event_log.kind = 'child' and event_log.error is not null and not event_log.settled
)
select cast(retried.id as bigint) as id, retried.of, tasks.status, tasks.attempt
from retried left join tasks on tasks.id = retried.id
order by retried.id desc;

-- name: ReviveTasks :execrows
-- Retry, by hand: what has failed or was cancelled gets at least one more attempt, and keeps its log.
update tasks
set status = 'queued', error = null, swept = false, parked_by = '{}'
where id = any (cast(@ids as bigint[])) and status in ('failed', 'cancelled');

-- name: ReopenEntries :exec
-- Of tasks that are retried: forget how these children of theirs ended. Their next end will be told.
-- Forget which waits have timed out, or were told of a failure: each gets all of its time again.
-- An error that the function has gone on from stays.
update event_log
set output = null, error = null, completion = null,
    due_at = clock_timestamp() + (due_at - recorded_at), recorded_at = clock_timestamp()
where task_id = any (cast(@ids as bigint[]))
and (child_id = any (cast(@child_ids as bigint[])) or kind in ('timer', 'signal', 'event'))
and error is not null and not settled;

-- name: TellAgain :exec
-- Of children whose entries were reopened: if one has succeeded, because it was retried by hand before its
-- parent was, the parent is told now.
select complete_entries(array_agg(parent_id), array_agg(parent_position), array_agg(output), '{}')
from tasks
where id = any (cast(@ids as bigint[])) and status = 'succeeded';

-- name: DropLastErrors :exec
-- Of tasks that are retried: the step that failed is done again, if it was the last, and the function
-- has not gone on from its failure. Even what is done at most once: whoever retries by hand has looked.
delete from event_log
where event_log.task_id = any (cast(@ids as bigint[]))
and event_log.kind in ('step', 'once', 'transaction')
and event_log.error is not null and not event_log.settled
and event_log.position = (
    select max(last.position) from event_log as last where last.task_id = event_log.task_id
);

-- name: ListReplayed :many
-- What a replay looks at: the task, in which attempt it is, and its children.
select id, case when id = @id then attempt end as attempt from tasks
where id = @id or parent_id = cast(@id as bigint)
order by id desc;

-- name: ReplayTask :execrows
-- Run it again from an empty log. The log gets a new id, and so its steps get new idempotency keys. The
-- old attempts do not count. It begins again, so any version may begin it.
update tasks
set status = 'queued', log_id = gen_random_uuid(), output = null, error = null,
    completions = 0, awaits = null, wake_after = null, deadline = null, uncounted = attempt,
    swept = false, version = '', parked_by = '{}'
where id = @id and status in ('succeeded', 'failed', 'cancelled');

-- name: DeleteLog :exec
delete from event_log
where task_id = @task_id;

-- name: DeleteReadMessages :exec
-- They were answers to the log that is being forgotten, and their keys are free again. What nobody has
-- read yet is for the new log.
delete from messages
where task_id = @task_id and position is not null;

-- name: DetachChildren :exec
-- The children of the run that is being forgotten: those that have not ended are cancelled.
update tasks
set parent_id = null, parent_position = null,
    status = case when status in ('queued', 'running', 'waiting') then 'cancelled' else status end
where parent_id = cast(@parent_id as bigint);

-- name: ForkTask :one
-- A new task, and copies of the entries that an old one's log has up to a position. No lock: all that this
-- writes is new. It is one statement, so it reads one moment of the old task, which may be running or in
-- somebody's hands; and the beginning of a log is a log at any moment.
-- This statement, which writes the log, is attempt 1. The first run is attempt 2, and loads it.
-- Completions keep their ranks, and thereby their order. Later ones get higher ranks.
-- settled: a kept error is an answer. If it were not, a retry of the fork would retry the old task's child,
-- which tells the old task, and the fork would wait for ever.
-- An open entry gets a child of its own, because the old one tells only the old task. An open timer rings
-- for both tasks at the same moment. An open signal waits for what is sent to the new task.
-- No row: there is no such task, or its log does not reach this position.
with kept as (
    select position, kind, name, input, output, error, child_id, due_at, completion, recorded_at
    from event_log
    where event_log.task_id = @id and event_log.position <= cast(@position as int)
), fork as (
    insert into tasks (
        queue, name, input, priority, max_attempts, timeout, attempt, uncounted, completions,
        forked_from, fork_position
    )
    select
        queue, name, input, priority, max_attempts, timeout, 1, 1,
        (select coalesce(max(kept.completion), 0) from kept), tasks.id, cast(@position as int)
    from tasks
    where tasks.id = @id
    and (select coalesce(max(kept.position), 0) from kept) = cast(@position as int)
    returning tasks.id
), child as (
    insert into tasks (
        queue, name, input, priority, max_attempts, timeout, parent_id, parent_position
    )
    select
        old.queue, old.name, old.input, old.priority, old.max_attempts, old.timeout, fork.id,
        kept.position
    from fork, kept
    join tasks as old on old.id = kept.child_id
    where kept.completion is null
    returning tasks.id, tasks.parent_position
), entry as (
    insert into event_log (
        task_id, position, kind, name, input, output, error, settled, child_id, due_at, completion,
        attempt, recorded_at
    )
    select
        fork.id, kept.position, kept.kind, kept.name, kept.input, kept.output, kept.error,
        kept.error is not null, coalesce(child.id, kept.child_id), kept.due_at, kept.completion,
        1, kept.recorded_at
    from fork, kept
    left join child on child.parent_position = kept.position
)
select fork.id from fork;

-- name: ListForks :many
-- A task, what was forked from it, and what from that: each below what it was forked from.
with recursive forks (id, path) as (
    select tasks.id, array[tasks.id] from tasks where tasks.id = @id
    union all
    select tasks.id, forks.path || tasks.id from forks
    join tasks on tasks.forked_from = forks.id
)
select tasks.id, cast(cardinality(forks.path) - 1 as int) as depth, tasks.forked_from,
    tasks.fork_position, tasks.status,
    left(coalesce(tasks.error, cast(tasks.output as text)), 200) as outcome
from forks
join tasks on tasks.id = forks.id
order by forks.path;

-- name: CancelTask :execrows
update tasks
set status = 'cancelled', error = null
where id = @id and status in ('queued', 'running', 'waiting');

-- name: CancelOrphans :many
-- The children of cancelled tasks; their own children are next. Even below children that have succeeded
-- or failed: a task that fails leaves its own children alive. `root`: the cancelled task above them.
-- The end of each is told to its parent, whose row is locked here too. `skip locked`: a child that is
-- ending right now, or one whose parent somebody holds, is left for the next time, and nobody waits. With
-- the lock, parent and root are looked at once more: if one has been retried since, these are no orphans.
-- `array(...)`: it begins with these parents, however many children are alive.
with recursive ended (id, root) as (
    select id, id from tasks where status = 'cancelled' and not swept
    union all
    select child.id, ended.root from ended
    join tasks as child on child.parent_id = ended.id
    where child.status in ('succeeded', 'failed')
)
update tasks
set status = 'cancelled', error = null
where id = any (array(
    select child.id from ended
    join tasks as root on root.id = ended.root
    join tasks as parent on parent.id = ended.id
    join tasks as child on child.parent_id = parent.id
    where child.parent_id = any (array(select id from ended))
    and root.status = 'cancelled' and not root.swept
    and parent.status in ('succeeded', 'failed', 'cancelled')
    and child.status in ('queued', 'running', 'waiting')
    order by child.id
    limit sqlc.arg(at_most) offset sqlc.arg(skip)
    for update of child, parent, root skip locked
))
returning id;

-- name: MarkSwept :exec
-- Cancelled tasks with nothing alive below them: CancelOrphans need not look at them again, however many
-- there are. The lock comes first: between a look and a lock, one could be retried, and cancelled again.
update tasks
set swept = true
where id = any (array(
    select id from tasks
    where status = 'cancelled' and not swept
    for update skip locked
)) and not has_living_children(id);

-- name: GetTask :one
select * from tasks
where id = @id;

-- name: ListTasks :many
-- The newest tasks, for people to look at. As text, and cut short: one row that Python cannot read,
-- or a megabyte in each, must not keep anybody from seeing the others.
select id, left(name, 100) as name, left(cast(input as text), 200) as input,
    cast(case
        when status = 'waiting' and run_at is null and awaits is null then 'parked' else status
    end as text) as status,
    version, cast(attempt - uncounted as int) as tries, max_attempts,
    worker_id, parent_id,
    left(coalesce(error, cast(output as text), ''), 1000) as outcome
from tasks
order by id desc
limit sqlc.arg(at_most);

-- name: CountTasks :many
select status, count(*) as tasks from tasks
group by status
order by status;

-- name: LoadLog :many
select position, kind, name, input, output, error, settled, completion from event_log
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

-- name: RecordSteps :many
-- Steps of many tasks in one statement and one commit, each behind its own fence. What is not returned is
-- not recorded, for whatever reason; RecordStep records it, alone. So this waits for nobody.
with given as materialized (
    select
        cast(step ->> 'task_id' as bigint) as task_id, cast(step ->> 'attempt' as int) as attempt,
        cast(step ->> 'position' as int) as position, step ->> 'name' as name,
        step -> 'input' as input, step -> 'output' as output
    from json_array_elements(cast(@steps as json)) as step
), run as materialized (
    select tasks.id, tasks.attempt from tasks
    join given on given.task_id = tasks.id and given.attempt = tasks.attempt
    where tasks.status = 'running'
    for share of tasks skip locked
)
insert into event_log (task_id, position, kind, name, input, output, attempt)
select given.task_id, given.position, 'step', given.name, given.input, given.output, given.attempt
from given
join run on run.id = given.task_id and run.attempt = given.attempt
where (select coalesce(max(last.position), 0) from event_log as last where last.task_id = run.id)
    = given.position - 1
on conflict (task_id, position) do nothing
returning task_id, attempt;

-- name: RecordFirst :execrows
-- Of a transaction: in that transaction, as its last statement; or alone, if all that is left is an error.
-- And that something is begun which is done at most once. Fenced like a step.
-- On conflict: only an error of an earlier attempt gives way. Whatever this attempt has recorded here stays:
-- an earlier COMMIT has arrived, and only its answer was lost. If that transaction is still open, this waits
-- for its end. So of two tries, one is rolled back with all that it has done.
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
where event_log.attempt < excluded.attempt and event_log.error is not null;

-- name: FindEntry :one
-- What this attempt has recorded here, as long as the task is in it.
select event_log.output, event_log.error from event_log
join tasks on tasks.id = event_log.task_id and tasks.attempt = event_log.attempt
where event_log.task_id = @id and event_log.position = @position
and event_log.attempt = @attempt and tasks.status = 'running';

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

-- name: SpawnChildren :one
-- Children and their entries in the parent's log are made by one statement, fenced like a step. Their ids
-- are given out in the order of their positions. All or none.
-- `again`: this attempt has done it already, and never heard of it because the connection broke. Then the
-- entries are left as they are: children may have ended meanwhile. If it is still on its way, this waits for
-- its children and makes none; sent once more, it is `again`. On conflict of entries: as for a step, an error
-- at the end of the log gives way.
with run as (
    select tasks.id from tasks
    where tasks.id = @id and tasks.attempt = @attempt and tasks.status = 'running'
    for share
), again as (
    select from event_log
    join run on run.id = event_log.task_id
    where event_log.position between cast(@first as int) and cast(@first as int) + cast(@count as int) - 1
    and event_log.attempt = @attempt and event_log.kind = 'child'
    having count(*) = cast(@count as int)
), given as materialized (
    select
        cast(child ->> 'position' as int) as position, child ->> 'name' as name,
        cast(child ->> 'input' as json) as input, child ->> 'queue' as queue,
        cast(child ->> 'priority' as int) as priority,
        cast(child ->> 'max_attempts' as int) as max_attempts,
        cast(child ->> 'timeout' as float) * interval '1 s' as timeout
    from json_array_elements(cast(@children as json)) as child
), child as (
    insert into tasks (
        queue, name, input, priority, max_attempts, timeout, parent_id, parent_position
    )
    select
        given.queue, given.name, given.input, given.priority, given.max_attempts, given.timeout,
        run.id, given.position
    from run, given
    where not exists (select from again)
    and (select coalesce(max(last.position), 0) from event_log as last where last.task_id = run.id)
        in (cast(@first as int) - 1, @first)
    and not exists (
        select from tasks as other
        where other.parent_id = run.id
        and other.parent_position between cast(@first as int) and cast(@first as int) + cast(@count as int) - 1
    )
    order by given.position
    on conflict (parent_id, parent_position) where parent_id is not null do nothing
    returning tasks.id, tasks.parent_id, tasks.parent_position
), entry as (
    insert into event_log (task_id, position, kind, name, input, attempt, child_id)
    select child.parent_id, given.position, 'child', given.name, given.input, @attempt, child.id
    from child
    join given on given.position = child.parent_position
    on conflict (task_id, position) do update
    set kind = excluded.kind, name = excluded.name, input = excluded.input, output = null,
        error = null, attempt = excluded.attempt, child_id = excluded.child_id,
        recorded_at = excluded.recorded_at
    where event_log.error is not null
)
select true as spawned
where exists (select from again) or (select count(*) from child) = cast(@count as int);

-- name: OpenTimer :execrows
-- When it will ring is decided here, once, by the database's clock. Fenced like a step.
-- On conflict: this attempt has opened it already, and never heard of it because the connection broke;
-- then its time stays, and what has come of it. Or, as for a step, an error at the end of the log gives way.
with run as (
    select tasks.id from tasks
    where tasks.id = @id and tasks.attempt = @attempt and tasks.status = 'running'
    for share
)
insert into event_log (task_id, position, kind, name, input, due_at, attempt)
select
    run.id, @position, 'timer', @name, cast(@input as json),
    coalesce(
        cast(sqlc.narg(moment) as timestamptz),
        clock_timestamp() + cast(sqlc.narg(duration) as interval)
    ),
    @attempt
from run
where (select coalesce(max(last.position), 0) from event_log as last where last.task_id = run.id)
    in (cast(@position as int) - 1, @position)
on conflict (task_id, position) do update
set kind = excluded.kind, name = excluded.name, input = excluded.input,
    error = case when event_log.kind = 'timer' then event_log.error end,
    due_at = coalesce(event_log.due_at, excluded.due_at), attempt = excluded.attempt,
    recorded_at = case when event_log.kind = 'timer' then event_log.recorded_at else excluded.recorded_at end
where event_log.attempt = excluded.attempt or event_log.error is not null;

-- name: OpenWait :execrows
-- A signal or an event; duration: after which the clock completes it. Fenced like a step, but with the lock
-- that deliver takes for a signal at the end of this statement: whoever has a weak lock and wants the strong
-- one waits for all others that have a weak one.
-- On conflict: as for a timer.
with run as (
    select tasks.id from tasks
    where tasks.id = @id and tasks.attempt = @attempt and tasks.status = 'running'
    for update
)
insert into event_log (task_id, position, kind, name, input, due_at, attempt)
select
    run.id, @position, @kind, @name, cast(@input as json),
    clock_timestamp() + cast(sqlc.narg(duration) as interval), @attempt
from run
where (select coalesce(max(last.position), 0) from event_log as last where last.task_id = run.id)
    in (cast(@position as int) - 1, @position)
on conflict (task_id, position) do update
set kind = excluded.kind, name = excluded.name, input = excluded.input,
    error = case when event_log.kind = excluded.kind then event_log.error end,
    due_at = coalesce(event_log.due_at, excluded.due_at), attempt = excluded.attempt,
    recorded_at = case when event_log.kind = excluded.kind then event_log.recorded_at else excluded.recorded_at end
where event_log.attempt = excluded.attempt or event_log.error is not null;

-- name: SendMessage :one
-- No row: there is a message to this task with this key; or nobody would read it, and the caller's
-- transaction need not fail for that, as it would if the trigger refused.
-- The lock is the one that deliver takes. So nobody ends the task between this look and the trigger's.
insert into messages (task_id, name, payload, error, key)
select tasks.id, @name, cast(@payload as json), sqlc.narg(error), sqlc.narg(key) from tasks
where tasks.id = @task_id and tasks.status in ('queued', 'running', 'waiting')
for update
on conflict (task_id, key) where key is not null do nothing
returning id;

-- name: FindMessage :one
select name, payload, error from messages
where task_id = @task_id and key = cast(@key as text);

-- name: PutOff :execrows
-- These signals get all of their time again. The task's row comes first, as everywhere.
with task as (
    select tasks.id from tasks
    where tasks.id = @task_id and tasks.status in ('queued', 'running', 'waiting')
    for update
)
update event_log
set due_at = clock_timestamp() + (due_at - recorded_at), recorded_at = clock_timestamp()
from task
where event_log.task_id = task.id and event_log.kind = 'signal' and event_log.name = @name
and event_log.completion is null and event_log.due_at is not null;

-- name: EmitEvent :execrows
-- 0 rows: it has happened before. If another transaction is just emitting it, this waits for its end.
insert into events (name, payload)
values (@name, cast(@payload as json))
on conflict (name) do nothing;

-- name: CatchEvent :exec
-- Asked by each run that waits, when its entry is committed. An event that was committed before this is
-- found here; one that comes later finds the entry, by TellEvents. Each side first writes, commits, and then
-- looks, so at least one of them sees the other. No row is there to be locked by both.
select complete_entry(event_log.task_id, event_log.position, events.payload, null)
from event_log
join events on events.name = event_log.name
where event_log.task_id = @task_id and event_log.position = cast(@position as int)
and event_log.kind = 'event' and event_log.completion is null;

-- name: TellEvents :many
-- Those who wait for an event that has come. `skip locked`: as for CompleteDueEntries.
select told.task_id, told.position, complete_entry(
    told.task_id, told.position, told.payload, null
) as completed
from (
    select event_log.task_id, event_log.position, events.payload from events
    join event_log on event_log.name = events.name
        and event_log.kind = 'event' and event_log.completion is null
    join tasks on tasks.id = event_log.task_id
    where not events.told
    order by event_log.task_id, event_log.position
    limit sqlc.arg(at_most) offset sqlc.arg(skip)
    for update of tasks skip locked
) as told;

-- name: MarkTold :exec
-- Events that nobody waits for any more. An entry that is committed too late to be seen here is later than
-- the event, too: its own run catches that.
update events
set told = true
where not told and not exists (
    select from event_log
    where event_log.kind = 'event' and event_log.name = events.name and event_log.completion is null
);

-- name: CompleteDueEntries :many
-- By the clock: a sleep is over, a wait has timed out.
-- A task's row is locked before its entries, as everywhere. `skip locked`: whoever holds one task does not
-- keep all others asleep; this one wakes in the next round. So this waits for nobody; and whoever waits for one
-- of its rows, such as a child that ends and wants its parent's, does not wait for long.
-- Between the look and the lock, the entry may have been completed, or put off; complete_entry looks for
-- the former again, and the lock on the entry, too, makes this look for the latter.
-- A second entry of one task is for the next round too: its row was just changed by this statement.
select due.task_id, due.position, complete_entry(
    due.task_id, due.position,
    case when due.kind = 'timer' and due.name <> 'timeout' then json 'null' end,
    case when due.kind <> 'timer' or due.name = 'timeout' then json_build_object(
        'type', 'WaitTimeout', 'error', format('not within %s s', due.input), 'traceback', '',
        'final', true
    ) end
) as completed
from (
    select event_log.task_id, event_log.position, event_log.kind, event_log.name, event_log.input
    from event_log
    join tasks on tasks.id = event_log.task_id
    where event_log.completion is null and event_log.due_at <= (select clock_timestamp())
    order by event_log.due_at
    limit sqlc.arg(at_most) offset sqlc.arg(skip)
    for update of tasks, event_log skip locked
) as due;

-- name: SuspendTask :execrows
-- Gives the slot back. 0 rows: the task is no longer ours, or an entry was completed that we do not
-- know of yet; then there may be nothing left to wait for.
-- To have come so far is progress, as a record is: max_attempts bounds what goes wrong after it.
update tasks
set status = 'waiting', run_at = null, uncounted = attempt,
    awaits = cast(@awaits as int[]), wake_after = cast(@wake_after as int),
    deadline = cast(sqlc.narg(deadline) as int)
where id = @id and attempt = @attempt and status = 'running' and completions = @completions;

-- name: LoadCompletions :many
select position, output, error, completion from event_log
where task_id = @task_id and completion > @after_completion;

-- name: LookForChores :many
-- The chores that have something to do, or will have, and in how many seconds; of those that have already,
-- 0 or less. It locks nothing, and each chore looks again for itself; so it may be a little early, and must
-- not be late: each moment is its chore's own, or before it. A worker whose lease has run out will be buried
-- in this round, so its tasks are lost already.
-- `min`, not `exists`: for a first row, Postgres might look for it through the whole table.
-- The subtraction is one of numbers: one of timestamps fails for 'infinity'.
select cast(chore as text) as chore,
    cast(extract(epoch from due_at) - extract(epoch from clock_timestamp()) as float) as seconds
from (values
    ('bury', (
        select min(alive_until) from workers
        where workers.id <> @worker_id
    )),
    ('wake', (
        select min(run_at) from tasks where status = 'waiting'
    )),
    ('complete', (
        select min(event_log.due_at) from event_log where completion is null
    )),
    ('tick', (
        select min(next_at) from schedules
    )),
    ('tell', (
        select min(created_at) from events where not told
    )),
    ('unpark', (
        select created_at from workers
        where workers.id = @worker_id
        and (has_untried(queue, version, code) or has_untried(queue, '', code))
    )),
    ('cancel', (
        select min(created_at) from tasks where status = 'cancelled' and not swept
    )),
    ('take back', (
        select min(case
            when workers.id is null then tasks.started_at
            else least(workers.alive_until, tasks.started_at + tasks.timeout)
        end)
        from tasks
        left join workers on workers.id = tasks.worker_id
        where tasks.status = 'running'
    )),
    ('give back', (
        select min(started_at) from tasks where tasks.worker_id = @worker_id and status = 'running'
    ))
) as look (chore, due_at)
where due_at is not null;

-- name: SendHint :exec
select pg_notify(current_schema(), @payload);

-- name: WatchTask :exec
-- `skip locked`: whoever holds the row does not keep the caller from looking at his clock. If it is
-- the task's end that is under way, the caller's next look sees it.
update tasks
set watched = true
where id = (
    select id from tasks
    where tasks.id = @id and status in ('queued', 'running', 'waiting') and not watched
    for update skip locked
);

-- name: Now :one
-- The database's clock, even within a transaction, where now() stands still.
select cast(clock_timestamp() as timestamptz) as now;

-- name: PutSchedule :execrows
-- 0 rows: that tick has come meanwhile, and was perhaps started already, for the schedule as it was. The row is
-- locked first, and the clock read then: a change that has waited here for the lock stores no tick that is past.
-- With the same cron line and time zone, the next tick stays as it is, and so does a pause that somebody wanted.
insert into schedules (
    name, cron, timezone, missed, task, input, queue, priority, max_attempts, timeout, next_at
)
values (
    @name, @cron, @timezone, @missed, @task, cast(@input as json), @queue, @priority, @max_attempts,
    cast(sqlc.narg(timeout) as interval), cast(@next_at as timestamptz)
)
on conflict (name) do update
set cron = excluded.cron, timezone = excluded.timezone, missed = excluded.missed,
    task = excluded.task, input = excluded.input, queue = excluded.queue,
    priority = excluded.priority, max_attempts = excluded.max_attempts, timeout = excluded.timeout,
    next_at = case
        when schedules.error is null and schedules.next_at is null then null
        when schedules.error is null and schedules.cron = excluded.cron
            and schedules.timezone = excluded.timezone
        then schedules.next_at
        else excluded.next_at
    end,
    error = null
where excluded.next_at > clock_timestamp();

-- name: PauseSchedule :execrows
update schedules
set next_at = null, error = null
where name = @name;

-- name: GetSchedule :one
select cron, timezone, next_at from schedules
where name = @name;

-- name: ResumeSchedule :execrows
-- 0 rows: it was changed meanwhile, or that tick has come. If this waits for the row, the tick may come even so: then
-- it is started late, but nobody else has started it, as the schedule was paused.
update schedules
set next_at = cast(@next_at as timestamptz), error = null
where name = @name and cron = @cron and timezone = @timezone and next_at is null
and cast(@next_at as timestamptz) > clock_timestamp();

-- name: DeleteSchedule :execrows
delete from schedules
where name = @name;

-- name: ListSchedules :many
-- For people to look at; cut short like ListTasks.
select name, cron, timezone, missed, task, left(cast(input as text), 200) as input, next_at,
    left(coalesce(error, ''), 1000) as error
from schedules
order by name;

-- name: ListDueSchedules :many
-- Locks nothing: StartTicks looks again.
select name, cron, timezone, missed, cast(next_at as timestamptz) as next_at,
    cast(clock_timestamp() as timestamptz) as now
from schedules
where next_at <= (select clock_timestamp())
order by next_at
limit 1000;

-- name: StartTicks :execrows
-- A task for each tick, and which tick is next: one statement, so both are committed, or neither.
-- The `where` names all that the ticks were worked out from. Of several workers that have found the same
-- schedule due, the first one moves next_at on, and the others find a different one than they know; likewise
-- after an edit, a pause, a deletion. What the tasks are given is read here, as it is now.
-- `skip locked`: whoever holds the row does not keep the others waiting.
-- On conflict: somebody has set next_at back, to ticks that were started before.
with schedule as (
    update schedules
    set next_at = cast(sqlc.narg(next_at) as timestamptz), error = cast(sqlc.narg(error) as text)
    where name = (
        select name from schedules
        where schedules.name = @name and schedules.cron = @cron and schedules.timezone = @timezone
        and schedules.missed = @missed and schedules.next_at = cast(@was_due_at as timestamptz)
        for update skip locked
    )
    returning task, input, queue, priority, max_attempts, timeout
)
insert into tasks (queue, name, input, priority, max_attempts, timeout, idempotency_key)
select queue, task, input, priority, max_attempts, timeout, key
from schedule, unnest(cast(@keys as text[])) as key
on conflict (name, idempotency_key) where idempotency_key is not null do nothing;
