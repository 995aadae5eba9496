"""Lesson 01: what is enqueued is in the queue, unchanged; what could not be run is refused."""

import pytest

from shared.testing import task_row, wait_for_status, working
from tests.helpers import count, enqueue, execute, one_by_one, run_program, run_verb

# Enqueue


def test_a_row_is_queued_unless_it_says_otherwise(db):
    """The table by itself; nobody has to register or enqueue anything."""
    execute(db, "insert into tasks (name, input) values ('a', '1'), ('b', '{}')")
    rows = execute(db, "select id, status, output, error from tasks order by id")
    assert rows == [(1, "queued", None, None), (2, "queued", None, None)]


def test_an_enqueued_task_waits_in_the_queue(lesson, db):
    id = enqueue(lesson, db, "divide", [6, 3])
    task = task_row(db, id)
    assert (task.name, task.input, task.status) == ("divide", [6, 3], "queued")


def test_an_enqueue_commits_with_the_callers_transaction(lesson, db):
    with db.engine.connect() as connection:
        id = lesson.tasks.enqueue(connection, "divide", [6, 3])
        assert count(db, "queued") == 0, "not committed, so nobody else sees it"
        connection.commit()
    assert task_row(db, id).status == "queued"


def test_an_enqueue_rolls_back_with_the_callers_transaction(lesson, db):
    with db.engine.connect() as connection:
        lesson.tasks.enqueue(connection, "divide", [6, 3])
        connection.rollback()
    assert count(db, "queued") == 0


def test_ids_grow_beyond_32_bits(lesson, db):
    execute(db, f"alter table tasks alter column id restart with {2**31}")
    id = enqueue(lesson, db, "divide", [6, 3])
    assert id == 2**31
    with working(lesson.worker.Worker(db, "w")):
        assert wait_for_status(db, id, "succeeded").output == 2


def deep(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


BAD_INPUTS = {
    "NaN": (float("nan"), "not JSON"),
    "infinity": (float("inf"), "not JSON"),
    "a set": ({"a": {1, 2}}, "not JSON"),
    "bytes": (b"bytes", "not JSON"),
    "half a surrogate": ("\ud800", "not JSON"),
    "5,000 digits": (10**5000, "not JSON"),
    "100,000 levels": (deep(100_000), "not JSON"),
    "NUL": ("NUL: \0", "NUL"),
    "NUL in a key": ({"NUL \0": 1}, "NUL"),
    "too large": ("x" * 1_000_001, "1,000,003 bytes"),
    "a tuple": ((1, 2), "tuples"),
    "a number as a key": ({1: 2}, "keys"),
}


@one_by_one("bad", BAD_INPUTS)
def test_bad_input_is_refused_at_the_door(lesson, db, bad):
    input, why = BAD_INPUTS[bad]
    with pytest.raises(lesson.inputs.BadInput, match=why):
        enqueue(lesson, db, "divide", input)
    assert count(db, "queued") == 0


@pytest.mark.parametrize(
    "input",
    [
        None,
        True,
        0,
        -1.5,
        1e300,
        2**200,
        "",
        "\\u0000 is six characters",
        "Zoë 🎉",
        [],
        {"a": [{}]},
    ],
)
def test_good_input_reaches_the_task_unchanged(lesson, db, input):
    got = []

    @lesson.tasks.task
    def keep(value):
        got.append(value)
        return value

    id = enqueue(lesson, db, "keep", input)
    with working(lesson.worker.Worker(db, "w")):
        task = wait_for_status(db, id, "succeeded")
    assert got == [input]
    assert task.output == input


@pytest.mark.parametrize("name", ["send_recipt", "", "os.system", "divide\0"])
def test_an_unknown_name_is_refused_at_the_door(lesson, db, name):
    with pytest.raises(lesson.inputs.BadInput, match="no task"):
        enqueue(lesson, db, name, 1)


def test_two_functions_cannot_have_one_name(lesson):
    def divide(numbers):
        return numbers

    with pytest.raises(lesson.inputs.BadInput, match="already"):
        lesson.tasks.task(divide)


# The verbs


def test_the_verbs_enqueue_and_status(lesson, db):
    done = run_program(lesson, "enqueue", "divide", "[6, 3]")
    assert (done.returncode, done.stderr) == (0, "")
    assert count(db, "queued") == 1
    shown = run_program(lesson, "status")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "divide" in shown.stdout
    assert "1 queued" in shown.stdout


@one_by_one(
    ("arguments", "says"),
    [
        (("divide", "[6, 3"), "JSON"),
        (("dvide", "[6, 3]"), "no task 'dvide'"),
        (("divide", "NaN"), "JSON"),
    ],
)
def test_the_verb_enqueue_says_what_is_wrong(lesson, db, arguments, says):
    done = run_verb(lesson, "enqueue", *arguments)
    assert done.returncode != 0
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert count(db, "queued") == 0
