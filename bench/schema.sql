-- The least that a queue and a log can be: no fence, no lease, no retry, no limit.
create table tasks (
    id bigint generated always as identity primary key,
    name text not null,
    input json not null,
    status text not null default 'queued',
    output json
);
create index tasks_queued on tasks (id) where status = 'queued';

create table event_log (
    task_id bigint,
    position int,
    name text not null,
    input json not null,
    output json,
    primary key (task_id, position)
);
