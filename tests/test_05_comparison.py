"""Lesson 05: what is compared of a step, and how a difference is shown."""

from types import SimpleNamespace

import pytest

from tests.helpers import log_of
from tests.shop import begin, broken, charge, columns, confirm, deployed, step, unfit

# The question beside the entry

TASK = SimpleNamespace(id=5, name="order")
INPUT = [[7], {"amount": 10, "items": 2}]
CHARGED = SimpleNamespace(position=3, kind="step", name="charge", input=INPUT)


@pytest.mark.parametrize(
    ("asked", "marked"),
    [
        (("step", "charge", INPUT), []),
        (("step", "charge", [[7], {"items": 2, "amount": 10}]), []),
        (("child", "charge", INPUT), ["kind"]),
        (("step", "debit", INPUT), ["name"]),
        (("step", "charge", [[7], {"amount": 20, "items": 2}]), ["input"]),
        (("step", "debit", [[8], {}]), ["name", "input"]),
    ],
)
def test_an_entry_answers_one_question_only(lesson, asked, marked):
    error = lesson.nondeterminism.mismatch(TASK, CHARGED, *asked)
    assert (error is None) == (not marked)
    lines = str(error or "").splitlines()
    assert [line.split()[1] for line in lines if line.startswith("  ≠")] == marked


def test_the_error_names_the_position_the_line_that_asks_and_what_to_do(lesson):
    error = lesson.nondeterminism.mismatch(TASK, CHARGED, "step", "debit", INPUT)
    assert isinstance(error, lesson.fence.Interrupted)
    assert not isinstance(error, Exception), "no `except Exception` swallows it"
    assert str(error).startswith("at position 3, ")
    assert f'  File "{__file__}", line ' in str(error)
    assert lesson.number >= 13 or "`python main.py retry 5`" in str(error), "later: who parks it"


# What is compared


@pytest.mark.parametrize(
    ("recorded", "asked", "same"),
    [
        ({"a": 1, "b": [{"c": 1, "d": 2}]}, {"b": [{"d": 2, "c": 1}], "a": 1}, True),
        ([1, 2], [2, 1], False),
        (1, 1.0, False),
        (1, True, False),
        (0, False, False),
        (0.0, -0.0, False),
        (1, "1", False),
        (1e300, 1e300, True),
        (0.1 + 0.2, 0.1 + 0.2, True),
        (2**70, 2**70, True),
        ("\u00e9", "e\u0301", False),  # look alike
        (None, None, True),
        ({}, None, False),
    ],
)
def test_inputs_are_the_same_if_their_json_is(lesson, db, recorded, asked, same):
    inputs = iter([recorded, asked])

    def asks(ctx, _):
        ctx.step(charge, next(inputs))
        ctx.step(confirm)

    broken.add("confirm")
    id = begin(lesson, db, asks)
    broken.clear()
    row = deployed(lesson, db, id, asks)
    assert row.status == ("succeeded" if same else unfit(lesson))
    if not same:
        assert columns(row)["input"][1] != columns(row)["input"][2]


def test_by_position_and_by_keyword_are_two_inputs(lesson, db):
    ways = iter([((7,), {}), ((), {"order": 7})])

    def asks(ctx, _):
        args, kwargs = next(ways)
        ctx.step(charge, *args, **kwargs)
        raise RuntimeError

    id = begin(lesson, db, asks)
    row = deployed(lesson, db, id, asks)
    assert row.status == unfit(lesson), row.error
    assert columns(row)["input"] == ("≠", "[[7], {}]", '[[], {"order": 7}]')


def test_a_step_that_changes_its_argument_is_no_false_alarm(lesson, db):
    """In a later run the step is not called, and changes nothing."""

    def pack(_key, box, *, more):
        box["items"].append("pen")
        more.append(1)
        return len(box["items"])

    def packs(ctx, _):
        box, more = {"items": []}, []
        packed = ctx.step(pack, box, more=more)
        ctx.step(charge, box, more)
        ctx.step(confirm)
        return [packed, box, more]

    broken.add("confirm")
    id = begin(lesson, db, packs)
    broken.clear()
    row = deployed(lesson, db, id, packs)
    assert (row.status, row.output) == ("succeeded", [1, {"items": []}, []])


def test_what_a_step_does_is_not_compared(lesson, db):
    """The limit of the check: what it was asked, not what it does when asked."""

    def gift(_key, id):
        return f"a pen for {id}"

    def asks(ctx, id):
        return [ctx.step(gift, id), ctx.step(confirm)]

    broken.add("confirm")
    id = begin(lesson, db, asks)
    broken.clear()

    def gift(_key, id):  # noqa: F811  edited
        return f"a car for {id}"

    row = deployed(lesson, db, id, asks)
    assert (row.status, row.output) == ("succeeded", ["a pen for 7", ["confirm"]])


def test_the_recorded_input_is_what_the_step_was_given(lesson, db):
    def asks(ctx, id):
        ctx.step(charge, id, amount=10)

    id = begin(lesson, db, asks)
    assert log_of(db, id)[0].input == [[7], {"amount": 10}]


# The message


def test_the_message_shows_where_long_inputs_differ_and_stays_short(lesson, db):
    long = {"before": "x" * 5000, "amount": 10, "sequel": "y" * 200_000}
    amounts = iter([10, 20])

    def asks(ctx, _):
        ctx.step(charge, {**long, "amount": next(amounts)})
        raise RuntimeError

    id = begin(lesson, db, asks)
    # In the order of the keys, the amount comes first; put something long before it.
    long["a"] = "z" * 3000
    row = deployed(lesson, db, id, asks)
    assert row.error.startswith("NonDeterminismError")
    assert len(row.error) < 2000
    assert "use what it returns." in row.error

    inputs = iter([{"a": "z" * 3000, "b": 10}, {"a": "z" * 3000, "b": 20}])

    def asks_again(ctx, _):
        ctx.step(charge, next(inputs), "y" * 3000)
        raise RuntimeError

    row = deployed(lesson, db, begin(lesson, db, asks_again), asks_again)
    _, recorded, asked = columns(row)["input"]
    assert (recorded[0], recorded[-1]) == ("…", "…")
    assert '"b": 10}' in recorded
    assert '"b": 20}' in asked
    assert recorded.index("10}") == asked.index("20}"), "side by side"


def test_poison_in_names_and_inputs_does_not_break_the_message(lesson, db):
    poison = 'line\nfeed\ttab \x1b[31mred\x1b[0m "quoted" \u202eright to left {braces} [bold]'
    names = iter(["good", poison, poison])

    def asks(ctx, _):
        name = next(names)
        ctx.step(step(name), name)
        raise RuntimeError

    id = begin(lesson, db, asks)
    row = deployed(lesson, db, id, asks)
    assert row.status == unfit(lesson)
    lines = row.error.splitlines()
    assert [line[:10] for line in lines[3:5]] == ["  ≠ name  ", "  ≠ input "]
    assert not set(row.error) & {"\x1b", "\u202e"}
    assert columns(row)["name"][2].startswith("line?feed?tab ?[31mred")


@pytest.mark.parametrize("source_is_there", [True, False])
def test_a_long_line_and_a_long_name_do_not_drown_the_advice(lesson, db, tmp_path, source_is_there):
    names = iter(["good", "n" * 5000])
    source = "def asks(ctx, _):\n    ctx.step(step(next(names)))" + "  # " + "x" * 20_000
    source += "\n    raise RuntimeError"
    file = tmp_path / "long.py"
    if source_is_there:
        file.write_text(source)
    module = {"step": step, "names": names}
    exec(compile(source, file, "exec"), module)
    row = deployed(lesson, db, begin(lesson, db, module["asks"]), module["asks"])
    assert f'  File "{file}", line 2, in asks\n' in row.error
    assert ("ctx.step(step(next(names)))" in row.error) == source_is_there
    assert len(row.error) < 2000
    assert "use what it returns." in row.error
