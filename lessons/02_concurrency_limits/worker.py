"""A worker: claims tasks for its free slots, calls their functions, stores what came of them."""

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

import sqlalchemy as sa

from db.queries import ClaimTasksRow, Querier
from shared.database import Database
from tasks import Json, check_number, check_queue, describe, registry, to_json

POLL_SECONDS = 0.1
MAX_SLOTS = 1000

log = logging.getLogger("worker")


class Worker:
    """Runs tasks until `stop` is called. Any number of workers may share a queue.

    slots: how many tasks run side by side, each in a thread. One more thread, the dispatcher,
    claims for all of them: a claim of ten tasks costs hardly more than a claim of one.
    Each of these threads has a database connection. Raises BadInput.
    """

    def __init__(self, db: Database, name: str, *, queue: str = "default", slots: int = 10) -> None:
        check_queue(queue)
        check_number("slots", slots, 1, MAX_SLOTS)
        self.name = name
        self.queue = queue
        self.slots = slots
        self._db = db
        self._stopping = False
        self._running: set[int] = set()  # ids; only the dispatcher adds, so it never overfills
        self._handed_over: SimpleQueue[ClaimTasksRow | None] = SimpleQueue()
        self._slot_freed = threading.Event()
        self._broken: BaseException | None = None

    def stop(self) -> None:
        """Finish the tasks at hand, then return from `run`.

        It may be called in a signal handler, so it takes no lock: the handler interrupts the main
        thread anywhere, and could wait for a lock that the main thread itself holds.
        """
        self._stopping = True

    def run(self) -> None:
        log.info("worker %s: started", self.name)
        threads = [self._thread(self._run_slot) for _ in range(self.slots)]
        try:
            self._dispatch()
            if self._running:
                waits_for = len(self._running)
                log.info("worker %s: stopping, waits for %d tasks", self.name, waits_for)
        finally:
            for _ in threads:
                self._handed_over.put(None)
            for thread in threads:
                thread.join()
        if self._broken:
            raise self._broken
        log.info("worker %s: stopped", self.name)

    def _thread(self, loop: Callable[[], None]) -> threading.Thread:
        """Start a thread. An error that its loop does not expect ends the worker, loudly."""

        def guarded() -> None:
            try:
                loop()
            except BaseException as error:
                log.error("worker %s: must stop: %s", self.name, describe(error))
                self._broken = error
                self.stop()

        thread = threading.Thread(target=guarded)
        thread.start()
        return thread

    def _dispatch(self) -> None:
        """Claim tasks for free slots and hand them over, until `stop` is called."""
        with self._db.autocommit.connect() as connection:
            while not self._stopping:
                self._slot_freed.clear()
                tasks = self._claim(connection, self.slots - len(self._running))
                for task in tasks:
                    self._running.add(task.id)
                    self._handed_over.put(task)
                if not tasks:
                    self._slot_freed.wait(POLL_SECONDS)

    def _claim(self, connection: sa.Connection, free_slots: int) -> list[ClaimTasksRow]:
        """Claim tasks for the free slots, and no more than the queue's limit allows."""
        if free_slots == 0:
            return []
        queue = Querier(connection)
        tasks = list(queue.claim_tasks(queue=self.queue, at_most=free_slots, limited=False))
        if not tasks:  # there is none, or the queue has a limit
            tasks = self._claim_within_limit(free_slots)
        return sorted(tasks, key=lambda task: task.id)

    def _claim_within_limit(self, free_slots: int) -> list[ClaimTasksRow]:
        with self._db.engine.begin() as connection:
            queue = Querier(connection)
            limit = queue.lock_limit(queue=self.queue)
            if limit is None:
                return []
            running = queue.count_running(queue=self.queue) or 0
            at_most = max(0, min(free_slots, limit - running))
            return list(queue.claim_tasks(queue=self.queue, at_most=at_most, limited=True))

    def _run_slot(self) -> None:
        """A thread with a connection of its own, which runs what the dispatcher hands over."""
        # Every statement commits at once. A claim that was not committed before the function is
        # called would be invisible to others, and lock the row for as long as the function runs.
        with self._db.autocommit.connect() as connection:
            while task := self._handed_over.get():
                self._run_task(Querier(connection), task)
                self._running.discard(task.id)
                self._slot_freed.set()

    def _run_task(self, queue: Querier, task: ClaimTasksRow) -> None:
        log.info("worker %s: task %d: %s", self.name, task.id, task.name)
        try:
            output = to_json(call(task.name, task.input))
        # Also sys.exit(), and what asyncio raises when it is cancelled: a task takes no slot along.
        except BaseException as error:
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
