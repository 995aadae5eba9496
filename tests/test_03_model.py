"""Lesson 03: random calls of the queries, compared with a small model in memory."""

from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

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

from tests.helpers import ALL, claim_tasks, due_chores, register_worker, revive
from tests.model import LIVE, TERMINAL, profile

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
    run_at: int | None
    status: str
    attempt: int = 0
    uncounted: int = 0
    worker: int | None = None
    started_at: int = 0
    output: Any = None
    error: str | None = None
    opened: list[int] = field(default_factory=list)  # its timers: the attempts that opened them
    due: dict[int, int] = field(default_factory=dict)  # when those ring that are still to ring
    completions: int = 0
    awaits: list[int] = field(default_factory=list)
    wake_after: int = 0
    deadline: int | None = None

    def ring(self, position: int) -> None:
        del self.due[position]
        self.completions += 1
        self.wake_after -= position in self.awaits
        over = position in self.awaits and self.wake_after == 0
        if self.status == "waiting" and (over or position == self.deadline):
            self.status = "queued"

    @property
    def row(self) -> tuple[Any, ...]:
        """What must be equal in the database."""
        error = self.error if self.status == "failed" else None
        return (self.status, self.attempt, self.worker, self.output, error)


def hours(number: int | None) -> timedelta | None:
    return None if number is None else timedelta(hours=number)


HOURS = st.none() | st.integers(0, 3)
DURATIONS = st.lists(st.integers(0, 2), min_size=1, max_size=3)
WORKERS = st.integers(0, 2)
QUEUES = st.sampled_from(["default", "default", "other"])


class Queue(RuleBasedStateMachine):
    """The generated queries, called in any order by three workers and by people."""

    world: Any

    def __init__(self) -> None:
        super().__init__()
        self.queue = self.world.queue
        self.sleeps = hasattr(self.queue, "open_timer")
        self.now = self.turn = 0
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

    @initialize(data=st.data(), priorities=st.lists(st.integers(0, 2), min_size=2, max_size=5))
    def begin(self, data, priorities):
        for priority in priorities:
            id = self.world.lesson.tasks.enqueue(
                self.world.connection, "nothing", None, priority=priority, max_attempts=2
            )
            self.tasks[id] = Task("nothing", "default", priority, 2, None, 0, "queued")
        if self.sleeps:  # two sleep already
            self.claim(data, 0, "default", 2)
            for _ in range(2):
                self.sleep(data, 0, data.draw(DURATIONS), 0)

    def register(self, lease: int) -> int:
        id = register_worker(self.queue, lease=hours(lease))
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

    @property
    def people(self) -> bool:
        """May somebody act by hand now? Not always: most of what is drawn would be that."""
        return bool(self.tasks) and self.turn % 4 == 0

    def any_task(self, condition: Any) -> bool:
        return any(map(condition, self.tasks.values()))

    # What programs do

    @rule(
        name=st.sampled_from(["nothing", "divide"]),
        queue=QUEUES,
        input=st.integers(0, 1),
        priority=st.integers(-1, 2),
        max_attempts=st.integers(1, 3),
        delay=HOURS,
        timeout=HOURS,
        key=st.none() | st.sampled_from("ab"),
        commit=st.sampled_from([True, True, True, False]),
    )
    def enqueue(self, name, queue, input, priority, max_attempts, delay, timeout, key, commit):
        lesson, transaction = self.world.lesson, self.world.transaction
        with transaction.begin() as begun:
            try:
                id = lesson.tasks.enqueue(
                    transaction,
                    name,
                    input,
                    queue=queue,
                    priority=priority,
                    max_attempts=max_attempts,
                    delay=hours(delay),
                    timeout=hours(timeout),
                    idempotency_key=key,
                )
            except lesson.inputs.BadInput:
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
            status="queued" if delay is None else "waiting",
        )

    @rule(queue=QUEUES, most=st.sampled_from([3, 2, 1, 0]))
    def limit(self, queue, most):
        self.world.lesson.claim.limit_queue(self.world.connection, queue, most)
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
            claimed = list(claim_tasks(queries, worker_id, free, queue, limited=limit is not None))
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
            task.run_at, task.awaits, task.deadline = self.now + delay, [], None

    # From lesson 09 on

    @precondition(lambda self: self.sleeps and self.any_task(lambda task: task.status == "running"))
    @rule(
        data=st.data(),
        age=st.sampled_from([0, 0, 0, 0, 1, -1]),
        durations=DURATIONS,
        news=st.sampled_from([0, 0, 0, 1]),
    )
    def sleep(self, data, age, durations, news):
        """Timers, and then a wait. news: completions that the run does not know of."""
        id, task = self.some(data, "running")
        attempt, mine = task.attempt - age, task.status == "running" and age == 0
        for duration in durations:
            opened = self.queue.open_timer(
                id=id,
                attempt=attempt,
                position=len(task.opened) + 1,
                name="sleep",
                input="0",
                moment=None,
                duration=hours(duration),
            )
            assert opened == mine
            if opened:
                task.opened.append(attempt)
                task.due[len(task.opened)] = self.now + duration
        awaits = sorted(task.due) or [1]
        deadline = awaits.pop() if len(awaits) > 1 and data.draw(st.booleans()) else None
        wake_after = data.draw(st.integers(1, len(awaits)))
        suspended = self.queue.suspend_task(
            id=id,
            attempt=attempt,
            completions=task.completions - news,
            awaits=awaits,
            wake_after=wake_after,
            deadline=deadline,
        )
        assert suspended == (mine and not news)
        if suspended:
            task.status, task.run_at, task.uncounted = "waiting", None, attempt
            task.awaits, task.wake_after, task.deadline = awaits, wake_after, deadline

    def ring(self, data: Any) -> None:
        """Of each task, the first entry that is due."""
        first = {
            id: min(task.due, key=lambda position, task=task: (task.due[position], position))
            for id, task in self.tasks.items()
            if any(due <= self.now for due in task.due.values())
        }
        assert ("complete" in due_chores(self.queue)) == bool(first)
        with self.locked(data, "tasks", self.tasks) as passed_over:
            rung = {row.task_id: row.position for row in self.queue.complete_due_entries(**ALL)}
        first.pop(passed_over, None)
        assert rung == first
        for id, position in rung.items():
            self.tasks[id].ring(position)

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
            woken = len(list(self.queue.wake_tasks(**ALL)))
        due = [
            task
            for id, task in self.tasks.items()
            if task.status == "waiting"
            and task.run_at is not None
            and task.run_at <= self.now
            and id != passed_over
        ]
        assert woken == len(due)
        for task in due:
            task.status = "queued"

    @rule(data=st.data())
    def bury(self, data):
        with self.locked(data, "workers", self.alive) as passed_over:
            buried = {worker.id for worker in self.queue.bury_workers(worker_id=0)}
        dead = {id for id, until in self.alive.items() if until <= self.now} - {passed_over}
        assert buried == dead
        for id in dead:
            del self.alive[id]

    @rule(data=st.data())
    def take_back(self, data):
        with self.locked(data, "tasks", self.tasks) as passed_over:
            taken = {row.id: (row.status, row.attempt) for row in self.queue.take_back_tasks(**ALL)}
        expected = {}
        for id, task in self.tasks.items():
            timed_out = task.timeout is not None and task.started_at + task.timeout <= self.now
            if (
                task.status == "running"
                and (timed_out or task.worker not in self.alive)
                and id != passed_over
            ):
                if task.worker not in self.alive and task.attempt in task.opened:
                    task.uncounted = task.attempt
                task.status = (
                    "queued" if task.attempt - task.uncounted < task.max_attempts else "failed"
                )
                task.error = "Timeout" if timed_out else "WorkerDied"
                expected[id] = (task.status, task.attempt)
        assert taken == expected

    @rule(data=st.data(), worker=WORKERS, older_than=st.integers(0, 2))
    def give_back_tasks(self, data, worker, older_than):
        id = self.workers[worker]
        known = data.draw(st.lists(st.sampled_from(sorted(self.tasks)), max_size=3)
                          if self.tasks else st.just([]))  # fmt: skip
        running = [f"{known_id}/{self.tasks[known_id].attempt}" for known_id in known]
        given_back = self.queue.give_back_tasks(
            worker_id=id, running=running, older_than=hours(older_than), **ALL
        )
        lost = [
            task
            for task_id, task in self.tasks.items()
            if task.status == "running" and task.worker == id and task_id not in known
            and task.started_at + older_than <= self.now
        ]  # fmt: skip
        assert len(list(given_back)) == len(lost)
        for task in lost:
            task.status = "queued"
            task.uncounted += 1

    @rule(passed=st.integers(1, 3))
    def time_passes(self, passed):
        self.move_clock(passed)

    @precondition(lambda self: self.sleeps)
    @rule(data=st.data(), passed=st.integers(0, 2))
    def time_passes_and_timers_ring(self, data, passed):
        self.move_clock(passed)
        self.ring(data)

    def move_clock(self, passed: int) -> None:
        self.now += passed
        self.world.look.execute(
            "update tasks set run_at = run_at - %(passed)s, started_at = started_at - %(passed)s",
            {"passed": hours(passed)},
        )
        self.world.look.execute(
            "update workers set alive_until = alive_until - %s", (hours(passed),)
        )
        if self.sleeps:
            self.world.look.execute("update event_log set due_at = due_at - %s", (hours(passed),))

    # What people do, from lesson 05 and 06 on

    @precondition(lambda self: self.people and hasattr(self.queue, "cancel_task"))
    @rule(data=st.data())
    def cancel(self, data):
        id, task = self.some(data, *LIVE)
        assert self.queue.cancel_task(id=id) == (task.status in LIVE)
        if task.status in LIVE:
            task.status = "cancelled"

    @precondition(lambda self: self.people and {"revive_task", "revive_tasks"} & {*dir(self.queue)})
    @rule(data=st.data())
    def revive(self, data):
        id, task = self.some(data, "failed", "cancelled")
        revived = revive(self.queue, id)
        assert revived == (task.status in ("failed", "cancelled"))
        if revived:
            task.status, self.by_hand = "queued", id

    @precondition(lambda self: self.people and hasattr(self.queue, "replay_task"))
    @rule(data=st.data())
    def replay(self, data):
        id, task = self.some(data, *TERMINAL)
        replayed = self.queue.replay_task(id=id)
        assert replayed == (task.status in TERMINAL)
        if replayed:
            task.status, task.output, self.by_hand = "queued", None, id
            task.uncounted = task.attempt
            if self.sleeps:
                self.queue.delete_log(task_id=id)
                task.opened, task.due, task.completions, task.awaits = [], {}, 0, []
                task.deadline = None

    # What holds after each rule

    @invariant()
    def as_in_the_model(self):
        self.turn += 1
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

    @precondition(lambda self: self.sleeps)
    @invariant()
    def timers_as_in_the_model(self):
        rows = self.world.look.execute(
            "select id, completions, array(select position from event_log"
            " where task_id = id and completion is null order by position) from tasks"
        ).fetchall()
        expected = {id: (task.completions, sorted(task.due)) for id, task in self.tasks.items()}
        assert {id: tuple(row) for id, *row in rows} == expected


def test_the_queue_does_what_the_model_does(world):
    machine = type("Queue", (Queue,), {"world": world})
    run_state_machine_as_test(machine, settings=profile(world.lesson, examples=100, steps=40))
