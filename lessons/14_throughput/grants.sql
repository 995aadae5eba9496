-- Who may do what: two roles, which are there already, get their rights on the tables of this lesson. By the
-- tables' owner, in psql, on the lesson's schema:
--     psql -v producer=shop -v worker=shop_worker -f grants.sql

select current_schema() as schema \gset

-- By default everybody may execute a function.
revoke execute on all functions in schema :"schema" from public;
grant usage on schema :"schema" to :"producer", :"worker";

-- A producer enqueues, and cannot even look at a task.
grant execute on function enqueue to :"producer";

-- A worker: what the statements of queries.sql need that it sends. `for update` and `for share` need the right
-- to update. It deletes no task and no log, changes no limit, and makes no schedule: a person does that.
grant select, insert, update on tasks, event_log, events to :"worker";
grant select, insert, update, delete on workers to :"worker";
grant select, update on queue_limits, schedules to :"worker";
grant select, insert on messages to :"worker";

-- What is not for the owner's rights alone: these are called by statements of the worker.
grant execute on function complete_entries, complete_entry, has_living_children, has_untried to :"worker";
