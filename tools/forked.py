"""A function in a process of its own, forked from one that has imported what the tests need.

A new Python takes a second for these imports: longer than most tests take.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

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
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.path.insert(0, str(cwd))
    status = function(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    there.send(int(status))
