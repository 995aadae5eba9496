"""The time line in sentences: what one commit did, in one line."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from glass.activity import Session
from glass.history import Change, Key, Moment
from glass.values import ordinal, short

EVENTS = 6  # of one commit
NAME = 120  # characters of a name


@dataclass
class Event:
    """kind: a status, log, worker, beat, touch, lock or note: how the faces colour it."""

    kind: str
    text: str
    task: str | None = None  # which the row is about


@dataclass
class Line:
    """number: so many moments have happened after it. quiet: a heartbeat, which keys pass over."""

    number: int
    time: str
    xid: int | None
    events: list[Event]
    quiet: bool


def line(number: int, moment: Moment) -> Line:
    if moment.note:
        events = [Event("note", moment.note)]
    elif moment.waits is not None:
        events = [
            Event("lock", f"{wait.waiter.label} waits for {names(wait.holders)}")
            for wait in moment.waits
        ] or [Event("note", "nobody waits for a lock any more")]
    else:
        events = commit(moment.changes)
    quiet = all(event.kind == "beat" for event in events)
    return Line(number, moment.at[11:23], moment.xid, events, quiet)


def names(sessions: list[Session]) -> str:
    return " and ".join(session.label for session in sessions)


def commit(changes: list[Change]) -> list[Event]:
    emptied = dict.fromkeys(change.table for change in changes if change.verb == "truncate")
    events = [Event("note", f"{table} is emptied") for table in emptied]
    rest = of_rows(change for change in changes if change.verb not in ("truncate", "evict"))
    events += [describe(change) for change in rest[:EVENTS]]
    if len(rest) > EVENTS:
        events.append(Event("note", f"and {len(rest) - EVENTS:,} more rows"))
    return events


def of_rows(changes: Iterable[Change]) -> list[Change]:
    """One for each row, from what it was before the commit to what it was after it."""
    found: dict[tuple[str, Key], Change] = {}
    for change in changes:
        first = found.get((change.table, change.key))
        if first and change.verb == "update":
            change = replace(first, after=change.after)
        found[change.table, change.key] = change
    return list(found.values())


def describe(change: Change) -> Event:
    match change.table, change.verb:
        case "tasks", "insert" | "update":
            return of_task(change)
        case "event_log", "insert" | "update":
            return of_entry(change)
        case "messages", "insert" | "update":
            return of_message(change)
        case "events", "insert" | "update":
            return of_event(change)
        case "workers", _:
            return of_worker(change)
        case "stepper", "insert" | "update":
            return of_stepper(change)
        case _:
            row = change.after or change.before or {}
            values = ", ".join(
                f"{name} {short(value, 20)}" for name, value in list(row.items())[:4]
            )
            kind = "gone" if change.verb == "delete" else "note"
            return Event(kind, f"{change.table}, {change.verb}: {values}", row.get("task_id"))


def of_task(change: Change) -> Event:
    row, before = change.after or {}, change.before or {}
    id, status = row.get("id"), row.get("status") or "?"
    if change.verb == "insert":
        parent = f", a child of {row['parent_id']}" if row.get("parent_id") else ""
        return Event(status, f"task {id} {short(row.get('name'), NAME)} is {status}{parent}", id)
    if status == before.get("status"):
        return Event("touch", f"task {id}: {differences(change) or 'written, and the same'}", id)
    text = f"task {id}: {before.get('status', '?')} → {status}"
    if status == "running" and row.get("attempt"):
        text += f", attempt {row['attempt']}, worker {row.get('worker_id')}"
    elif row.get("error") and status != "running" and not row.get("awaits"):
        text += f": {short(row['error'], 60)}"
    return Event(status, text, id)


def of_entry(change: Change) -> Event:
    row, before = change.after or {}, change.before or {}
    where = f"log of {row.get('task_id')}: {row.get('position')}"
    name = short(row.get("name"), NAME)
    outcome = short(row.get("error") or row.get("output"), 40)
    if row.get("completion") != before.get("completion"):
        order = ordinal(int(row.get("completion") or 0))
        text = f"{where} {name} → {outcome}, the {order} to end"
    elif change.verb == "insert":
        text = f"{where} {row.get('kind', 'step')} {name} → {outcome or '…'}"
    else:
        text = f"{where} {name}: {differences(change)}"
    return Event("log", text, row.get("task_id"))


def of_message(change: Change) -> Event:
    """One that finds an open signal is sent and read in one commit."""
    row, id = change.after or {}, (change.after or {}).get("task_id")
    text = f"message {short(row.get('name'), NAME)} to task {id}"
    if change.verb == "insert":
        text += f": {short(row.get('error') or row.get('payload'), 40)}"
    if row.get("position"):
        text += f", read at {row['position']}"
    return Event("log", text, id)


def of_event(change: Change) -> Event:
    row = change.after or {}
    text = f"event {short(row.get('name'), NAME)}"
    if change.verb == "insert":
        return Event("note", f"{text} has happened: {short(row.get('payload'), 40)}")
    told = row.get("told") == "true" and "all who waited have been told"
    return Event("note", f"{text}: {told or differences(change)}")


def of_worker(change: Change) -> Event:
    row = change.after or change.before or {}
    who = f"worker {row.get('id')} ({short(row.get('name'), NAME)})"
    if change.verb == "insert":
        return Event("worker", f"{who} registers")
    if change.verb == "delete":
        return Event("gone", f"{who} is in the table no more")
    if differences(change).startswith("alive_until"):
        return Event("beat", f"{who}: its lease goes on")
    return Event("worker", f"{who}: {differences(change)}")


def of_stepper(change: Change) -> Event:
    row = change.after or {}
    commit = f"commit {row.get('number')}, {row.get('statement')}"
    match row.get("answer"):
        case None:
            return Event("note", f"the worker is held before {commit}")
        case "":
            return Event("note", f"the worker is let go with {commit}")
        case answer:
            when = "before" if answer == "b" else "after"
            return Event("gone", f"the worker is killed {when} {commit}")


def differences(change: Change) -> str:
    row, before = change.after or {}, change.before or {}
    return ", ".join(
        f"{name} {short(before.get(name), 20) or 'null'} → {short(value, 20) or 'null'}"
        for name, value in row.items()
        if before.get(name) != value
    )
