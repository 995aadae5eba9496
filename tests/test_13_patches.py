"""Lesson 13: a function is changed while it is under way; each run keeps to what it has begun."""

from contextlib import suppress

import pytest

from shared.testing import task_row, wait_for_status, working
from tests.helpers import (
    attempt,
    by_hand,
    claimed,
    define,
    enqueue,
    execute,
    log_of,
    run_once,
)
from tests.shop import (
    begin,
    broken,
    charge,
    check,
    confirm,
    deploy,
    deployed,
    discount,
    effects,
    order,
    order_under_way,
    reserve,
)


def names(db, id):
    return [entry.name for entry in log_of(db, id)]


def patched_order():
    """`order`, with a check before everything else, and a discount before the confirmation."""

    def order(ctx, id):
        if ctx.patched("a check"):
            ctx.step(check, id)
        ctx.step(charge, id, 10)
        ctx.step(reserve, id, 2)
        if ctx.patched("a discount"):
            ctx.step(discount, id)
        ctx.step(confirm, id)
        return "done"

    return order


def test_an_old_run_keeps_its_old_path_and_takes_the_new_one_where_its_log_ends(lesson, db):
    id = order_under_way(lesson, db)
    assert deployed(lesson, db, id, patched_order()).status == "succeeded"
    assert names(db, id) == ["charge", "reserve", "a discount", "discount", "confirm"]
    assert effects == ["charge", "reserve", "discount", "confirm"]


def test_a_new_run_takes_the_new_path(lesson, db):
    id = begin(lesson, db, patched_order())
    assert names(db, id) == [
        *("a check", "check", "charge", "reserve"),
        *("a discount", "discount", "confirm"),
    ]


def test_the_answer_is_the_same_in_every_later_run(lesson, db):
    answers = []

    def order(ctx, id):
        answers.append([ctx.patched("first"), ctx.patched("second")])
        ctx.step(charge, id)
        answers[-1].append(ctx.patched("third"))
        ctx.step(confirm, id)

    broken.add("confirm")
    id = begin(lesson, db, order)
    deployed(lesson, db, id, order)
    broken.clear()
    assert deployed(lesson, db, id, order).status == "succeeded"
    assert answers == 3 * [[True, True, True]]
    assert names(db, id) == ["first", "second", "charge", "third", "confirm"]


def test_a_loop_does_not_change_half_way(lesson, db):
    """Asked anew in each round, it would say no for the rounds that are recorded, and yes after."""

    def rounds(patched):
        def order(ctx, id):
            for n in range(4):
                if patched and ctx.patched("a check in each round"):
                    ctx.step(check, n)
                ctx.step(charge, n)
                if n == 1:
                    ctx.step(confirm, id)

        return order

    broken.add("confirm")
    id = begin(lesson, db, rounds(patched=False))
    broken.clear()
    assert deployed(lesson, db, id, rounds(patched=True)).status == "succeeded"
    assert names(db, id) == ["charge", "charge", "confirm", "charge", "charge"]
    new = begin(lesson, db, rounds(patched=True))
    assert effects.count("check") == 4
    assert names(db, new).count("a check in each round") == 1


def test_a_patch_can_be_taken_out_of_the_code(lesson, db):
    """Markers are answers to questions that nobody has to ask."""

    def new(ctx, id):
        ctx.step(check, id)
        ctx.step(charge, id, 10)
        ctx.step(reserve, id, 2)
        ctx.step(discount, id)
        ctx.step(confirm, id)
        return "done"

    new.__name__ = "order"
    broken.add("confirm")
    id = begin(lesson, db, patched_order())
    broken.clear()
    assert deployed(lesson, db, id, new).output == "done"
    assert effects == ["check", "charge", "reserve", "discount", "confirm"]


def test_markers_at_the_end_of_the_log_may_be_left_over(lesson, db):
    def asks(ctx, id):
        ctx.step(charge, id)
        ctx.patched("a patch")
        raise ConnectionError

    def asks_not(ctx, id):
        ctx.step(charge, id)
        return "done"

    asks_not.__name__ = "asks"
    id = begin(lesson, db, asks)
    assert names(db, id) == ["charge", "a patch"]
    assert deployed(lesson, db, id, asks_not).output == "done"


def swapped(*with_steps):
    """Two patches, asked for in this order."""

    def order(ctx, id):
        for name, with_step in with_steps:
            if ctx.patched(name) and with_step:
                ctx.step(check, name)
        ctx.step(confirm, id)
        return "done"

    return order


def test_markers_that_are_asked_for_in_another_order_say_what_they_said(lesson, db):
    """The answer is in the log, wherever the function asks: it never depends on the order."""
    broken.add("confirm")
    id = begin(lesson, db, swapped(("a", False), ("b", False)))
    broken.clear()
    assert deployed(lesson, db, id, swapped(("b", False), ("a", False))).output == "done"
    assert names(db, id) == ["a", "b", "confirm"]


def test_a_marker_behind_a_step_that_is_asked_for_before_it_is_still_a_yes(lesson, db):
    """Otherwise the run would first do the old thing, and its log says that it has done the new."""
    answers = []

    def before(ctx, id):
        ctx.step(charge, id)
        if ctx.patched("a check"):
            ctx.step(check, id)
        ctx.step(confirm, id)

    def after(ctx, id):
        answers.append(ctx.patched("a check"))
        ctx.step(charge, id)
        if ctx.patched("a check"):
            ctx.step(check, id)
        ctx.step(confirm, id)

    before.__name__ = after.__name__ = "order"
    broken.add("confirm")
    id = begin(lesson, db, before)
    broken.clear()
    assert deployed(lesson, db, id, after).status == "succeeded"
    assert answers == [True]
    assert names(db, id) == ["charge", "a check", "check", "confirm"]


def test_steps_of_patches_in_another_order_do_not_fit(lesson, db):
    broken.add("confirm")
    id = begin(lesson, db, swapped(("a", True), ("b", True)))
    broken.clear()
    row = deployed(lesson, db, id, swapped(("b", True), ("a", True)))
    assert row.status == "waiting"
    assert row.error.startswith("NonDeterminismError: at position 2, ")
    assert effects == ["check", "check"], "nothing was done"


def test_no_without_a_marker_takes_no_position(lesson, db):
    def asks_often(ctx, id):
        for n in range(20):
            assert not ctx.patched(f"patch {n}")
        ctx.step(charge, id, 10)
        ctx.step(reserve, id, 2)
        ctx.step(confirm, id)
        return "done"

    asks_often.__name__ = "order"
    id = order_under_way(lesson, db)
    assert deployed(lesson, db, id, asks_often).output == "done"
    assert names(db, id) == ["charge", "reserve", "confirm"]


def test_behind_children_that_are_under_way_the_new_path_is_open(lesson, db):
    double = define(lesson).double

    def before(ctx, _):
        return ctx.gather(*[ctx.spawn(double, n) for n in (1, 2)])

    def after(ctx, id):
        children = [ctx.spawn(double, n) for n in (1, 2)]
        if ctx.patched("a check"):
            ctx.step(check, id)
        return ctx.gather(*children)

    before.__name__ = after.__name__ = "order"
    deploy(lesson, before)
    id = enqueue(lesson, db, "order", priority=1)
    assert run_once(lesson, db, id).status == "waiting"
    deploy(lesson, after)
    with working(lesson.worker.Worker(db, "w")):
        assert wait_for_status(db, id, "succeeded", "failed").output == [2, 4]
    assert names(db, id) == ["double", "double", "a check", "check"]


# Errors, and what a marker does to them


def test_an_error_at_the_end_gives_way_to_a_marker(lesson, db):
    broken.add("confirm")
    id = begin(lesson, db, order)
    assert [entry.kind for entry in log_of(db, id)] == ["step", "step", "step"]
    deployed(lesson, db, id, patched_order())
    assert [entry.kind for entry in log_of(db, id)] == ["step", "step", "patch", "step", "step"]


def test_a_marker_settles_the_error_that_the_function_has_gone_on_from(lesson, db):
    """Else the step might succeed in a later run, and what followed its failure is recorded."""

    def goes_on(ctx, id):
        with suppress(lesson.errors.StepError):
            ctx.step(charge, id)
        ctx.patched("a patch")
        ctx.step(confirm, id)

    broken.update({"charge", "confirm"})
    id = begin(lesson, db, goes_on)
    first, marker, _ = log_of(db, id)
    assert (first.settled, marker.kind) == (True, "patch")
    broken.clear()
    assert deployed(lesson, db, id, goes_on).status == "succeeded"
    assert effects == ["confirm"], "the charge was not tried again"


def test_a_no_before_an_error_that_a_retry_takes_back_may_become_a_yes(lesson, db):
    """Nothing came after the no: the log is as if it had never been asked for."""

    def before(ctx, id):
        ctx.step(refused, id)

    def after(ctx, id):
        if ctx.patched("a check"):
            ctx.step(check, id)
        ctx.step(refused, id)
        return "done"

    def refused(_key, _id):
        if len(effects) == 0:
            raise lesson.tasks.NonRetryableError("no")

    before.__name__ = after.__name__ = "order"
    id = begin(lesson, db, before)
    assert deployed(lesson, db, id, before).status == "failed"
    by_hand(lesson, db, "retry", id)
    assert deployed(lesson, db, id, after).output == "done"
    assert names(db, id) == ["a check", "check", "refused"]


# Forks and replays


@pytest.mark.parametrize(
    ("position", "kept"), [(0, []), (1, ["charge"]), (2, ["charge", "a patch"])]
)
def test_a_fork_before_a_marker_asks_again_and_one_behind_it_keeps_the_answer(
    lesson, db, position, kept
):
    def order(ctx, id):
        ctx.step(charge, id)
        if ctx.patched("a patch"):
            ctx.step(check, id)
        return "done"

    id = begin(lesson, db, order)
    with db.engine.begin() as connection:
        fork = lesson.control.fork(connection, id, position)
    assert names(db, fork) == kept
    assert deployed(lesson, db, fork, order).output == "done"
    assert names(db, fork) == ["charge", "a patch", "check"]


def test_a_fork_of_an_old_run_takes_the_new_path_from_there_on(lesson, db):
    id = begin(lesson, db, order)
    with db.engine.begin() as connection:
        fork = lesson.control.fork(connection, id, 2)
    assert deployed(lesson, db, fork, patched_order()).output == "done"
    assert names(db, fork) == ["charge", "reserve", "a discount", "discount", "confirm"]


# What is refused


@pytest.mark.parametrize("name", ["", "x" * 201, "a\n", "Zoë", None, 7, ["a"]], ids=repr)
def test_a_bad_name_is_refused_and_takes_no_position(lesson, db, name):
    def order(ctx, id):
        with suppress(lesson.inputs.BadInput):
            ctx.patched(name)
        ctx.step(charge, id)
        ctx.patched(name)

    row = task_row(db, begin(lesson, db, order))
    assert row.status == "failed", "a mistake in the code is one in every run"
    assert "a patch is named with 1 to 200 printable ASCII characters" in row.error
    assert names(db, row.id) == ["charge"]


def test_a_step_cannot_ask(lesson, db):
    def order(ctx, _):
        ctx.patched("a patch")
        ctx.step(lambda _key: ctx.patched("a patch"))

    row = task_row(db, begin(lesson, db, order))
    assert row.status == "failed"
    assert "StepInStep" in row.error


def test_a_run_that_is_not_the_tasks_any_more_writes_no_marker(lesson, db):
    id = enqueue_order(lesson, db)
    with attempt(lesson, db, id) as (ctx, _):
        execute(db, "update tasks set attempt = attempt + 1")
        with pytest.raises(lesson.fence.LostTask):
            ctx.patched("a patch")
    assert log_of(db, id) == []


def enqueue_order(lesson, db):
    deploy(lesson, order)
    return enqueue(lesson, db, "order", 7)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_at_the_markers_commit_leaves_one_answer(lesson, db, when):
    """The next run finds the marker, or asks anew: nothing that depends on it is recorded."""
    answers = []

    def order(ctx, id):
        answers.append(ctx.patched("a patch"))
        ctx.step(charge, id)
        return "done"

    deploy(lesson, order)
    id = enqueue(lesson, db, "order", 7)
    with claimed(lesson, db, id) as (fence, _):
        if when == "after":
            lesson.context.Context(fence).patched("a patch")
    execute(db, "delete from workers")
    with working(lesson.worker.Worker(db, "w")):
        assert wait_for_status(db, id, "succeeded", "failed").output == "done"
    assert answers == [True]
    assert names(db, id) == ["a patch", "charge"]
