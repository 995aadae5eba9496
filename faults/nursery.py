"""Real worker processes of one lesson in 20 ms each: forked from a process that has imported all.

`python -m faults.nursery LESSON` reads a line of JSON for each worker, and prints its process id.
"""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from faults import workloads
from shared.processes import wait_until
from shared.testing import load


class Nursery:
    """Use it as a context: all workers are dead after it."""

    def __init__(self, lesson: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "faults.nursery", str(lesson)],
            cwd=Path(__file__).resolve().parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._pids: set[int] = set()

    def __enter__(self) -> "Nursery":
        return self

    def __exit__(self, *_: object) -> None:
        for pid in list(self._pids):
            self.kill(pid)
        self._process.communicate(timeout=10)

    def worker(self, name: str, url: str, log: Path, *options: str) -> int:
        """Start `main.py worker --name NAME OPTIONS`, output to `log`; its process id.

        url: the database.
        """
        order = {
            "arguments": ["worker", "--name", name, *options],
            "environment": {**os.environ, "DATABASE_URL": url, "NO_COLOR": "1"},
            "log": str(log),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        pid = int(self._process.stdout.readline())
        self._pids.add(pid)
        return pid

    def kill(self, pid: int) -> None:
        """kill -9, and wait until it is gone."""
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not is_alive(pid), f"process {pid} is gone")
        self._pids.discard(pid)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def serve(lesson: Path) -> None:
    modules = load(lesson)
    workloads.register(modules)
    hurry(modules)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how they ended
    for line in sys.stdin:
        order: dict[str, Any] = json.loads(line)
        pid = os.fork()
        if pid == 0:
            start(modules, order)
        print(pid, flush=True)


def start(modules: Any, order: dict[str, Any]) -> None:
    """In the new process: never returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.clear()
    os.environ.update(order["environment"], LESSON_PARENT=str(os.getppid()))
    sys.stdout = os.fdopen(1, "w", buffering=1)  # what a killed process has said must be there
    # It may import more of its lesson: what is to be deployed in it.
    sys.modules.update(cast(dict[str, ModuleType], vars(modules)))
    sys.path.insert(0, str(modules.main.HERE))
    status = 1
    try:
        modules.main.main(order["arguments"], standalone_mode=False)
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())  # pyright: ignore[reportArgumentType]
    finally:
        os._exit(status)


def hurry(modules: Any) -> None:
    """A Worker's pauses, made shorter: nobody wants to wait for them at each of many crashes.

    And its claims without a look first: by a claim it shows that its slot is free.
    """
    if hasattr(modules, "claim"):
        claim = modules.claim.claim

        def at_once(*arguments: Any, look_first: bool) -> Any:  # noqa: ARG001
            return claim(*arguments)

        modules.worker.claim = at_once
    if not hasattr(modules, "timing"):
        modules.worker.POLL_SECONDS = 0.01
        return
    pauses = {"poll": 0.01, "upkeep": 0.02, "first_backoff": timedelta(milliseconds=10)}
    if hasattr(modules.timing.Timing, "seldom"):
        pauses["seldom"] = pauses["poll"]
    modules.worker.Worker.__init__.__kwdefaults__["timing"] = modules.timing.Timing(**pauses)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
