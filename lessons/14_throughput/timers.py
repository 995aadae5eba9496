"""Timers: entries that the clock completes. A task that waits for one holds no slot."""

from datetime import UTC, datetime, timedelta

from children import Children, Pending
from errors import final
from inputs import BadInput, check_duration


class Timers(Children):
    """The part of a Context that has to do with time.

    A duration begins when the timer is recorded, by the database's clock. No later run begins it
    again; each must ask for the same one.
    """

    def timer(self, duration: timedelta) -> Pending[None]:
        """Start a timer, and do not wait for it: `as_completed` takes it along with children."""
        with final():
            check_duration("duration", duration)
        return self._open_timer("sleep", duration.total_seconds(), duration=duration)

    def sleep(self, duration: timedelta) -> None:
        """Go on after so long, whatever happens to this process meanwhile."""
        self.result(self.timer(duration))

    def sleep_until(self, moment: datetime) -> None:
        """Go on at this moment; if it is past, at once."""
        with final():
            moment = in_utc(moment)
        self.result(self._open_timer("sleep_until", moment.isoformat(), moment=moment))


def in_utc(moment: object) -> datetime:
    """The same moment, and always the same text for it. BadInput for a time of no time zone."""
    if not isinstance(moment, datetime) or moment.utcoffset() is None:
        raise BadInput(f"a moment is a datetime with a time zone, not {moment!r:.100}")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise BadInput(f"{moment} is outside of the years 1 to 9999 in UTC") from None
