"""Workers of a story or a test: real processes, to be watched, paused and killed; or a thread."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

# Options of a worker whose death is to be noticed soon.
SHORT_LEASE = ("--lease", "1")


def start(lesson: Path, arguments: list[str], log: IO[bytes]) -> "subprocess.Popen[bytes]":
    """`python main.py ...` of a lesson."""
    return subprocess.Popen(
        [sys.executable, "main.py", *arguments],
        cwd=lesson,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env={**os.environ, "LESSON_PARENT": str(os.getpid()), "NO_COLOR": "1"},
    )


class WorkerProcess:
    """`python main.py worker --name NAME ...` of one lesson, started at once."""

    start = staticmethod(start)

    def __init__(self, lesson: Path, name: str, *options: str) -> None:
        self.name = name
        self._log = tempfile.NamedTemporaryFile()  # noqa: SIM115  open as long as the process runs
        self._process = self.start(lesson, ["worker", "--name", name, *options], self._log)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """None while the process runs; -9 after kill -9."""
        return self._process.poll()

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """kill -9, and wait until the process is gone: it gets no chance to clean up."""
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        """SIGSTOP: the process stands still with all its connections open."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def stop(self, seconds: float = 20) -> int:
        """SIGTERM, and wait; kill -9 if that takes too long. Returns the exit status."""
        if self._process.poll() is None:
            self.resume()
            self._process.terminate()
        try:
            return self._process.wait(within(seconds))
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.wait()

    def has_started(self) -> bool:
        return self.exit_status is not None or ": started" in self.output()

    def output(self) -> str:
        """What the process has printed so far."""
        return os.pread(self._log.fileno(), 1_000_000, 0).decode(errors="replace")


@contextmanager
def worker_processes(
    lesson: Path, *names: str, options: tuple[str, ...] = ()
) -> Iterator[list[WorkerProcess]]:
    """Start a worker process for each name, and stop those that are left at the end.

    They are ready to work when the context begins: each has said that it has started.
    """
    workers = [WorkerProcess(lesson, name, *options) for name in names]
    try:
        for worker in workers:
            wait_until(worker.has_started, f"worker {worker.name} has started")
        yield workers
    finally:
        for worker in workers:
            worker.resume()
            worker.signal(signal.SIGTERM)  # all at once, so that they stop side by side
        for worker in workers:
            # -SIGTERM: it had not yet come as far as to handle the signal
            if worker.stop() not in (0, -signal.SIGTERM, -signal.SIGKILL):
                print(f"worker {worker.name} failed:\n{worker.output()}", file=sys.stderr)


@contextmanager
def working(worker: Any) -> Iterator[None]:
    """Let a Worker of a lesson run in a thread; stop it, and raise what it raised, at the end."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            worker.run()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        worker.stop()
        thread.join(timeout=within(30))
    if errors:
        raise errors[0]
    if thread.is_alive():
        raise TimeoutError(f"after {within(30):g} s still not true: the worker has stopped")


def within(seconds: float) -> float:
    """A deadline, times TEST_PATIENCE: on a busy or slow machine everything takes longer."""
    return seconds * float(os.environ.get("TEST_PATIENCE") or 1)


def wait_until(condition: Callable[[], object], what: str, seconds: float = 30) -> None:
    """Return as soon as the condition holds; TimeoutError(what) after `within(seconds)`."""
    started = time.monotonic()
    while not condition():
        waited = time.monotonic() - started
        if waited > within(seconds):
            raise TimeoutError(f"after {within(seconds):g} s still not true: {what}")
        time.sleep(min(max(waited / 20, 0.01), 0.05))  # most conditions cost a connection


def stop_with_parent() -> None:
    """In a worker that a story or a test started: stop when that process is gone, however."""
    parent = os.environ.pop("LESSON_PARENT", None)
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="stop with parent", daemon=True).start()
