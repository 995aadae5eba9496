"""A worker: claims a task, calls its function, stores what came of it; one task at a time."""

import logging
import time

from db.queries import ClaimTaskRow, Querier
from shared.database import Database
from tasks import Json, describe, registry, to_json

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
            queue = Querier(connection)
            while not self._stopping:
                task = queue.claim_task()
                if task is None:
                    time.sleep(POLL_SECONDS)
                else:
                    self._run_task(queue, task)
        log.info("worker %s: stopped", self.name)

    def _run_task(self, queue: Querier, task: ClaimTaskRow) -> None:
        log.info("worker %s: task %d: %s", self.name, task.id, task.name)
        try:
            output = to_json(call(task.name, task.input))
        # A task that calls sys.exit() fails like any other; it does not take its worker along.
        except (Exception, SystemExit) as error:
            message = describe(error)
            log.info("worker %s: task %d failed: %s", self.name, task.id, message)
            stored = queue.fail_task(id=task.id, error=message)
        else:
            log.info("worker %s: task %d succeeded", self.name, task.id)
            stored = queue.succeed_task(id=task.id, output=output)
        if stored == 0:
            log.warning("worker %s: task %d was not running any more", self.name, task.id)


def call(name: str, input: Json) -> Json:
    """Call the registered function. A row with a name that nobody registered fails only itself."""
    if name not in registry:
        raise LookupError(f"this worker knows no task {name!r}")
    return registry[name](input)
