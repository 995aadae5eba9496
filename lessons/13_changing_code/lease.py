"""A worker's lease: a row that says it is alive, and runs out unless the worker renews it."""

import logging
from datetime import timedelta
from functools import partial

from sqlalchemy.exc import DBAPIError

from connection import all_but_refused, reason
from db.queries import Querier
from shared.database import Database

log = logging.getLogger("worker")


class Lease:
    """worker_id: the worker's row. duration: for how long it counts as alive after a heartbeat."""

    def __init__(self, name: str, duration: timedelta, queue: str, version: str) -> None:
        self.name = name
        self.duration = duration
        self.queue = queue
        self.version = version
        self.worker_id = 0

    def register(self, queries: Querier) -> None:
        row = queries.register_worker(
            name=self.name, queue=self.queue, version=self.version, lease=self.duration
        )
        self.worker_id = row or 0

    def renew(self, queries: Querier) -> None:
        if queries.heartbeat(id=self.worker_id, lease=self.duration) == 0:
            log.warning("worker %s: was taken for dead, registers again", self.name)
            self.register(queries)

    def bury_others(self, queries: Querier) -> None:
        for worker in queries.bury_workers(worker_id=self.worker_id):
            log.warning("worker %s is dead", worker.name)

    def give_back(
        self, queries: Querier, running: set[tuple[int, int]], older_than: timedelta
    ) -> None:
        """running: task and attempt, of all that the worker runs."""
        give_back = partial(
            queries.give_back_tasks,
            worker_id=self.worker_id,
            running=[f"{id}/{attempt}" for id, attempt in running],
            older_than=older_than,
        )
        for task in all_but_refused(give_back):
            log.warning("task %d, attempt %d: given back", task.id, task.attempt)

    def end(self, db: Database, running: set[tuple[int, int]]) -> None:
        """From here on, whatever still runs counts as abandoned, and is taken back at once."""
        try:
            with db.autocommit.connect() as connection:
                queries = Querier(connection)
                self.give_back(queries, running, timedelta(0))
                queries.unregister_worker(id=self.worker_id)
        except DBAPIError as error:
            log.warning("worker %s: its lease has to run out: %s", self.name, reason(error))
