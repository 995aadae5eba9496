-- name: EnqueueTask :one
insert into tasks (name, input)
values (@name, cast(@input as json))
returning id;

-- name: ClaimTask :one
-- `for update` locks the row that was found: a second claim cannot take it too, and waits.
-- `skip locked` lets it pass over rows that somebody has locked, and take the next one instead.
-- The lock lasts until this statement commits; from then on, status = 'running' keeps others away.
update tasks
set status = 'running'
where id = (
    select id from tasks
    where status = 'queued'
    order by id
    limit 1
    for update skip locked
)
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
