-- name: SellSeat :execrows
-- Sells a free seat. 0 rows: there is no such seat, or somebody has it. A seat that another
-- transaction is selling makes this one wait, and is then looked at again: is it still free?
update seats
set sold_to = cast(@customer as text)
where number = @number and sold_to is null;

-- name: FirstFreeSeat :one
-- Locks the row until the transaction ends. If somebody has locked it: waits.
select number from seats
where sold_to is null
order by number
limit 1
for update;

-- name: FirstUnlockedSeat :one
-- Locks the row until the transaction ends. Passes over rows that somebody else has locked.
select number from seats
where sold_to is null
order by number
limit 1
for update skip locked;

-- name: ListSeats :many
select * from seats
order by number;

-- name: BackendPid :one
-- The server process that serves this connection.
select pg_backend_pid();

-- name: WaitsFor :one
-- Whose locks does this server process wait for? No row: it does not wait for a lock.
select cast(pg_blocking_pids(pid) as int[]) as pids
from pg_catalog.pg_stat_activity
where pid = @pid and wait_event_type = 'Lock';

-- name: ServerVersion :one
-- 180006 is 18.6.
select cast(current_setting('server_version_num') as int);
