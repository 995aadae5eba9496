"""A worker: claims a task, has it run, and claims the next; one task at a time."""

import logging
import time

from db.queries import Querier
from run import run_task
from shared.database import Database

POLL_SECONDS = 0.1

log = logging.getLogger("worker")


class Worker:
    """Runs tasks until `stop` is called. Any number of workers may share a queue."""

    def __init__(self, db: Database, name: str) -> None:
        self.name = name
        self._db = db
        self._stopping = False

    def stop(self) -> None:
        """Finish the task at hand, then return from `run`.

        It may be called in a signal handler, so it takes no lock: the handler interrupts the main
        thread anywhere, and could wait for a lock that the main thread itself holds.
        """
        self._stopping = True

    def run(self) -> None:
        log.info("worker %s: started", self.name)
        # Every statement commits at once. A claim that was not committed before the function is
        # called would be invisible to others, and lock the row for as long as the function runs.
        with self._db.autocommit.connect() as connection:
            queries = Querier(connection)
            while not self._stopping:
                task = queries.claim_task()
                if task is None:
                    time.sleep(POLL_SECONDS)
                else:
                    run_task(queries, task)
        log.info("worker %s: stopped", self.name)
