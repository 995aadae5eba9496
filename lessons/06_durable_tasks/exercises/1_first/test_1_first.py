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


def test_1_what_is_no_child_of_this_run_is_refused(lesson, db):
    kept = []

    @lesson.tasks.task
    def ask(carrier):
        return carrier

    @lesson.context.durable
    def of_another_run(ctx, _):
        kept.append(ctx.spawn(ask, "quick"))
        if len(kept) == 1:
            raise ValueError("run again")
        return ctx.first(kept[0])

    @lesson.context.durable
    def of_none(ctx, _):
        return ctx.first()

    assert hasattr(lesson.context.Context, "first"), "Context.first is yours to write"
    timing = lesson.timing.Timing(first_backoff=timedelta(seconds=0.01))
    with db.autocommit.connect() as connection:
        ids = [
            lesson.tasks.enqueue(connection, name, None) for name in ("of_another_run", "of_none")
        ]
    with working(lesson.worker.Worker(db, "w", timing=timing)):
        for id, attempt in zip(ids, (2, 1), strict=True):
            row = wait_for_status(db, id, "succeeded", "failed")
            assert (row.status, row.attempt) == ("failed", attempt), row.output
            assert row.error.startswith("FinalBadInput: "), row.error
