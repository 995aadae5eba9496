"""Chaos with a seed: real worker processes, and a saboteur that draws its faults from the seed.

    python -m faults.chaos --seed 7 --seconds 5 --lesson 06

Clients enqueue, and write down what they asked for and what they were told. The saboteur kills,
pauses and replaces workers, cuts connections, and kills the server. Then the faults stop: every
task must end, and the invariants are checked. The same seed draws the same faults and the same
tasks; how they interleave is different every time.
"""

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
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, LiteralString, cast

import click
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from shared.database import Database, open_database
from shared.processes import WorkerProcess, wait_until
from shared.testing import LESSONS, environment, load

LEASE = 1.0  # seconds
WORKERS = 3
CLIENTS = 2
SECONDS_TO_END = 90  # for all tasks, when the faults have stopped
SECONDS_TO_STOP = 30  # for the workers, when they are asked to; more than their grace period
OPTIONS = ("--lease", str(LEASE), "--slots", "8", "--grace", "10")
Say = Callable[[str], None]

# The witness in the database. Each change of a task or of its log is written down by the
# transaction that makes it, which holds the task's row lock: for one task, `seq` is the order of
# the commits.
HISTORY: LiteralString = """
create table chaos_orders (key text primary key);
create table chaos_history (
    seq bigint generated always as identity primary key,
    task_id bigint, was text, status text, was_attempt int, attempt int, worker_id bigint
);
create function chaos_task() returns trigger language plpgsql as $$
begin
    insert into chaos_history (task_id, was, status, was_attempt, attempt, worker_id)
    values (
        new.id, case when tg_op = 'UPDATE' then old.status end, new.status,
        case when tg_op = 'UPDATE' then old.attempt end, new.attempt, new.worker_id
    );
    return null;
end
$$;
create trigger chaos_inserted after insert on tasks for each row execute function chaos_task();
create trigger chaos_updated after update on tasks for each row
when (old.status <> new.status or old.attempt <> new.attempt) execute function chaos_task();
"""
LOG_HISTORY: LiteralString = """
create table chaos_log (
    seq bigint generated always as identity primary key,
    task_id bigint, position int, kind text, by_attempt int, again boolean, output text,
    ended boolean, was_ended boolean, status text, attempt int
);
create function chaos_entry() returns trigger language plpgsql as $$
begin
    insert into chaos_log (
        task_id, position, kind, by_attempt, again, output, ended, was_ended, status, attempt
    )
    select
        new.task_id, new.position, new.kind, new.attempt,
        -- The same attempt may send it again, if it has not heard the answer.
        tg_op = 'UPDATE' and old.output is not null
            and (old.attempt, old.output::text) is distinct from (new.attempt, new.output::text),
        new.output::text,
        new.output is not null or new.error is not null,
        tg_op = 'UPDATE' and (old.output is not null or old.error is not null),
        tasks.status, tasks.attempt
    from tasks where tasks.id = new.task_id;
    return null;
end
$$;
create trigger chaos_entry after insert or update on event_log for each row
execute function chaos_entry();
"""


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


def run(lesson: str, seed: int, seconds: float, say: Say = lambda _: None) -> Result:
    """Let faults happen for so many seconds, then check. `lesson`: 03 to 06, or a directory.

    The server is one of its own, so that killing it harms nobody else. With DATABASE_URL it is that
    one, and it is not killed.
    """
    path = Path(lesson).resolve()
    if not (path / "main.py").exists():
        (path,) = LESSONS.glob(f"{lesson}_*")
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        own = None if os.environ.get("DATABASE_URL") else stack.enter_context(own_server())
        stack.enter_context(
            environment(
                LESSON_SCHEMA=f"test_chaos_{os.getpid()}", LESSON_OUTSIDE=str(home / "outside.log")
            )
        )
        db = stack.enter_context(open_database(path, reset=True))
        result = Result(lesson, seed)
        Chaos(path, db, own, home, result, say).run(seconds)
        return result


@contextmanager
def own_server() -> Iterator[Any]:
    """An embedded server in a directory of its own, which DATABASE_URL names meanwhile."""
    from shared.embedded import Embedded

    home = Path(tempfile.mkdtemp(prefix="chaos-", dir="/var/tmp"))
    own = Embedded()
    home.chmod(0o711 if own.nobody else 0o700)
    own.home, own.socket, own.data = home, home / "s", home / "data"
    own.url = f"postgresql://postgres@/postgres?host={own.socket}&port=5432"
    users = own.join()
    try:
        with environment(DATABASE_URL=own.url):
            yield own
    finally:
        own.leave(users)
        shutil.rmtree(home)


class Client(threading.Thread):
    """Enqueues, and writes down the outcomes it knows of: ok, or info, which is "nobody knows".

    A line of its file: invoke, ok, info or rollback; key; for ok, the task's id. Each is on disk
    before the next thing is done.
    """

    def __init__(
        self, number: int, seed: int, lesson: SimpleNamespace, db: Database, home: Path, over: Any
    ) -> None:
        super().__init__(name=f"client {number}")
        self.random = random.Random(f"{seed} client {number}")
        self.number = number
        self.lesson = lesson
        self.db = db
        self.path = home / f"client-{number}.log"
        self.over: threading.Event = over
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with self.path.open("w") as file:
                for n in range(1, 1_000_000):
                    if self.over.wait(self.random.uniform(0.01, 0.12)):
                        return
                    key = f"{self.number}-{n}"
                    name, input, options = self.draw(n)
                    commit = self.random.random() < 0.9
                    for _ in range(self.random.choice([1, 1, 1, 2]) if commit else 1):
                        self.enqueue(file, key, name, input, options, commit)
        except BaseException as error:
            self.error = error

    def enqueue(
        self, file: Any, key: str, name: str, input: Any, options: dict[str, Any], commit: bool
    ) -> None:
        """Until the outcome is known. The key makes it safe to say it again."""
        while True:
            self.write(file, "invoke", key)
            try:
                with self.db.engine.connect() as connection:
                    connection.execute(
                        sa.text("insert into chaos_orders values (:key) on conflict do nothing"),
                        {"key": key},
                    )
                    id = self.lesson.tasks.enqueue(
                        connection, name, input, idempotency_key=key, **options
                    )
                    if not commit:
                        connection.rollback()
                        self.write(file, "rollback", key)
                        return
                    connection.commit()
            except OperationalError:
                self.write(file, "info", key)
                if not commit:
                    return
                time.sleep(0.05)
            else:
                self.write(file, "ok", key, id)
                return

    def write(self, file: Any, *words: object) -> None:
        file.write(" ".join(map(str, words)) + "\n")
        file.flush()
        os.fsync(file.fileno())

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
        if not hasattr(self.lesson, "durable") or not hasattr(self.lesson.durable, "Child"):
            return self.random.choice(plain)
        items = self.random.sample(["pen", "lamp", "book", "cup"], self.random.randint(1, 3))
        durable: list[tuple[str, Any, dict[str, Any]]] = [
            ("fulfil", {"id": number, "items": items}, often),
            ("fulfil", {"id": number, "items": items}, often),
            ("fulfil", {"id": number, "items": [*items, "unicorn"]}, often),
            ("fulfil_all", [{"id": number * 10 + i, "items": ["pen"]} for i in range(2)], often),
            ("wait_for_a_nap", 0.1, often),
        ]
        return self.random.choice([*plain, *durable, *durable])


class Chaos:
    """One run: the workers, the saboteur, and the checks."""

    def __init__(
        self, path: Path, db: Database, own: Any, home: Path, result: Result, say: Say
    ) -> None:
        self.path, self.db, self.own, self.home = path, db, own, home
        self.result, self.say = result, say
        self.lesson = load(path)
        self.random = random.Random(f"{result.seed} saboteur")
        self.started = time.monotonic()
        self.count = 0
        self.workers: list[WorkerProcess] = []
        self.leaving: list[WorkerProcess] = []  # asked to stop
        self.killed: set[WorkerProcess] = set()
        self.paused: dict[WorkerProcess, float] = {}  # and when they are to wake up
        self.server_log = ""
        self.limit = self.random.choice([None, 10])  # how many tasks may run at once

    def run(self, seconds: float) -> None:
        with self.db.connect(autocommit=True) as connection:
            connection.execute(HISTORY)
            if self.has("event_log"):
                connection.execute(LOG_HISTORY)
        if self.limit is not None:
            with self.db.autocommit.connect() as connection:
                self.lesson.tasks.limit_queue(connection, "default", self.limit)
        over = threading.Event()
        clients = [
            Client(n, self.result.seed, self.lesson, self.db, self.home, over)
            for n in range(1, CLIENTS + 1)
        ]
        try:
            self.workers = [self.new_worker() for _ in range(WORKERS)]
            for client in clients:
                client.start()
            self.sabotage(seconds)
            over.set()
            for client in clients:
                client.join()
                if client.error:
                    raise client.error
            self.tell("the faults stop")
            self.come_to_an_end()
            for worker in self.workers:
                self.leave(worker)
            deadline = time.monotonic() + SECONDS_TO_STOP
            for worker in self.leaving:
                while worker.exit_status is None and time.monotonic() < deadline:
                    time.sleep(0.01)
                if worker.exit_status is None:
                    self.violation(f"{worker.name} was asked to stop: {worker.output()[-3000:]}")
                else:
                    self.check_exit(worker, worker.exit_status)
        finally:
            over.set()
            for worker in [*self.workers, *self.leaving]:
                worker.resume()
                worker.kill()
        self.check([line for client in clients for line in client.path.read_text().splitlines()])

    def tell(self, fact: str) -> None:
        self.say(f"{time.monotonic() - self.started:6.2f}  {fact}")

    def has(self, name: str) -> bool:
        """Does this lesson's schema have it yet?"""
        return name in (self.path / "schema.sql").read_text()

    # The faults

    def sabotage(self, seconds: float) -> None:
        """One fault after the other, with short pauses."""
        wait_until(
            lambda: all(worker.has_started() for worker in self.workers), "the workers have started"
        )
        end = time.monotonic() + seconds
        faults = ["kill a worker"] * 4 + ["pause a worker"] * 4 + ["stop a worker"] * 2
        faults += ["terminate connections"] * 4 + ["cancel statements"] * 4
        if self.own:
            faults += ["shut the server down", "kill the server"]
        while time.monotonic() < end:
            fault, worker = self.random.choice(faults), self.random.choice(self.workers)
            few, share = self.random.random() < 0.5, self.random.random()
            pause = self.random.uniform(0.02, 0.3)
            self.result.faults[fault] += 1
            if fault == "kill a worker":
                self.tell(f"kill -9 {worker.name}")
                self.killed.add(worker)
                worker.kill()
                self.workers[self.workers.index(worker)] = self.new_worker()
            elif fault == "pause a worker":
                self.tell(f"SIGSTOP {worker.name}, for {3 * LEASE * share:.1f} s")
                self.paused[worker] = time.monotonic() + 3 * LEASE * share
                worker.pause()
            elif fault == "stop a worker":
                self.tell(f"SIGTERM {worker.name}")
                self.leave(worker)
                self.workers[self.workers.index(worker)] = self.new_worker()
            elif fault == "terminate connections":
                self.cut("pg_terminate_backend", few, share)
            elif fault == "cancel statements":
                self.cut("pg_cancel_backend", few, share)
            elif fault == "shut the server down":
                self.restart(signal.SIGQUIT)
            else:
                self.restart(signal.SIGKILL)
            self.look_after_workers()
            time.sleep(pause)

    def cut(self, function: str, few: bool, share: float) -> None:
        """All connections of the workers and clients, or a share of them."""
        with self.db.connect(autocommit=True, application_name="saboteur") as connection:
            pids = [
                pid
                for (pid,) in connection.execute(
                    "select pid from pg_stat_activity where application_name like %s order by pid",
                    (f"{self.db.schema} %",),
                ).fetchall()
            ]
            chosen = [pid for pid in pids if not few or self.random.random() < share]
            self.tell(f"{function} of {len(chosen)} connections")
            for pid in chosen:
                connection.execute(cast(LiteralString, f"select {function}(%s)"), (pid,))

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
        return WorkerProcess(self.path, f"w{self.count}", *OPTIONS)

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
        for n, worker in enumerate(self.workers):
            if worker.exit_status is not None:
                self.check_exit(worker, worker.exit_status)
                self.workers[n] = self.new_worker()

    def check_exit(self, worker: WorkerProcess, status: int) -> None:
        """A worker that has started ends only if it is killed or stopped.

        One that cannot register does not start, and whoever runs workers starts another.
        """
        output = worker.output()
        if worker in self.killed:
            return
        if ": started" not in output:
            broken = ("OperationalError", "cannot connect", "QueryCanceled", "AdminShutdown")
            cut = any(words in output for words in broken)
            if status not in (0, -signal.SIGTERM) and not cut:
                self.violation(f"{worker.name} did not start, exit status {status}: {output}")
            return
        leaving = worker in self.leaving or ": stopped" in output
        if status != 0 or not leaving or "must stop" in output:
            self.violation(f"{worker.name} ended with exit status {status}: {output[-3000:]}")

    def come_to_an_end(self) -> None:
        """I16: when the faults have stopped, every task ends."""
        for worker in [*self.workers, *self.leaving]:
            worker.resume()
        self.paused.clear()

        def ended() -> bool:
            self.look_after_workers()
            return not self.rows(
                "select from tasks where status in ('queued', 'running', 'waiting') limit 1"
            )

        try:
            wait_until(ended, "all tasks have ended", SECONDS_TO_END)
        except TimeoutError:
            for row in self.rows(
                "select id, name, status, attempt, max_attempts, worker_id, run_at, error"
                " from tasks where status in ('queued', 'running', 'waiting') limit 5"
            ):
                self.violation(f"I16 has not ended after {SECONDS_TO_END} s: {row}")

    # The invariants

    def rows(self, query: LiteralString) -> list[tuple[Any, ...]]:
        with self.db.connect(autocommit=True, application_name="checks") as connection:
            return connection.execute(query).fetchall()

    def violation(self, sentence: str) -> None:
        self.tell(f"VIOLATION {sentence}")
        self.result.violations.append(sentence)

    def none(self, sentence: str, query: LiteralString) -> None:
        """A query that must find nothing."""
        for row in self.rows(query)[:5]:
            self.violation(f"{sentence}: {row}")

    def check(self, lines: list[str]) -> None:
        self.check_clients(lines)
        self.check_history()
        if self.has("event_log"):
            self.check_logs()
        self.check_outcomes()
        self.check_effects()
        self.keep_server_log()
        for line in self.server_log.splitlines():
            if "ERROR:" in line and "canceling statement due to user request" not in line:
                self.violation(f"the server's log: {line}")
        ((self.result.tasks, self.result.attempts),) = self.rows(
            "select count(*), coalesce(sum(attempt), 0)::int from tasks"
        )

    def check_clients(self, lines: list[str]) -> None:
        """I1: what was acknowledged is there. One key, one task, one order; and nothing else."""
        tasks = dict(
            self.rows("select idempotency_key, id from tasks where idempotency_key is not null")
        )
        orders = {key for (key,) in self.rows("select key from chaos_orders")}
        invoked, unknown = set[str](), set[str]()
        acknowledged = dict[str, str]()
        for line in lines:
            outcome, key, *id = line.split()
            if outcome == "invoke":
                invoked.add(key)
            elif outcome == "info":
                unknown.add(key)
            elif outcome == "ok":
                if str(tasks.get(key)) != id[0]:
                    self.violation(f"I1 task {id[0]} of {key} was acknowledged: {tasks.get(key)}")
                acknowledged[key] = id[0]
        if orders != set(tasks):
            self.violation(f"I10 orders without task, or the reverse: {orders ^ set(tasks)}")
        if extra := set(tasks) - set(acknowledged) - unknown:
            self.violation(f"tasks whose enqueue was rolled back: {extra}")
        if not invoked or not acknowledged:
            self.violation("the clients got nothing done")

    def check_history(self) -> None:
        """I5 and I7: one owner at a time, attempts that grow by one, and an end that is the end."""
        last: dict[int, tuple[str, int]] = {}
        running, most = set[int](), 0
        for id, was, status, was_attempt, attempt in self.rows(
            "select task_id, was, status, was_attempt, attempt from chaos_history order by seq"
        ):
            before = last.get(id)
            if before != (None if was is None else (was, was_attempt)):
                self.violation(f"task {id}: {before}, then from {was}, {was_attempt}")
            if was in ("succeeded", "failed", "cancelled"):
                self.violation(f"I7 task {id} has left {was}: {status}")
            claimed = (was, status) == ("queued", "running")
            if attempt - (was_attempt or 0) != int(claimed):
                self.violation(f"I5 task {id}: {was} to {status}, {was_attempt} to {attempt}")
            if status == "running" and not claimed:
                self.violation(f"I5 task {id} runs, and was {was}")
            last[id] = (status, attempt)
            (running.add if status == "running" else running.discard)(id)
            most = max(most, len(running))
        if self.limit is not None and most > self.limit:
            self.violation(f"I11 {most} tasks ran at once, and the limit was {self.limit}")
        self.none(
            "I8 a task runs without a worker",
            "select id, worker_id from tasks where status = 'running'",
        )

    def check_logs(self) -> None:
        """I3, I4, I9: steps are recorded once, by the attempt that ran, and completely."""
        self.none(
            "I5 a step was recorded by an attempt that was not the task's",
            "select task_id, position, by_attempt, status, attempt from chaos_log"
            " where kind = 'step' and (by_attempt <> attempt or status <> 'running')",
        )
        self.none(
            "I3 a step was recorded twice",
            "select task_id, position from chaos_log where kind = 'step' and again",
        )
        if self.has("parent_id"):
            self.none(
                "I3 the end of a child was told twice",
                "select task_id, position from chaos_log"
                " where kind = 'child' and ended group by 1, 2"
                " having count(*) filter (where not was_ended) > 1 or count(distinct output) > 1",
            )
            self.none(
                "I5 a child was spawned by an attempt that was not the task's",
                "select task_id, position, by_attempt, status, attempt from chaos_log"
                " where kind = 'child' and not ended"
                " and (by_attempt <> attempt or status <> 'running')",
            )
            self.none(
                "I9 a parent does not know how its child ended",
                "select child.id, child.status, event_log.completion from tasks as child"
                " join event_log on event_log.child_id = child.id"
                " where event_log.completion is null"
                " or event_log.output::text is distinct from child.output::text",
            )
            self.none(
                "a child without an entry in its parent's log",
                "select id from tasks where parent_id is not null"
                " and id not in (select child_id from event_log where child_id is not null)",
            )
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
                self.violation(f"I4 task {id}, {name}: {logs.get(id)}, not {expected}")

    def check_outcomes(self) -> None:
        """Each task ended as its function says, whatever happened on the way."""
        died = set[int]()  # a child has five attempts, and may lose them all
        if self.has("parent_id"):
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
            possible = expected_outcomes(name, input)
            if id not in died and outcome not in (*possible, "WorkerDied"):
                self.violation(f"task {id}, {name}({json.dumps(input)}): {status} {outcome}")

    def check_effects(self) -> None:
        """I10: each effect at least once, always with the same key, and none without its task."""
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
            self.violation(f"I10 has not happened: {effect}")
        for effect in sorted(set(count) - asked_for)[:5]:
            self.violation(f"I10 has happened, and nobody asked for it: {effect}")


def possible_effects(task: dict[str, Any]) -> list[str]:
    """Lines in outside.log. Of an order: the charge, the confirmation, and the refund instead."""
    name, input = task["name"], task["input"]
    if name == "send_receipt":
        return [f"receipt {input}"]
    if name == "reserve":
        item = input["item"]
        return [f"order {input['id']}: {item} reserved, key task of {item}"]
    if name != "fulfil":
        return []
    key, end = task["log_id"], len(input["items"]) + 2
    steps = [("card charged", 1), ("confirmation sent", end), ("card refunded", end)]
    return [f"order {input['id']}: {what}, key {key}/{position}" for what, position in steps]


def expected_log(name: str, input: Any, output: Any) -> list[str]:
    """The names in the log of a task that has succeeded."""
    if name == "fulfil":
        last = "refund" if str(output).startswith("refunded") else "send_confirmation"
        return ["charge_card", *["reserve" for _ in input["items"]], last]
    if name == "fulfil_all":
        return ["fulfil" for _ in input]
    return ["sleep"] if name == "wait_for_a_nap" else []


def expected_outcomes(name: str, input: Any) -> list[Any]:
    """What the task may return, or the type of the error with which it may fail."""
    if name == "fulfil":
        return [expected_order(input)]
    if name == "fulfil_all":
        return [[expected_order(order) for order in input]]
    if name == "reserve":
        gone = input["item"] == "unicorn"
        return ["NonRetryableError" if gone else f"{input['item']} reserved"]
    if name == "send_receipt":
        return [f"receipt for order {input}"]
    if name == "divide":
        return ["ZeroDivisionError"] if input[1] == 0 else [input[0] / input[1]]
    if name == "hopeless":
        return ["NonRetryableError"]
    return ["an answer" if name == "flaky" else None]


def expected_order(order: Any) -> str:
    if "unicorn" in order["items"]:
        return "refunded: reserve: NonRetryableError: there are no unicorns"
    return f"card charged; {', '.join(f'{item} reserved' for item in order['items'])}"


@click.command()
@click.option("--seed", default=1, help="what the faults and the tasks are drawn from")
@click.option("--seconds", default=5.0, help="for how long faults happen")
@click.option("--lesson", default="06", help="03 to 06, or the directory of a copy")
def main(seed: int, seconds: float, lesson: str) -> None:
    """Random faults, and a check of the invariants at the end."""
    result = run(lesson, seed, seconds, click.echo)
    for violation in result.violations:
        click.echo(f"✗ {violation}")
    click.echo(result.summary())
    if result.violations:
        again = f"python -m faults.chaos --seed {seed} --seconds {seconds:g} --lesson {lesson}"
        click.echo(f"again: {again}")
        sys.exit(1)


if __name__ == "__main__":
    main()
