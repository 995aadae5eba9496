"""A worker process of one lesson that knows the benchmark's tasks, and is silent while it works.

On SIGUSR1 it prints a line of JSON: how often its tasks ran, the statements that it has sent, and
the seconds of CPU that it has used.
"""

import importlib
import inspect
import json
import logging
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
import psycopg
from psycopg.pq import TransactionStatus

from bench import jobs
from shared.database import open_database

statements = jobs.Tally()


def count_statements() -> None:
    """Count where psycopg sends them, below SQLAlchemy. BEGIN and COMMIT are two more."""
    execute, commit = psycopg.Cursor.execute, psycopg.Connection.commit

    def counted_execute(self: Any, *args: Any, **kwargs: Any) -> Any:
        statements.add()
        return execute(self, *args, **kwargs)

    def counted_commit(self: Any) -> None:
        if self.info.transaction_status != TransactionStatus.IDLE:
            statements.add(2)
        commit(self)

    psycopg.Cursor.execute = counted_execute
    psycopg.Connection.commit = counted_commit


def say_counts(*_: object) -> None:
    """For a signal handler: one write, no lock."""
    counts = {
        "runs": jobs.runs.count,
        "statements": statements.count,
        "cpu": time.process_time(),
    }
    os.write(sys.stdout.fileno(), f"{json.dumps(counts)}\n".encode())


class SayStart(logging.Handler):
    """Print the first line of the log, `worker a: started`, and from then on only warnings."""

    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger().setLevel(logging.WARNING)
        os.write(sys.stdout.fileno(), f"{record.getMessage()}\n".encode())


@click.command()
@click.argument("verb", type=click.Choice(["worker"]))
@click.option("--name", required=True)
@click.option("--lesson", required=True, type=click.Path(path_type=Path))
@click.option("--slots", default=10)
@click.option("--lease", default=10.0)
def main(verb: str, name: str, lesson: Path, slots: int, lease: float) -> None:  # noqa: ARG001
    sys.path[0] = str(lesson)  # the lesson's modules, not those beside this file
    worker_class = importlib.import_module("worker").Worker
    has_durable = (lesson / "durable.py").exists()
    durable = importlib.import_module("durable") if has_durable else None
    jobs.register(importlib.import_module("tasks"), durable)
    known = inspect.signature(worker_class).parameters
    options = {"slots": slots, "lease": timedelta(seconds=lease)}
    count_statements()
    logging.basicConfig(level=logging.INFO, handlers=[SayStart()])
    with open_database(lesson) as db:
        worker = worker_class(db, name, **{k: v for k, v in options.items() if k in known})

        def stop(*_: object) -> None:
            worker.stop()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGUSR1, say_counts)
        worker.run()


if __name__ == "__main__":
    main()
