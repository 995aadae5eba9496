"""Versions of the code: which worker runs which task, and what to do with the last old ones."""

import re
from functools import partial

import sqlalchemy as sa

from connection import all_but_refused
from db.queries import Querier
from inputs import BadInput


def check_version(version: object) -> None:
    """BadInput for what is no version of code: a release, or a tag, that people have given."""
    if not (isinstance(version, str) and re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", version)):
        raise BadInput(
            f"a version is named with 1 to 100 letters, digits, _ . -, not {version!r:.50}"
        )


def unpark(queries: Querier, worker_id: int) -> list[int]:
    """A chore: what waits for other code, and this worker's code has not tried, is queued."""
    return all_but_refused(partial(queries.unpark_tasks, worker_id=worker_id))


def move_version(connection: sa.Connection, old: str, new: str) -> int:
    """Let workers of another version end what this one has begun; how many tasks. Raises BadInput.

    new: "" lets workers of any version try. A task that does not fit the code of the new version is
    parked, and can be moved back.
    """
    check_version(old)
    if new != "":
        check_version(new)
    if new == old:
        raise BadInput(f"the tasks of version {old} are of that version already")
    return Querier(connection).move_version(from_version=old, to_version=new)
