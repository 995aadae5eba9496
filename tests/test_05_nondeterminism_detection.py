"""Lesson 05: a function that asks for something else than its log has recorded is told so."""

import inspect
import json
from contextlib import suppress
from datetime import timedelta

import pytest

from shared.processes import wait_until
from shared.testing import task_row, wait_for_status, working

MINUTE = timedelta(minutes=1)

# What the steps have done in the outside world, and the steps that fail.
effects = []
broken = set()


@pytest.fixture(autouse=True)
def fresh_world():
    effects.clear()
    broken.clear()


def step(name):
    """A function for `ctx.step`, of that name, which notes what it does and returns it."""

    def function(_key, *args, **kwargs):
        if name in broken:
            raise ConnectionError(f"{name} does not answer")
        effects.append(name)
        return [name, *args, *kwargs.values()]

    function.__name__ = name
    return function


charge, debit, reserve = step("charge"), step("debit"), step("reserve")
confirm, discount, check = step("confirm"), step("discount"), step("check")


def execute(db, statement, *parameters):
    with db.connect(autocommit=True) as connection:
        cursor = connection.execute(statement, parameters)
        return cursor.fetchall() if cursor.description else []


def log_of(db, id):
    return execute(
        db,
        "select position, kind, name, input::text, output::text, error::text, attempt"
        " from event_log where task_id = %s order by position",
        id,
    )


def deploy(lesson, function):
    """This is the code from now on; the name of the task is that of the function."""
    lesson.tasks.registry.pop(function.__name__, None)
    lesson.durable.durable(function)


def attempt(lesson, db, id, function):
    """One attempt with this code; the task's row after it."""
    deploy(lesson, function)
    execute(db, "update tasks set status = 'queued' where id = %s and status = 'waiting'", id)
    with working(lesson.worker.Worker(db, "w")):
        return wait_for_status(db, id, "succeeded", "failed", "waiting")


def begin(lesson, db, function, **options):
    """A new task and its first attempt; its id."""
    lesson.worker.backoff = lambda _attempt: MINUTE  # nobody runs it before `attempt` does
    deploy(lesson, function)
    with db.autocommit.connect() as connection:
        id = lesson.tasks.enqueue(connection, function.__name__, 7, **options)
    attempt(lesson, db, id, function)
    return id


def retry(lesson, db, id):
    with db.autocommit.connect() as connection:
        return lesson.queries.Querier(connection).revive_task(id=id)


def line_of(function, mark):
    """The number of the line of the function that holds `mark`."""
    lines, first = inspect.getsourcelines(function)
    return next(first + n for n, line in enumerate(lines) if mark in line)


def columns(row):
    """The message's table: title -> (mark, recorded, asked)."""
    table = {}
    for line in row.error.splitlines()[2:5]:
        mark, title, rest = line[2], line[4:10].strip(), line[11:]
        table[title] = (mark, rest[:38].strip(), rest[38:].strip())
    return table


def order(ctx, id):
    """The code as it was: two steps are recorded, and the third has failed."""
    ctx.step(charge, id, 10)
    ctx.step(reserve, id, 2)
    ctx.step(confirm, id)
    return "done"


def order_under_way(lesson, db):
    broken.add("confirm")
    id = begin(lesson, db, order)
    assert task_row(db, id).status == "waiting"
    assert effects == ["charge", "reserve"]
    broken.clear()
    return id


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


def ends_early():
    def order(ctx, id):  # caught
        ctx.step(charge, id, 10)

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
    row = attempt(lesson, db, id, code)
    assert (row.status, row.attempt) == ("failed", 2), "it is not tried again"
    assert effects == ["charge", "reserve"], "nothing was done"
    assert log_of(db, id) == log, "nothing was written"
    assert row.error.startswith(f"NonDeterminismError: at position {position}, ")
    assert columns(row) == {
        title: (" " if was == now else "≠", was, now)
        for title, was, now in zip(("kind", "name", "input"), recorded, asked, strict=True)
    }
    place = f'  File "{__file__}", line {line_of(code, "# caught")}, in order\n'
    assert place in row.error
    assert f"`python main.py retry {id}`" in row.error


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_put_right_and_retried_it_finishes_with_each_step_done_once(lesson, db, edit):
    id = order_under_way(lesson, db)
    attempt(lesson, db, id, edit())
    assert retry(lesson, db, id) == 1
    row = attempt(lesson, db, id, order)
    assert (row.status, row.output, row.attempt) == ("succeeded", "done", 3)
    assert effects == ["charge", "reserve", "confirm"]
    assert [entry[6] for entry in log_of(db, id)] == [1, 1, 3], "by which attempt"


def test_a_retry_by_hand_is_one_more_attempt_than_the_most(lesson, db):
    broken.add("confirm")
    id = begin(lesson, db, order, max_attempts=2)
    assert attempt(lesson, db, id, swapped()).status == "failed"
    assert retry(lesson, db, id) == 1
    row = attempt(lesson, db, id, order)
    assert (row.status, row.attempt) == ("failed", 3), "there is no fourth"
    broken.clear()
    assert retry(lesson, db, id) == 1
    assert attempt(lesson, db, id, order).status == "succeeded"
    assert retry(lesson, db, id) == 0, "terminal is terminal"


def test_only_a_failed_task_is_retried(lesson, db):
    id = order_under_way(lesson, db)
    assert retry(lesson, db, id) == 0
    assert task_row(db, id).status == "waiting"


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
    row = attempt(lesson, db, id, code)
    assert row.status == "failed"
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
    row = attempt(lesson, db, id, swallows)
    assert (row.status, row.output) == ("failed", None)


def test_no_except_exception_takes_it_for_a_failure_of_the_step(lesson, db):
    def compensates(ctx, id):
        try:
            ctx.step(discount, id)
        except Exception:
            effects.append("refund")

    id = begin(lesson, db, one_step)
    compensates.__name__ = "one_step"
    assert attempt(lesson, db, id, compensates).status == "failed"
    assert effects == ["charge"], "there was nothing to refund"


def test_a_function_that_skips_its_last_steps_does_not_succeed(lesson, db):
    id = order_under_way(lesson, db)
    row = attempt(lesson, db, id, ends_early())
    assert (row.status, row.output) == ("failed", None)


def test_a_function_that_ends_early_with_no_json_is_told_so_too(lesson, db):
    id = order_under_way(lesson, db)

    def order_(ctx, id):
        ctx.step(charge, id, 10)
        return {1, 2}

    order_.__name__ = "order"
    row = attempt(lesson, db, id, order_)
    assert row.status == "failed"
    assert row.error.startswith("NonDeterminismError: at position 2, ")


def test_a_function_that_raises_before_its_entries_has_only_failed(lesson, db):
    id = order_under_way(lesson, db)

    def raises(ctx, id):
        ctx.step(charge, id, 10)
        raise RuntimeError("the network is down")

    raises.__name__ = "order"
    row = attempt(lesson, db, id, raises)
    assert (row.status, row.error) == ("waiting", "RuntimeError: the network is down")
    assert attempt(lesson, db, id, order).status == "succeeded"
    assert effects == ["charge", "reserve", "confirm"]


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
    row = attempt(lesson, db, id, asks)
    assert row.status == ("succeeded" if same else "failed")
    if not same:
        assert columns(row)["input"][1] != columns(row)["input"][2]


def test_by_position_and_by_keyword_are_two_inputs(lesson, db):
    ways = iter([((7,), {}), ((), {"order": 7})])

    def asks(ctx, _):
        args, kwargs = next(ways)
        ctx.step(charge, *args, **kwargs)
        raise RuntimeError

    id = begin(lesson, db, asks)
    row = attempt(lesson, db, id, asks)
    assert row.status == "failed", row.error
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
    row = attempt(lesson, db, id, packs)
    assert (row.status, row.output) == ("succeeded", [1, {"items": []}, []])


def test_a_failed_last_step_may_be_replaced(lesson, db):
    """Nothing depends on it yet: that is how a broken step is mended without a new task."""
    id = order_under_way(lesson, db)

    def mended(ctx, id):
        ctx.step(charge, id, 10)
        ctx.step(reserve, id, 2)
        ctx.step(discount, id)
        return ctx.step(confirm, id)

    mended.__name__ = "order"
    assert attempt(lesson, db, id, mended).status == "succeeded"
    assert [entry[2] for entry in log_of(db, id)] == ["charge", "reserve", "discount", "confirm"]


def test_an_error_on_which_the_function_went_on_may_not_be_replaced(lesson, db):
    def goes_on(ctx, id):
        with suppress(lesson.durable.StepError):
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
    row = attempt(lesson, db, id, edited)
    assert row.error.startswith("NonDeterminismError: at position 1, ")
    assert effects == ["reserve"]


def test_a_step_that_is_refused_leaves_no_hole_in_the_log(lesson, db):
    def asks(ctx, id):
        with suppress(lesson.tasks.BadInput):
            ctx.step(charge, {1, 2})
        ctx.step(reserve, id)
        ctx.step(confirm, id)
        return "done"

    broken.add("confirm")
    id = begin(lesson, db, asks)
    broken.clear()
    assert attempt(lesson, db, id, asks).output == "done"
    assert [(entry[0], entry[2]) for entry in log_of(db, id)] == [(1, "reserve"), (2, "confirm")]


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
    assert attempt(lesson, db, id, asks).status == "succeeded"
    assert effects == ["lambda", "nested", "charge", "confirm"]
    assert [entry[2] for entry in log_of(db, id)] == ["<lambda>", "nested", "charge", "confirm"]


def test_the_message_shows_where_long_inputs_differ_and_stays_short(lesson, db):
    long = {"before": "x" * 5000, "amount": 10, "sequel": "y" * 200_000}
    amounts = iter([10, 20])

    def asks(ctx, _):
        ctx.step(charge, {**long, "amount": next(amounts)})
        raise RuntimeError

    id = begin(lesson, db, asks)
    # In the order of the keys, the amount comes first; put something long before it.
    long["a"] = "z" * 3000
    row = attempt(lesson, db, id, asks)
    assert row.error.startswith("NonDeterminismError")
    assert len(row.error) < 2000
    assert row.error.rstrip().endswith("use what it returns.")

    inputs = iter([{"a": "z" * 3000, "b": 10}, {"a": "z" * 3000, "b": 20}])

    def asks_again(ctx, _):
        ctx.step(charge, next(inputs), "y" * 3000)
        raise RuntimeError

    row = attempt(lesson, db, begin(lesson, db, asks_again), asks_again)
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
    row = attempt(lesson, db, id, asks)
    assert row.status == "failed"
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
    row = attempt(lesson, db, begin(lesson, db, module["asks"]), module["asks"])
    assert f'  File "{file}", line 2, in asks\n' in row.error
    assert ("ctx.step(step(next(names)))" in row.error) == source_is_there
    assert len(row.error) < 2000
    assert row.error.rstrip().endswith("use what it returns.")


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

    row = attempt(lesson, db, id, asks)
    assert (row.status, row.output) == ("succeeded", ["a pen for 7", ["confirm"]])


def test_the_recorded_input_is_what_the_step_was_given(lesson, db):
    def asks(ctx, id):
        ctx.step(charge, id, amount=10)

    id = begin(lesson, db, asks)
    assert json.loads(log_of(db, id)[0][3]) == [[7], {"amount": 10}]


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


def test_a_task_that_was_not_started_in_time_can_be_retried(lesson, db):
    """It has made no attempt yet, and its time is over; both must not stand in the way."""
    with db.autocommit.connect() as connection:
        queue = lesson.queries.Querier(connection)
        soon = timedelta(0)
        id = lesson.tasks.enqueue(connection, "divide", [6, 3], start_timeout=soon)
        wait_until(lambda: queue.expire_tasks() == 1, "it has expired")
        assert queue.revive_task(id=id) == 1
        assert queue.expire_tasks() == 0
    with working(lesson.worker.Worker(db, "w")):
        assert wait_for_status(db, id, "succeeded", "failed").output == 2
