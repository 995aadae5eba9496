"""Random schedules against the engine, compared with a small model in memory.

Hypothesis draws the schedules, and makes a failing one small. The database is the real one; time
passes by moving the stored instants into the past. In CI the schedules are the same every time.
MODEL_EXAMPLES=1000 draws that many others; with --hypothesis-seed=7, those of that seed.
"""

import json
import os
import re
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import psycopg
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from psycopg import sql

from shared.database import open_database
from shared.processes import wait_until
from shared.testing import Lesson, lessons, working

EXAMPLES = os.environ.get("MODEL_EXAMPLES")
TERMINAL = ("succeeded", "failed", "cancelled")
LIVE = ("queued", "running", "waiting")
PATHS = [path for path in lessons(Path(__file__)) if Lesson(path).number >= 3]


def profile(examples: int, steps: int) -> settings:
    return settings(
        max_examples=int(EXAMPLES or examples),
        stateful_step_count=steps,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture
def world(request, postgres, tmp_path, monkeypatch):  # noqa: ARG001
    """A lesson, its fresh tables, and a few connections that stay open for all schedules."""
    monkeypatch.setenv("LESSON_SCHEMA", f"test_model_{os.getpid()}")
    monkeypatch.setenv("LESSON_OUTSIDE", str(tmp_path / "outside.log"))
    lesson = Lesson(request.param)
    with open_database(lesson.path, reset=True) as db, ExitStack() as stack:
        connection = stack.enter_context(db.autocommit.connect())
        transaction = stack.enter_context(db.engine.connect())
        # What should not wait, and waits, fails instead of hanging for ever.
        connection.exec_driver_sql("set statement_timeout = '10s'")
        transaction.exec_driver_sql("set statement_timeout = '10s'")
        transaction.commit()
        yield SimpleNamespace(
            lesson=lesson,
            db=db,
            connection=connection,
            transaction=transaction,
            look=stack.enter_context(db.connect(autocommit=True)),
            other=stack.enter_context(db.connect()),
            queue=lesson.queries.Querier(connection),
        )


def for_lessons(first: int):
    paths = [path for path in PATHS if Lesson(path).number >= first]
    return pytest.mark.parametrize("world", paths, ids=[path.name for path in paths], indirect=True)


# The queue


RUNS = st.tuples(  # a task in one of these statuses, and how many attempts ago
    st.sampled_from([("running",), ("running",), LIVE, TERMINAL]), st.sampled_from([0, 0, 1, -1])
)


@dataclass
class Task:
    """What the model knows of a row. Instants are hours since the schedule began."""

    name: str
    queue: str
    priority: int
    max_attempts: int
    timeout: int | None
    run_at: int
    start_by: int | None
    status: str
    attempt: int = 0
    worker: int | None = None
    started_at: int = 0
    output: Any = None
    error: str | None = None

    @property
    def row(self) -> tuple[Any, ...]:
        """What must be equal in the database."""
        error = self.error if self.status == "failed" else None
        return (self.status, self.attempt, self.worker, self.output, error)


def hours(number: int | None) -> timedelta | None:
    return None if number is None else timedelta(hours=number)


HOURS = st.none() | st.integers(0, 3)
WORKERS = st.integers(0, 2)
QUEUES = st.sampled_from(["default", "default", "other"])


class Queue(RuleBasedStateMachine):
    """The generated queries, called in any order by three workers and by people."""

    world: Any

    def __init__(self) -> None:
        super().__init__()
        self.queue = self.world.queue
        self.now = 0
        self.tasks: dict[int, Task] = {}
        self.keys: dict[tuple[str, str], tuple[int, int]] = {}  # its task, and that one's input
        self.limits: dict[str, int] = {}
        self.alive: dict[int, int] = {}  # registered workers, and until when they are alive
        self.seen: dict[int, tuple[str, int]] = {}  # as the rows were after the last rule
        self.by_hand: int | None = None
        self.world.look.execute("delete from tasks")
        self.world.look.execute("delete from workers")
        self.world.look.execute("delete from queue_limits")
        self.workers = [self.register(4) for _ in range(3)]

    @initialize(priorities=st.lists(st.integers(0, 2), min_size=2, max_size=5))
    def begin(self, priorities):
        for priority in priorities:
            id = self.world.lesson.tasks.enqueue(
                self.world.connection, "nothing", None, priority=priority, max_attempts=2
            )
            self.tasks[id] = Task("nothing", "default", priority, 2, None, 0, None, "queued")

    def register(self, lease: int) -> int:
        id = self.queue.register_worker(name="w", lease=hours(lease))
        self.alive[id] = self.now + lease
        return id

    @contextmanager
    def locked(self, data: Any, table: str, ids: Any):
        """Perhaps somebody has one of the rows locked meanwhile; its id."""
        id = data.draw(st.none() | st.sampled_from(sorted(ids)) if ids else st.none())
        if id is not None:
            self.world.other.execute(
                sql.SQL("select from {} where id = %s for update").format(sql.Identifier(table)),
                (id,),
            )
        try:
            yield id
        finally:
            self.world.other.rollback()

    def some(self, data: Any, *statuses: str) -> tuple[int, Task]:
        """One of the tasks; of these statuses, if there is any."""
        ids = [id for id, task in self.tasks.items() if task.status in statuses]
        id = data.draw(st.sampled_from(ids or sorted(self.tasks)))
        return id, self.tasks[id]

    # What programs do

    @rule(
        name=st.sampled_from(["nothing", "divide"]),
        queue=QUEUES,
        input=st.integers(0, 1),
        priority=st.integers(-1, 2),
        max_attempts=st.integers(1, 3),
        delay=HOURS,
        timeout=HOURS,
        start_timeout=HOURS,
        key=st.none() | st.sampled_from("ab"),
        commit=st.sampled_from([True, True, True, False]),
    )
    def enqueue(
        self, name, queue, input, priority, max_attempts, delay, timeout, start_timeout, key, commit
    ):
        tasks, transaction = self.world.lesson.tasks, self.world.transaction
        with transaction.begin() as begun:
            try:
                id = tasks.enqueue(
                    transaction,
                    name,
                    input,
                    queue=queue,
                    priority=priority,
                    max_attempts=max_attempts,
                    delay=hours(delay),
                    timeout=hours(timeout),
                    start_timeout=hours(start_timeout),
                    idempotency_key=key,
                )
            except tasks.BadInput:
                id = None
            if not commit:
                begun.rollback()
        if key is not None and (name, key) in self.keys:
            first, its_input = self.keys[name, key]
            assert id == (first if its_input == input else None)
            return
        assert id not in (None, *self.tasks)
        if not commit:
            return
        if key is not None:
            self.keys[name, key] = (id, input)
        run_at = self.now + (delay or 0)
        self.tasks[id] = Task(
            name=name,
            queue=queue,
            priority=priority,
            max_attempts=max_attempts,
            timeout=timeout,
            run_at=run_at,
            start_by=None if start_timeout is None else run_at + start_timeout,
            status="queued" if delay is None else "waiting",
        )

    @rule(queue=QUEUES, most=st.sampled_from([3, 2, 1, 0]))
    def limit(self, queue, most):
        self.world.lesson.tasks.limit_queue(self.world.connection, queue, most)
        self.limits[queue] = most

    # What workers do

    @rule(data=st.data(), worker=WORKERS, queue=QUEUES, at_most=st.sampled_from([2, 1, 3, 0]))
    def claim(self, data, worker, queue, at_most):
        worker_id = self.workers[worker]
        mine = {id: task for id, task in self.tasks.items() if task.queue == queue}
        running = sum(task.status == "running" for task in mine.values())
        limit = self.limits.get(queue)
        queries = self.world.lesson.queries.Querier(self.world.transaction)
        free = at_most
        with self.locked(data, "tasks", mine) as passed_over, self.world.transaction.begin():
            assert queries.lock_limit(queue=queue) == limit
            if limit is not None:
                assert queries.count_running(queue=queue) == running
                free = max(0, min(free, limit - running))
            claimed = list(
                queries.claim_tasks(
                    worker_id=worker_id, queue=queue, at_most=free, limited=limit is not None
                )
            )
        queued = [id for id, task in mine.items() if task.status == "queued" and id != passed_over]
        queued.sort(key=lambda id: (-mine[id].priority, id))
        expected = queued[:free] if worker_id in self.alive else []
        claimed.sort(key=lambda task: (-task.priority, task.id))
        assert [task.id for task in claimed] == expected
        if limit is not None:
            assert not claimed or running + len(claimed) <= limit
        for row in claimed:
            task = self.tasks[row.id]
            task.status, task.worker, task.started_at = "running", worker_id, self.now
            task.attempt += 1
            assert (row.attempt, row.max_attempts) == (task.attempt, task.max_attempts)

    @precondition(lambda self: self.tasks)
    @rule(data=st.data(), run=RUNS)
    def succeed(self, data, run):
        self.finish(data, "succeed", run)

    @precondition(lambda self: self.tasks)
    @rule(data=st.data(), run=RUNS)
    def fail(self, data, run):
        self.finish(data, "fail", run)

    @precondition(lambda self: self.tasks)
    @rule(data=st.data(), run=RUNS, delay=st.integers(0, 2))
    def retry(self, data, run, delay):
        self.finish(data, "retry", run, delay)

    def finish(self, data: Any, how: str, run: tuple[Any, int], delay: int = 0) -> None:
        """By the attempt that runs it, or by another one: that one is refused."""
        statuses, age = run
        id, task = self.some(data, *statuses)
        attempt = task.attempt - age
        if how == "succeed":
            changed = self.queue.succeed_task(id=id, attempt=attempt, output="1")
        elif how == "fail":
            changed = self.queue.fail_task(id=id, attempt=attempt, error="X: it failed")
        else:
            changed = self.queue.retry_task(
                id=id, attempt=attempt, delay=hours(delay), error="X: again"
            )
        assert changed == (task.status == "running" and age == 0)
        if changed:
            task.status = {"succeed": "succeeded", "fail": "failed", "retry": "waiting"}[how]
            task.output = 1 if how == "succeed" else None
            task.error = "X"
            task.run_at = self.now + delay

    @rule(worker=WORKERS, lease=st.integers(1, 3))
    def heartbeat(self, worker, lease):
        id = self.workers[worker]
        assert self.queue.heartbeat(id=id, lease=hours(lease)) == (id in self.alive)
        if id in self.alive:
            self.alive[id] = self.now + lease
        else:
            self.workers[worker] = self.register(lease)

    @rule(worker=WORKERS)
    def unregister(self, worker):
        self.queue.unregister_worker(id=self.workers[worker])
        self.alive.pop(self.workers[worker], None)

    # Upkeep

    @rule(data=st.data())
    def wake(self, data):
        with self.locked(data, "tasks", self.tasks) as passed_over:
            woken = self.queue.wake_tasks()
        due = [
            task
            for id, task in self.tasks.items()
            if task.status == "waiting" and task.run_at <= self.now and id != passed_over
        ]
        assert woken == len(due)
        for task in due:
            task.status = "queued"

    @rule(data=st.data())
    def expire(self, data):
        with self.locked(data, "tasks", self.tasks) as passed_over:
            expired = self.queue.expire_tasks()
        due = [
            task
            for id, task in self.tasks.items()
            if task.status in ("queued", "waiting") and task.attempt == 0
            and task.start_by is not None and task.start_by <= self.now and id != passed_over
        ]  # fmt: skip
        assert expired == len(due)
        for task in due:
            task.status, task.error = "failed", "Timeout"

    @rule(data=st.data())
    def bury(self, data):
        with self.locked(data, "workers", self.alive) as passed_over:
            buried = {worker.id for worker in self.queue.bury_workers()}
        dead = {id for id, until in self.alive.items() if until <= self.now} - {passed_over}
        assert buried == dead
        for id in dead:
            del self.alive[id]

    @rule(data=st.data())
    def take_back(self, data):
        with self.locked(data, "tasks", self.tasks) as passed_over:
            taken = {row.id: (row.status, row.attempt) for row in self.queue.take_back_tasks()}
        expected = {}
        for id, task in self.tasks.items():
            timed_out = task.timeout is not None and task.started_at + task.timeout <= self.now
            if (
                task.status == "running"
                and (timed_out or task.worker not in self.alive)
                and id != passed_over
            ):
                task.status = "queued" if task.attempt < task.max_attempts else "failed"
                task.error = "Timeout" if timed_out else "WorkerDied"
                expected[id] = (task.status, task.attempt)
        assert taken == expected

    @rule(data=st.data(), worker=WORKERS, older_than=st.integers(0, 2))
    def take_back_lost_claims(self, data, worker, older_than):
        id = self.workers[worker]
        known = data.draw(st.lists(st.sampled_from(sorted(self.tasks)), max_size=3)
                          if self.tasks else st.just([]))  # fmt: skip
        changed = self.queue.take_back_lost_claims(
            worker_id=id, known_ids=known, older_than=hours(older_than)
        )
        lost = [
            task
            for task_id, task in self.tasks.items()
            if task.status == "running" and task.worker == id and task_id not in known
            and task.started_at + older_than <= self.now
        ]  # fmt: skip
        assert changed == len(lost)
        for task in lost:
            task.status = "queued"

    @rule(passed=st.integers(1, 3))
    def time_passes(self, passed):
        self.now += passed
        self.world.look.execute(
            "update tasks set run_at = run_at - %(passed)s, start_by = start_by - %(passed)s,"
            " started_at = started_at - %(passed)s",
            {"passed": hours(passed)},
        )
        self.world.look.execute(
            "update workers set alive_until = alive_until - %s", (hours(passed),)
        )

    # What people do, from lesson 05 and 06 on

    @precondition(lambda self: self.tasks and hasattr(self.queue, "cancel_task"))
    @rule(data=st.data())
    def cancel(self, data):
        id, task = self.some(data, *LIVE)
        assert self.queue.cancel_task(id=id) == (task.status in LIVE)
        if task.status in LIVE:
            task.status = "cancelled"

    @precondition(lambda self: self.tasks and hasattr(self.queue, "revive_task"))
    @rule(data=st.data())
    def revive(self, data):
        id, task = self.some(data, "failed", "cancelled")
        revived = self.queue.revive_task(id=id)
        assert revived == (task.status in ("failed", "cancelled"))
        if revived:
            task.status, task.start_by, self.by_hand = "queued", None, id

    @precondition(lambda self: self.tasks and hasattr(self.queue, "replay_task"))
    @rule(data=st.data())
    def replay(self, data):
        id, task = self.some(data, *TERMINAL)
        replayed = self.queue.replay_task(id=id)
        assert replayed == (task.status in TERMINAL)
        if replayed:
            task.status, task.output, task.start_by, self.by_hand = "queued", None, None, id

    # What holds after each rule

    @invariant()
    def as_in_the_model(self):
        rows = self.world.look.execute(
            "select id, status, attempt, worker_id, output,"
            " case when status = 'failed' then split_part(error, ':', 1) end from tasks"
        ).fetchall()
        assert {row[0]: row[1:] for row in rows} == {id: t.row for id, t in self.tasks.items()}
        ids = self.world.look.execute("select id from workers").fetchall()
        assert {id for (id,) in ids} == set(self.alive)
        for id, status, attempt, *_ in rows:
            was, its_attempt = self.seen.get(id, (status, attempt))
            assert was not in TERMINAL or status == was or id == self.by_hand, "it left its end"
            assert attempt - its_attempt in (0, 1), "an attempt is skipped or comes again"
            self.seen[id] = (status, attempt)
        self.by_hand = None


@for_lessons(3)
def test_the_queue_does_what_the_model_does(world):
    machine = type("Queue", (Queue,), {"world": world})
    examples = 100 if world.lesson.number in (3, 6) else 50  # what is in between is a copy
    run_state_machine_as_test(machine, settings=profile(examples, steps=40))


# The durable engine

# A program is a list of operations, in JSON. The durable task `program` does one after the other.
NUMBER = st.integers(1, 9)
SIMPLE = (
    st.tuples(st.just("step"), NUMBER)
    | st.tuples(st.just("flaky"), NUMBER, st.integers(1, 2))  # fails so often, and is tried again
    | st.tuples(st.just("caught"), NUMBER, st.booleans())  # fails always; whether that is final
    | st.tuples(st.just("double"), NUMBER)  # a child that is not durable
    | st.tuples(st.just("flaky child"), NUMBER, st.integers(1, 2))
)
# Fails once, and would succeed if it were tried again. What is done next says which it was.
EITHER = st.tuples(st.sampled_from(["either", "either child"]), NUMBER)
FAIL = ("fail",)


def programs(operations: Any, least: int, most: int) -> Any:
    """So many operations; one program in six fails in the end."""
    ends = st.sampled_from([[], [], [], [], [], [FAIL]])
    start = st.lists(operations, min_size=least, max_size=most)
    return st.builds(lambda start, end: start + end, start, ends)


def nested(operations: Any) -> Any:
    program = programs(operations, 1, 2)
    return (
        operations
        | st.tuples(st.sampled_from(["run", "broken"]), program)
        | st.tuples(st.sampled_from(["gather", "race"]), st.lists(program, min_size=2, max_size=3))
        | st.tuples(st.just("around"), program, program)
    )


PROGRAMS = programs(EITHER, 2, 4) | programs(nested(nested(SIMPLE | EITHER)), 2, 4)


def define(lesson: Lesson, effects: list[tuple[str, str, int]]) -> None:
    """The interpreter, and what it calls. effects: key, name, number of each outside effect."""
    durable, tasks = lesson.durable, lesson.tasks
    often = {"max_attempts": 1_000_000}

    def act(key, number):
        effects.append((key, "act", number))
        return number

    def flaky(key, number, fails):
        effects.append((key, "flaky", number))
        if effects.count((key, "flaky", number)) <= fails:
            raise ConnectionError("no answer")
        return number

    def refuse(key, number, final):
        effects.append((key, "refuse", number))
        raise (tasks.NonRetryableError if final else ValueError)("refused")

    @tasks.task
    def double(number):
        return 2 * number

    @tasks.task
    def flaky_child(input):
        name, fails = f"flaky child {input}", input[1]
        effects.append(("", name, 0))
        if effects.count(("", name, 0)) <= fails:
            raise ConnectionError("no answer")
        return input[0]

    @tasks.task
    def moody_child(number):
        effects.append(("", "moody child", number))
        if effects.count(("", "moody child", number)) == 1:
            raise tasks.NonRetryableError("not today")

    @durable.durable
    def program(ctx, operations):
        return [operation(ctx, *each) for each in operations]

    def operation(ctx, kind, *arguments):
        if kind == "step":
            return ctx.step(act, *arguments)
        if kind == "flaky":
            return ctx.step(flaky, *arguments)
        if kind == "double":
            return ctx.run(double, *arguments, **often)
        if kind == "flaky child":
            return ctx.run(flaky_child, list(arguments), **often)
        if kind == "run":
            return ctx.run(program, *arguments, **often)
        if kind == "fail":
            raise tasks.NonRetryableError("as the program says")
        if kind in ("either", "either child"):
            (number,) = arguments
            try:
                if kind == "either":
                    ctx.step(flaky, number, 1)
                else:
                    ctx.run(moody_child, number, **often)
            except durable.StepError:
                number += 10
            ctx.step(act, number)
            return "done"
        if kind == "around":
            child = ctx.spawn(program, arguments[0], **often)
            return [program(ctx, arguments[1]), ctx.result(child)]
        try:
            if kind == "caught":
                return ctx.step(refuse, *arguments)
            if kind == "broken":
                return ctx.run(program, *arguments, **often)
            children = [ctx.spawn(program, each, **often) for each in arguments[0]]
            if kind == "gather":
                return ctx.gather(*children)
        except durable.StepError as error:
            return type(error).__name__
        # race: what is done next depends on who was first
        results = []
        for child in ctx.as_completed(*children):
            try:
                results.append(ctx.result(child))
            except durable.ChildError:
                results.append("ChildError")
            ctx.step(act, children.index(child))
        return sorted(results, key=str)


class Failure(Exception):
    """The program ends with an error; its type is the message."""


@dataclass
class Expected:
    """How a program ends if nothing goes wrong, and what its log holds then."""

    outcome: Any = None  # what it returns, or the type of the error
    failed: bool = False
    log: Any = None  # of each position: kind, name, and of a child that is a program, its Expected


def interpret(operations: Any) -> Expected:
    expected = Expected(log=[])
    try:
        expected.outcome = [interpret_one(expected.log, *each) for each in operations]
    except Failure as failure:
        expected.failed, expected.outcome = True, str(failure)
    return expected


def interpret_one(log: Any, kind: str, *arguments: Any) -> Any:
    def child(operations: Any) -> Any:
        expected = interpret(operations)
        log.append(("child", "program", expected))
        return expected

    def result(expected: Expected, caught: bool) -> Any:
        if not expected.failed:
            return expected.outcome
        if caught:
            return "ChildError"
        raise Failure("ChildError")

    if kind in ("step", "flaky", "caught"):
        name = {"step": "act", "flaky": "flaky", "caught": "refuse"}[kind]
        log.append(("step", name, None))
        if kind == "caught":
            return "FinalStepError" if arguments[1] else "StepError"
        return arguments[0]
    if kind == "double":
        log.append(("child", "double", None))
        return 2 * arguments[0]
    if kind == "flaky child":
        log.append(("child", "flaky_child", None))
        return arguments[0]
    if kind == "fail":
        raise Failure("NonRetryableError")
    if kind in ("either", "either child"):
        log.append(("step", "flaky", None) if kind == "either" else ("child", "moody_child", None))
        log.append(("step", "act", None))
        return "done"
    if kind in ("run", "broken"):
        return result(child(*arguments), caught=kind == "broken")
    if kind == "around":
        spawned = child(arguments[0])
        inner = [interpret_one(log, *each) for each in arguments[1]]
        return [inner, result(spawned, caught=False)]
    children = [child(each) for each in arguments[0]]
    if kind == "gather":
        failed = any(each.failed for each in children)
        return "ChildError" if failed else [each.outcome for each in children]
    log.extend([("step", "act", None)] * len(children))
    return sorted((result(each, caught=True) for each in children), key=str)


class Puppet:
    """A real Worker with one slot. Its statements wait, each until the schedule lets it go.

    So one thread of it waits at a time: the dispatcher that wants to claim, or the run. Heartbeats
    come and go freely; its upkeep never comes, the schedule does that.
    """

    FREE = (
        "register_worker",
        "unregister_worker",
        "heartbeat",
        "bound_idle_time",
        "lock_limit",
        "count_running",
    )

    def __init__(self, lesson: Lesson, db: Any, name: str) -> None:
        self.db = replace(db)  # engines of its own
        self.name = name
        self.worker = lesson.worker.Worker(
            self.db, name, slots=1, lease=timedelta(seconds=0.08), grace=timedelta(seconds=5)
        )
        self.at: str | None = None  # the statement that waits
        self.backend = 0  # and the process of the server that is to do it
        self.rows: int | None = None  # that the last statement has written or read
        self.run: tuple[int, int] | None = None  # the task and the attempt that it is in
        self._go: str | None = None
        self._fault = ""
        self._open = False
        self._changed = threading.Condition()
        for engine in (self.db.engine, self.db.autocommit):
            sa.event.listen(engine, "before_cursor_execute", self._before)
            sa.event.listen(engine, "after_cursor_execute", self._after)

    @property
    def idle(self) -> bool:
        return self.at == "claim_tasks"

    def _before(self, _connection, cursor, statement, *_):
        name = re.match(r"-- name: (\w+)", statement)
        if name is None or name[1] in self.FREE:
            return
        with self._changed:
            self.at, self.backend = name[1], cursor.connection.info.backend_pid
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._go or self._open)
            self._fault, self._go = self._go or "", None

    def _after(self, _connection, cursor, statement, *_):
        name = re.match(r"-- name: (\w+)", statement)
        if name is None or name[1] in self.FREE:
            return
        self.rows = cursor.rowcount
        if self._fault == "lose the answer":
            self._fault = ""
            cursor.connection.close()
            raise psycopg.OperationalError("the connection broke before the answer came")

    def go(self, fault: str = "none") -> None:
        """Let the statement go, and wait for the next one."""
        with self._changed:
            self.at, self.rows, self._go = None, None, fault
            self._changed.notify_all()
            self.wait()

    def wait(self) -> None:
        with self._changed:
            arrived = self._changed.wait_for(lambda: self.at is not None, timeout=30)
        assert arrived, f"{self.name} does nothing"

    @contextmanager
    def running(self):
        try:
            with working(self.worker):
                try:
                    self.wait()
                    yield self
                finally:
                    self.worker.stop()
                    with self._changed:
                        self._open = True
                        self._changed.notify_all()
        finally:
            self.db.engine.dispose()
            self.db.autocommit.dispose()


PUPPETS = st.integers(0, 2)
MOVES = st.sampled_from(["none"] * 10 + ["lose", "lose", "cut", "lose the answer"])


class Durable(RuleBasedStateMachine):
    """Three workers run a program, a statement of one of them at a time, and all goes wrong."""

    world: Any
    puppets: Any
    effects: Any

    def __init__(self) -> None:
        super().__init__()
        for puppet in self.puppets:
            assert puppet.idle
        self.effects.clear()
        self.world.look.execute("delete from tasks")
        self.world.look.execute("delete from event_log")
        self.seen: dict[int, tuple[str, int]] = {}
        self.recorded: dict[Any, Any] = {}
        self.by_hand = False
        self.root = 0
        self.expected = Expected()

    @initialize(operations=PROGRAMS)
    def begin(self, operations):
        self.expected = interpret(operations)
        self.root = self.world.lesson.tasks.enqueue(
            self.world.connection, "program", as_json(operations), max_attempts=1_000_000
        )

    # Workers

    def go(self, puppet: Puppet, fault: str = "none") -> None:
        """One statement. A run that is not the task's any more must not write anything."""
        statement, run = puppet.at, puppet.run
        current = run is not None and self.world.look.execute(
            "select 1 from tasks where id = %s and attempt = %s and status = 'running'", run
        ).fetchone() == (1,)
        puppet.go(fault)
        if statement == "claim_tasks" and not puppet.idle:
            puppet.run = self.world.look.execute(
                "select tasks.id, attempt from tasks join workers on workers.id = worker_id"
                " where workers.name = %s and status = 'running' order by started_at desc limit 1",
                (puppet.name,),
            ).fetchone()
        if puppet.rows is not None and statement in self.WRITES:
            allowed = self.WRITES[statement] if current else (0,)
            assert puppet.rows in allowed, f"{statement} of {run}: {puppet.rows} rows"

    # By a run that is the task's, and how many rows they may write then.
    WRITES: ClassVar = {
        "record_step": (1,),
        "spawn_child": (1,),
        "settle_children": (1, 2, 3),
        "suspend_task": (0, 1),
        "succeed_task": (1,),
        "fail_task": (1,),
        "retry_task": (1,),
    }

    @rule(moves=st.lists(st.tuples(PUPPETS, MOVES), min_size=5, max_size=40))
    def work(self, moves):
        for n, move in moves:
            queued = self.world.look.execute(
                "select 1 from tasks where status = 'queued' limit 1"
            ).fetchone()
            able = [puppet for puppet in self.puppets if queued or not puppet.idle]
            if not able:
                self.time_passes()
                continue
            puppet = able[n % len(able)]
            if move == "lose":
                self.lose(puppet)
            elif move == "cut":
                pid = puppet.backend
                self.world.look.execute("select pg_terminate_backend(%s, 5000)", (pid,))
                self.go(puppet)
            else:
                self.go(puppet, move)

    def lose(self, puppet: Puppet) -> None:
        """A worker is taken for dead, but goes on: what it runs is a zombie's from here on."""
        name = (puppet.name,)
        self.world.look.execute("delete from workers where name = %s", name)
        registered = "select 1 from workers where name = %s"
        wait_until(lambda: self.world.look.execute(registered, name).fetchone(), "it registers")
        self.upkeep()

    def upkeep(self) -> None:
        queue = self.world.queue
        while queue.cancel_orphans():
            pass
        list(queue.take_back_tasks())
        while list(queue.fail_lost_child()):
            pass
        ids = {worker.name: worker.id for worker in queue.list_workers()}
        for puppet in self.puppets:
            if puppet.idle:
                queue.take_back_lost_claims(
                    worker_id=ids[puppet.name], known_ids=[], older_than=timedelta(0)
                )

    def time_passes(self) -> None:
        self.world.look.execute("update tasks set run_at = run_at - interval '1 day'")
        self.world.queue.wake_tasks()

    # People

    def status(self) -> str:
        return self.world.queue.get_task(id=self.root).status

    @rule(how=st.sampled_from(["retry", "replay", "cancel"]))
    def person(self, how):
        if how == "cancel":
            changed = self.world.queue.cancel_task(id=self.root)
            self.by_hand = changed == 1
        else:
            self.again(how)

    def again(self, how: str) -> None:
        durable, connection = self.world.lesson.durable, self.world.transaction
        allowed = ("failed", "cancelled") if how == "retry" else TERMINAL
        if self.status() in allowed:
            with connection.begin():
                getattr(durable, how)(connection, self.root)
            self.by_hand = True
        else:
            with pytest.raises(self.world.lesson.tasks.BadInput), connection.begin():
                getattr(durable, how)(connection, self.root)

    # What holds after each rule

    @invariant()
    def nothing_is_taken_back(self):
        """The end is the end, attempts grow, and what is recorded stays as it is."""
        for id, status, attempt in self.world.look.execute("select id, status, attempt from tasks"):
            was, its_attempt = self.seen.get(id, (status, attempt))
            assert was not in TERMINAL or status == was or self.by_hand, f"task {id} left {was}"
            assert attempt >= its_attempt
            self.seen[id] = (status, attempt)
        for *place, log_id, kind, name, input, output in self.world.look.execute(
            "select task_id, position, log_id::text, kind, event_log.name, event_log.input,"
            " event_log.output from event_log join tasks on tasks.id = task_id"
            " where event_log.output is not null"
        ):
            entry = (kind, name, input, output)
            assert self.recorded.setdefault((*place, log_id), entry) == entry
        assert (
            self.world.look.execute(
                "select id from tasks"
                " where status = 'waiting' and run_at is null and wake_after <= 0"
            ).fetchall()
            == []
        ), "it waits, and what it waits for has come"
        self.by_hand = False

    # When nothing goes wrong any more

    def teardown(self):
        try:
            if self.root:
                self.come_to_an_end()
                self.check(self.root, self.expected)
                self.check_effects()
        finally:
            self.settle()

    def settle(self):
        """All puppets idle, whatever happened. Tasks that are gone are lost to their runs."""
        self.world.look.execute("delete from tasks")
        for puppet in self.puppets:
            while not puppet.idle:
                puppet.go()

    def come_to_an_end(self):
        if self.status() == "cancelled":
            self.again("retry")
        for _ in range(1000):
            self.upkeep()
            self.time_passes()
            live = self.world.look.execute(
                "select count(*) from tasks where status in ('queued', 'running', 'waiting')"
            ).fetchone()
            busy = [puppet for puppet in self.puppets if not puppet.idle]
            if live == (0,) and not busy:
                return
            for puppet in busy or self.puppets[:1]:
                self.go(puppet)
            self.nothing_is_taken_back()
        raise AssertionError(
            self.world.look.execute("select id, status, attempt, error from tasks").fetchall()
        )

    def check(self, id: int, expected: Expected) -> None:
        """The task has ended as interpreted; so has its log, and so have its children."""
        task = self.world.queue.get_task(id=id)
        if expected.failed:
            assert (task.status, task.error.partition(":")[0]) == ("failed", expected.outcome)
        else:
            assert (task.status, task.output) == ("succeeded", as_json(expected.outcome))
        rows = self.world.look.execute(
            "select position, kind, name, child_id, completion from event_log"
            " where task_id = %s order by position",
            (id,),
        ).fetchall()
        assert [row[:3] for row in rows] == [
            (position, *entry[:2]) for position, entry in enumerate(expected.log, 1)
        ]
        for (*_, child_id, completion), (kind, _, child) in zip(rows, expected.log, strict=True):
            assert kind == "step" or completion is not None
            if child is not None:
                self.check(child_id, child)

    def check_effects(self):
        """Each recorded step has had its effect, and no key ever stood for two effects."""
        names: dict[str, set[Any]] = {}
        for key, name, number in self.effects:
            if key:
                names.setdefault(key, set()).add((name, number))
        assert all(len(each) == 1 for each in names.values()), names
        for key, name in self.world.look.execute(
            "select log_id || '/' || position, event_log.name from event_log"
            " join tasks on tasks.id = task_id where kind = 'step'"
        ):
            assert [each for each, _ in names[key]] == [name]


def as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


@for_lessons(6)
def test_a_program_ends_as_interpreted_whatever_goes_wrong(world, monkeypatch):
    monkeypatch.setattr(world.lesson.worker, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(world.lesson.worker, "UPKEEP_SECONDS", 10_000)
    effects: list[tuple[str, str, int]] = []
    define(world.lesson, effects)
    with ExitStack() as stack:
        puppets = [
            stack.enter_context(Puppet(world.lesson, world.db, name).running()) for name in "abc"
        ]
        machine = type(
            "Durable", (Durable,), {"world": world, "puppets": puppets, "effects": effects}
        )
        run_state_machine_as_test(machine, settings=profile(examples=30, steps=12))
