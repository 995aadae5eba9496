"""What random schedules need: how many there are, and the connections that they share.

Hypothesis draws the schedules, and makes a failing one small. The database is the real one; time
passes by moving the stored instants into the past. In CI the schedules are the same every time.
MODEL_EXAMPLES=1000 draws that many others; with --hypothesis-seed=7, those of that seed.
"""

import os
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

from hypothesis import HealthCheck, Phase, settings

from shared.lessons import lessons, number
from tests.helpers import patiently

EXAMPLES = os.environ.get("MODEL_EXAMPLES")
TERMINAL = ("succeeded", "failed", "cancelled")
LIVE = ("queued", "running", "waiting")


def profile(lesson, examples: int, steps: int) -> settings:
    """Of a lesson before the last, a third: what it has in common with that is tried there."""
    if lesson.number < number(lessons()[-1]):
        examples //= 3
    return settings(
        max_examples=int(EXAMPLES or examples),
        stateful_step_count=steps,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def open_world(lesson, db):
    """A lesson, its fresh tables, and a few connections that stay open for all schedules."""
    with ExitStack() as stack:
        connection = stack.enter_context(db.autocommit.connect())
        transaction = stack.enter_context(db.engine.connect())
        patiently(connection, 10)
        patiently(transaction, 10)
        transaction.commit()
        yield SimpleNamespace(
            lesson=lesson,
            db=db,
            connection=connection,
            transaction=transaction,
            look=stack.enter_context(db.connect(autocommit=True)),
            other=stack.enter_context(db.connect()),
            queue=lesson.queries.Querier(connection),
        )
