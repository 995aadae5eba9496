"""Group commit: threads that write at the same moment share a statement, and its commit."""

import threading
from collections.abc import Callable

Run = tuple[int, int]  # task and attempt: two attempts of one task may be in one group


class Row:
    """What one run has to write, as JSON. committed: None as long as nobody has tried."""

    def __init__(self, run: Run, text: str) -> None:
        self.run = run
        self.text = text
        self.committed: bool | None = None
        self.turn = threading.Event()


class Group:
    """The first thread to come writes at once. Those that come while it writes wait; then one of
    them writes for all. Nobody waits for company: a thread alone is as fast as without this.

    statement: takes a JSON array of rows, and returns the runs whose rows are committed.
    """

    def __init__(self, statement: Callable[[str], set[Run]]) -> None:
        self._statement = statement
        self._lock = threading.Lock()
        self._waiting: list[Row] = []
        self._writing = False  # a thread writes, or has been told to

    def write(self, run: Run, text: str) -> bool:
        """True: it is committed. False: it is not; write it alone, and that will say why."""
        row = Row(run, text)
        with self._lock:
            self._waiting.append(row)
            is_first, self._writing = not self._writing, True
        if not is_first:
            row.turn.wait()  # until it is written, or until this thread is to write
        if row.committed is None:
            self._write_all()
        return row.committed is True

    def _write_all(self) -> None:
        with self._lock:
            rows, self._waiting = self._waiting, []
        committed: set[Run] = set()
        try:
            committed = self._statement(f"[{','.join(row.text for row in rows)}]")
        finally:
            with self._lock:
                next_writer = self._waiting[:1]
                self._writing = bool(next_writer)
            for row in rows:
                row.committed = row.run in committed
            for row in next_writer + rows:
                row.turn.set()
