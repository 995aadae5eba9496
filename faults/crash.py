"""Kill a worker at its k-th commit, for every k, and see what the others make of it.

python -m faults.crash LESSON            lists the commits of the lesson's canonical workload
python -m faults.crash LESSON --at 17    kills the worker there, and tells what became of it
python -m faults.crash LESSON --step     asks before each commit
python -m faults.crash LESSON --task fulfil --input '{"id": 1, "items": ["pen"]}'
                                         the same with one task of the lesson's app.py
"""

import json
import math
import os
import re
import signal
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, LiteralString, TypeVar

import click
from psycopg import sql
from rich.text import Text

from faults import lesson_with_worker, witness, workloads
from faults.nursery import Nursery, is_alive
from faults.proxy import Proxy, statement_name
from faults.stepper import ANSWERS, Stepper, When
from shared.database import Database
from shared.lessons import LESSONS, number
from shared.outside import Outside
from shared.postgres import server
from shared.processes import wait_until
from shared.story import console, say, scene
from shared.testing import load, scratch_database
from shared.verbs import out_of_time

Fault = Literal["kill", "stop"]
PROBE = ("SendHint",)  # changes nothing, and comes whenever it is time for it
UNREAD: tuple[str, LiteralString] = (
    "a message that nobody has read",
    "select task_id, name, payload from messages where position is null",
)
Ask = Callable[[int], When | None]  # the number of a commit, and when to kill: None: not at all


@dataclass(frozen=True)
class Point:
    """One crash. ran_twice: effects outside the database. stuck: tasks that nobody will end."""

    at: int
    statements: tuple[str, ...]
    ran_twice: int
    stuck: int
    violations: list[str]


class Watched:
    """A lesson on a schema of its own, and workers of it whose commits pass by here."""

    def __init__(self, db: Database, url: str, nursery: Nursery, logs: Path) -> None:
        self.db, self.number = db, number(db.lesson)
        modules = load(db.lesson)
        self.engine = workloads.register(modules)
        self.outside: Outside = modules.app.outside
        self.proxy = Proxy(url, before_commit=self.before, after_commit=self.after)
        self.look = witness.look_on(db)
        self._nursery = nursery
        self._logs = logs

    def before(self, names: tuple[str, ...]) -> bool:
        """Called before each commit, with the names of its statements; True cuts the line."""
        raise NotImplementedError

    def after(self, names: tuple[str, ...]) -> bool:
        """Called when a change is committed, and the worker does not know of it yet."""
        raise NotImplementedError

    def rows(self, query: LiteralString | sql.Composed, *parameters: Any) -> list[Any]:
        """On one connection: much is asked, and a new one costs more than the answer."""
        return witness.ask(self.look, query, *parameters)

    def start(self, name: str, url: str, *options: str, lease: str = "60") -> int:
        """A worker with one slot; its process id."""
        if self.number >= 2:
            options += ("--slots", "1")
        if self.number >= 3:
            options += ("--lease", lease)
        log = self._logs / f"{name}.log"
        log.unlink(missing_ok=True)
        return self._nursery.worker(name, url, log, *options)

    def kill(self, pid: int) -> None:
        """kill -9, and wait until the server has noticed."""
        self._nursery.kill(pid)
        name = f"{self.db.schema} {pid}"
        sessions = "select 1 from pg_stat_activity where application_name = %s"
        wait_until(lambda: not self.rows(sessions, name), "the victim has no session")

    def end_leases(self) -> None:
        self.rows("update workers set alive_until = clock_timestamp() - interval '1 second'")

    def is_quiet(self, stuck: int = 0) -> bool:
        left = {k: v for k, v in self.statuses().items() if k not in witness.ENDED}
        return left == ({"running": stuck} if stuck else {})

    def statuses(self) -> dict[str, int]:
        return dict(self.rows("select status, count(*) from tasks group by status"))

    def commits_since_reset(self) -> list[str]:
        """What each commit has changed, if the witness is there: a text for each commit."""
        groups = groupby(witness.changes(self.look), lambda change: change.commit)
        commits = [list(group) for _, group in groups]
        names = [statement_name(f"-- name: {commit[-1].statement}") for commit in commits]
        width = max([16, *map(len, names)])
        below = f"\n{'':{width + 8}}"
        return [
            f"  {at:3}  {name:{width}} {below.join(change.change for change in commit)}"
            for at, (name, commit) in enumerate(zip(names, commits, strict=True), 1)
        ]


class CrashTest(Watched):
    """The canonical workload, and a victim that is struck at one of its commits."""

    def __init__(self, db: Database, url: str, nursery: Nursery, logs: Path) -> None:
        super().__init__(db, url, nursery, logs)
        self._victim = 0
        self._at: int | None = None
        self._when: When = "after"
        self._fault: Fault = "kill"
        self._claims = 0
        self._ask: Ask | None = None
        self._asked, self._held = 0, False
        self._go = threading.Event()
        # The names of the statements in each commit: of an undisturbed run, and of this one.
        self.commits: list[tuple[str, ...]] = []
        self._seen: list[tuple[str, ...]] = []
        self.struck_at: tuple[str, ...] = ()
        self.expected: dict[int, workloads.Expected] = {}
        # Name and input of the one task to run, in place of the canonical workload.
        self.only: tuple[str, Any] | None = None

    def prepare(self) -> None:
        """Let a worker run the workload undisturbed, and count its commits."""
        witness.install(self.db)
        if hasattr(self.engine, "transactional"):
            self.rows(workloads.ACCOUNTS)
        for _ in range(20):  # until two runs agree: see every_point
            self.reset()
            self.run_victim(None, "after")
            if self._seen == self.commits:
                break
            self.commits = self._seen
        if self.only:  # it must always come to what it has come to now
            self.expected = {id: self._outcome(id) for id in self.expected}

    def reset(self) -> None:
        """Empty tables, and the workload enqueued."""
        self.outside.forget()
        tables = self.rows(
            "select relname from pg_class"
            " where relnamespace = to_regnamespace(%s) and relkind = 'r'",
            self.db.schema,
        )
        names = sql.SQL(", ").join(sql.Identifier(name) for (name,) in tables)
        self.rows(sql.SQL("truncate {} restart identity").format(names))
        with self.db.engine.begin() as connection:
            if not self.only:
                self.expected = workloads.enqueue(self.engine, self.number, connection)
                return
            id = self.engine.enqueue(connection, *self.only)
        self.expected.setdefault(id, workloads.Expected(self.only[0], "not known yet"))

    def run_victim(
        self, at: int | None, when: When, fault: Fault = "kill", ask: Ask | None = None
    ) -> bool:
        """Let a worker run the workload, until it is struck at that commit; False: it never was.

        kill: kill -9. stop: SIGSTOP, and all that it has sent is on its way until `wake_victim`.
        ask: called before each commit, which is held until it returns.
        """
        self._at, self._when, self._fault = at, when, fault
        self._seen, self.struck_at, self._victim = [], (), 0
        self._ask, self._asked, self._held = ask, 0, False
        self._go.clear()

        def is_over() -> bool:
            if self._held and ask:
                self._answer(ask)
            if ask and self._at is None and not is_alive(self._victim):
                raise click.ClickException("somebody else has killed the worker")
            return bool(self.struck_at) or self.is_quiet()

        self._victim = self.start("victim", self.proxy.url, lease="86400")
        try:
            wait_until(is_over, "the victim is struck, or done", math.inf if ask else 30)
        finally:
            self._at = self._ask = None
            self._go.set()
        if fault == "kill" or not self.struck_at:
            self.kill(self._victim)
        return bool(self.struck_at)

    def _answer(self, ask: Ask) -> None:
        """In the thread that waits for the victim, so that Ctrl-C ends it."""
        if when := ask(self._asked):
            self._at, self._when = self._asked, when
        self._held = False
        self._go.set()

    def wake_victim(self) -> None:
        """It goes on where it was stopped, with a lease that is over, until its slot is free."""
        self._claims = 0
        self.proxy.thaw()
        os.kill(self._victim, signal.SIGCONT)
        try:
            wait_until(lambda: self._claims >= 2, "the worker that was stopped wants another task")
        finally:
            self.kill(self._victim)

    def recover(self) -> int:
        """Let another worker do what is left. Returns how many tasks nobody will ever end."""
        stuck = 0
        if self.number < 3:
            stuck = self.statuses().get("running", 0)
        else:
            self.end_leases()
        other = self.start("other", self.db.conninfo, lease="10")
        try:
            wait_until(lambda: self.is_quiet(stuck), "another worker has done the rest")
        finally:
            self._nursery.kill(other)
        return stuck

    def point(self, at: int, when: When, fault: Fault = "kill") -> Point | None:
        """Strike there, recover, look at everything. None: there are fewer commits than that."""
        self.reset()
        if not self.run_victim(at, when, fault):
            return None
        violations: list[str] = []
        stuck = 0
        try:
            stuck = self.recover()
            if fault == "stop":
                self.wake_victim()
        except TimeoutError as error:
            violations.append(f"{error}: {self.statuses()}")
        finally:
            self.proxy.thaw()
        violations += self.violations(stuck)
        where = f"{when} commit {at} {self.struck_at}"
        violations = [f"{where}: {violation}" for violation in violations]
        return Point(at, self.struck_at, len(self.ran_twice()), stuck, violations)

    def said(self, name: str) -> list[str]:
        """What a worker has printed."""
        return (self._logs / f"{name}.log").read_text().splitlines()

    def before(self, names: tuple[str, ...]) -> bool:
        if names == PROBE:
            return self._is_dead()
        self._claims += names == ("ClaimTasks",)  # with one slot: only when that is free
        at = len(self._seen) + 1
        # Polls that will find nothing are no commits.
        if [names] == self.commits[at - 1 : at]:
            if self._ask and self._asked < at:  # once: it may be sent again and again
                self._go.clear()
                self._asked, self._held = at, True
                self._go.wait()
            if (self._when, self._at) == ("before", at):
                return self._strike(names)
        return self._is_dead()

    def after(self, names: tuple[str, ...]) -> bool:
        if self._is_dead() or names == PROBE:
            return self._is_dead()
        self._seen.append(names)
        return self._when == "after" and len(self._seen) == self._at and self._strike(names)

    def _strike(self, names: tuple[str, ...]) -> bool:
        wait_until(lambda: self._victim != 0, "the victim's process id is known")
        os.kill(self._victim, signal.SIGKILL if self._fault == "kill" else signal.SIGSTOP)
        if self._fault == "stop":
            self.proxy.freeze()
        self.struck_at = names
        return self._is_dead()

    def _is_dead(self) -> bool:
        return bool(self.struck_at) and self._fault == "kill"

    def ran_twice(self) -> list[str]:
        """The effects that happened more often than the workload does them if it is undisturbed."""
        mean_to = {"broken_once": 2, "pay": 2, "lost_for_good": 2 if self.number >= 6 else 1}
        ran = Counter(re.split(r", key ", line)[0] for line in self.outside.effects())
        return sorted(what for what, times in ran.items() if times > mean_to.get(what, 1))

    def violations(self, stuck: int) -> list[str]:
        """What must never be, and is."""
        found = witness.violations(self.look)
        rows = {row[0]: row[1:] for row in self.rows("select id, name, status, output from tasks")}
        lost = self.expected.keys() - rows.keys()
        found += [f"task {id} was enqueued, and is gone" for id in lost]
        unended = [id for id, row in rows.items() if row[1] not in witness.ENDED]
        if len(unended) != stuck:
            found.append(f"tasks that have not ended: {unended}, and only {stuck} may be stuck")
        for id in self.expected.keys() - lost - set(unended):
            found += self._differences(id, self.expected[id], rows[id])
        if self.number >= 6 and not self.only:
            found += self._of_children(rows)
        if self.number >= 11 and not self.only:
            for sentence, query in (witness.BESIDE, UNREAD, *witness.MESSAGES.items()):
                found += witness.found(self.look, sentence, query)
        if hasattr(self.engine, "transactional") and not self.only:
            found += self._of_transfers()
        return found + self._outside_violations()

    def _of_transfers(self) -> list[str]:
        """Exactly once: what was moved, and the notes that were enqueued with it. And at most."""
        amounts = dict(self.rows("select * from crash_accounts"))
        notes = self.rows("select id from tasks where cast(input as text) in ('110', '120')")
        booked = self.rows("select 1 from event_log where name = 'book' and output is not null")
        times = sum(line.startswith("book, ") for line in self.outside.effects())
        found = [] if amounts == {"from": 70, "to": 130} else [f"30 were to be moved: {amounts}"]
        if len(notes) != 2:
            found.append(f"{len(notes)} notes were enqueued with what was moved, not 2")
        if times > 1 or (booked and times == 0):
            found.append(f"done {times} times, and {len(booked)} are recorded: book")
        return found

    def _differences(self, id: int, expected: workloads.Expected, row: Any) -> list[str]:
        found: list[str] = []
        wanted = (expected.name, expected.status, expected.output)
        if row != wanted:
            found.append(f"task {id} has come to {row}, not to {wanted}")
        if self.number >= 4:
            log = self._log(id)
            if [(kind, name) for kind, name, _ in log] != expected.log:
                found.append(f"the log of task {id} holds {log}")
            # The end of a wait that was not needed may be left open.
            if not all(ended or name == "timeout" for _, name, ended in log):
                found.append(f"the log of task {id} has an entry without an end: {log}")
        return found

    def _outcome(self, id: int) -> workloads.Expected:
        ((name, status, output),) = self.rows(
            "select name, status, output from tasks where id = %s", id
        )
        log = self._log(id) if self.number >= 4 else []
        return workloads.Expected(name, status, output, [(kind, name) for kind, name, _ in log])

    def _log(self, id: int) -> list[Any]:
        return self.rows(
            "select kind, name, num_nonnulls(output, error) > 0 from event_log"
            " where task_id = %s order by position",
            id,
        )

    def _of_children(self, rows: dict[int, Any]) -> list[str]:
        children = self.rows(
            "select id from tasks where parent_id is not null order by parent_position"
        )
        wanted = workloads.children()
        if len(children) != len(wanted):
            return [f"{len(children)} children were spawned, not {len(wanted)}"]
        pairs = zip((id for (id,) in children), wanted, strict=True)
        return [wrong for id, child in pairs for wrong in self._differences(id, child, rows[id])]

    def _outside_violations(self) -> list[str]:
        """Every try of a step must have the same key; with one journey, that is one key a step."""
        keys: dict[str, set[str]] = {}
        for line in self.outside.effects():
            what, _, key = line.partition(", key ")
            keys.setdefault(what, set()).add(key)
        return [
            f"{what} was tried with the keys {used}" for what, used in keys.items() if len(used) > 1
        ]


W = TypeVar("W", bound=Watched)


@contextmanager
def watched(lesson: Path, kind: type[W]) -> Generator[W]:
    """On a schema of its own, which is dropped: a story of the lesson may be running."""
    with (
        server() as url,
        scratch_database(lesson, "crash") as db,
        tempfile.TemporaryDirectory() as logs,
        Nursery(lesson) as nursery,
    ):
        test = kind(db, url, nursery, Path(logs))
        with test.look, test.proxy.running():
            yield test


@contextmanager
def crash_test(lesson: Path, only: tuple[str, Any] | None = None) -> Generator[CrashTest]:
    with watched(lesson, CrashTest) as test:
        test.only = only
        test.prepare()
        yield test


def every_point(test: CrashTest, when: When, fault: Fault = "kill") -> list[Point]:
    """Count up until nothing fires."""
    found: list[Point] = []
    while True:
        at = len(found) + 1
        # A claim may be noted before the wake-up that it follows from, every second time on a busy
        # machine: the server makes a commit visible before it answers. Then again.
        tries = 20 if at <= len(test.commits) else 1
        points = (test.point(at, when, fault) for _ in range(tries))
        point = next((point for point in points if point), None)
        if point is None:
            assert at > len(test.commits), f"nothing was struck {when} commit {at}"
            return found
        found.append(point)


def tell_commits(test: CrashTest) -> None:
    """The workload, and the commits of an undisturbed run, with what each changed."""
    tell_workload(test)
    scene(f"{test.db.lesson.name}: the commits of a worker that runs it")
    for line in test.commits_since_reset():
        console.print(Text(line))


def tell_workload(test: CrashTest) -> None:
    scene(f"{test.db.lesson.name}: the workload")
    for id, expected in test.expected.items():
        what = workloads.TASKS.get(expected.name, "in app.py")
        console.print(Text(f"  task {id}  {expected.name}: {what}"))


def tell_point(test: CrashTest, at: int, when: When) -> bool:
    """Crash there, and tell the story. False: something is not as it must be."""
    test.reset()
    if not test.run_victim(at, when):
        raise click.UsageError(f"there are {len(test.commits)} commits; AT is one of them")
    tell_workload(test)
    return tell_crash(test, at, when)


def tell_crash(test: CrashTest, at: int, when: When) -> bool:
    """What became of it, when the worker has been killed."""
    scene(f"{test.db.lesson.name}: the worker is killed {when} its commit number {at}")
    name = ", ".join(test.struck_at)
    done = witness.changes(test.look)
    say(f"kill -9 {when} the commit of {name}")
    if when == "after":
        say("the server has committed it; the worker never heard")
    else:
        say("the server never got it: nothing of it has happened")
    say("what the worker had committed by then:")
    for change in done:
        console.print(Text(f"          {change.change}"))
    say("what it had done outside the database:")
    for effect in test.outside.effects() or ["nothing"]:
        console.print(Text(f"          {effect}"))
    say(f"the tasks now: {told(test.statuses())}")
    if test.number >= 3:
        say("the lease of that worker is set to be over")
    say("another worker starts")
    stuck = test.recover()
    for line in test.said("other"):
        console.print(Text(f"          {line}"))
    say(f"the tasks in the end: {told(test.statuses())}")
    if stuck:
        say(f"{stuck} of them will be running for ever: nothing takes back what a dead worker held")
    twice = test.ran_twice()
    say(f"done again because of the kill: {', '.join(twice) or 'nothing'}")
    say("(what fails once on purpose is done twice in any case, and is not counted)")
    wrong = test.violations(stuck)
    for line in wrong:
        say(f"✗ {line}", style="bold red")
    if not wrong:
        say(
            "✓ no row is missing, nothing was recorded twice, nothing left its final status",
            style="green",
        )
    return not wrong


def tell_steps(test: CrashTest) -> bool:
    """Ask before each commit whether to let it through, until the worker is dead or done."""
    lesson = os.path.relpath(test.db.lesson, LESSONS.parent)
    stepper = Stepper(test.db, test.commits_since_reset())
    struck: list[tuple[int, When]] = []

    def ask(at: int) -> When | None:
        if when := ANSWERS[stepper.ask(at)]:
            struck.append((at, when))
        return when

    test.reset()
    tell_workload(test)
    scene(f"{test.db.lesson.name}: a worker that is held before each of its commits")
    say("Enter lets the commit through. b: kill -9 before the server gets it. a: kill -9 when the")
    say("server has done it, and the worker has not heard. A page shows its tables meanwhile, and")
    say("has buttons for the same:")
    say(f"LESSON_SCHEMA={test.db.schema} make watch LESSON={lesson} ARGS=--control")
    with closing(stepper):
        died = test.run_victim(None, "after", ask=ask)
    if died:
        return tell_crash(test, *struck[-1])
    say(f"the worker has done everything: {told(test.statuses())}")
    return True


def told(statuses: dict[str, int]) -> str:
    return ", ".join(f"{number} {status}" for status, number in sorted(statuses.items()))


@click.command()
@click.argument("lesson", callback=lesson_with_worker)
@click.option("--at", type=click.IntRange(1), help="the number of the commit; without it, a list")
@click.option("--step", is_flag=True, help="ask before each commit")
@click.option("--when", type=click.Choice(["before", "after"]), default="after", show_default=True)
@click.option("--task", help="of the lesson's app.py, in place of the canonical workload")
@click.option("--input", default="null", help="the task's, as JSON")
def main(
    lesson: Path, at: int | None, step: bool, when: When, task: str | None, input: str
) -> None:
    """Kill a worker of LESSON (06, or a directory such as work/06_mine) at a commit."""
    try:
        with crash_test(lesson, (task, json.loads(input)) if task else None) as test:
            if step:
                if not tell_steps(test):
                    sys.exit(1)
            elif at is None:
                tell_commits(test)
            elif not tell_point(test, at, when):
                sys.exit(1)
    except TimeoutError as error:
        raise out_of_time(error) from None
    except ValueError as error:  # what is not JSON, or what `enqueue` refuses
        raise click.UsageError(str(error)) from error


if __name__ == "__main__":
    main()
