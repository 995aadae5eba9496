"""Events: what happens once, and any number of tasks wait for."""

from datetime import timedelta

import sqlalchemy as sa

from children import Pending
from db.queries import Querier
from inputs import Json, to_json
from signals import Signals, check_topic


class Events(Signals):
    """The part of a Context that has to do with events."""

    def event(self, name: str, *, timeout: timedelta | None = None) -> Pending[Json]:
        """Wait until it has happened, but not yet: as with a child that was spawned."""
        pending = self._open_wait("event", name, timeout)
        if not self._log.is_complete(pending.position):
            id, position = self._task.id, pending.position
            self._fence.send(lambda queries: queries.catch_event(task_id=id, position=position))
        return pending

    def wait_event(self, name: str, *, timeout: timedelta | None = None) -> Json:
        """Wait until it has happened; its payload. Raises WaitTimeout."""
        return self.result(self.event(name, timeout=timeout))


def emit(connection: sa.Connection, name: str, payload: Json = None) -> bool:
    """It has happened: all tasks that wait for it are told, and all that will. Raises BadInput.

    It is one INSERT on the caller's connection, and counts when the caller's transaction commits.
    False: it had happened before, and its first payload stays.
    """
    check_topic(name)
    return Querier(connection).emit_event(name=name, payload=to_json(payload)) == 1
