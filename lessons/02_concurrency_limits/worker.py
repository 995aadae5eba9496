"""A worker: claims tasks for its free slots, and has each of them run in a slot."""

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from claim import claim
from connection import Stopped, connect, pauses, reconnect
from db.queries import ClaimTasksRow
from inputs import check_number, check_queue, describe
from run import run_task
from shared.database import Database

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
        self._open_slots: set[int] = set()  # threads that have a connection
        self._handed_over: SimpleQueue[ClaimTasksRow | None] = SimpleQueue()
        self._look_again = threading.Event()
        self._broken: BaseException | None = None

    def stop(self) -> None:
        """Finish the tasks at hand, then return from `run`.

        It may be called in a signal handler, so it takes no lock: the handler interrupts the main
        thread anywhere, and could wait for a lock that the main thread itself holds.
        """
        self._stopping = True

    def run(self) -> None:
        # The slots come last, and make do with the connections that the server has left. The first
        # connection goes to the pool, for a claim within a limit.
        try:
            with connect(self._db.engine, self._is_stopping):
                dispatcher = connect(self._db.autocommit, self._is_stopping)
        except Stopped:
            return
        log.info("worker %s: started", self.name)
        threads = [self._thread(self._run_slot) for _ in range(self.slots)]
        try:
            with dispatcher:
                self._dispatch(dispatcher)
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
            except Stopped:
                pass
            except BaseException as error:
                log.error("worker %s: must stop: %s", self.name, describe(error))
                self._broken = error
                self.stop()

        thread = threading.Thread(target=guarded)
        thread.start()
        return thread

    def _is_stopping(self) -> bool:
        return self._stopping

    def _dispatch(self, connection: sa.Connection) -> None:
        """Claim tasks for free slots and hand them over, until `stop` is called."""
        pause = pauses()
        tasks: list[ClaimTasksRow] = []
        while not self._stopping:
            self._look_again.clear()
            free_slots = len(self._open_slots) - len(self._running)
            try:
                tasks = claim(self._db, connection, self.queue, free_slots, look_first=not tasks)
            except DBAPIError as error:
                # If it was committed, its tasks stay running, for ever: lesson 03 mends this.
                reconnect(connection, error, next(pause))
                continue
            pause = pauses()
            for task in tasks:
                self._running.add(task.id)
                self._handed_over.put(task)
            if not tasks:
                self._look_again.wait(POLL_SECONDS)

    def _run_slot(self) -> None:
        """A thread with a connection of its own, which runs what the dispatcher hands over."""
        # Every statement commits at once. A claim that was not committed before the function is
        # called would be invisible to others, and lock the row for as long as the function runs.
        with connect(self._db.autocommit, self._is_stopping) as connection:
            self._open_slots.add(threading.get_ident())
            self._look_again.set()
            while task := self._handed_over.get():
                try:
                    run_task(connection, task)
                finally:
                    self._running.discard(task.id)
                    self._look_again.set()
