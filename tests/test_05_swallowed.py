"""Lesson 05: the function cannot swallow the error."""

from contextlib import suppress

import pytest

from shared.testing import wait_for_status, working
from tests.helpers import enqueue
from tests.shop import (
    begin,
    charge,
    confirm,
    deploy,
    deployed,
    discount,
    effects,
    ends_early,
    order,
    order_under_way,
    unfit,
)


def one_step(ctx, id):
    ctx.step(charge, id)
    raise RuntimeError("and then it failed")


# The function has swallowed the error and goes on: to do steps, to return, to raise something else.
def swallows_and_does_more(ctx, id):
    with suppress(BaseException):
        ctx.step(discount, id)
    ctx.step(confirm, id)
    return "done"


def swallows_and_returns(ctx, id):
    with suppress(BaseException):
        ctx.step(discount, id)
    return "done"


def swallows_again_and_again(ctx, id):
    with suppress(BaseException):
        ctx.step(discount, id)
    with suppress(BaseException):
        ctx.step(confirm, id)
    return "done"


def cleans_up(ctx, id):
    try:
        ctx.step(discount, id)
    finally:
        ctx.step(confirm, id)


def catches_exceptions(ctx, id):
    with suppress(Exception):
        ctx.step(discount, id)
    ctx.step(confirm, id)
    return "done"


def raises_something_else(ctx, id):
    try:
        ctx.step(discount, id)
    except BaseException:
        raise ValueError("in the words of this shop") from None


@pytest.mark.parametrize(
    "code",
    [
        raises_something_else,
        catches_exceptions,
        swallows_and_does_more,
        swallows_and_returns,
        swallows_again_and_again,
        cleans_up,
    ],
    ids=lambda code: code.__name__,
)
def test_the_function_cannot_swallow_the_error(lesson, db, code):
    """There is one entry only: nothing is left of the log that `end` could miss."""
    id = begin(lesson, db, one_step)
    code.__name__ = "one_step"
    row = deployed(lesson, db, id, code)
    assert row.status == unfit(lesson)
    assert row.error.startswith("NonDeterminismError: at position 1, ")
    assert "discount" in row.error, "it is the first error that is told"
    assert row.output is None
    assert effects == ["charge"]


def test_a_bare_except_cannot_make_it_succeed(lesson, db):
    def swallows(ctx, id):
        try:
            ctx.step(discount, id)
        except:  # noqa: E722
            return "as if nothing had been"

    id = begin(lesson, db, one_step)
    swallows.__name__ = "one_step"
    row = deployed(lesson, db, id, swallows)
    assert (row.status, row.output) == (unfit(lesson), None)


def test_no_except_exception_takes_it_for_a_failure_of_the_step(lesson, db):
    def compensates(ctx, id):
        try:
            ctx.step(discount, id)
        except Exception:
            effects.append("refund")

    id = begin(lesson, db, one_step)
    compensates.__name__ = "one_step"
    assert deployed(lesson, db, id, compensates).status == unfit(lesson)
    assert effects == ["charge"], "there was nothing to refund"


def test_a_function_that_skips_its_last_steps_does_not_succeed(lesson, db):
    id = order_under_way(lesson, db)
    row = deployed(lesson, db, id, ends_early())
    assert (row.status, row.output) == (unfit(lesson), None)


def test_a_function_that_ends_early_with_no_json_is_told_so_too(lesson, db):
    id = order_under_way(lesson, db)

    def order_(ctx, id):
        ctx.step(charge, id, 10)
        return {1, 2}

    order_.__name__ = "order"
    row = deployed(lesson, db, id, order_)
    assert row.status == unfit(lesson)
    assert row.error.startswith("NonDeterminismError: at position 2, ")


def test_a_function_that_raises_before_its_entries_has_only_failed(lesson, db):
    id = order_under_way(lesson, db)

    def raises(ctx, id):
        ctx.step(charge, id, 10)
        raise RuntimeError("the network is down")

    raises.__name__ = "order"
    row = deployed(lesson, db, id, raises)
    assert (row.status, row.error) == ("waiting", "RuntimeError: the network is down")
    assert deployed(lesson, db, id, order).status == "succeeded"
    assert effects == ["charge", "reserve", "confirm"]


def test_a_context_ends_with_its_run(lesson, db):
    """Even in the same thread, which runs another task now."""
    kept = []

    def keeps(ctx, _):
        kept.append(ctx)

    def uses(_ctx, id):
        try:
            kept[0].step(charge, id)
        except BaseException as error:
            return str(error)

    deploy(lesson, keeps)
    deploy(lesson, uses)
    enqueue(lesson, db, "keeps")
    id = enqueue(lesson, db, "uses", 7)
    with working(lesson.worker.Worker(db, "w", slots=1)):
        row = wait_for_status(db, id, "succeeded", "failed")
    assert row.output.startswith("only the thread that runs the durable function may use its")
    assert effects == []
