"""What the tests of several lessons do: one function for each, and the engine's inside only here.

What a lesson's classes are called with, beyond what its README says, is known to this file alone.
"""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import wraps
from inspect import Signature, signature
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from psycopg.conninfo import make_conninfo

from faults.chaos import REFUSALS as REFUSALS
from shared.processes import WorkerProcess, wait_until, within
from shared.testing import kept, task_row, waiting_for_a_lock

MINUTE = timedelta(minutes=1)
ALL = {"at_most": 1000, "skip": 0}  # of a statement that takes on several rows
ENDED = ("succeeded", "failed", "cancelled")


def one_by_one(names, cases):
    """As pytest.mark.parametrize, but all cases on the same tables: for what leaves them alone."""
    names = [names] if isinstance(names, str) else names

    def decorated(test):
        @wraps(test)
        def on_the_same(**given):
            for case in cases:
                try:
                    test(**given, **dict(zip(names, case if names[1:] else [case], strict=True)))
                except BaseException as error:
                    error.add_note(f"{names}: {case!r}")
                    raise

        fixtures = [p for name, p in signature(test).parameters.items() if name not in names]
        on_the_same.__signature__ = Signature(fixtures)
        return on_the_same

    return decorated


# In the database


def execute(db, statement, *parameters):
    """One statement, committed; its rows, if it returns any."""
    with kept(db) as connection:
        cursor = connection.execute(statement, parameters)
        return cursor.fetchall() if cursor.description else []


def status_of(db, id):
    """Without the row's timestamps, which Python may not be able to read."""
    return execute(db, "select status from tasks where id = %s", id)[0][0]


def count(db, *statuses):
    return execute(db, "select count(*) from tasks where status = any (%s)", list(statuses))[0][0]


def statuses(db):
    return Counter(dict(execute(db, "select status, count(*) from tasks group by status")))


def only(db, name):
    """The id of the only task of this name."""
    ((id,),) = execute(db, "select id from tasks where name = %s", name)
    return id


def log_of(db, id):
    """The entries of a task's log, all columns, in the order of their positions."""
    with kept(db) as connection:
        cursor = connection.execute(
            "select * from event_log where task_id = %s order by position", (id,)
        )
        names = [column.name for column in cursor.description]
        return [SimpleNamespace(**dict(zip(names, row, strict=True))) for row in cursor]


def patiently(connection, seconds=5):
    """What should not wait on this connection, and waits, fails instead of hanging for ever."""
    connection.exec_driver_sql(f"set statement_timeout = '{within(seconds)}s'")


@contextmanager
def queries(lesson, db):
    with db.autocommit.connect() as connection:
        patiently(connection)
        yield lesson.queries.Querier(connection)


# Enqueue


def enqueue(lesson, db, name="nothing", input=None, **options):
    with db.autocommit.connect() as connection:
        return lesson.tasks.enqueue(connection, name, input, **options)


def enqueue_all(lesson, db, name, inputs, **options):
    """A task for each input, in one transaction; their ids."""
    with db.engine.begin() as connection:
        return [lesson.tasks.enqueue(connection, name, input, **options) for input in inputs]


def several(lesson, db, tasks, name="nothing", input=None, **options):
    """So many tasks; their ids."""
    return enqueue_all(lesson, db, name, [input] * tasks, **options)


def announce(lesson, *names):
    """Let these names be enqueued here; only worker processes have the functions."""
    for name in names:

        def elsewhere(_):
            raise AssertionError("not in this process")

        elsewhere.__name__ = name
        lesson.tasks.task(elsewhere)


def limit(lesson, db, max_running, queue="default"):
    with db.autocommit.connect() as connection:
        lesson.claim.limit_queue(connection, queue, max_running)


# What a database may say to a statement that is in order


@contextmanager
def refusing(db, table, when, sqlstate="P0001"):
    """Rows of the table for which `when` holds can be neither inserted nor updated.

    Yields a function that tells how often that has been tried: a sequence is not rolled back.
    """
    counter, function = f"refusals_of_{table}", f"refuse_{table}"
    execute(db, f"create sequence {counter}")
    execute(
        db,
        f"create function {function}() returns trigger language plpgsql as $$ begin"
        f" if {when} then perform nextval('{db.schema}.{counter}');"
        f" raise exception 'refused' using errcode = '{sqlstate}'; end if; return new; end $$",
    )
    execute(
        db,
        f"create trigger refuse before insert or update on {table}"
        f" for each row execute function {function}()",
    )

    def tries():
        ((last, called),) = execute(db, f"select last_value, is_called from {counter}")  # noqa: S608
        return last if called else 0

    try:
        yield tries
    finally:
        execute(db, f"drop trigger if exists refuse on {table}")
        execute(db, f"drop function {function}")
        execute(db, f"drop sequence {counter}")


@contextmanager
def few_connections(db, most):
    """The same tables, for a role that may have so many connections."""
    role = f"few_{db.schema}"
    execute(db, f"create role {role} login connection limit {most}")
    try:
        execute(db, f"grant usage on schema {db.schema} to {role}")
        execute(db, f"grant all on all tables in schema {db.schema} to {role}")
        few = replace(db, conninfo=make_conninfo(db.conninfo, user=role))
        yield few
        few.engine.dispose()
        few.autocommit.dispose()
    finally:
        execute(db, f"drop owned by {role}")
        execute(db, f"drop role {role}")


# From lesson 14 on, many tasks share a statement; alone, it costs what the one before it did.
TOGETHER = {"record_steps": "record_step", "succeed_tasks": "succeed_task"}


def name_of(statement):
    """Which query of the lesson it is."""
    (name,) = re.findall(r"-- name: (\w+)", statement)
    return TOGETHER.get(name, name)


# By the hand of a test, what a worker does


def called(method, **arguments):
    """Call it with those of the arguments that this lesson's has."""
    known = signature(method).parameters
    return method(**{name: value for name, value in arguments.items() if name in known})


def register_worker(queue, name="w", lease=MINUTE, of="default", version=""):
    return called(queue.register_worker, name=name, lease=lease, queue=of, version=version)


def register(lesson, db, name="w", lease=MINUTE, version=""):
    with queries(lesson, db) as queue:
        return register_worker(queue, name, lease, version=version)


def claim_tasks(queue, worker_id, at_most=1, of="default", limited=False, durable_names=()):
    """The rows that ClaimTasks returns. Lesson 02 has no workers yet."""
    return list(
        called(
            queue.claim_tasks,
            queue=of,
            at_most=at_most,
            limited=limited,
            worker_id=worker_id,
            skip=0,
            durable_names=list(durable_names),
        )
    )


def claim(lesson, db, worker_id, at_most=1):
    """Claim the next tasks: the id and the attempt of each."""
    with queries(lesson, db) as queue:
        return [(task.id, task.attempt) for task in claim_tasks(queue, worker_id, at_most)]


def claim_ids(lesson, connection, at_most, limited=False):
    """The ids that ClaimTasks returns on this connection, whatever a later lesson asks besides."""
    queue = lesson.queries.Querier(connection)
    worker_id = 0
    if hasattr(queue, "register_worker"):
        worker_id = register_worker(queue)
    return [task.id for task in claim_tasks(queue, worker_id, at_most, limited=limited)]


def claim_one(lesson, db, id=None):
    """Claim the next task, as a worker that never loses its lease. id: which it must be."""
    with queries(lesson, db) as queue:
        worker_id = register_worker(queue)
        (task,) = claim_tasks(queue, worker_id)
        assert id in (None, task.id)
        return task


def finish(lesson, db, task, output="null"):
    with queries(lesson, db) as queue:
        return queue.succeed_task(id=task.id, attempt=task.attempt, output=output)


def fail(lesson, db, id):
    """Claim this task, which must be the next, and let it fail for good."""
    task = claim_one(lesson, db, id)
    with queries(lesson, db) as queue:
        assert queue.fail_task(id=id, attempt=task.attempt, error="E: no") == 1


def revive(queue, id):
    """What a retry by hand does to the task's own row; 1 if it may."""
    if hasattr(queue, "retry_parked") and queue.retry_parked(id=id):
        return 1
    if hasattr(queue, "revive_tasks"):
        return queue.revive_tasks(ids=[id])
    return queue.revive_task(id=id)


def take_back(lesson, db):
    """What any worker does in its upkeep: the ids of what was lost, and what has become of it."""
    with queries(lesson, db) as queue:
        list(queue.bury_workers(worker_id=0))
        return {task.id: task.status for task in queue.take_back_tasks(**ALL)}


WRITES = {
    "success": lambda queue, **run: queue.succeed_task(output="1", **run),
    "failure": lambda queue, **run: queue.fail_task(error="late", **run),
    "retry": lambda queue, **run: queue.retry_task(error="late", delay=timedelta(0), **run),
}


def lease_runs_out(db):
    """Move the database's clock: for the workers that are registered now."""
    execute(db, "update workers set alive_until = clock_timestamp() - interval '1 s'")


def drop_workers(db):
    """All workers are dead, by this database's word."""
    execute(db, "delete from workers")


def needs(lesson, query):
    """Skip this case in a lesson that has no such query yet."""
    if not hasattr(lesson.queries.Querier, query):
        pytest.skip(f"lesson {lesson.number} has no {query}")


# Inside the engine


def registered(lesson, db, **options):
    """A worker that may claim without being run: from lesson 03 on, that takes a lease."""
    worker = lesson.worker.Worker(db, "w", **options)
    if hasattr(worker, "lease"):
        with queries(lesson, db) as querier:
            worker.lease.register(querier)
    return worker


def claim_as(lesson, db, worker, connection, free_slots):
    """What a worker claims when it has so many free slots."""
    lease = [worker.lease.worker_id] if hasattr(worker, "lease") else []
    return lesson.claim.claim(db, connection, *lease, worker.queue, free_slots)


def claim_as_worker(lesson, db, free_slots, queue="default"):
    """The ids that a worker claims when it has so many free slots."""
    worker = registered(lesson, db, queue=queue)
    with db.autocommit.connect() as connection:
        return [task.id for task in claim_as(lesson, db, worker, connection, free_slots)]


def run_next(lesson, db, worker, slot, dispatcher):
    """Claim the next task and run it, by the worker's own code; its id."""
    (task,) = claim_as(lesson, db, worker, dispatcher, 1)
    if not hasattr(lesson, "writer"):
        run_on(lesson, db, slot, task, worker.timing)
        return task.id
    worker._writer = writer_on(lesson, slot, db.engine)
    worker._run(task)
    while worker._results._waiting:
        worker._results.store(dispatcher)
    while not worker._handed_over.empty():  # what the group has passed over
        worker._handed_over.get()()
    return task.id


def run_on(lesson, db, slot, task, timing):
    needs_db = "db" in signature(lesson.run.run_task).parameters
    lesson.run.run_task(*([db] if needs_db else []), slot, task, timing)


def run_claimed(lesson, db, task):
    """Run what was claimed, by the engine's own code; the row of the task after it."""
    with db.autocommit.connect() as connection:
        if not hasattr(lesson, "writer"):
            run_on(lesson, db, connection, task, lesson.timing.Timing())
        else:
            writer = writer_on(lesson, connection, db.engine)
            outcome = lesson.run.run_task(writer, task, lesson.timing.Timing())
            if outcome is not None:
                lesson.run.store_alone(writer, task, outcome)
    return task_row(db, task.id)


def run_once(lesson, db, id):
    """The next attempt of this task, by a worker's own code; the row of the task after it."""
    execute(db, "update tasks set status = 'queued' where id = %s", id)
    worker = registered(lesson, db)
    with db.autocommit.connect() as slot, db.autocommit.connect() as dispatcher:
        assert run_next(lesson, db, worker, slot, dispatcher) == id
    return task_row(db, id)


def break_store(lesson):
    """Let what a worker does with an outcome be an error of the engine itself."""
    lesson.run.store = lambda *_: 1 / 0
    if hasattr(lesson, "writer"):
        lesson.results.store_together = lambda *_: None


def lease_of(lesson):
    return called(lesson.lease.Lease, name="w", duration=MINUTE, queue="default", version="")


def id_of(worker):
    return worker.lease.worker_id


def do_chores(lesson, queue):
    """All that any worker does for the whole queue, once."""
    chores = lesson.upkeep.CHORES
    for chore in chores.values() if isinstance(chores, dict) else chores:
        chore(queue)


def rests(db, worker):
    """Wait until this worker gets hints, has nothing to do, and makes its long pauses."""
    wait_until(lambda: worker._listener.hears, "it hears itself")
    looks = (
        "select 1 from pg_stat_activity where query ~ 'look_for_work|claim_tasks'"
        " and state = 'idle' and application_name = current_setting('application_name')"
        " and state_change < clock_timestamp() - %s * interval '1 s'"
    )
    wait_until(lambda: len(execute(db, looks, 3 * worker.timing.poll)), "it rests")


def due_chores(queue, worker_id=0):
    """The chores that have something to do now. From lesson 09 on, a look names later ones too."""
    found = list(queue.look_for_chores(worker_id=worker_id))
    return sorted(
        look if isinstance(look, str) else look.chore
        for look in found
        if isinstance(look, str) or look.seconds <= 0
    )


def by_hand(lesson, db, name, id):
    """cancel, retry or replay, in a transaction of its own. Raises BadInput."""
    with db.engine.begin() as connection:
        patiently(connection, 10)
        getattr(lesson.control, name)(connection, id)


def retry_after(lesson, wait):
    """Let a failed attempt wait for so long, and not for a random time."""
    lesson.timing.Timing.backoff = lambda *_: wait


def hurry(lesson, **timing):
    """Another Timing for the lesson's workers, unless they are given one."""
    if "poll" in timing and hasattr(lesson.timing.Timing, "seldom"):
        timing = {"seldom": timing["poll"], **timing}
    # The upkeep sends the probes. A listener that misses them listens anew, and has it look.
    if timing.get("upkeep", 0) > getattr(lesson.timing.Timing, "probe", float("inf")):
        timing = {"probe": timing["upkeep"], **timing}
    lesson.worker.Worker.__init__.__kwdefaults__["timing"] = lesson.timing.Timing(**timing)


def writer_on(lesson, connection, engine=None):
    """From lesson 14 on, runs share connections: here, this one."""
    autocommit = SimpleNamespace(connect=lambda: connection)
    db = SimpleNamespace(autocommit=autocommit, engine=engine or own(connection))
    writer = lesson.writer.Writer(db, 1)
    writer.open(lambda: True)
    return writer


def own(connection):
    """Transactions on connections of their own."""
    return connection.engine.execution_options(isolation_level="READ COMMITTED")


def make_fence(lesson, queue, task):
    connection = queue._conn
    if hasattr(lesson, "writer"):
        return lesson.fence.Fence(writer_on(lesson, connection), task)
    later = [own(connection)] if "engine" in signature(lesson.fence.Fence).parameters else []
    return lesson.fence.Fence(connection, task, *later)


def make_context(lesson, queue, task):
    """The context of a run, whose statements go through the connection of `queue`."""
    return lesson.context.Context(make_fence(lesson, queue, task))


@contextmanager
def fences(lesson, db, tasks):
    """From lesson 14 on: the fences of runs of one worker, and the group of their steps."""
    writer = lesson.writer.Writer(db, 2)
    writer.open(lambda: False)
    try:
        yield [lesson.fence.Fence(writer, task) for task in tasks], writer._steps
    finally:
        writer.close()


def waiting_in(group):
    """How many threads wait to be written."""
    return len(group._waiting)


def spawned(ctx):
    """From lesson 14 on, children are written when the function asks for something else."""
    if hasattr(ctx._log, "_write_children"):
        ctx._log._write_children()


@contextmanager
def context(lesson, db, task):
    with queries(lesson, db) as queue:
        ctx = make_context(lesson, queue, task)
        yield ctx
        spawned(ctx)


@contextmanager
def claimed(lesson, db, id):
    """The next attempt of this task, in the test's own hands: its fence, and its queries."""
    execute(db, "update tasks set status = 'queued' where id = %s", id)
    task = claim_one(lesson, db, id)
    with queries(lesson, db) as queue:
        yield make_fence(lesson, queue, task), queue


@contextmanager
def attempt(lesson, db, id):
    """The next attempt of this task, in the test's own hands: its context, and its queries."""
    with claimed(lesson, db, id) as (fence, queue):
        ctx = lesson.context.Context(fence)
        yield ctx, queue
        spawned(ctx)


def ask(log):
    """What the log answers a run that comes to its next step."""
    call = ("step", "step", "[[], {}]") if signature(log.next).parameters else ()
    return log.next(*call)


def record(queue, id, attempt, position=1, output='"done"', error=None):
    return queue.record_step(
        id=id,
        attempt=attempt,
        position=position,
        kind="step",
        name="step",
        input="[[], {}]",
        output=output,
        error=error,
    )


def store_together(queue, tasks, of=lambda _: 1, raw=False):
    """A group of results: of(task) for each; the runs that were stored."""
    text = of if raw else lambda task: json.dumps(of(task))
    rows = [
        f'{{"id": {task.id}, "attempt": {task.attempt}, "output": {text(task)}}}' for task in tasks
    ]
    stored = queue.succeed_tasks(results=f"[{','.join(rows)}]")
    return {(row.id, row.attempt) for row in stored}


def record_together(queue, tasks, of=lambda _: 1, position=1):
    """A group of steps: of(task) for each; the runs that were recorded."""
    rows = [
        {"task_id": task.id, "attempt": task.attempt, "position": position}
        | {"name": "step", "input": [[], {}], "output": of(task)}
        for task in tasks
    ]
    recorded = queue.record_steps(steps=json.dumps(rows))
    return {(row.task_id, row.attempt) for row in recorded}


CHILD = {"name": "double", "input": "1", "queue": "default", "priority": 0, "max_attempts": 5}


def spawn(queue, task, position=1):
    """A child at this position of the task's log; its id, None if it may not be."""
    run = {"id": task.id, "attempt": task.attempt}
    if hasattr(queue, "spawn_child"):
        return queue.spawn_child(**run, position=position, **CHILD, timeout=None)
    children = json.dumps([{"position": position, **CHILD, "timeout": None}])
    if not queue.spawn_children(**run, first=position, count=1, children=children):
        return None
    query = "select id from tasks where parent_id = %s and parent_position = %s"
    return queue._conn.exec_driver_sql(query, (task.id, position)).scalar_one()


def opened(lesson, log, n):
    """The positions of n entries, each of them a child, that a run's log opens or finds."""
    if hasattr(lesson.queries.Querier, "spawn_child"):
        write, options = lesson.queries.Querier.spawn_child, {**CHILD, "timeout": None}
        del options["name"], options["input"]
        return [log.open("child", "double", "1", write, **options) for _ in range(n)]
    options = {name: CHILD[name] for name in ("queue", "priority", "max_attempts")}
    positions = [log.spawn("double", "1", options) for _ in range(n)]
    log._write_children()
    return positions


def suspend(queue, id):
    """Attempt 1 waits for its child at position 1, and knows of no end yet; 1 if it may."""
    known = signature(queue.suspend_task).parameters
    later = {"deadline": None} if "deadline" in known else {}
    return queue.suspend_task(id=id, attempt=1, completions=0, awaits=[1], wake_after=1, **later)


class Killed(BaseException):
    """Stands for the end of the process, where a real one would be slow to arrange."""


def dies(queue, when, position=1):
    """Let the process die around the record of this position, once."""

    killed = []

    def record(write, positions):
        if killed or position not in positions:
            return write()
        killed.append(position)
        if when == "after the record":
            write()
        raise Killed

    recording(queue, record)


def recording(queue, record):
    """Whenever a run records steps, call record(write, positions) instead; it may call write().

    From lesson 14 on, a step goes in a group first, and alone if the group passes over it.
    """
    querier = type(queue)

    def replaced(real, several):
        def method(self, **values):
            steps = json.loads(values["steps"]) if several else [values]

            def write():
                return list(real(self, **values)) if several else real(self, **values)

            return record(write, [step["position"] for step in steps])

        return method

    querier.record_step = replaced(querier.record_step, several=False)
    if hasattr(querier, "record_steps"):
        querier.record_steps = replaced(querier.record_steps, several=True)


def break_record(lesson, fault):
    """Let `fault` be called when a step is about to be recorded."""
    module = lesson.writer if hasattr(lesson, "writer") else lesson.event_log
    module.as_text = fault


# Tasks


DAYS = timedelta(days=1)
BAD_OPTIONS = {  # of `enqueue`, and how they are refused
    "priority: a fraction": ({"priority": 1.5}, "priority is a whole number"),
    "priority: True": ({"priority": True}, "priority is a whole number"),
    "priority: text": ({"priority": "high"}, "priority is a whole number"),
    "priority: None": ({"priority": None}, "priority is a whole number"),
    "priority: NaN": ({"priority": float("nan")}, "priority is a whole number"),
    "priority: too high": ({"priority": 2**31}, "priority is a whole number from -2,147,483,647"),
    "priority: too low": ({"priority": -(2**31)}, "priority is a whole number"),
    "delay: negative": ({"delay": timedelta(seconds=-1)}, "delay is a timedelta from 0 to 3,650"),
    "delay: NaN": ({"delay": float("nan")}, "delay is a timedelta"),
    "delay: a number": ({"delay": 5}, "delay is a timedelta"),
    "delay: 10,000 years": ({"delay": 3_652_500 * DAYS}, "delay is a timedelta from 0 to 3,650"),
    "delay: as long as can be": ({"delay": timedelta.max}, "delay is a timedelta"),
    "timeout: negative": ({"timeout": -DAYS}, "timeout is a timedelta"),
    "timeout: a number": ({"timeout": 1.0}, "timeout is a timedelta"),
    "timeout: too long": ({"timeout": 3651 * DAYS}, "timeout is a timedelta"),
    "max_attempts: 0": ({"max_attempts": 0}, "max_attempts is a whole number from 1"),
    "max_attempts: negative": ({"max_attempts": -1}, "max_attempts is a whole number from 1"),
    "max_attempts: True": ({"max_attempts": True}, "max_attempts is a whole number"),
    "max_attempts: None": ({"max_attempts": None}, "max_attempts is a whole number"),
    "max_attempts: too many": ({"max_attempts": 2**31}, "max_attempts is a whole number"),
    "key: empty": ({"idempotency_key": ""}, "1 to 200 printable ASCII"),
    "key: too long": ({"idempotency_key": "x" * 201}, "1 to 200 printable ASCII"),
    "key: not ASCII": ({"idempotency_key": "Zoë"}, "1 to 200 printable ASCII"),
    "key: NUL": ({"idempotency_key": "a\0"}, "1 to 200 printable ASCII"),
    "key: a line break": ({"idempotency_key": "a\n"}, "1 to 200 printable ASCII"),
    "key: a number": ({"idempotency_key": 7}, "1 to 200 printable ASCII"),
    "queue: empty": ({"queue": ""}, "a queue is named"),
}


class Unreadable(Exception):
    def __str__(self):
        raise RuntimeError("no message for you")


ERRORS = {  # what a function raises, and how the stored message begins
    "an error": (ValueError("no such order"), "ValueError: no such order"),
    "NUL": (ValueError("NUL \0"), "ValueError: NUL \\x00"),
    "half a surrogate": (ValueError("\ud800"), "ValueError: \\ud800"),
    "a megabyte": (ValueError("x" * 1_000_000), "ValueError: xxx"),
    "unreadable": (Unreadable(), "Unreadable, and its message cannot be read"),
    "sys.exit": (SystemExit(1), "SystemExit: 1"),
    "Ctrl-C": (KeyboardInterrupt(), "KeyboardInterrupt: "),
}


def program(lesson, function, name="program"):
    """Register `function(ctx, input)` as a durable task."""
    function.__name__ = name
    return lesson.context.durable(function)


def new_task(lesson, db):
    if "program" not in lesson.tasks.registry:
        if hasattr(lesson.context, "durable"):
            program(lesson, lambda _ctx, _input: None)
        else:  # the lesson is being built: nobody runs this task
            announce(lesson, "program")
    return enqueue(lesson, db, "program")


def define(lesson):
    """Tasks that spawn: double, refuse, run_double and run_run_double, registered once."""
    durable, tasks = lesson.context, lesson.tasks
    if not hasattr(lesson, "defined"):

        @tasks.task
        def double(n):
            return 2 * n

        @tasks.task
        def refuse(_):
            raise tasks.NonRetryableError("out of stock")

        @durable.durable
        def run_double(ctx, n):
            return ctx.run(double, n)

        @durable.durable
        def run_run_double(ctx, n):
            return ctx.run(run_double, n)

        lesson.defined = SimpleNamespace(
            double=double, refuse=refuse, run_double=run_double, run_run_double=run_run_double
        )
    return lesson.defined


def suspended(lesson, db, n=1):
    """A task that waits for n children of its own; its id, and theirs."""
    double = define(lesson).double
    id = enqueue(lesson, db, "run_double", 1, priority=1)
    with context(lesson, db, claim_one(lesson, db, id)) as ctx:
        children = [ctx.spawn(double, i) for i in range(n)]
        with pytest.raises(lesson.event_log.Suspended):
            ctx.gather(*children)
    rows = execute(db, "select id from tasks where parent_id = %s order by id", id)
    return id, [child for (child,) in rows]


# Progress


def wait_for_progress(db, tasks):
    """Until more have succeeded than now, or all of them."""
    done = count(db, "succeeded")
    wait_until(lambda: count(db, "succeeded") >= min(done + 1, tasks), "tasks succeed")


def upkeep_rounds(lesson, db, rounds):
    """Wait until a worker's upkeep has gone round so often: each round wakes what is due."""
    for _ in range(rounds):
        id = enqueue(lesson, db, delay=timedelta(0), queue="nobodys")
        wait_until(lambda id=id: task_row(db, id).status == "queued", "a round of upkeep")


# Threads


def submitted(db, threads: Executor, function: Callable, *arguments) -> Future:
    """It runs in a thread, and has ended or waits for a lock."""
    future = threads.submit(function, *arguments)
    wait_until(lambda: future.done() or waiting_for_a_lock(db), "the other one is there")
    return future


def in_threads(*functions):
    """Run them at the same time, to their ends."""
    with ThreadPoolExecutor(len(functions)) as threads:
        for future in [threads.submit(function) for function in functions]:
            future.result()


SLOW_CLOCK = """
create function clock_timestamp() returns timestamptz language plpgsql as $$
begin
    perform pg_advisory_xact_lock_shared(hashtextextended('slow clock', 0));
    return pg_catalog.clock_timestamp();
end $$
"""


def looks_before_and_locks_after(lesson, db, query, meanwhile):
    """The ids that a query returns that has looked before `meanwhile`, and locks after it."""
    execute(db, SLOW_CLOCK)  # in the tests' own schema

    def slow():
        with db.engine.connect() as connection:
            connection.exec_driver_sql(
                "select set_config('search_path', current_schema() || ', pg_catalog', false)"
            )
            tasks = list(getattr(lesson.queries.Querier(connection), query)(**ALL))
            connection.commit()
            return [task.id for task in tasks]

    with ThreadPoolExecutor(1) as thread, db.connect(autocommit=True) as holder:
        holder.execute("select pg_advisory_lock(hashtextextended('slow clock', 0))")
        late = submitted(db, thread, slow)
        assert not late.done()
        meanwhile()
        holder.execute("select pg_advisory_unlock_all()")
        return late.result(timeout=within(20))


# Processes


def run_verb(lesson, *arguments):
    """`main.py ...` of the lesson, to its end. In this process: Python need not start for it."""
    shown = CliRunner().invoke(lesson.main.main, arguments, catch_exceptions=False)
    return SimpleNamespace(returncode=shown.exit_code, stdout=shown.stdout, stderr=shown.stderr)


def run_program(lesson, *arguments):
    """`python main.py ...` of the lesson, to its end, as a reader starts it."""
    return subprocess.run(
        [sys.executable, "main.py", *arguments],
        cwd=lesson.path,
        capture_output=True,
        text=True,
        timeout=within(60),
        check=False,
    )


def receipts(lesson):
    """How often each receipt was sent, by whomever."""
    return Counter(effect.split(" by ")[0] for effect in lesson.app.outside.effects())


def each_once(tasks):
    """What `receipts` are when each of the tasks has sent its own once."""
    return {f"receipt {n}": 1 for n in range(tasks)}


def copy_of(lesson, tmp_path, code=""):
    """A copy of the lesson with more tasks in its app.py."""
    path = tmp_path / lesson.path.name
    leave_out = shutil.ignore_patterns("exercises", "breaks", "__pycache__", "*.md", "*.log")
    shutil.copytree(lesson.path, path, ignore=leave_out)
    with (path / "app.py").open("a") as app:
        app.write(code)
    return path


def has_ended(worker, seconds=30):
    """Wait until this process has ended; its exit status."""
    wait_until(lambda: worker.exit_status is not None, "the worker has ended", seconds)
    return worker.exit_status


OPTIONS = ("--slots", "1", "--lease", f"{within(1)}")


@contextmanager
def immortal(path, workers=3):
    """Worker processes that are started again when they die. Yields a function to call often."""
    names = [f"w{n}" for n in range(workers)]
    herd = {name: WorkerProcess(path, name, *OPTIONS) for name in names}

    def look_after():
        for name, process in herd.items():
            if process.exit_status is not None:
                herd[name] = WorkerProcess(path, name, *OPTIONS)
        return True

    try:
        yield look_after
    finally:
        for process in herd.values():
            process.kill()
