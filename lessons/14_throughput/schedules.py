"""Schedules: tasks that are started again and again, at the times that a cron line names."""

import logging
import re
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.resources import files
from typing import Literal, Unpack
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from cronsim import CronSim, CronSimError
from sqlalchemy.exc import DBAPIError

from connection import complain, unreachable
from db.queries import ListDueSchedulesRow, Querier
from inputs import BadInput, Json, describe, to_json
from tasks import TaskOptions, check_options, check_task

MAX_CRON_CHARACTERS = 200
MAX_TICKS = 1000  # in one statement
ON_TIME = timedelta(minutes=1)
SECOND = timedelta(seconds=1)
# IANA's names alone: Python would also read `localtime`, which is another zone on each machine.
ZONES = frozenset((files("tzdata") / "zones").read_text().split())

log = logging.getLogger("worker")


def set_schedule(
    connection: sa.Connection,
    name: str,
    cron: str,
    task: str,
    input: Json,
    *,
    timezone: str = "UTC",
    missed: Literal["none", "latest", "all"] = "latest",
    **options: Unpack[TaskOptions],
) -> None:
    """Create a schedule, or change the one of this name. Raises BadInput.

    cron: minute, hour, day of month, month, day of week; or six fields, with seconds first. It
    means the time on a clock in `timezone`. missed: for which ticks a task is started when none
    was in time, because no worker looked: "none", the "latest", or "all".

    A different cron or timezone holds from now on, and ticks that were missed are forgotten.
    Otherwise the next tick stays as it is, and so does a pause: a program may set its schedules
    whenever it starts.
    """
    check_name(name)
    if missed not in ("none", "latest", "all"):
        raise BadInput(f"missed is 'none', 'latest' or 'all', not {missed!r:.50}")
    check_task(task)
    chosen, text = check_options(**options), to_json(input)
    queries = Querier(connection)
    stored = 0
    while not stored:
        next_at = next_tick(cron, timezone, clock(queries))
        stored = queries.put_schedule(
            name=name,
            cron=cron,
            timezone=timezone,
            missed=missed,
            task=task,
            input=text,
            next_at=next_at,
            **chosen,
        )


def pause(connection: sa.Connection, name: str) -> None:
    """No more ticks, until `resume`. Raises BadInput."""
    check_name(name)
    if Querier(connection).pause_schedule(name=name) == 0:
        raise BadInput(f"there is no schedule {name!r}")


def resume(connection: sa.Connection, name: str) -> None:
    """Go on with the next tick from now; those during the pause are forgotten. Raises BadInput.

    One that ticks already stays as it is.
    """
    check_name(name)
    queries = Querier(connection)
    while schedule := queries.get_schedule(name=name):
        if schedule.next_at is not None:
            return
        cron, timezone = schedule.cron, schedule.timezone
        next_at = next_tick(cron, timezone, clock(queries))
        if queries.resume_schedule(name=name, cron=cron, timezone=timezone, next_at=next_at):
            return
    raise BadInput(f"there is no schedule {name!r}")


def delete(connection: sa.Connection, name: str) -> None:
    """The tasks that it has started stay. Raises BadInput."""
    check_name(name)
    if Querier(connection).delete_schedule(name=name) == 0:
        raise BadInput(f"there is no schedule {name!r}")


def check_name(name: object) -> None:
    if not (isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", name)):
        raise BadInput(
            f"a schedule is named with 1 to 100 letters, digits, _ . -, not {name!r:.50}"
        )


def clock(queries: Querier) -> datetime:
    """Of the database."""
    now = queries.now()
    assert now is not None, "a select without a table returns its row"
    return now


def next_tick(cron: object, timezone: object, after: datetime) -> datetime:
    """The first tick after that moment, in UTC. Raises BadInput."""
    if not (isinstance(timezone, str) and timezone in ZONES):
        raise BadInput(f"a time zone has a name such as UTC or Europe/Berlin, not {timezone!r:.50}")
    if not (isinstance(cron, str) and len(cron) <= MAX_CRON_CHARACTERS):
        raise BadInput(
            f"cron is a text of up to {MAX_CRON_CHARACTERS} characters, not {cron!r:.50}"
        )
    try:
        ticks = CronSim(cron, after.astimezone(ZoneInfo(timezone)))
        # In an hour that comes twice, CronSim may begin with a tick of the first pass: it is past.
        return next(at for tick in ticks if (at := tick.astimezone(UTC)) > after)
    except CronSimError as error:
        why = str(error)
    except StopIteration:
        why = "no such date within 50 years"
    fields = "minute, hour, day of month, month, day of week"
    raise BadInput(f"{cron!r:.50}: {why}; cron is {fields}, as in '30 2 * * *'")


def tick(queries: Querier) -> int:
    """Start the tasks of all schedules that are due, as all other workers do; how many it was.

    Raises DBAPIError if the database refuses them all, or cannot be reached.
    """
    due = list(queries.list_due_schedules())
    started = refused = 0
    for schedule in due:
        try:
            started += start(queries, schedule)
        except DBAPIError as error:  # the others are not to blame
            refused += 1
            if unreachable(error) or refused == len(due):
                raise
            complain(error)
    return started


def start(queries: Querier, schedule: ListDueSchedulesRow) -> int:
    """How many tasks it has started."""
    name, ticks, next_at, error = schedule.name, list[datetime](), None, None
    try:
        ticks, next_at = due_ticks(schedule)
    except BadInput as bad:  # somebody has typed it into the table
        error = describe(bad)
        log.warning("schedule %s is paused: %s", name, error)
    return queries.start_ticks(
        name=name,
        cron=schedule.cron,
        timezone=schedule.timezone,
        missed=schedule.missed,
        was_due_at=schedule.next_at,
        keys=[f"schedule {name} {at:%Y-%m-%dT%H:%M:%SZ}" for at in ticks],
        next_at=next_at,
        error=error,
    )


def due_ticks(schedule: ListDueSchedulesRow) -> tuple[list[datetime], datetime]:
    """The ticks to start a task for, and the tick that comes after them. Raises BadInput."""
    at, now = schedule.next_at, schedule.now
    after = partial(next_tick, schedule.cron, schedule.timezone)
    if schedule.missed == "all":
        ticks: list[datetime] = []
        while at <= now and len(ticks) < MAX_TICKS:
            ticks.append(at)
            at = after(at)
        return ticks, at
    # The latest one is between `at` and `end`, and each look leaves out half of what lies between.
    end = now
    while end - at >= SECOND:
        middle = at + (end - at) / 2
        if (later := after(middle)) <= now:
            at = later
        else:
            end = middle
    late = schedule.missed == "none" and now - at > ON_TIME
    return [] if late else [at], after(now)
