"""Exercise 1: the first child that succeeds, and the same one in every run."""

import threading
from datetime import timedelta

import pytest

from shared.testing import wait_for_status, working


def test_1_first(lesson, db):
    runs: list[str] = []
    over = threading.Event()

    @lesson.tasks.task
    def ask(carrier):
        if carrier == "slow":
            over.wait(20)
        if carrier == "closed":
            raise lesson.tasks.NonRetryableError("closed")
        return carrier

    @lesson.context.durable
    def quickest(ctx, carriers):
        # One after the other: `closed` has ended before the others can.
        pending = []
        for carrier in carriers:
            pending.append(ctx.spawn(ask, carrier))
            if carrier == "closed":
                with pytest.raises(lesson.children.ChildError):
                    ctx.result(pending[-1])
        runs.append(ctx.first(*pending))
        if len(runs) == 1:
            over.set()
            raise ValueError("run again")
        return runs[-1]

    @lesson.context.durable
    def none_works(ctx, carriers):
        return ctx.first(*(ctx.spawn(ask, carrier) for carrier in carriers))

    assert hasattr(lesson.context.Context, "first"), "Context.first is yours to write"
    timing = lesson.timing.Timing(first_backoff=timedelta(seconds=0.01))
    with db.autocommit.connect() as connection:
        one = lesson.tasks.enqueue(connection, "quickest", ["slow", "closed", "quick", "slow"])
        none = lesson.tasks.enqueue(connection, "none_works", ["closed", "closed"])
    with working(lesson.worker.Worker(db, "w", slots=4, timing=timing)):
        row = wait_for_status(db, one, "succeeded", "failed")
        assert (row.status, row.output, runs) == ("succeeded", "quick", ["quick", "quick"])
        row = wait_for_status(db, none, "succeeded", "failed")
    assert (row.status, row.error) == ("failed", "ChildError: ask: NonRetryableError: closed")
