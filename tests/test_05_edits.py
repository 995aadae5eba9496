"""Lesson 05: a function that asks for something else than its log has recorded is told so."""

from contextlib import suppress

import pytest

from shared.testing import task_row
from tests.helpers import log_of
from tests.shop import (
    begin,
    broken,
    charge,
    check,
    columns,
    confirm,
    debit,
    deployed,
    discount,
    effects,
    ends_early,
    line_of,
    order,
    order_under_way,
    reserve,
    retry,
    unfit,
)

# Edits of a function under way


def inserted():
    def order(ctx, id):
        ctx.step(check, id)  # caught
        ctx.step(charge, id, 10)
        ctx.step(reserve, id, 2)
        ctx.step(confirm, id)

    return order


def removed():
    def order(ctx, id):
        ctx.step(reserve, id, 2)  # caught
        ctx.step(confirm, id)

    return order


def swapped():
    def order(ctx, id):
        ctx.step(reserve, id, 2)  # caught
        ctx.step(charge, id, 10)
        ctx.step(confirm, id)

    return order


def renamed():
    def order(ctx, id):
        ctx.step(debit, id, 10)  # caught
        ctx.step(reserve, id, 2)
        ctx.step(confirm, id)

    return order


def other_input():
    def order(ctx, id):
        ctx.step(charge, id, 20)  # caught
        ctx.step(reserve, id, 2)
        ctx.step(confirm, id)

    return order


def repeated():
    def order(ctx, id):
        for _ in range(2):
            ctx.step(charge, id, 10)  # caught
        ctx.step(reserve, id, 2)
        ctx.step(confirm, id)

    return order


def at_random():
    coin = [True]

    def order(ctx, id):
        if coin.pop():
            ctx.step(discount, id)  # caught
        ctx.step(charge, id, 10)
        ctx.step(reserve, id, 2)
        ctx.step(confirm, id)

    return order


# position, recorded, asked
EDITS = {
    inserted: (1, ("step", "charge", "[[7, 10], {}]"), ("step", "check", "[[7], {}]")),
    removed: (1, ("step", "charge", "[[7, 10], {}]"), ("step", "reserve", "[[7, 2], {}]")),
    swapped: (1, ("step", "charge", "[[7, 10], {}]"), ("step", "reserve", "[[7, 2], {}]")),
    renamed: (1, ("step", "charge", "[[7, 10], {}]"), ("step", "debit", "[[7, 10], {}]")),
    other_input: (1, ("step", "charge", "[[7, 10], {}]"), ("step", "charge", "[[7, 20], {}]")),
    repeated: (2, ("step", "reserve", "[[7, 2], {}]"), ("step", "charge", "[[7, 10], {}]")),
    at_random: (1, ("step", "charge", "[[7, 10], {}]"), ("step", "discount", "[[7], {}]")),
    ends_early: (2, ("step", "reserve", "[[7, 2], {}]"), ("return", "order", "null")),
}


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_an_edit_of_a_function_under_way_is_caught(lesson, db, edit):
    position, recorded, asked = EDITS[edit]
    id = order_under_way(lesson, db)
    log = log_of(db, id)
    code = edit()
    row = deployed(lesson, db, id, code)
    assert (row.status, row.attempt) == (unfit(lesson), 2), "it is not tried again"
    assert effects == ["charge", "reserve"], "nothing was done"
    assert log_of(db, id) == log, "nothing was written"
    assert row.error.startswith(f"NonDeterminismError: at position {position}, ")
    assert columns(row) == {
        title: (" " if was == now else "≠", was, now)
        for title, was, now in zip(("kind", "name", "input"), recorded, asked, strict=True)
    }
    place = f'  File "{code.__code__.co_filename}", line {line_of(code, "# caught")}, in order\n'
    assert place in row.error
    assert f"`python main.py retry {id}`" in row.error


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_put_right_and_retried_it_finishes_with_each_step_done_once(lesson, db, edit):
    id = order_under_way(lesson, db)
    deployed(lesson, db, id, edit())
    assert retry(lesson, db, id) == 1
    row = deployed(lesson, db, id, order)
    assert (row.status, row.output, row.attempt) == ("succeeded", "done", 3)
    assert effects == ["charge", "reserve", "confirm"]
    assert [entry.attempt for entry in log_of(db, id)] == [1, 1, 3], "by which attempt"


@pytest.mark.until(13, why="a run whose log does not fit uses up no attempt")
def test_a_retry_by_hand_is_one_more_attempt_than_the_most(lesson, db):
    broken.add("confirm")
    id = begin(lesson, db, order, max_attempts=2)
    assert deployed(lesson, db, id, swapped()).status == "failed"
    assert retry(lesson, db, id) == 1
    row = deployed(lesson, db, id, order)
    assert (row.status, row.attempt) == ("failed", 3), "there is no fourth"
    broken.clear()
    assert retry(lesson, db, id) == 1
    assert deployed(lesson, db, id, order).status == "succeeded"
    assert retry(lesson, db, id) == 0, "terminal is terminal"


def test_a_retried_task_keeps_its_log(lesson, db):
    broken.add("confirm")
    id = begin(lesson, db, order, max_attempts=1)
    broken.clear()
    assert task_row(db, id).status == "failed"
    assert retry(lesson, db, id) == 1
    row = deployed(lesson, db, id, order)
    assert row.output == "done", row.error
    assert effects == ["charge", "reserve", "confirm"]


def test_only_a_failed_task_is_retried(lesson, db):
    id = order_under_way(lesson, db)
    assert retry(lesson, db, id) == 0
    assert task_row(db, id).status == "waiting"


def test_a_failed_last_step_may_be_replaced(lesson, db):
    """Nothing depends on it yet: that is how a broken step is mended without a new task."""
    id = order_under_way(lesson, db)

    def mended(ctx, id):
        ctx.step(charge, id, 10)
        ctx.step(reserve, id, 2)
        ctx.step(discount, id)
        return ctx.step(confirm, id)

    mended.__name__ = "order"
    assert deployed(lesson, db, id, mended).status == "succeeded"
    assert [entry.name for entry in log_of(db, id)] == ["charge", "reserve", "discount", "confirm"]


def test_an_error_on_which_the_function_went_on_may_not_be_replaced(lesson, db):
    def goes_on(ctx, id):
        with suppress(lesson.errors.StepError):
            ctx.step(charge, id)
        ctx.step(reserve, id)
        raise RuntimeError

    broken.add("charge")
    id = begin(lesson, db, goes_on)
    broken.clear()

    def edited(ctx, id):
        ctx.step(debit, id)
        ctx.step(reserve, id)

    edited.__name__ = "goes_on"
    row = deployed(lesson, db, id, edited)
    assert row.error.startswith("NonDeterminismError: at position 1, ")
    assert effects == ["reserve"]


def test_a_step_that_is_refused_leaves_no_hole_in_the_log(lesson, db):
    def asks(ctx, id):
        with suppress(lesson.inputs.BadInput):
            ctx.step(charge, {1, 2})
        ctx.step(reserve, id)
        ctx.step(confirm, id)
        return "done"

    broken.add("confirm")
    id = begin(lesson, db, asks)
    broken.clear()
    assert deployed(lesson, db, id, asks).output == "done"
    assert [(entry.position, entry.name) for entry in log_of(db, id)] == [
        (1, "reserve"),
        (2, "confirm"),
    ]


def test_lambdas_nested_functions_and_methods_can_be_steps(lesson, db):
    class Shop:
        def charge(self, _key, amount):
            effects.append("charge")
            return amount

    def asks(ctx, id):
        def nested(_key, n):
            effects.append("nested")
            return n

        ctx.step(lambda _key, n: effects.append("lambda") or n, id)
        ctx.step(nested, id)
        ctx.step(Shop().charge, 10)
        ctx.step(confirm)
        return "done"

    broken.add("confirm")
    id = begin(lesson, db, asks)
    broken.clear()
    assert deployed(lesson, db, id, asks).status == "succeeded"
    assert effects == ["lambda", "nested", "charge", "confirm"]
    assert [entry.name for entry in log_of(db, id)] == ["<lambda>", "nested", "charge", "confirm"]


# Idempotency keys, of steps that stand at the open end of the log


def test_a_key_is_never_another_steps(lesson, db):
    """The failed step may have been done. What is put into its place must not look like it."""
    keys = {}

    def charge(key, amount):
        keys.setdefault(f"charge {amount}", set()).add(key)
        raise ConnectionError

    def refund(key, amount):
        keys.setdefault(f"refund {amount}", set()).add(key)
        raise ConnectionError

    def code(*steps):
        def order(ctx, _id):
            for function, amount in steps:
                ctx.step(function, amount)

        return order

    id = begin(lesson, db, code((charge, 10)))
    deployed(lesson, db, id, code((refund, 10)))  # another function in its place
    deployed(lesson, db, id, code((charge, 20)))  # the same with another input
    deployed(lesson, db, id, code((charge, 10)))  # put back
    assert [len(each) for each in keys.values()] == [1, 1, 1]
    assert len(set.union(*keys.values())) == 3


def test_a_failed_step_keeps_its_key_if_a_step_is_put_before_it(lesson, db):
    keys = []

    def charge(key, _id):
        keys.append(key)
        if len(keys) == 1:
            raise ConnectionError

    def order(ctx, id):
        ctx.step(charge, id)

    id = begin(lesson, db, order)

    def edited(ctx, id):
        ctx.step(check, id)
        ctx.step(charge, id)

    edited.__name__ = "order"
    assert deployed(lesson, db, id, edited).status == "succeeded"
    assert [entry.name for entry in log_of(db, id)] == ["check", "charge"]
    assert keys[0] == keys[1], "whoever was charged can tell"


# The story's table of identities and edits


RIGHT, CAUGHT = "goes on", "caught"


VERDICTS = {
    "none": (RIGHT, RIGHT, RIGHT, RIGHT),
    "inserted": (
        "wrong: check, charge 10\ntwice: reserve\nnever: check",
        RIGHT,
        CAUGHT,
        CAUGHT,
    ),
    "removed": (
        "wrong: reserve, confirm\nleft over: charge 10\nnever: confirm",
        "left over: charge 10",
        CAUGHT,
        CAUGHT,
    ),
    "swapped": ("wrong: reserve, charge 10", RIGHT, CAUGHT, CAUGHT),
    "renamed": (RIGHT, "twice: charge 10", CAUGHT, CAUGHT),
    "other input": (
        "wrong: charge 20\nleft over: charge 10\nnever: charge 20",
        "wrong: charge 20\nleft over: charge 10\nnever: charge 20",
        "wrong: charge 20\nleft over: charge 10\nnever: charge 20",
        CAUGHT,
    ),
    "repeated": (
        "wrong: charge 10\ntwice: reserve\nnever: charge 10",
        RIGHT,
        CAUGHT,
        CAUGHT,
    ),
}


@pytest.mark.until(6, why="lesson 06's story is another")
def test_the_exhibit_says_what_each_identity_makes_of_each_edit(lesson):
    main = lesson.main
    assert list(main.EDITS) == list(VERDICTS)
    assert list(main.IDENTITIES) == [
        "position",
        "name",
        "position and name",
        "position, name, input",
    ]
    for edit, program in main.EDITS.items():
        verdicts = tuple(main.verdict(program, known_by) for known_by in main.IDENTITIES.values())
        assert verdicts == VERDICTS[edit], edit


@pytest.mark.until(6, why="lesson 06's story is another")
@pytest.mark.parametrize("known_by", ["position", "name", "position and name"])
def test_the_exhibits_last_identity_and_the_engine_agree(lesson, known_by):
    """Whatever another identity gets wrong, the engine's catches: it never does so silently."""
    for edit, program in lesson.main.EDITS.items():
        if lesson.main.verdict(program, lesson.main.IDENTITIES[known_by]) != RIGHT:
            engine = lesson.main.IDENTITIES["position, name, input"]
            assert lesson.main.verdict(program, engine) == CAUGHT, edit
