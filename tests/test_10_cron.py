"""Lesson 10: at which moments a cron line ticks, and which of them a task is started for."""

from datetime import UTC, datetime, timedelta
from itertools import islice
from types import SimpleNamespace

import pytest

from tests.helpers import one_by_one

HOUR, MINUTE, SECOND = (timedelta(**{unit: 1}) for unit in ("hours", "minutes", "seconds"))


def utc(text):
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def ticks(lesson, cron, start, count, timezone="Europe/Berlin"):
    """The next ticks after a moment in UTC."""

    def each():
        at = utc(start)
        while True:
            at = lesson.schedules.next_tick(cron, timezone, at)
            yield f"{at:%m-%d %H:%M}"

    return list(islice(each(), count))


# In Europe/Berlin, the clock goes from 02:00 to 03:00 on 2026-03-29, and from 03:00 back to 02:00
# on 2026-10-25; both at 01:00 UTC.
NIGHTS = {
    "the hour that does not come: as soon as it is over": (
        "30 2 * * *",
        "2026-03-28T00:00",
        ["03-28 01:30", "03-29 01:00", "03-30 00:30"],
    ),
    "the hour that comes twice: once": (
        "30 2 * * *",
        "2026-10-24T00:00",
        ["10-24 00:30", "10-25 00:30", "10-26 01:30"],
    ),
    "every half hour: in both": (
        "*/30 * * * *",
        "2026-10-25T00:00",
        ["10-25 00:30", "10-25 01:00", "10-25 01:30", "10-25 02:00"],
    ),
    "every half hour: not in the one that does not come": (
        "*/30 * * * *",
        "2026-03-29T00:00",
        ["03-29 00:30", "03-29 01:00", "03-29 01:30"],
    ),
    "nine o'clock moves, in UTC": (
        "0 9 * * *",
        "2026-10-24T00:00",
        ["10-24 07:00", "10-25 08:00", "10-26 08:00"],
    ),
    "two ticks in the hour that does not come are one": (
        "0,30 2 * * *",
        "2026-03-28T12:00",
        ["03-29 01:00", "03-30 00:00", "03-30 00:30"],
    ),
    "six fields: the hour that does not come has no tick": (
        "0 30 2 * * *",
        "2026-03-28T12:00",
        ["03-30 00:30", "03-31 00:30"],
    ),
    "six fields: the hour that comes twice has two": (
        "0 30 2 * * *",
        "2026-10-24T12:00",
        ["10-25 00:30", "10-25 01:30", "10-26 01:30"],
    ),
}


@pytest.mark.parametrize(("cron", "start", "expected"), NIGHTS.values(), ids=NIGHTS.keys())
def test_the_nights_in_which_the_clock_is_changed(lesson, cron, start, expected):
    assert ticks(lesson, cron, start, len(expected)) == expected


def test_no_tick_is_past_though_the_hour_comes_a_second_time(lesson):
    """It is 02:10 for the second time, and 02:30 was before."""
    assert ticks(lesson, "30 2 * * *", "2026-10-25T01:10", 1) == ["10-26 01:30"]


@pytest.mark.parametrize("cron", ["* * * * * *", "30 2 * * *", "*/15 1-3 * * *", "0 2,3 * * 0"])
@pytest.mark.parametrize("night", ["2026-03-28T12:00", "2026-10-24T12:00"])
def test_it_is_the_same_sequence_from_wherever_one_looks(lesson, cron, night):
    def after(at):
        return lesson.schedules.next_tick(cron, "Europe/Berlin", at)

    at, looks = after(utc(night)), 0
    while looks < 40:
        following = after(at)
        assert following > at
        for moment in (at, at + (following - at) / 3, following - timedelta(microseconds=1)):
            assert after(moment) == following
        at, looks = max(following, after(following + MINUTE)), looks + 1


def test_a_date_that_is_rare(lesson):
    assert lesson.schedules.next_tick("0 0 29 2 *", "UTC", utc("2096-03-01")) == utc("2104-02-29")


MISTAKES = {
    "a word": ("garbage", "UTC", "Wrong number of fields; cron is minute, hour"),
    "no word": ("", "UTC", "Wrong number of fields"),
    "three fields": ("* * *", "UTC", "Wrong number of fields"),
    "a minute of 61": ("61 * * * *", "UTC", "Bad minute"),
    "an hour of -1": ("0 -1 * * *", "UTC", "Bad hour"),
    "from 5 to 3": ("0 5-3 * * *", "UTC", "Bad hour"),
    "steps of 0": ("*/0 * * * *", "UTC", "Bad minute"),
    "February 30": ("0 0 30 2 *", "UTC", "Bad day-of-month"),
    "a digit that is none": ("² * * * *", "UTC", "Bad minute"),
    "NUL": ("* * * * *\0", "UTC", "Bad day-of-week"),
    "half a surrogate": ("\ud800 * * * *", "UTC", "Bad minute"),
    "a date that never comes": ("0 0 31 2 */7", "UTC", "Bad day|no such date"),
    "too long": ("0" * 201 + " * * * *", "UTC", "a text of up to 200"),
    "a number": (5, "UTC", "a text of up to 200"),
    "a zone that is not": ("* * * * *", "Mars/Olympus", "a time zone has a name such as"),
    "a path": ("* * * * *", "../../etc/passwd", "a time zone has a name"),
    "an absolute path": ("* * * * *", "/etc/localtime", "a time zone has a name"),
    "a directory": ("* * * * *", "Europe", "a time zone has a name"),
    "that of the machine": ("* * * * *", "localtime", "a time zone has a name"),
    "no zone": ("* * * * *", "", "a time zone has a name"),
    "an offset": ("* * * * *", "+02:00", "a time zone has a name"),
    "a zone with NUL": ("* * * * *", "UTC\0", "a time zone has a name"),
    "a list": ("* * * * *", ["UTC"], "a time zone has a name"),
}


@one_by_one(("cron", "zone", "why"), MISTAKES.values())
def test_a_line_or_a_zone_that_cannot_be_is_refused(lesson, cron, zone, why):
    with pytest.raises(lesson.inputs.BadInput, match=why):
        lesson.schedules.next_tick(cron, zone, utc("2026-01-01"))


def due(lesson, missed, cron, next_at, now, timezone="UTC"):
    row = SimpleNamespace(cron=cron, timezone=timezone, missed=missed, next_at=next_at, now=now)
    return lesson.schedules.due_ticks(row)


NOON = utc("2026-06-01T12:00")


@pytest.mark.parametrize(
    ("missed", "late", "started"),
    [
        ("none", MINUTE / 2, [NOON]),
        ("none", 2 * MINUTE, []),
        ("none", 3 * HOUR, [NOON + 3 * HOUR]),
        ("none", 3 * HOUR + 2 * MINUTE, []),
        ("latest", 2 * MINUTE, [NOON]),
        ("latest", 3 * HOUR + 2 * MINUTE, [NOON + 3 * HOUR]),
        ("all", 2 * MINUTE, [NOON]),
        ("all", 3 * HOUR + 2 * MINUTE, [NOON + n * HOUR for n in range(4)]),
    ],
)
def test_which_ticks_are_made_up_for(lesson, missed, late, started):
    now = NOON + late
    following = NOON + (late // HOUR + 1) * HOUR
    assert due(lesson, missed, "0 * * * *", NOON, now) == (started, following)


@pytest.mark.parametrize("cron", ["*/20 * * * * *", "*/7 * * * *", "0 3 * * *", "30 2 1 * *"])
def test_the_latest_is_the_last_of_all(lesson, cron):
    first = lesson.schedules.next_tick(cron, "Europe/Berlin", utc("2026-10-24T20:00"))
    lesson.schedules.MAX_TICKS = 100_000
    for late in (SECOND / 2, SECOND, MINUTE, HOUR + SECOND / 3, 9 * HOUR, 40 * HOUR):
        all_of_them, following = due(lesson, "all", cron, first, first + late, "Europe/Berlin")
        latest = due(lesson, "latest", cron, first, first + late, "Europe/Berlin")
        assert latest == (all_of_them[-1:], following)


def test_a_long_time_in_which_nobody_looked(lesson):
    """Twenty years of seconds: the latest is found at once, and all come a thousand at a time."""
    now = NOON + timedelta(days=20 * 365)
    assert due(lesson, "latest", "* * * * * *", NOON, now) == ([now], now + SECOND)
    started, following = due(lesson, "all", "* * * * * *", NOON, now)
    assert started == [NOON + n * SECOND for n in range(1000)]
    assert following == NOON + 1000 * SECOND
