update tasks set status = 'running' where id = (
    select id from tasks where status = 'queued' order by id limit 1 for update skip locked
) returning id \gset
update tasks set status = 'succeeded', output = 'null' where id = :id;
