"""Lesson 06: random programs on workers that are lost, cut off and late, and end as interpreted."""

import json
import re
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any, ClassVar

import psycopg
import pytest
import sqlalchemy as sa
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from faults import witness
from shared.processes import wait_until, within
from shared.testing import Lesson, working
from tests.helpers import ALL, hurry
from tests.model import LIVE, TERMINAL, profile
from tests.programs import (
    NAMES,
    NUMBER,
    Expected,
    all_programs,
    define_program,
    interpret,
)


def as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


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
        lesson.worker.Worker._keep_up = lambda _worker, connection: connection.close()
        # Without a look first: an idle puppet waits where it claims.
        claim = lesson.claim.claim
        lesson.worker.claim = lambda *arguments, look_first: claim(*arguments)  # noqa: ARG005
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
            arrived = self._changed.wait_for(lambda: self.at is not None, timeout=within(30))
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
FAULTS = ["lose", "lose", "cut", "lose the answer"]
MOVES = st.sampled_from(["none"] * 10 + ["time passes"] * 2 + FAULTS)


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
        self.by_hand = self.retried = False
        self.sleeps = hasattr(self.world.queue, "open_timer")
        self.reads = hasattr(self.world.queue, "open_wait")
        if self.reads:
            self.world.look.execute("delete from events")
        self.pays = hasattr(self.world.queue, "record_first")
        if self.pays:
            self.world.look.execute("delete from model_ledger")
        self.root = 0
        self.fork_id = 0
        self.expected = Expected()

    @initialize(data=st.data())
    def begin(self, data):
        kinds = {"timed": self.sleeps, "answered": self.reads, "paid": self.pays}
        operations = data.draw(all_programs(**kinds))
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
        self.nothing_is_unread()

    # By a run that is the task's, and how many rows they may write then.
    WRITES: ClassVar = {
        "record_step": (1,),
        "record_steps": (0, 1),  # 0: an error stands there, which RecordStep replaces
        "record_first": (0, 1),  # 0: it has recorded it already
        "spawn_child": (1,),
        "spawn_children": (1,),
        "open_timer": (1,),
        "open_wait": (1,),
        "settle_errors": (1, 2, 3),
        "suspend_task": (0, 1),
        "succeed_task": (1,),
        "succeed_tasks": (1,),
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
            if not able or move == "time passes":
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
        if hasattr(queue, "cancel_orphans"):
            self.world.lesson.upkeep.cancel_orphans(queue)
        list(queue.take_back_tasks(**ALL))
        ids = {worker.name: worker.id for worker in queue.list_workers()}
        for puppet in self.puppets:
            if puppet.idle:
                list(
                    queue.give_back_tasks(
                        worker_id=ids[puppet.name], running=[], older_than=timedelta(0), **ALL
                    )
                )

    def time_passes(self) -> None:
        self.world.look.execute("update tasks set run_at = run_at - interval '1 day'")
        list(self.world.queue.wake_tasks(**ALL))
        if self.sleeps:
            self.world.look.execute(
                "update event_log set due_at = due_at - interval '1 day',"
                " recorded_at = recorded_at - interval '1 day' where completion is null"
            )
            self.ring()
            self.nothing_is_taken_back()
        if self.reads:
            self.world.lesson.upkeep.tell_events(self.world.queue)

    def ring(self) -> None:
        """What is due; of each task one entry, and perhaps there are more."""
        while list(self.world.queue.complete_due_entries(**ALL)):
            pass

    # People

    def status(self) -> str:
        return self.world.queue.get_task(id=self.root).status

    @precondition(lambda self: hasattr(self.world.queue, "cancel_task"))  # from lesson 07 on
    @rule(how=st.sampled_from(["retry", "replay", "cancel"]))
    def person(self, how):
        if how == "cancel":
            changed = self.world.queue.cancel_task(id=self.root)
            self.by_hand = changed == 1
        else:
            self.again(how)

    def again(self, how: str) -> None:
        again, connection = getattr(self.world.lesson.control, how), self.world.transaction
        allowed = ("failed", "cancelled") if how == "retry" else TERMINAL
        if self.status() in allowed:
            with connection.begin():
                again(connection, self.root)
            self.by_hand = self.retried = True
        else:
            with pytest.raises(self.world.lesson.inputs.BadInput), connection.begin():
                again(connection, self.root)

    @precondition(lambda self: hasattr(self.world.queue, "fork_task") and not self.fork_id)
    @rule(position=st.integers(0, 8))
    def fork(self, position):
        """Before the first error: a kept one is never mended."""
        ((known,),) = self.world.look.execute(
            "select coalesce("
            "  min(position) filter ("
            "   where error is not null and kind not in ('timer', 'signal', 'event')) - 1,"
            "  max(position), 0"
            ") from event_log where task_id = %s",
            (self.root,),
        ).fetchall()
        connection = self.world.transaction
        with connection.begin():
            fork = self.world.lesson.control.fork
            self.fork_id = fork(connection, self.root, min(position, known))

    # Whoever sends

    @precondition(lambda self: self.reads)
    @rule(nth=st.integers(0, 3), name=NAMES, payload=NUMBER)
    def send(self, nth, name, payload):
        live = self.world.look.execute(
            "select id from tasks where name = 'program' and status = any (%s) order by id",
            [[*LIVE]],
        ).fetchall()
        if live:
            (id,) = live[nth % len(live)]
            self.world.lesson.signals.send(self.world.connection, id, name, payload)
            self.nothing_is_unread()

    @precondition(lambda self: self.reads)
    @rule(name=NAMES, payload=NUMBER)
    def emit(self, name, payload):
        self.world.lesson.events.emit(self.world.connection, name, payload)

    def answer(self) -> None:
        """All that a live task waits for."""
        waits = self.world.look.execute(
            "select task_id, kind, event_log.name from event_log join tasks on tasks.id = task_id"
            " where kind in ('signal', 'event') and completion is null and status = any (%s)",
            [[*LIVE]],
        )
        for id, kind, name in waits.fetchall():
            if kind == "signal":
                self.world.lesson.signals.send(self.world.connection, id, name, 1)
            else:
                self.world.lesson.events.emit(self.world.connection, name, 1)

    def nothing_is_unread(self) -> None:
        """That somebody waits for."""
        if self.reads:
            sentence, query = witness.BESIDE
            assert self.world.look.execute(query).fetchall() == [], sentence

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
        come = "run_at is null and wake_after <= 0"
        if self.sleeps:
            come += (
                " or exists (select from event_log where task_id = id and completion is not null"
                " and position = deadline)"
            )
        waiting = f"select * from tasks where status = 'waiting' and ({come})"  # noqa: S608
        waiting = self.world.look.execute(waiting).fetchall()
        assert waiting == [], "it waits, and what it waits for has come"
        counted = self.world.look.execute(
            "select completions, count(completion), count(distinct completion),"
            " coalesce(max(completion), 0) from tasks left join event_log on task_id = tasks.id"
            " group by tasks.id"
        )
        for completions, entries, ranks, last in counted:
            assert entries == ranks <= last <= completions
            assert self.retried or last == completions, "a completion is no entry's"
        if self.sleeps:
            early = "completion is not null and due_at > clock_timestamp()"
            early += " and (kind = 'timer' or error ->> 'type' = 'WaitTimeout')"
            assert self.found(early) == [], "the clock was early"
        if self.pays and not self.retried:
            self.work_and_record_are_one()
        self.by_hand = False

    def work_and_record_are_one(self):
        ((paid, recorded),) = self.world.look.execute(
            "select (select count(*) from model_ledger), count(*) from event_log"
            " join tasks on tasks.id = task_id and position > coalesce(fork_position, 0)"
            " where kind = 'transaction' and event_log.output is not null"
        )
        assert paid == recorded

    def found(self, entries):
        return self.world.look.execute(f"select * from event_log where {entries}").fetchall()  # noqa: S608

    # When nothing goes wrong any more

    def teardown(self):
        try:
            if self.root:
                self.come_to_an_end()
                self.check(self.root, self.expected)
                if self.fork_id:
                    self.check(self.fork_id, self.expected)
                self.check_effects()
                for sentence, query in witness.MESSAGES.items() if self.reads else ():
                    assert self.world.look.execute(query).fetchall() == [], sentence
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
            if self.reads:
                self.answer()
            live = self.world.look.execute(
                "select count(*) from tasks where status in ('queued', 'running', 'waiting')"
            ).fetchone()
            busy = [puppet for puppet in self.puppets if not puppet.idle]
            if live == (0,) and not busy:
                if self.sleeps:
                    self.ring()
                    assert self.found("completion is null and due_at <= clock_timestamp()") == []
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
        for (*_, child_id, completion), (kind, name, child) in zip(rows, expected.log, strict=True):
            done = kind in ("step", "once", "transaction")
            assert completion is not None or done or name == "timeout"
            if child is not None:
                self.check(child_id, child)

    def check_effects(self):
        """Each recorded step has had its effect, and no key ever stood for two effects."""
        names: dict[str, set[Any]] = {}
        for key, name, number in self.effects:
            if key:
                names.setdefault(key, set()).add((name, number))
        assert all(len(each) == 1 for each in names.values()), names
        if not self.retried:
            booked = [key for key, name, _ in self.effects if name == "book"]
            assert len(booked) == len(set(booked)), "at most once"
        for log, name, steps in self.world.look.execute(
            "select log_id::text, event_log.name, count(*) from event_log"
            " join tasks on tasks.id = task_id where kind = 'step'"
            " and position > coalesce((to_jsonb(tasks) ->> 'fork_position')::int, 0)"
            " group by log_id, event_log.name"
        ):
            own = [key for key, what in names.items() if key.startswith(log) and name in dict(what)]
            assert len(own) >= steps, "each has a key of its own"


def test_a_program_ends_as_interpreted_whatever_goes_wrong(world):
    hurry(world.lesson, poll=0.001)
    effects: list[tuple[str, str, int]] = []
    define_program(world.lesson, effects)
    if hasattr(world.queue, "record_first"):
        world.look.execute("create table model_ledger (number int)")
    with ExitStack() as stack:
        puppets = [
            stack.enter_context(Puppet(world.lesson, world.db, name).running()) for name in "abc"
        ]
        machine = type(
            "Durable", (Durable,), {"world": world, "puppets": puppets, "effects": effects}
        )
        run_state_machine_as_test(machine, settings=profile(world.lesson, examples=30, steps=12))
