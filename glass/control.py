"""What the buttons do, with --control: to the workers of one lesson, and to nothing else."""

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from glass.activity import OURS, Process
from glass.history import History
from shared.processes import WorkerProcess, wait_until

SIGNALS = {
    "kill": signal.SIGKILL,
    "stand still": signal.SIGSTOP,
    "go on": signal.SIGCONT,
    "stop": signal.SIGTERM,
}
MOST = 8  # workers


class Refused(Exception):
    """The message says why."""


class Control:
    def __init__(self, lesson: Path, schema: str, url: str, history: History) -> None:
        self.lesson, self.schema, self.url, self.history = lesson, schema, url, history
        self.workers: list[WorkerProcess] = []
        # What may be enqueued, with what each takes, and the lesson's verbs for one task.
        signature = (
            r"^@(?:task|durable|transactional)\b.*\s+def (\w+)"
            r"\((?:ctx: Context, |connection: sa\.Connection, )?(.*?)\)"
        )
        self.names = dict(words(lesson / "app.py", signature))
        by_hand = words(lesson / "main.py", r"by_hand=\[(.*)\]")
        self.verbs = re.findall(r"\w+", by_hand[0]) if by_hand else []

    def close(self) -> None:
        for worker in self.workers:
            with suppress(ProcessLookupError):
                worker.stop()

    def find(self, pid: int) -> Process:
        """A worker of this lesson that is connected now, as Postgres itself says. Or Refused."""
        with self.history.lock:
            for process in self.history.activity.processes:
                if process.pid == pid:
                    return process
        raise Refused(f"process {pid} is no worker of {self.schema} that is connected")

    def signal(self, pid: int, name: str) -> str:
        process = self.find(pid)
        os.kill(pid, SIGNALS[name])
        return f"{SIGNALS[name].name} to worker {process.name} ({pid})"

    def cut(self, pid: int) -> str:
        process = self.find(pid)
        with psycopg.connect(self.url, autocommit=True, application_name=OURS) as db:
            cut = db.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where application_name = %s",
                [f"{self.schema} {pid}"],
            ).rowcount
        return f"{cut} connections of worker {process.name} are cut"

    def worker(self, lease: str) -> str:
        """Start one. lease: in seconds, where the lesson has leases."""
        self.workers = [worker for worker in self.workers if worker.exit_status is None]
        if len(self.workers) >= MOST:
            raise Refused(f"{MOST} workers are running, and that is enough")
        taken = {worker.name for worker in self.workers}
        name = next(name for n in range(1, MOST + 1) if (name := f"glass-{n}") not in taken)
        options = ["--lease", str(float(lease))] if (self.lesson / "lease.py").exists() else []
        worker = WorkerProcess(self.lesson, name, *options)
        self.workers.append(worker)
        wait_until(worker.has_started, f"worker {name} has started")
        if worker.exit_status is not None:  # the code of a copy may be unfinished
            raise Refused(f"worker {name} has ended: {worker.output().strip()[-400:]}")
        return f"worker {name} is started"

    def enqueue(self, name: str, input: str) -> str:
        return self.main("enqueue", "--", name, input)

    def by_hand(self, verb: str, task: int) -> str:
        if verb not in self.verbs:
            raise Refused(f"this lesson has no verb {verb} for a task")
        return self.main(verb, "--", str(task))

    def main(self, *arguments: str) -> str:
        """One of the lesson's own verbs, and the end of what it says."""
        done = subprocess.run(
            [sys.executable, "main.py", *arguments],
            cwd=self.lesson,
            env={**os.environ, "NO_COLOR": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        return (done.stdout + done.stderr).strip()[-400:]

    def step(self, number: int, answer: str) -> str:
        """Answer what faults/stepper.py asks: what becomes of a worker that it holds."""
        update = sql.SQL(
            "update {} set answer = %s where number = %s and answer is null"
            " and asks in (select pid from pg_stat_activity)"
        )
        table = sql.Identifier(self.schema, "stepper")
        with psycopg.connect(self.url, autocommit=True, application_name=OURS) as db:
            if not db.execute(update.format(table), [answer, number]).rowcount:
                raise Refused(f"no worker is held before commit {number}")
        return f"commit {number} is answered"

    @property
    def may_crash(self) -> bool:
        """faults/stepper.py would not outlive it."""
        return "stepper" not in self.history.schema.tables

    def crash(self) -> str:
        """End the server as a power cut would, and start it: it recovers from its log."""
        if "DATABASE_URL" in os.environ:
            raise Refused("the server in DATABASE_URL is not ours to end")
        if not self.may_crash:
            raise Refused("not under a worker that is held before its commits")
        from shared.embedded import Embedded

        embedded = Embedded()
        with embedded.alone():
            embedded.stop(signal.SIGQUIT)
            embedded.start()
        return "Postgres was ended as in a crash, and has started again"


def words(module: Path, pattern: str) -> list[Any]:
    return re.findall(pattern, module.read_text(), re.M) if module.exists() else []
