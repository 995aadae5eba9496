"""Lesson 14: many tasks are enqueued in one statement."""

import pytest
import sqlalchemy as sa

from shared.testing import task_row, wait_for_status, working
from tests.helpers import BAD_OPTIONS, DAYS, count, execute, refusing

BAD_INPUTS = {
    "no list": (7, "inputs is a list, with one input for each task"),
    "a text": ("abc", "inputs is a list"),
    "a generator": ((n for n in range(3)), "inputs is a list"),
    "a set": ([1, {2}], r"inputs\[1\]: not JSON: a value of type set"),
    "NUL": (["a", "b", "\0"], r"inputs\[2\]: a string holds the character NUL"),
    "a tuple in it": ([(1, 2)], r"inputs\[0\]: JSON would change it"),
}


def enqueue_many(lesson, db, inputs, name="divide", **options):
    with db.autocommit.connect() as connection:
        return lesson.bulk.enqueue_many(connection, name, inputs, **options)


def test_each_input_is_a_task_and_the_ids_are_in_their_order(lesson, db):
    inputs = [[n, 1] for n in range(1000)]
    ids = enqueue_many(lesson, db, inputs)
    assert ids == sorted(ids)
    assert execute(db, "select id, input from tasks order by id") == list(
        zip(ids, inputs, strict=True)
    )


def test_they_run_as_if_enqueued_one_by_one(lesson, db):
    with working(lesson.worker.Worker(db, "w")):
        ids = enqueue_many(lesson, db, [[6, 3], [1, 4]])
        assert [wait_for_status(db, id, "succeeded").output for id in ids] == [2, 0.25]


def test_they_have_the_options_of_one(lesson, db):
    given = {"queue": "mail", "priority": 7, "max_attempts": 2, "timeout": DAYS}
    (id,) = enqueue_many(lesson, db, [1], **given)
    row = task_row(db, id)
    assert {name: getattr(row, name) for name in given} == given
    assert (row.status, row.run_at) == ("queued", None)
    (id,) = enqueue_many(lesson, db, [1], delay=DAYS)
    row = task_row(db, id)
    assert row.status == "waiting"
    assert row.run_at - row.created_at > 0.9 * DAYS


def test_none_is_no_task(lesson, db):
    assert enqueue_many(lesson, db, []) == []
    assert count(db, "queued") == 0


def test_an_input_is_kept_as_enqueue_keeps_it(lesson, db):
    inputs = [1e300, "ä\\u0000", {"b": 1, "a": [None, True]}, None, 10**400]
    ids = enqueue_many(lesson, db, inputs)
    with db.autocommit.connect() as connection:
        alone = [lesson.tasks.enqueue(connection, "divide", input) for input in inputs]
    texts = "select input::text from tasks where id = any (%s) order by id"
    assert execute(db, texts, ids) == execute(db, texts, alone)


@pytest.mark.parametrize("bad", BAD_INPUTS)
def test_what_is_refused_is_named_and_nothing_is_enqueued(lesson, db, bad):
    inputs, sentence = BAD_INPUTS[bad]
    with pytest.raises(lesson.inputs.BadInput, match=sentence):
        enqueue_many(lesson, db, inputs)
    assert count(db, "queued") == 0


@pytest.mark.parametrize("bad", [name for name in BAD_OPTIONS if not name.startswith("key")])
def test_an_option_is_refused_as_by_enqueue(lesson, db, bad):
    options, sentence = BAD_OPTIONS[bad]
    with pytest.raises(lesson.inputs.BadInput, match=sentence):
        enqueue_many(lesson, db, [1], **options)


def test_a_key_is_for_one_task(lesson, db):
    with pytest.raises(lesson.inputs.BadInput, match="there is no option idempotency_key"):
        enqueue_many(lesson, db, [1], idempotency_key="a")


def test_a_task_that_nobody_registered_and_too_much_of_it(lesson, db, monkeypatch):
    with pytest.raises(lesson.inputs.BadInput, match="there is no task 'nobodys'"):
        enqueue_many(lesson, db, [1], name="nobodys")
    monkeypatch.setattr(lesson.bulk, "MAX_MANY_CHARACTERS", 10)
    assert len(enqueue_many(lesson, db, ["x" * 8])) == 1
    with pytest.raises(lesson.inputs.BadInput, match="11 characters of JSON, and 10 is the most"):
        enqueue_many(lesson, db, ["x" * 8, 1])
    assert count(db, "queued") == 1


def test_all_are_there_or_none(lesson, db):
    """Refused in the middle, or the caller's transaction rolls back."""
    with (
        refusing(db, "tasks", "new.input::text = '500'"),
        pytest.raises(sa.exc.DBAPIError, match="refused"),
    ):
        enqueue_many(lesson, db, list(range(1000)))
    with db.engine.connect() as connection:
        assert len(lesson.bulk.enqueue_many(connection, "divide", [1, 2])) == 2
        connection.rollback()
    assert count(db, "queued") == 0
