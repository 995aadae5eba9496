"""A worker: claims tasks for its free slots, calls their functions, stores what came of them."""

import json
import logging
import random
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from queue import SimpleQueue

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, InternalError, OperationalError

from db.queries import ClaimTasksRow, Querier
from shared.database import Database
from tasks import Json, NonRetryableError, check_number, check_queue, describe, registry, to_json

POLL_SECONDS = 0.1
MAX_SLOTS = 1000
UPKEEP_SECONDS = 0.4
FIRST_BACKOFF = timedelta(seconds=1)
MAX_BACKOFF = timedelta(hours=1)

log = logging.getLogger("worker")


class Worker:
    """Runs tasks until `stop` is called. Any number of workers may share a queue.

    slots: how many tasks run side by side, each in a thread. One more thread, the dispatcher,
    claims for all of them: a claim of ten tasks costs hardly more than a claim of one.
    Each of these threads has a database connection. Raises BadInput.
    lease: for how long the worker counts as alive after a heartbeat. When it has run out, other
    workers take its tasks back. grace: for how long `run` waits for running tasks after `stop`.
    """

    def __init__(
        self,
        db: Database,
        name: str,
        *,
        queue: str = "default",
        slots: int = 10,
        lease: timedelta = timedelta(seconds=10),
        grace: timedelta = timedelta(seconds=30),
    ) -> None:
        check_queue(queue)
        check_number("slots", slots, 1, MAX_SLOTS)
        self.name = name
        self.queue = queue
        self.slots = slots
        self.lease = lease
        self.grace = grace
        self._db = db
        self._id = 0
        self._stops = 0
        self._drained = threading.Event()
        # Task and attempt; only the dispatcher adds, so there are never more than slots.
        self._running: set[tuple[int, int]] = set()
        self._handed_over: SimpleQueue[ClaimTasksRow | None] = SimpleQueue()
        self._slot_freed = threading.Event()
        self._broken: BaseException | None = None

    def stop(self) -> None:
        """Finish the tasks at hand, then return from `run`; called again: do not wait for them.

        It may be called in a signal handler, so it takes no lock: the handler interrupts the main
        thread anywhere, and could wait for a lock that the main thread itself holds.
        """
        self._stops += 1

    def run(self) -> None:
        with self._db.autocommit.connect() as connection:
            self._register(connection)
        log.info("worker %s: started", self.name)
        threads = [self._thread(self._run_slot) for _ in range(self.slots)]
        threads += [self._thread(self._heartbeat), self._thread(self._upkeep)]
        try:
            self._dispatch()
            self._drain()
        finally:
            self._drained.set()
            for _ in range(self.slots):
                self._handed_over.put(None)
        # Not for a thread that is still in a task: Python cannot stop it, only the process can end.
        # The others end at once, unless the database hangs. No heartbeat after the unregistering.
        for thread in threads[self.slots :] if self._running else threads:
            thread.join(timeout=1)
        self._unregister()
        if self._broken:
            raise self._broken
        log.info("worker %s: stopped, %d tasks abandoned", self.name, len(self._running))

    def _thread(self, loop: Callable[[], None]) -> threading.Thread:
        """Start a thread. An error that its loop does not expect ends the worker, loudly."""

        def guarded() -> None:
            try:
                loop()
            except BaseException as error:
                log.error("worker %s: must stop: %s", self.name, describe(error))
                self._broken = error
                self.stop()

        # A thread that is stuck in a task must not keep the process alive after the grace period.
        thread = threading.Thread(target=guarded, daemon=True)
        thread.start()
        return thread

    def _dispatch(self) -> None:
        """Claim tasks for free slots and hand them over, until `stop` is called."""
        with self._connect(self._db.autocommit) as connection:
            while not self._stops:
                self._slot_freed.clear()
                try:
                    tasks = self._claim(connection, self.slots - len(self._running))
                except (OperationalError, InternalError) as error:  # InternalError: BoundIdleTime
                    # Was it committed? If so, TakeBackLostClaims will find it.
                    self._reconnect(connection, error)
                    continue
                for task in tasks:
                    self._running.add((task.id, task.attempt))
                    self._handed_over.put(task)
                if not tasks:
                    self._slot_freed.wait(POLL_SECONDS)

    def _drain(self) -> None:
        """Wait for the running tasks: until the grace period ends, or until the second `stop`."""
        if self._running:
            message = "worker %s: stopping, %d still running; Ctrl-C again abandons them"
            log.info(message, self.name, len(self._running))
        deadline = time.monotonic() + self.grace.total_seconds()
        while self._running and self._stops < 2 and time.monotonic() < deadline:
            self._slot_freed.wait(POLL_SECONDS)
            self._slot_freed.clear()

    def _claim(self, connection: sa.Connection, free_slots: int) -> list[ClaimTasksRow]:
        """Claim tasks for the free slots, and no more than the queue's limit allows."""
        if free_slots == 0:
            return []
        queue = Querier(connection)
        tasks = list(
            queue.claim_tasks(
                worker_id=self._id, queue=self.queue, at_most=free_slots, limited=False
            )
        )
        if not tasks:  # there is none, or the queue has a limit
            tasks = self._claim_within_limit(free_slots)
        return sorted(tasks, key=lambda task: (-task.priority, task.id))

    def _claim_within_limit(self, free_slots: int) -> list[ClaimTasksRow]:
        with self._db.engine.begin() as connection:
            queue = Querier(connection)
            queue.bound_idle_time()
            limit = queue.lock_limit(queue=self.queue)
            if limit is None:
                return []
            running = queue.count_running(queue=self.queue) or 0
            at_most = max(0, min(free_slots, limit - running))
            return list(
                queue.claim_tasks(
                    worker_id=self._id, queue=self.queue, at_most=at_most, limited=True
                )
            )

    def _run_slot(self) -> None:
        """A thread with a connection of its own, which runs what the dispatcher hands over."""
        # Every statement commits at once. A claim that was not committed before the function is
        # called would be invisible to others, and lock the row for as long as the function runs.
        with self._connect(self._db.autocommit) as connection:
            while task := self._handed_over.get():
                self._run_task(connection, task)
                self._running.discard((task.id, task.attempt))
                self._slot_freed.set()

    def _run_task(self, connection: sa.Connection, task: ClaimTasksRow) -> None:
        log.info("worker %s: task %d, attempt %d: %s", self.name, task.id, task.attempt, task.name)
        queue = Querier(connection)
        id, attempt = task.id, task.attempt
        try:
            output = to_json(call(task.name, json.loads(task.input)))
            stored = self._persist(
                connection, lambda: queue.succeed_task(id=id, attempt=attempt, output=output)
            )
            if stored:
                log.info("worker %s: task %d succeeded", self.name, id)
        # Also sys.exit(), and what asyncio raises when it is cancelled: a task takes no slot along.
        except BaseException as error:
            message = describe(error)
            if isinstance(error, NonRetryableError) or attempt >= task.max_attempts:
                log.info("worker %s: task %d failed: %s", self.name, id, message)
                stored = self._persist(
                    connection, lambda: queue.fail_task(id=id, attempt=attempt, error=message)
                )
            else:
                delay = backoff(attempt)
                log.info("worker %s: task %d, again in %s: %s", self.name, id, delay, message)
                stored = self._persist(
                    connection,
                    lambda: queue.retry_task(id=id, attempt=attempt, delay=delay, error=message),
                )
        if stored == 0:
            log.warning("worker %s: task %d is not ours any more: void", self.name, id)

    def _persist(self, connection: sa.Connection, store: Callable[[], int]) -> int:
        """Store a result, and try again for as long as the database cannot be reached.

        The fence makes that safe: if the first try did arrive, the second changes 0 rows.
        """
        while True:
            try:
                return store()
            except OperationalError as error:
                if str(getattr(error.orig, "sqlstate", "")).startswith("54"):
                    raise  # too complex for Postgres, and always will be
                self._reconnect(connection, error)

    def _connect(self, engine: sa.Engine) -> sa.Connection:
        """Wait for a connection. (A worker that cannot even register does not start.)"""
        while True:
            try:
                return engine.connect()
            except OperationalError as error:
                if self._stops:
                    raise
                self._wait(error)

    def _reconnect(self, connection: sa.Connection, error: DBAPIError) -> None:
        connection.invalidate()
        connection.rollback()  # the next statement gets a new connection
        self._wait(error)

    def _wait(self, error: DBAPIError) -> None:
        log.warning("worker %s: %s", self.name, str(error.orig).partition("\n")[0])
        time.sleep(POLL_SECONDS)

    def _register(self, connection: sa.Connection) -> None:
        self._id = Querier(connection).register_worker(name=self.name, lease=self.lease) or 0

    def _unregister(self) -> None:
        """From here on, what is still running counts as abandoned, and is taken back at once."""
        try:
            with self._db.autocommit.connect() as connection:
                Querier(connection).unregister_worker(id=self._id)
        except OperationalError as error:
            log.warning("worker %s: its lease has to run out: %s", self.name, error.orig)

    def _heartbeat(self) -> None:
        """Renew the lease, also while the running tasks are drained.

        On a connection of its own: it must not wait behind anything that takes long.
        """

        def beat(connection: sa.Connection) -> None:
            if Querier(connection).heartbeat(id=self._id, lease=self.lease) == 0:
                log.warning("worker %s: was taken for dead, registers anew", self.name)
                self._register(connection)

        self._until_drained(beat, lambda: self.lease.total_seconds() / 4)

    def _upkeep(self) -> None:
        """What any worker does for the whole queue: wake, time out, bury, take back."""

        def look(connection: sa.Connection) -> None:
            queue = Querier(connection)
            queue.wake_tasks()
            queue.expire_tasks()
            for dead in queue.bury_workers():
                log.warning("worker %s: %s is dead", self.name, dead.name)
            for lost in queue.take_back_tasks():
                log.warning(
                    "worker %s: task %d, %s: %s", self.name, lost.id, lost.status, lost.error
                )
            queue.take_back_lost_claims(
                worker_id=self._id,
                known_ids=[id for id, _ in self._running.copy()],
                older_than=self.lease,
            )

        # Not all workers at the same moment.
        self._until_drained(look, lambda: random.uniform(0.5, 1.5) * UPKEEP_SECONDS)

    def _until_drained(
        self, work: Callable[[sa.Connection], None], pause: Callable[[], float]
    ) -> None:
        """Do it again and again, until no task is left here. After a lost connection, at once."""
        with self._connect(self._db.autocommit) as connection:
            seconds = pause()
            while not self._drained.wait(seconds):
                try:
                    work(connection)
                    seconds = pause()
                except OperationalError as error:
                    self._reconnect(connection, error)
                    seconds = 0


def backoff(attempt: int) -> timedelta:
    """How long to wait after a failed attempt: exponential backoff with full jitter.

    A random time from 0 up to 1 s after the first attempt, 2 s after the second, 4 s, 8 s ... and
    never above an hour. Jitter, because tasks that failed together should not come back together.
    See AWS, "Exponential Backoff and Jitter".
    """
    doublings = min(attempt - 1, 12)  # 2 ** 10,000 is no number for a duration
    return random.uniform(0, 1) * min(FIRST_BACKOFF * 2**doublings, MAX_BACKOFF)


def call(name: str, input: Json) -> Json:
    """Call the registered function. A row with a name that nobody registered fails only itself."""
    if name not in registry:
        raise LookupError(f"this worker knows no task {name!r}")
    return registry[name](input)
