"""Chaos with a seed: real worker processes, and a saboteur that draws its faults from the seed.

    python -m faults.chaos --seed 7 --seconds 5 --lesson 06

Clients enqueue, and write down what they asked for and what they were told. The saboteur kills,
pauses and replaces workers, cuts connections, and kills the server. Then the faults stop: every
task must end, and the invariants are checked. The same seed draws the same faults and the same
tasks; how they interleave is different every time.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any, LiteralString, cast

import click
import sqlalchemy as sa
from psycopg import sql
from psycopg.errors import RaiseException
from psycopg.sql import Composed
from sqlalchemy.exc import DatabaseError, OperationalError

from faults import lesson_with_worker, witness
from faults.workloads import CHAOS_ACCOUNTS, engine_of, register_sleepers
from shared.database import Database, open_database
from shared.processes import WorkerProcess, wait_until
from shared.testing import environment, load

HERE = Path(__file__).resolve().parent
LEASE = 1.0  # seconds
WORKERS = 3
CLIENTS = 2
PEOPLE = 3  # if there are any
SECONDS_TO_END = 90  # for all tasks, when the faults have stopped
SECONDS_TO_STOP = 30  # for the workers, when they are asked to; more than their grace period
OPTIONS = ("--lease", str(LEASE), "--slots", "8", "--grace", "10")
Say = Callable[[str], None]

# In the end, queries that must find nothing.
OF_CHILDREN: dict[str, LiteralString] = {
    "a parent does not know that its child has ended": (
        "select child.id, child.status from tasks as child"
        " join event_log on event_log.child_id = child.id where event_log.completion is null"
    ),
    "a child without an entry in its parent's log": (
        "select id from tasks where parent_id is not null"
        " and id not in (select child_id from event_log where child_id is not null)"
    ),
}
# Unless it was retried by hand, without its parent.
OTHER_END: dict[str, LiteralString] = {
    "a parent knows another end of its child": (
        "select child.id, child.status from tasks as child"
        " join event_log on event_log.child_id = child.id"
        " where event_log.output::text is distinct from child.output::text"
    ),
}

OF_TIMERS: dict[str, LiteralString] = {
    "a timer is due, and has not rung": (
        "select task_id, position, due_at from event_log"
        " where completion is null and due_at < clock_timestamp()"
    ),
    "a sleeper went on before its time": (
        "select sleep.task_id, sleep.due_at, after.recorded_at from event_log as sleep"
        " join tasks on tasks.id = sleep.task_id and tasks.name = 'slumber'"
        " join event_log as after on after.task_id = sleep.task_id"
        " and after.position > sleep.position and after.recorded_at < sleep.due_at"
    ),
}

# How often each is drawn; those of the server only if it is our own.
FAULTS = {
    "kill a worker": 4,
    "pause a worker": 4,
    "stop a worker": 2,
    "terminate connections": 4,
    "cancel statements": 4,
    "refuse all writes": 3,
}
# Errors that the faults make. All others would be the engine's.
EXPECTED = (
    "canceling statement due to user request",
    "the database refuses",
    "nobody would read the message",
    "deadlock detected",
)
# What a database may say to a statement that is in order.
REFUSALS = {
    "25006": "read-only: a standby, or a disk that is nearly full",
    "42501": "a right is missing",
    "P0001": "somebody's trigger",
    "0A000": "a cached plan must not change its result type",
    "57014": "statement_timeout",
    "55P03": "lock_timeout",
    "40001": "serialization",
    "23514": "a check",
    "XX000": "an internal error",
    "53100": "the disk is full",
}
# Of the workers only: what the clients could not write would be no news.
REFUSE: LiteralString = """
create table chaos_refusal (sqlstate text, until timestamptz);
insert into chaos_refusal values ('', '-infinity');
create function chaos_refuse() returns trigger language plpgsql set search_path from current as $$
declare
    state text;
begin
    select sqlstate into state from chaos_refusal
    where until > clock_timestamp() and current_setting('application_name') <> '{spared}';
    if found then
        raise exception 'the database refuses' using errcode = state;
    end if;
    return null;
end
$$;
"""
FAULTS_OF_THE_SERVER = {"shut the server down": 1, "kill the server": 1}


@dataclass
class Result:
    """What a run came to. violations: one sentence each; none is what we want."""

    lesson: str
    seed: int
    faults: Counter[str] = field(default_factory=lambda: Counter[str]())
    tasks: int = 0
    attempts: int = 0
    effects_twice: int = 0  # effects outside that were made more than once, with the same key
    violations: list[str] = field(default_factory=lambda: list[str]())

    def summary(self) -> str:
        faults = ", ".join(f"{count} {kind}" for kind, count in sorted(self.faults.items()))
        return (
            f"lesson {self.lesson}, seed {self.seed}: {self.faults.total()} faults ({faults});"
            f" {self.tasks} tasks in {self.attempts} attempts, {self.effects_twice} effects ran"
            f" twice, {len(self.violations)} violations"
        )


def run(
    lesson: Path,
    seed: int,
    seconds: float,
    say: Say = lambda _: None,
    *,
    by_hand: bool = False,
) -> Result:
    """Let faults happen for so many seconds, then check. The lesson is the third or a later one.

    by_hand: people cancel, retry, replay and fork all the while, from lesson 07 on; what each task
    comes to is then not known beforehand, and not checked. The server is one of its own, so that
    killing it harms nobody else. With DATABASE_URL it is that one, and it is not killed.
    """
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        own = None if os.environ.get("DATABASE_URL") else stack.enter_context(own_server())
        stack.enter_context(
            environment(
                LESSON_SCHEMA=f"test_chaos_{os.getpid()}", LESSON_OUTSIDE=str(home / "outside.log")
            )
        )
        db = stack.enter_context(open_database(lesson, reset=True))
        result = Result(lesson.name, seed)
        Chaos(db, own, home, result, say, by_hand).run(seconds)
        return result


@contextmanager
def own_server() -> Iterator[Any]:
    """An embedded server in a directory of its own, which DATABASE_URL names meanwhile."""
    from shared.embedded import Embedded

    home = Path(tempfile.mkdtemp(prefix="chaos-", dir="/var/tmp"))
    own = Embedded()
    own.home, own.socket, own.data = home, home / "s", home / "data"
    own.url = f"postgresql://postgres@/postgres?host={own.socket}&port=5432"
    users = own.join()
    try:
        with environment(DATABASE_URL=own.url):
            yield own
    finally:
        own.leave(users)
        shutil.rmtree(home)


class Client:
    """Enqueues, and writes down what it asked for and what it was told.

    outcomes: invoke, ok, info ("nobody knows") or rollback; a key; for ok, the task's id.
    """

    def __init__(self, number: int, seed: int, engine: Any, db: Database) -> None:
        self.random = random.Random(f"{seed} client {number}")
        self.number = number
        self.engine = engine
        self.db = db
        self.outcomes: list[tuple[str, str, int | None]] = []

    def run(self, over: threading.Event) -> None:
        for n in count(1):
            if over.wait(self.random.uniform(0.01, 0.12)):
                return
            task = self.draw(n)
            commit = self.random.random() < 0.9
            for _ in range(self.random.choice([1, 1, 1, 2]) if commit else 1):
                while self.enqueue(f"{self.number}-{n}", *task, commit) == "info" and commit:
                    time.sleep(0.05)  # the key makes it safe to say it again

    def enqueue(
        self, key: str, name: str, input: Any, options: dict[str, Any], commit: bool
    ) -> str:
        self.outcomes.append(("invoke", key, None))
        outcome, id = "info", None
        try:
            with self.db.engine.connect() as connection:
                connection.execute(
                    sa.text("insert into chaos_orders values (:key) on conflict do nothing"),
                    {"key": key},
                )
                id = self.engine.enqueue(connection, name, input, idempotency_key=key, **options)
                if commit:
                    connection.commit()
                else:
                    connection.rollback()
            outcome = "ok" if commit else "rollback"
        except OperationalError:
            pass
        self.outcomes.append((outcome, key, id))
        return outcome

    def draw(self, n: int) -> tuple[str, Any, dict[str, Any]]:
        """A task: its name, its input, its options."""
        number = self.number * 1_000_000 + n
        often: dict[str, Any] = {"max_attempts": 1000, "priority": self.random.randint(-1, 1)}
        plain: list[tuple[str, Any, dict[str, Any]]] = [
            ("send_receipt", number, often),
            ("send_receipt", number, often),
            ("divide", [6, 3], often),
            ("divide", [1, 0], {"max_attempts": 2}),
            ("hopeless", None, often),
            ("flaky", self.random.randint(1, 3), often),
            ("work", 0.05, often),
        ]
        if not hasattr(self.engine, "ChildError"):
            return self.random.choice(plain)
        items = self.random.sample(["pen", "lamp", "book", "cup"], self.random.randint(1, 3))
        durable: list[tuple[str, Any, dict[str, Any]]] = [
            ("fulfil", {"id": number, "items": items}, often),
            ("fulfil", {"id": number, "items": items}, often),
            ("fulfil", {"id": number, "items": [*items, "unicorn"]}, often),
            ("fulfil_all", [{"id": number * 10 + i, "items": ["pen"]} for i in range(2)], often),
            ("wait_for_a_nap", 0.1, often),
        ]
        if not hasattr(self.engine, "Timers"):
            return self.random.choice([*plain, *durable, *durable])
        both = [round(self.random.uniform(0, 0.6), 3) for _ in range(2)]
        timed: list[tuple[str, Any, dict[str, Any]]] = [
            ("slumber", round(self.random.uniform(0, 1.5), 3), often),
            ("slumber", 0, often),
            ("impatient", both, often),
            ("alarmed", both, often),
        ]
        if not hasattr(self.engine, "SignalError"):
            return self.random.choice([*plain, *durable, *timed, *timed])
        three = [round(self.random.uniform(0, 0.6), 3) for _ in range(3)]
        event = f"event {n // 8}"
        reading: list[tuple[str, Any, dict[str, Any]]] = [
            ("reader", three, often),
            ("reader", [0, 0, *three], often),
            ("chooser", {"event": event, "seconds": three}, often),
            ("listener", event, often),
        ]
        if not hasattr(self.engine, "transactional"):
            return self.random.choice([*plain, *durable, *timed, *reading, *reading, *reading])
        order = {
            "number": number,
            "names": self.random.sample("abcd", 2),
            "amount": self.random.randint(1, 9),
        }
        paying: list[tuple[str, Any, dict[str, Any]]] = [
            ("transfer", order, often),
            ("transfer_now", order, often),
            ("booking", number, often),
        ]
        return self.random.choice([*plain, *durable, *timed, *reading, *reading, *paying, *paying])


class Correspondent:
    """Sends messages and emits events, some of them twice, and notes what it was told.

    Its transactions stay open for a moment: whoever waits for what is sent looks for it meanwhile.
    """

    def __init__(self, number: int, seed: int, engine: Any, db: Database) -> None:
        self.random = random.Random(f"{seed} correspondent {number}")
        self.number = number
        self.engine = engine
        self.db = db
        # Of a message, its task and its key; of an event, its name; and the payload of each.
        self.sent: dict[tuple[int, str], Any] = {}
        self.unsent = set[tuple[int, str]]()  # rolled back, or refused
        self.emitted: dict[str, Any] = {}

    def run(self, over: threading.Event) -> None:
        for n in count(1):
            if over.wait(self.random.uniform(0.005, 0.05)):
                return
            act = self.random.choice([self.send, self.send, self.emit])
            with suppress(OperationalError):
                act([self.number, n])

    def send(self, payload: list[int]) -> None:
        """By the lesson's function, or by an INSERT, to a task that may be about to read it."""
        id = self.draw(
            "select id from tasks where name in ('reader', 'chooser')"
            " and status in ('queued', 'running', 'waiting') order by id desc limit 5"
        )
        if id is None:
            return
        place = (id, f"{self.number}-{payload[1]}")
        by_hand = self.random.random() < 0.5
        commit = self.random.random() < 0.9
        self.unsent.add(place)
        for _ in range(self.random.choice([1, 2])):
            try:
                with self.transaction(commit) as connection:
                    self.send_to(connection, *place, payload, by_hand)
                    self.unsent -= {place} if commit else set()  # at the commit, nobody knows
                if commit:
                    self.sent[place] = payload
            except (self.engine.BadInput, RaiseException):
                return  # it has ended

    def send_to(
        self, connection: sa.Connection, id: int, key: str, payload: Any, by_hand: bool
    ) -> None:
        if not by_hand:
            self.engine.send(connection, id, "letter", payload, key=key)
            return
        connection.execute(
            sa.text(
                "insert into messages (task_id, name, payload, key)"
                " values (:id, 'letter', :payload, :key) on conflict do nothing"
            ),
            {"id": id, "payload": json.dumps(payload), "key": key},
        )

    def emit(self, payload: list[int]) -> None:
        """What somebody waits for; or what has happened already."""
        name = self.draw(
            "select name from event_log left join events using (name) where kind = 'event'"
            " order by events.name is null desc, task_id desc limit 5"
        )
        commit = self.random.random() < 0.9
        for _ in range(self.random.choice([1, 2]) if name else 0):
            with self.transaction(commit) as connection:
                first = self.engine.emit(connection, name, payload)
            if commit and first:
                self.emitted[name] = payload
            payload = [*payload, 2]

    def draw(self, query: str) -> Any:
        with self.db.engine.connect() as connection:
            found = connection.execute(sa.text(query)).scalars().all()
        return self.random.choice(found) if found else None

    @contextmanager
    def transaction(self, commit: bool) -> Iterator[sa.Connection]:
        """Raises BadInput, OperationalError, or the trigger's RaiseException."""
        try:
            with self.db.engine.connect() as connection:
                yield connection
                time.sleep(self.random.uniform(0, 0.02))
                (connection.commit if commit else connection.rollback)()
        except OperationalError:
            raise
        except DatabaseError as error:
            raise (error.orig or error) from None


class Person:
    """Cancels, retries, replays and forks what there is. What must not be is a BadInput."""

    def __init__(self, number: int, seed: int, engine: Any, db: Database) -> None:
        self.random = random.Random(f"{seed} person {number}")
        self.engine = engine
        self.db = db
        self.done = Counter[str]()

    def run(self, over: threading.Event) -> None:
        while not over.wait(self.random.uniform(0.01, 0.05)):
            what = self.random.choice(["cancel", "retry", "retry", "replay", "fork"])
            where = [self.random.randint(0, 3)] if what == "fork" else []
            share = self.random.random()
            with suppress(OperationalError, self.engine.BadInput), self.db.engine.begin() as own:
                # Mostly one of the newest.
                newest = own.execute(sa.text("select coalesce(max(id), 0) from tasks")).scalar_one()
                getattr(self.engine, what)(own, newest - int(share * share * 100), *where)
                self.done[what] += 1


class Chaos:
    """One run: the workers, the saboteur, and the checks."""

    def __init__(
        self, db: Database, own: Any, home: Path, result: Result, say: Say, by_hand: bool
    ) -> None:
        self.db, self.own, self.home, self.by_hand = db, own, home, by_hand
        self.result, self.say = result, say
        modules = load(db.lesson)
        register_sleepers(modules)
        self.engine = engine_of(modules)
        # The item that cannot be had. From lesson 07 on nothing is refunded: the order fails.
        self.gone = "lamp" if hasattr(self.engine, "fork") else "unicorn"
        self.random = random.Random(f"{result.seed} saboteur")
        self.started = time.monotonic()
        self.count = 0
        self.workers: list[WorkerProcess] = []
        self.leaving: list[WorkerProcess] = []  # asked to stop
        self.killed: set[WorkerProcess] = set()
        self.paused: dict[WorkerProcess, float] = {}  # and when they are to wake up
        self.server_log = ""
        self.limit = self.random.choice([None, 10])  # how many tasks may run at once
        self.has_schedules = hasattr(self.engine, "set_schedule")  # from lesson 10 on
        self.has_messages = hasattr(self.engine, "SignalError")  # from lesson 11 on
        self.has_transactions = hasattr(self.engine, "transactional")  # from lesson 12 on
        self.correspondents: list[Correspondent] = []

    def run(self, seconds: float) -> None:
        witness.install(self.db)
        self.rows("create table chaos_orders (key text primary key)")
        if self.has_transactions:
            self.rows(CHAOS_ACCOUNTS)
        self.prepare_refusals()
        if self.limit is not None:
            with self.db.autocommit.connect() as connection:
                self.engine.limit_queue(connection, "default", self.limit)
        if self.has_schedules:
            with self.db.autocommit.connect() as connection:
                self.engine.set_schedule(
                    connection, "s", "* * * * * *", "nothing", None, missed="all", max_attempts=1000
                )
        over = threading.Event()
        numbers = range(1, CLIENTS + 1)
        clients = [Client(n, self.result.seed, self.engine, self.db) for n in numbers]
        people = [Person(n, self.result.seed, self.engine, self.db) for n in range(PEOPLE)]
        people = people if self.by_hand else []
        if self.has_messages:
            self.correspondents = [
                Correspondent(n, self.result.seed, self.engine, self.db) for n in numbers
            ]
        ended = threading.Event()  # so long, somebody waits for a letter or an event
        with ThreadPoolExecutor(CLIENTS + PEOPLE + len(self.correspondents)) as threads:
            try:
                self.workers = [self.new_worker() for _ in range(WORKERS)]
                running = [threads.submit(each.run, over) for each in [*clients, *people]]
                writing = [threads.submit(each.run, ended) for each in self.correspondents]
                self.sabotage(seconds)
                over.set()
                for each in running:
                    each.result()
                for person in people:
                    self.result.faults.update(person.done)
                self.tell("the faults stop")
                self.come_to_an_end()
                ended.set()
                for each in writing:
                    each.result()
                self.stop_all()
            finally:
                over.set()
                ended.set()
                for worker in [*self.workers, *self.leaving]:
                    worker.resume()
                    worker.kill()
        self.check([outcome for client in clients for outcome in client.outcomes])

    def stop_all(self) -> None:
        for worker in self.workers:
            self.leave(worker)
        with suppress(TimeoutError):
            wait_until(
                lambda: all(worker.exit_status is not None for worker in self.leaving),
                "those that were asked to stop have ended",
                SECONDS_TO_STOP,
            )
        for worker in self.leaving:
            self.check_exit(worker)

    def tell(self, fact: str) -> None:
        self.say(f"{time.monotonic() - self.started:6.2f}  {fact}")

    # The faults

    def sabotage(self, seconds: float) -> None:
        """One fault after the other, with short pauses."""
        wait_until(
            lambda: all(worker.has_started() for worker in self.workers), "the workers have started"
        )
        end = time.monotonic() + seconds
        faults = FAULTS | (FAULTS_OF_THE_SERVER if self.own else {})
        while time.monotonic() < end:
            (fault,) = self.random.choices([*faults], [*faults.values()])
            worker = self.random.choice(self.workers)
            few, share = self.random.random() < 0.5, self.random.random()
            pause = self.random.uniform(0.02, 0.3)
            self.result.faults[fault] += 1
            match fault:
                case "kill a worker":
                    self.tell(f"kill -9 {worker.name}")
                    self.killed.add(worker)
                    worker.kill()
                    self.replace(worker)
                case "pause a worker":
                    self.tell(f"SIGSTOP {worker.name}, for {3 * LEASE * share:.1f} s")
                    self.paused[worker] = time.monotonic() + 3 * LEASE * share
                    worker.pause()
                case "stop a worker":
                    self.tell(f"SIGTERM {worker.name}")
                    self.leave(worker)
                    self.replace(worker)
                case "terminate connections":
                    self.cut("pg_terminate_backend", few, share)
                case "cancel statements":
                    self.cut("pg_cancel_backend", few, share)
                case "refuse all writes":
                    self.refuse(self.random.choice([*REFUSALS]), 4 * share)
                case "shut the server down":
                    self.restart(signal.SIGQUIT)
                case _:
                    self.restart(signal.SIGKILL)
            self.look_after_workers()
            self.check_messages()
            time.sleep(pause)

    def cut(self, function: str, few: bool, share: float) -> None:
        """All connections of the workers and clients, or a share of them."""
        pids = self.rows(
            "select pid from pg_stat_activity where application_name like %s order by pid",
            f"{self.db.schema} %",
        )
        chosen = [pid for (pid,) in pids if not few or self.random.random() < share]
        self.tell(f"{function} of {len(chosen)} connections")
        for pid in chosen:
            self.rows(cast(LiteralString, f"select {function}(%s)"), pid)

    def prepare_refusals(self) -> None:
        spared = f"{self.db.schema} {os.getpid()}"
        self.rows(cast(LiteralString, REFUSE.replace("{spared}", spared)))
        tables = self.rows(
            "select table_name from information_schema.tables where table_schema = %s"
            " and table_name = any(array['tasks', 'workers', 'event_log', 'messages', 'events'])",
            self.db.schema,
        )
        for (table,) in tables:
            self.rows(
                sql.SQL(
                    "create trigger chaos_refuse before insert or update on {}"
                    " for each statement execute function chaos_refuse()"
                ).format(sql.Identifier(table))
            )

    def refuse(self, sqlstate: str, seconds: float) -> None:
        self.tell(f"the database refuses all writes with {sqlstate}, for {seconds:.1f} s")
        until = "update chaos_refusal set sqlstate = %s, until = clock_timestamp() + %s"
        self.rows(until, sqlstate, timedelta(seconds=seconds))

    def restart(self, number: signal.Signals) -> None:
        """Without telling the clients goodbye; then wait until the last process is gone."""
        pid = int((self.own.data / "postmaster.pid").read_text().split()[0])
        os.kill(pid, number)
        with (self.own.home / "running").open("a") as running:
            wait_until(lambda: self.own.lock(running), "the server is gone")
        self.keep_server_log()  # a new server begins a new one
        with self.own.alone():
            self.own.start()
        self.tell(f"{number.name} of the server, and a new start")

    def keep_server_log(self) -> None:
        if self.own:
            self.server_log += (self.own.home / "server.log").read_text(errors="replace")

    # The workers

    def new_worker(self) -> WorkerProcess:
        self.count += 1
        return WorkerProcess(HERE, f"w{self.count}", *OPTIONS, str(self.db.lesson))

    def replace(self, worker: WorkerProcess) -> None:
        self.workers[self.workers.index(worker)] = self.new_worker()

    def leave(self, worker: WorkerProcess) -> None:
        """The polite way. Once: a second signal would mean "at once"."""
        worker.signal(signal.SIGTERM)
        self.leaving.append(worker)

    def look_after_workers(self) -> None:
        """Wake up those that have slept enough; replace those that are gone."""
        for worker, until in list(self.paused.items()):
            if time.monotonic() > until:
                worker.resume()
                del self.paused[worker]
        for worker in list(self.workers):
            if worker.exit_status is not None:
                self.check_exit(worker)
                self.replace(worker)

    def check_exit(self, worker: WorkerProcess) -> None:
        """A worker that has started ends only if it is killed or stopped.

        One that cannot register does not start, and whoever runs workers starts another.
        """
        status, output = worker.exit_status, worker.output()
        if worker in self.killed:
            return
        if status is not None and ": started" not in output:
            broken = ("OperationalError", "cannot connect", "QueryCanceled", "AdminShutdown")
            cut = any(words in output for words in broken)
            if status not in (0, -signal.SIGTERM) and not cut:
                self.violation(f"{worker.name} did not start, exit status {status}: {output}")
            return
        leaving = worker in self.leaving or ": stopped" in output
        if status != 0 or not leaving or "must stop" in output:
            self.violation(f"{worker.name} ended with exit status {status}: {output[-3000:]}")

    def come_to_an_end(self) -> None:
        """When the faults have stopped, every task ends, and the clock ends every other wait."""
        for worker in [*self.workers, *self.leaving]:
            worker.resume()
        self.paused.clear()
        if self.has_schedules:
            self.end_schedule()

        def ended() -> bool:
            self.look_after_workers()
            if self.rows(
                "select id from tasks where status in ('queued', 'running', 'waiting') limit 1"
            ):
                return False
            sleeps = hasattr(self.engine, "Timers")
            left = "select 1 from event_log where due_at is not null and completion is null limit 1"
            return not (sleeps and self.rows(left))

        try:
            wait_until(ended, "all tasks have ended, and nothing will be due", SECONDS_TO_END)
        except TimeoutError:
            for row in self.rows(
                "select id, name, status, attempt, max_attempts, worker_id, run_at, error"
                " from tasks where status in ('queued', 'running', 'waiting') limit 5"
            ):
                self.violation(f"has not ended after {SECONDS_TO_END} s: {row}")

    def end_schedule(self) -> None:
        """Wait until no tick is due, and pause it: there is a task for each second until then."""

        def up_to_date() -> bool:
            self.look_after_workers()
            return not self.rows("select 1 from schedules where next_at <= clock_timestamp()")

        wait_until(up_to_date, "no tick is due", SECONDS_TO_END)
        ((next_at,),) = self.rows(
            "with last as (select next_at from schedules for update)"
            " update schedules set next_at = null from last returning last.next_at"
        )
        ticks = [
            datetime.fromisoformat(key.removeprefix("schedule s "))
            for (key,) in self.rows(
                "select idempotency_key from tasks"
                " where starts_with(idempotency_key, 'schedule s ')"
            )
        ]
        seconds = int((next_at - min(ticks, default=next_at)).total_seconds())
        if len(ticks) != seconds or len(set(ticks)) != seconds:
            self.violation(f"{seconds} ticks, and {len(ticks)} tasks: {sorted(ticks)}")

    # The invariants

    def rows(self, query: LiteralString | Composed, *parameters: Any) -> list[Any]:
        return witness.rows(self.db, query, *parameters)

    def violation(self, sentence: str) -> None:
        self.tell(f"VIOLATION {sentence}")
        self.result.violations.append(sentence)

    def check_messages(self) -> None:
        """What holds at any moment, not only in the end."""
        if self.has_messages:
            for wrong in witness.found(self.db, *witness.BESIDE):
                self.violation(wrong)
        if self.has_transactions:
            ((amount,),) = self.rows("select sum(amount)::int from chaos_accounts")
            if amount != 4_000_000:
                self.violation(f"there were 4,000,000, and now there are {amount:,}")

    def check_correspondents(self) -> None:
        """What was acknowledged is there, as it was sent; what was rolled back is not."""
        sent = {
            (id, key): payload
            for id, key, payload in self.rows("select task_id, key, payload from messages")
        }
        events = dict(self.rows("select name, payload from events"))
        for one in self.correspondents:
            for place in one.unsent & sent.keys():
                self.violation(f"a message that was rolled back: {place}")
            # A replay begins without what was read.
            for place, payload in one.sent.items() if not self.by_hand else ():
                if sent.get(place) != payload:
                    self.violation(f"{payload} was sent to {place}: {sent.get(place)}")
            for name, payload in one.emitted.items():
                if events.get(name) != payload:
                    self.violation(f"{name} was emitted with {payload}: {events.get(name)}")
        if not (sent and events):
            self.violation("the correspondents got nothing done")

    def check(self, outcomes: list[tuple[str, str, int | None]]) -> None:
        self.check_clients(outcomes)
        self.check_messages()
        if self.has_messages:
            self.check_correspondents()
        wrong = witness.violations(self.db, self.limit)
        never = OF_CHILDREN if hasattr(self.engine, "ChildError") else {}
        if never and not self.by_hand:
            never = never | OTHER_END
        if hasattr(self.engine, "Timers"):
            never = never | OF_TIMERS
        if self.has_messages:
            never = never | witness.MESSAGES
        for sentence, query in never.items():
            wrong += witness.found(self.db, sentence, query)
        for sentence in wrong:
            self.violation(sentence)
        if hasattr(self.engine, "durable"):
            self.check_logs()
        if not self.by_hand:
            self.check_outcomes()
            self.check_effects()
            if self.has_transactions:
                self.check_payments()
        self.keep_server_log()
        for line in self.server_log.splitlines():
            if "ERROR:" in line and not any(expected in line for expected in EXPECTED):
                self.violation(f"the server's log: {line}")
        ((self.result.tasks, self.result.attempts),) = self.rows(
            "select count(*), coalesce(sum(attempt), 0)::int from tasks"
        )

    def check_clients(self, outcomes: list[tuple[str, str, int | None]]) -> None:
        """What was acknowledged is there. One key, one task, one order; and nothing else."""
        tasks = dict(
            self.rows(
                "select idempotency_key, id from tasks"
                " where not starts_with(idempotency_key, 'schedule ')"
            )
        )
        orders = {key for (key,) in self.rows("select key from chaos_orders")}
        unknown = {key for outcome, key, _ in outcomes if outcome == "info"}
        acknowledged = {key: id for outcome, key, id in outcomes if outcome == "ok"}
        for outcome, key, id in outcomes:
            if outcome == "ok" and tasks.get(key) != id:
                self.violation(f"task {id} of {key} was acknowledged: {tasks.get(key)}")
        if orders != set(tasks):
            self.violation(f"orders without task, or the reverse: {orders ^ set(tasks)}")
        if extra := set(tasks) - set(acknowledged) - unknown:
            self.violation(f"tasks whose enqueue was rolled back: {extra}")
        if not acknowledged:
            self.violation("the clients got nothing done")

    def check_logs(self) -> None:
        """No log has a hole, and that of a task that has succeeded is complete."""
        for (id,) in self.rows(
            "select task_id from event_log group by task_id having max(position) <> count(*)"
        ):
            self.violation(f"the log of task {id} has a hole")
        logs: dict[int, list[tuple[int, str]]] = {}
        for id, position, name in self.rows(
            "select task_id, position, name from event_log order by task_id, position"
        ):
            logs.setdefault(id, []).append((position, name))
        for id, name, input, output in self.rows(
            "select id, name, input, output from tasks where status = 'succeeded'"
        ):
            expected = expected_log(name, input, output)
            if logs.get(id, []) != list(enumerate(expected, 1)):
                self.violation(f"the log of task {id}, {name}: {logs.get(id)}, not {expected}")

    def check_outcomes(self) -> None:
        """Each task ended as its function says, whatever happened on the way."""
        died = set[int]()  # a child has five attempts, and may lose them all
        if hasattr(self.engine, "ChildError"):
            query: LiteralString = (
                "with recursive died as ("
                " select id, parent_id from tasks where error like 'WorkerDied:%'"
                " union select tasks.id, tasks.parent_id from tasks"
                " join died on died.parent_id = tasks.id) select id from died"
            )
            died = {id for (id,) in self.rows(query)}
        for id, name, input, status, output, error in self.rows(
            "select id, name, input, status, output, error from tasks"
        ):
            outcome = output if status == "succeeded" else str(error).partition(":")[0]
            expected = expected_outcome(name, input, self.gone)
            unknown = ("Unknown",) if name == "booking" else ()
            if id not in died and outcome not in (expected, "WorkerDied", *unknown):
                self.violation(f"task {id}, {name}({json.dumps(input)}): {status} {outcome}")

    def check_effects(self) -> None:
        """Each effect at least once, always with the same key, and none without its task."""
        effects = (self.home / "outside.log").read_text().splitlines()
        count = Counter(
            effect.partition(" by process")[0]
            for effect in effects
            if effect.startswith(("receipt ", "order "))
        )
        self.result.effects_twice = sum(number > 1 for number in count.values())
        asked_for, certain = set[str](), set[str]()
        for (task,) in self.rows("select to_jsonb(tasks) from tasks"):
            possible = possible_effects(task)
            asked_for.update(possible)
            if task["status"] == "succeeded":
                refunded = str(task["output"]).startswith("refunded")
                certain.update(possible[:1] + (possible[2:3] if refunded else possible[1:2]))
        for effect in sorted(certain - set(count))[:5]:
            self.violation(f"has not happened: {effect}")
        for effect in sorted(set(count) - asked_for)[:5]:
            self.violation(f"has happened, and nobody asked for it: {effect}")

    def check_payments(self) -> None:
        """Each exactly once, with the success of its task; each booking at most once."""
        paid = Counter(dict(self.rows("select number, count(*) from chaos_ledger group by 1")))
        asked_for = {
            number
            for (number,) in self.rows(
                "select (input ->> 'number')::int from tasks"
                " where name in ('transfer', 'transfer_now') and status = 'succeeded'"
            )
        }
        if paid != Counter(asked_for):
            different = (paid - Counter(asked_for)) + (Counter(asked_for) - paid)
            self.violation(f"not paid exactly once: {different}")
        effects = Counter((self.home / "outside.log").read_text().splitlines())
        for number, output in self.rows("select input, output from tasks where name = 'booking'"):
            times = effects[f"booked {number}"]
            if times > 1 or (output == "booked" and times == 0):
                self.violation(f"booked {times} times: {number}, {output}")


def possible_effects(task: dict[str, Any]) -> list[str]:
    """Lines in outside.log. Of an order: the charge, the confirmation, and the refund instead."""
    name, input = task["name"], task["input"]
    if name == "send_receipt":
        return [f"receipt {input}"]
    if name == "reserve":
        item = input["item"]
        return [f"order {input['id']}: {item} reserved, key {task['log_id']}"]
    if name != "fulfil":
        return []
    steps = {
        "charge_card": "card charged",
        "send_confirmation": "confirmation sent",
        "refund": "card refunded",
    }
    return [f"order {input['id']}: {what}, key {key(task, step)}" for step, what in steps.items()]


def key(task: dict[str, Any], step: str) -> str:
    """That of the one step of this name, which is given what the task is given."""
    asked = f"1 {step} {json.dumps([[task['input']], {}], sort_keys=True)}"
    digest = hashlib.sha256(asked.encode())
    return f"{task['log_id']}/{digest.hexdigest()[:16]}"


def expected_log(name: str, input: Any, output: Any) -> list[str]:
    """The names in the log of a task that has succeeded."""
    if name == "fulfil":
        last = "refund" if str(output).startswith("refunded") else "send_confirmation"
        return ["charge_card", *["reserve" for _ in input["items"]], last]
    if name == "fulfil_all":
        return ["fulfil" for _ in input]
    if name == "reader":
        return ["letter", "tell"] * len(input)
    if name == "chooser":
        return ["letter", input["event"], "sleep", *["tell"] * 3]
    if name == "listener":
        return [input, "tell"]
    if name == "booking":
        return ["book"] if output == "booked" else ["book", "tell"]
    return {
        "wait_for_a_nap": ["sleep"],
        "transfer": ["pay"],
        "slumber": ["sleep", "tell"],
        "impatient": ["doze", "timeout", "tell"],
        "alarmed": ["doze", "sleep", "tell", "tell"],
    }.get(name, [])


def expected_outcome(name: str, input: Any, gone: str) -> Any:
    """What the task returns, or the type of the error with which it fails."""
    match name:
        case "fulfil":
            return expected_order(input, gone)
        case "fulfil_all":
            return [expected_order(order, gone) for order in input]
        case "reserve":
            item = input["item"]
            return "NonRetryableError" if item == gone else f"{item} reserved"
        case "send_receipt":
            return f"receipt for order {input}"
        case "divide":
            return "ZeroDivisionError" if input[1] == 0 else input[0] / input[1]
        case "hopeless":
            return "NonRetryableError"
        case "slumber":
            return "awake"
        case "impatient" | "alarmed":
            return "both"
        case "reader":
            return "read"
        case "chooser":
            return "all three"
        case "listener":
            return "told"
        case "transfer" | "transfer_now":
            return input["amount"]
        case "booking":
            return "booked"
        case _:
            return "an answer" if name == "flaky" else None


def expected_order(order: Any, gone: str) -> str:
    if gone in order["items"]:
        refunded = "refunded: reserve: NonRetryableError: there are no unicorns"
        return refunded if gone == "unicorn" else "ChildError"
    return f"card charged; {', '.join(f'{item} reserved' for item in order['items'])}"


@click.command()
@click.option("--seed", default=1, help="what the faults and the tasks are drawn from")
@click.option("--seconds", default=5.0, help="for how long faults happen")
@click.option("--lesson", callback=lesson_with_worker, help="03 or later, or a copy's directory")
@click.option(
    "--by-hand", is_flag=True, help="with people who cancel, retry, replay and fork; from 07 on"
)
def main(seed: int, seconds: float, lesson: Path, by_hand: bool) -> None:
    """Random faults, and a check of the invariants at the end."""
    result = run(lesson, seed, seconds, click.echo, by_hand=by_hand)
    for violation in result.violations:
        click.echo(f"✗ {violation}")
    click.echo(result.summary())
    if result.violations:
        again = f"--seed {seed} --seconds {seconds:g} --lesson {os.path.relpath(lesson)}"
        again += " --by-hand" if by_hand else ""
        click.echo(f"again: python -m faults.chaos {again}")
        sys.exit(1)


if __name__ == "__main__":
    main()
