"""A worker's life: it registers, claims tasks for its free slots, has them run, drains, leaves."""

import logging
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from queue import SimpleQueue

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from claim import claim
from connection import Stopped, connect, keep_doing, pauses, reconnect
from db.queries import ClaimTasksRow, Querier
from event_log import Suspended
from inputs import check_duration, check_name, check_number, check_queue, describe
from lease import Lease
from listen import AN_EVENT, Listener
from results import Result, Results
from run import Again, Outcome, Succeeded, run_task, store_alone
from shared.database import Database
from timing import Timing
from upkeep import CHORES, Upkeep
from versions import check_version, unpark
from writer import Writer

MAX_SLOTS = 1000
MIN_LEASE = timedelta(milliseconds=10)

log = logging.getLogger("worker")


class Worker:
    """Runs tasks until `stop` is called. Any number of workers may share a queue.

    slots: how many tasks run side by side, each in a thread. One more thread, the dispatcher,
    claims for all of them, in one statement: ten cost hardly more than one.
    connections: how many of them all slots share. Raises BadInput.
    lease: for how long the worker counts as alive after a heartbeat. When it has run out, other
    workers take its tasks back. grace: for how long `run` waits for running tasks after `stop`.
    version: of the code. A durable task is run to its end by workers of the version that begins it;
    without a version, by whoever comes.
    """

    def __init__(
        self,
        db: Database,
        name: str,
        *,
        queue: str = "default",
        version: str = "",
        slots: int = 10,
        connections: int = 5,
        lease: timedelta = timedelta(seconds=10),
        grace: timedelta = timedelta(seconds=30),
        timing: Timing = Timing(),
    ) -> None:
        check_name(name)
        check_queue(queue)
        if version != "":
            check_version(version)
        check_number("slots", slots, 1, MAX_SLOTS)
        check_number("connections", connections, 1, MAX_SLOTS)
        check_duration("lease", lease, MIN_LEASE)
        check_duration("grace", grace)
        self.name = name
        self.queue = queue
        self.slots = slots
        self.lease = Lease(name, lease, queue, version)
        self.grace = grace
        self.timing = timing
        self._db = db
        self._stops = 0
        self._drained = threading.Event()
        self._writer = Writer(db, connections)
        # Task and attempt; only the dispatcher adds, so there are never more than slots.
        self._running: set[tuple[int, int]] = set()
        self._handed_over: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._results = Results(self._has_stored, self._store_alone)
        self._look_again = threading.Event()
        chores = {
            "bury": self.lease.bury_others,
            **CHORES,
            "unpark": self._unpark,
            "give back": self._give_back,
        }
        self._upkeep = Upkeep(chores, timing.upkeep)
        hints = {queue: self._look_again.set, AN_EVENT: self._upkeep.hint.set}
        self._listener = Listener(db, hints, timing)
        self._broken: BaseException | None = None

    def stop(self) -> None:
        """Finish the tasks at hand, then return from `run`; called again: do not wait for them.

        It may be called in a signal handler, so it takes no lock: the handler interrupts the main
        thread anywhere, and could wait for a lock that the main thread itself holds.
        """
        self._stops += 1

    def run(self) -> None:
        # The first connection goes to the pool, for a claim within a limit.
        try:
            with connect(self._db.engine, self._is_stopping):
                dispatcher, heart, upkeep, results = (
                    connect(self._db.autocommit, self._is_stopping) for _ in range(4)
                )
            self._writer.open(self._is_stopping)
            self._register(dispatcher)
        except Stopped:
            return
        log.info("worker %s: started", self.name)
        threads = [self._thread(self._run_slot) for _ in range(self.slots)]
        threads.append(self._thread(lambda: self._stay_alive(heart)))
        # Not the dispatcher: it may have to wait for a queue's limit.
        threads.append(self._thread(lambda: self._results.keep_storing(results, self._drained)))
        threads.append(self._thread(lambda: self._keep_up(upkeep)))
        threads.append(self._thread(lambda: self._listener.run(self._drained)))
        try:
            with dispatcher:
                self._dispatch(dispatcher)
            self._drain()
        finally:
            self._drained.set()
            self._upkeep.hint.set()
            self._results.added.set()
            for _ in range(self.slots):
                self._handed_over.put(None)
        # Not for a thread that is still in a task: Python cannot stop it, only the process can end.
        # The others end at once, unless the database hangs. No heartbeat may follow `end`.
        for thread in threads[self.slots :] if self._running else threads:
            thread.join(timeout=1)
        if not self._running:
            self._writer.close()
        self.lease.end(self._db, self._running.copy())
        if self._broken:
            raise self._broken
        log.info("worker %s: stopped, %d tasks abandoned", self.name, len(self._running))

    def _register(self, connection: sa.Connection) -> None:
        """Wait until the database accepts it: a standby may be promoted. Raises Stopped."""
        pause = pauses()
        while not self._is_stopping():
            try:
                return self.lease.register(Querier(connection))
            except DBAPIError as error:
                reconnect(connection, error, next(pause))
        raise Stopped

    def _thread(self, loop: Callable[[], None]) -> threading.Thread:
        """Start a thread. An error that its loop does not expect ends the worker, loudly."""

        def guarded() -> None:
            try:
                loop()
            except Stopped:
                pass
            except BaseException as error:
                log.error("worker %s: must stop: %s", self.name, describe(error))
                self._broken = error
                self.stop()

        # A thread that is stuck in a task must not keep the process alive after the grace period.
        thread = threading.Thread(target=guarded, daemon=True)
        thread.start()
        return thread

    def _is_stopping(self) -> bool:
        return self._stops > 0

    def _dispatch(self, connection: sa.Connection) -> None:
        """Claim tasks for free slots and hand them over, until `stop` is called."""
        pause = pauses()
        tasks: list[ClaimTasksRow] = []
        quiet = False
        while not self._is_stopping():
            self._look_again.clear()
            worker_id, free_slots = self.lease.worker_id, self.slots - len(self._running)
            try:
                tasks = claim(
                    self._db, connection, worker_id, self.queue, free_slots, look_first=not tasks
                )
            except DBAPIError as error:
                # If it was committed, GiveBackTasks will find its tasks.
                reconnect(connection, error, next(pause))
                continue
            pause = pauses()
            for task in tasks:
                self._running.add((task.id, task.attempt))
                self._handed_over.put(partial(self._run, task))
            quiet = not tasks and not self._pause(quiet)

    def _pause(self, quiet: bool) -> bool:
        """Wait until it is time to look. True: earlier, as a slot is free, or a hint has come.

        quiet: nothing came in the pause before this one. So the pause after a hint is short: the
        claim passes over rows that are locked for a moment, and some hints are a moment too early.
        """
        seldom = quiet and self._listener.hears
        end = time.monotonic() + (self.timing.seldom if seldom else self.timing.poll)
        # In short waits: `stop` wakes nobody up.
        while (seconds := end - time.monotonic()) > 0 and not self._is_stopping():
            if self._look_again.wait(min(seconds, self.timing.poll)):
                return True
        return False

    def _drain(self) -> None:
        """Wait for the running tasks: until the grace period ends, or until the second `stop`."""
        if self._running:
            message = "worker %s: stopping, %d still running; Ctrl-C again abandons them"
            log.info(message, self.name, len(self._running))
        deadline = time.monotonic() + self.grace.total_seconds()
        while self._running and self._stops < 2 and time.monotonic() < deadline:
            self._look_again.wait(self.timing.poll)
            self._look_again.clear()

    def _run_slot(self) -> None:
        """A thread that does what the dispatcher hands over."""
        while work := self._handed_over.get():
            work()

    def _run(self, task: ClaimTasksRow) -> None:
        """What it returns waits to be stored, and counts as running. What else comes is stored."""
        outcome = None
        try:
            outcome = run_task(self._writer, task, self.timing)
        finally:
            if isinstance(outcome, Succeeded):
                self._results.add(task, outcome.output)
            else:
                self._store(task, outcome)

    def _has_stored(self, task: ClaimTasksRow) -> None:
        log.info("task %d succeeded", task.id)
        self._running.discard((task.id, task.attempt))
        self._look_again.set()

    def _store_alone(self, result: Result) -> None:
        self._handed_over.put(partial(self._store, result.task, Succeeded(result.output)))

    def _store(self, task: ClaimTasksRow, outcome: Outcome | None) -> None:
        try:
            if outcome is not None:
                store_alone(self._writer, task, outcome)
        finally:
            self._running.discard((task.id, task.attempt))
            self._look_again.set()
        # Perhaps it waits for a moment that the upkeep does not know of yet.
        if isinstance(outcome, Again | Suspended):
            self._upkeep.hint.set()

    def _stay_alive(self, connection: sa.Connection) -> None:
        """Renew the lease, even while the running tasks are drained.

        On a connection of its own: it must not wait behind anything that takes long.
        """
        with connection:
            pause = self.lease.duration.total_seconds() / 4
            keep_doing(self.lease.renew, connection, lambda: pause, until=self._drained)

    def _keep_up(self, connection: sa.Connection) -> None:
        upkeep = self._upkeep

        def work(queries: Querier) -> None:
            self._listener.probe(queries)
            upkeep.next(queries, self.lease.worker_id)

        with connection:
            keep_doing(work, connection, upkeep.pause, until=self._drained, hint=upkeep.hint)

    def _give_back(self, queries: Querier) -> None:
        self.lease.give_back(queries, self._running.copy(), self.lease.duration)

    def _unpark(self, queries: Querier) -> list[int]:
        return unpark(queries, self.lease.worker_id)
