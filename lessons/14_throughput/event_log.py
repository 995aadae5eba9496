"""The event log of a durable task, as one run of it reads and writes it."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from db.queries import LoadCompletionsRow, LoadLogRow, Querier
from errors import ERROR_KEYS, FinalBadInput, StepInStep, WaitTimeout, is_error_entry
from fence import Fence, Hopeless, Interrupted
from inputs import Json, as_text, to_json
from nondeterminism import mismatch
from tasks import TaskOptions

Entry = LoadLogRow  # a row of event_log
MAX_SPAWNED = 100  # children in one statement


class Suspended(Interrupted):
    """The task waits, and holds no slot meanwhile. It will be run again from its log."""


class EventLog:
    """The entries, in the order of the function's calls, and how far the function has come.

    Up to the end of the log, the function gets its answers from there. Behind it, it does what has
    never been done before.
    """

    def __init__(self, fence: Fence) -> None:
        self.position = 0
        self.in_step = False
        self.run = (fence.task.id, fence.task.attempt)
        self._thread = threading.get_ident()
        self._fence = fence
        self._entries: list[Entry] = []
        # Errors that this run has told the function. If the function goes on, they are settled.
        self._told: list[Entry] = []
        # Children that the function has spawned since it last got an answer.
        self._spawned: list[dict[str, Any]] = []
        # The first attempt has nothing to load. A log that was filled from outside (a copy of
        # another one, a repaired backup) is ignored in it: set such a task's attempt to 1 first.
        if fence.task.attempt > 1:
            task_id = fence.task.id
            self._entries = fence.send(lambda queries: list(queries.load_log(task_id=task_id)))
            check_entries(fence, self._entries)
        if self._entries and may_be_tried_again(self._entries[-1]):
            del self._entries[-1]
        # Wherever the function asks, a marker that is anywhere in the log says that it is patched.
        self.patches = {entry.name: True for entry in self._entries if entry.kind == "patch"}
        known = (entry.completion or 0 for entry in self._entries)
        self._completions = max([fence.task.completions, *known])

    def next(self, kind: str, name: str, input: str) -> Entry | None:
        """Move to the next position, and return the entry recorded there; None behind the end.

        Raises NonDeterminismError if the entry is the answer to a different question.
        """
        self.check()
        if kind != "child":
            self._write_children()
        self._pass_markers()
        self.position += 1
        if self.position <= len(self._entries):
            return self._compared(kind, name, json.loads(input))
        self._settle()
        return None

    def is_at_end(self) -> bool:
        self._pass_markers()
        return self.position == len(self._entries)

    def _pass_markers(self) -> None:
        """Nobody has to ask for them: an old patch can be taken out of the code."""
        while self.position < len(self._entries) and self._entries[self.position].kind == "patch":
            self.position += 1

    def end(self, returned: bool) -> None:
        """The function has ended. Raises NonDeterminismError if it returned and its log goes on.

        What has interrupted the run is raised again, whatever the function made of it: a bare
        `except:` may have swallowed it, or raised a different error instead.
        """
        self._fence.check()
        self._write_children()
        self._thread = 0
        if returned and not self.is_at_end():
            self.position += 1
            self._compared("return", self._fence.task.name, None)

    def _compared(self, kind: str, name: str, input: Json) -> Entry:
        entry = self._entries[self.position - 1]
        if error := mismatch(self._fence.task, entry, kind, name, input):
            self._fence.interrupt(error)
        return entry

    def check(self) -> None:
        """May the function ask for anything? Raises what has interrupted the run, or StepInStep.

        Several threads would take their positions in a different order each time: FinalBadInput.
        """
        if threading.get_ident() != self._thread:
            raise FinalBadInput(
                "only the thread that runs the durable function may use its context, and only "
                "while it runs: let a step start threads, and wait for them"
            )
        self._fence.check()
        if self.in_step:
            raise StepInStep("a step cannot do steps: they would not be done when it is replayed")

    def record(self, entry: Entry) -> None:
        grouped = entry.kind == "step" and not entry.error
        if not (grouped and self._fence.writer.record(self._fence.task, entry)):
            self._fence.write(Querier.record_step, **columns(entry))
        self._entries.append(entry)

    def record_first(self, entry: Entry) -> Entry:
        """Record it, unless this attempt has recorded something here; what is recorded now."""
        if self._fence.try_to_write(Querier.record_first, **columns(entry)):
            return entry
        return self.look_up(entry)

    def look_up(self, entry: Entry) -> Entry:
        """What this attempt has recorded in this place, as it did not get the answer."""
        found = self._fence.try_to_write(Querier.find_entry, position=entry.position)
        if found is None:
            self._fence.lost()
        return replace(entry, output=found.output, error=found.error)

    def append(self, entry: Entry) -> None:
        """It is recorded already."""
        self._entries.append(entry)

    def open(
        self, kind: str, name: str, input: str, write: Callable[..., Any], **values: Any
    ) -> int:
        """Write an entry that somebody else completes, or find it in the log; its position."""
        if self.next(kind, name, input) is None:
            position = self.position
            self._fence.write(write, position=position, name=name, input=input, **values)
            self._entries.append(pending_entry(position, kind, name, input))
        return self.position

    def spawn(self, name: str, input: str, options: TaskOptions) -> int:
        """Open an entry for a child, or find it in the log; its position.

        Children are written together, before the function gets anything but their positions: none
        of them can be missed before that, and a run that dies until then spawns them again.
        """
        if self.next("child", name, input) is None:
            self._entries.append(pending_entry(self.position, "child", name, input))
            child = {"position": self.position, "name": name, "input": input, **options}
            timeout = options.get("timeout")
            child["timeout"] = None if timeout is None else timeout.total_seconds()
            self._spawned.append(child)
            if len(self._spawned) == MAX_SPAWNED:
                self._write_children()
        return self.position

    def _write_children(self) -> None:
        if not self._spawned:
            return
        children, self._spawned = self._spawned, []
        with self._fence.engine():
            self._fence.write(
                Querier.spawn_children,
                first=children[0]["position"],
                count=len(children),
                children=as_text(children),
            )

    def is_complete(self, position: int) -> bool:
        """As far as this run knows."""
        return self._entries[position - 1].completion is not None

    def wait(self, positions: list[int], enough: int, deadline: int | None = None) -> list[Entry]:
        """Return when `enough` of these entries are complete, in the order of their completion.

        Until then, suspend. Suspending is refused if an entry was completed since we looked: there
        may be nothing left to wait for.

        deadline: the position of a timer. Raises WaitTimeout if that was completed first. What was
        first is in the log, so it is the same in every run, whenever that run looks.
        """
        self.check()
        self._write_children()
        while True:
            timer = self._entries[deadline - 1] if deadline else None
            end = timer.completion if timer else None
            entries = [self._entries[position - 1] for position in positions]
            complete = [entry for entry in entries if completed_before(entry, end)]
            missing = enough - len(complete)
            if missing <= 0:
                return sorted(complete, key=lambda entry: entry.completion or 0)
            if timer and timer.error:
                self.told(timer)
                raise WaitTimeout(timer.name, timer.error)
            self._settle()
            awaits = [entry.position for entry in entries if not entry.completion]
            if self._fence.try_to_write(
                Querier.suspend_task,
                completions=self._completions,
                awaits=awaits,
                wake_after=missing,
                deadline=deadline,
            ):
                self._fence.interrupt(Suspended(f"waits for {missing} of {len(awaits)}"))
            if not self._load_completions():
                self._fence.lost()

    def _load_completions(self) -> int:
        """Read the completions that this run does not know of yet; returns how many there are."""
        task_id, known = self._fence.task.id, self._completions
        news: list[LoadCompletionsRow] = self._fence.send(
            lambda queries: list(queries.load_completions(task_id=task_id, after_completion=known))
        )
        for row in news:
            check_error(self._fence, row.position, row.error)
            entry = self._entries[row.position - 1]
            entry.output, entry.error, entry.completion = row.output, row.error, row.completion
            self._completions = max(self._completions, row.completion or 0)
        return len(news)

    def told(self, entry: Entry) -> None:
        """The function is told the error of this entry."""
        if not entry.settled:
            self._told.append(entry)

    def _settle(self) -> None:
        """The function goes on after an error: from here on, no run tries that step again.

        This is written before the next step is done. Otherwise, after a crash in that step's gap,
        the failed step might succeed, although what follows its failure was done already.
        """
        if self._told:
            positions = [entry.position for entry in self._told]
            self._fence.write(Querier.settle_errors, positions=positions)
            for entry in self._told:
                entry.settled = True
            self._told = []


def completed_before(entry: Entry, end: int | None) -> bool:
    return entry.completion is not None and (end is None or entry.completion < end)


def pending_entry(position: int, kind: str, name: str, input: str) -> Entry:
    return Entry(position, kind, name, json.loads(input), None, None, False, None)


def columns(entry: Entry) -> dict[str, Any]:
    """What a run records of an entry."""
    return {
        "position": entry.position,
        "kind": entry.kind,
        "name": entry.name,
        "input": as_text(entry.input),
        "output": None if entry.error else as_text(entry.output),
        "error": to_json(entry.error) if entry.error else None,
    }


def check_entries(fence: Fence, entries: list[Entry]) -> None:
    """A log that somebody has edited: what follows a hole would be read one position too early."""
    for position, entry in enumerate(entries, start=1):
        if entry.position != position:
            hole = f"the log of task {fence.task.id} has no entry at position {position}"
            fence.interrupt(Hopeless(f"{hole}: put it back, or replay the task"))
        check_error(fence, position, entry.error)


def check_error(fence: Fence, position: int, error: Json) -> None:
    if error is not None and not is_error_entry(error):
        what = f"the error at position {position} of the log of task {fence.task.id}"
        fence.interrupt(Hopeless(f"{what} is not as a run records it: {ERROR_KEYS}"))


def may_be_tried_again(last: Entry) -> bool:
    """An error at the end of the log: nothing depends on it, unless the function went on from it.

    A step that said that trying again is of no use is not tried again either.
    """
    return last.error is not None and not last.settled and not last.error["final"]
