-- name: EnqueueTask :one
insert into tasks (queue, name, input)
values (@queue, @name, cast(@input as json))
returning id;

-- name: LimitQueue :exec
insert into queue_limits (queue, max_running)
values (@queue, @max_running)
on conflict (queue) do update set max_running = excluded.max_running;

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
            order by id
            limit 1
        ) as first
    )
    as boolean) as found;

-- name: ClaimTasks :many
-- The oldest queued tasks, at most so many. `returning` keeps no order: the caller sorts.
-- `for update` locks the row that was found: a second claim cannot take it too, and waits.
-- `skip locked` lets it pass over rows that somebody has locked, and take the next one instead.
-- The lock lasts until this statement commits; from then on, status = 'running' keeps others away.
-- `array(...)` is evaluated once, before the update. `id in (select ...)` might be evaluated again for
-- each row that it is compared with, and would lock other rows each time.
-- limited: the caller has locked the queue's limit, and counted. Without that, a claim gets nothing
-- from a queue that has a limit.
update tasks
set status = 'running'
where id = any (array(
    select id from tasks
    where tasks.queue = @queue and status = 'queued'
    and cast(@limited as boolean) = exists (
        select from queue_limits where queue_limits.queue = @queue
    )
    order by id
    limit sqlc.arg(at_most)
    for update skip locked
))
returning id, name, input;

-- name: SucceedTask :execrows
-- Terminal is terminal: a task that is not running (any more) is left as it is, and 0 rows say so.
update tasks
set status = 'succeeded', output = cast(@output as json)
where id = @id and status = 'running';

-- name: FailTask :execrows
update tasks
set status = 'failed', error = cast(@error as text)
where id = @id and status = 'running';

-- name: GetTask :one
select * from tasks
where id = @id;

-- name: ListTasks :many
-- The newest tasks, for people to look at. As text, and cut short: one row that Python cannot read,
-- or a megabyte in each, must not keep anybody from seeing the others.
select id, left(name, 100) as name, left(cast(input as text), 200) as input, status,
    left(coalesce(error, cast(output as text), ''), 1000) as outcome
from tasks
order by id desc
limit sqlc.arg(at_most);

-- name: CountTasks :many
select status, count(*) as tasks from tasks
group by status
order by status;
