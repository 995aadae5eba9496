"""A worker process: a lesson's own `main.py worker`, or the floor's, with the benchmark's tasks.

    main.py worker --name NAME [OPTIONS] DIRECTORY

It is silent while it works. On SIGUSR1 it prints a line of JSON: how often its tasks ran, the
statements that it has sent, and the seconds of CPU that it has used.
"""

import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

from bench import jobs
from bench.floor import FLOOR


def count_statements() -> None:
    """Count where psycopg sends them, below SQLAlchemy. BEGIN and COMMIT are two more."""
    execute, commit = psycopg.Cursor.execute, psycopg.Connection.commit

    def counted_execute(self: Any, *args: Any, **kwargs: Any) -> Any:
        jobs.statements.add()
        return execute(self, *args, **kwargs)

    def counted_commit(self: Any) -> None:
        if self.info.transaction_status != TransactionStatus.IDLE:
            jobs.statements.add(2)
        commit(self)

    psycopg.Cursor.execute = counted_execute
    psycopg.Connection.commit = counted_commit


def say_counts(*_: object) -> None:
    """For a signal handler: one write, no lock."""
    counts = {
        "runs": jobs.runs.count,
        "statements": jobs.statements.count,
        "cpu": time.process_time(),
    }
    os.write(sys.stdout.fileno(), f"{json.dumps(counts)}\n".encode())


class SayStart(logging.Handler):
    """Print the first line of the log, `worker a: started`, and from then on only warnings."""

    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger().setLevel(logging.WARNING)
        os.write(sys.stdout.fileno(), f"{record.getMessage()}\n".encode())


if __name__ == "__main__":
    *arguments, directory = sys.argv[1:]
    signal.signal(signal.SIGUSR1, say_counts)
    engine = FLOOR
    if Path(directory) != FLOOR.path:
        engine = jobs.load(Path(directory))
        count_statements()
        # With a handler here, the lesson's own `say_logs` adds none.
        logging.basicConfig(level=logging.INFO, handlers=[SayStart()])
    engine.main.main(arguments)
