"""A function in a process of its own, forked from one that has imported what the tests need.

A new Python takes a second for these imports: longer than most tests take.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["faults.chaos", "pytest_timeout", "sqlalchemy.dialects.postgresql.psycopg", "tools.judge"]
)
Function = Callable[[list[str]], int]


def forked(
    function: Function, arguments: list[str], cwd: Path, env: Mapping[str, str], seconds: float
) -> tuple[int, str]:
    """What it returns, and what it prints; 124 if it takes longer, as `run`.

    Nothing that it has started is alive then.
    """
    answer, there = CONTEXT.Pipe(duplex=False)
    with tempfile.NamedTemporaryFile() as log, answer:
        call = (there, log.name, function, arguments, cwd, dict(env))
        process = CONTEXT.Process(target=answered, args=call)
        process.start()
        there.close()  # so that nobody waits for one that has ended without an answer
        try:
            status = answer.recv() if answer.poll(seconds) else 124
        except EOFError:
            status = 1
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid or 0, signal.SIGKILL)
            process.join()
        text = Path(log.name).read_text(errors="replace")
    return status, f"{text}\nno end after {seconds:g} s" if status == 124 else text


def answered(
    there: "Connection[int]",
    log: str,
    function: Function,
    arguments: list[str],
    cwd: Path,
    env: Mapping[str, str],
) -> None:
    """In the new process."""
    os.setsid()
    move(log, cwd, env)
    status = function(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    there.send(int(status))


def move(log: str, cwd: Path, env: Mapping[str, str]) -> None:
    """To where a new Python would have been started."""
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.path.insert(0, str(cwd))


class Program:
    """`python main.py ...` in a directory: what is used here of subprocess.Popen."""

    def __init__(self, cwd: Path, arguments: list[str], log: IO[bytes]) -> None:
        env = {**os.environ, "NO_COLOR": "1"}
        call = (log.name, cwd, env, arguments)
        self._process = CONTEXT.Process(target=run_main, args=call)
        self._process.start()
        self.pid = self._process.pid or 0

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if (status := self.poll()) is None:
            raise subprocess.TimeoutExpired("main.py", timeout or 0)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run_main(log: str, cwd: Path, env: Mapping[str, str], arguments: list[str]) -> None:
    """In the new process."""
    move(log, cwd, {**env, "LESSON_PARENT": str(os.getppid())})
    sys.argv = ["main.py", *arguments]
    sys.stdout = os.fdopen(1, "w", errors="backslashreplace")
    runpy.run_path(str(cwd / "main.py"), run_name="__main__")
