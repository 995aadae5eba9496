"""Several worker processes on one machine: one interpreter uses one core."""

import logging
import os
import signal
import subprocess
import time

RESTART_SECONDS = 1.0  # between two starts: what cannot start must not burn a core
LOOK_SECONDS = 0.05

log = logging.getLogger("supervisor")


class Supervised:
    """A process that is started again when it has ended."""

    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        self._command = [*command, "--name", name]
        self._process: subprocess.Popen[bytes] | None = None
        self._started = -RESTART_SECONDS

    def keep(self) -> None:
        """Start it, or start it again."""
        if self.is_alive() or time.monotonic() < self._started + RESTART_SECONDS:
            return
        if self._process:
            status = self._process.returncode
            log.warning("%s has ended with status %d, and is started again", self.name, status)
        self._started = time.monotonic()
        # A session of its own: Ctrl-C in the terminal is for the supervisor, which passes it on.
        # LESSON_PARENT: when the supervisor is gone, however, the worker stops.
        try:
            self._process = subprocess.Popen(
                self._command,
                start_new_session=True,
                env={**os.environ, "LESSON_PARENT": str(os.getpid())},
            )
        except OSError as error:  # no memory, or no more processes, for now
            log.warning("%s cannot be started: %s", self.name, error)

    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        if self._process and self.is_alive():
            self._process.terminate()


def supervise(command: list[str], processes: int) -> None:
    """Keep so many workers running, until SIGTERM or Ctrl-C. Each of them gets every such signal.

    command: starts a worker; the worker's name is added to it.
    """
    stops: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: stops.append(received))
    workers = [Supervised(f"worker-{n}", command) for n in range(1, processes + 1)]
    passed_on = 0
    while not stops or any(worker.is_alive() for worker in workers):
        if not stops:
            for worker in workers:
                worker.keep()
        elif passed_on < len(stops):
            passed_on += 1
            for worker in workers:
                worker.stop()
        time.sleep(LOOK_SECONDS)
