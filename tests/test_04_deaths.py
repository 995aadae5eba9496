"""Lesson 04: a worker's death is held against a task only if its run has come to nothing."""

import pytest

from shared.testing import task_row
from tests.helpers import (
    claim_one,
    drop_workers,
    execute,
    log_of,
    new_task,
    queries,
    record,
    take_back,
)


@pytest.fixture
def id(lesson, db):
    id = new_task(lesson, db)
    execute(db, "update tasks set max_attempts = 2 where id = %s", id)
    return id


def die(lesson, db, id, **recorded):
    """One run, which may record a step, and whose worker dies; what becomes of the task."""
    task = claim_one(lesson, db, id)
    if recorded:
        with queries(lesson, db) as queue:
            assert record(queue, id, task.attempt, **recorded) == 1
    drop_workers(db)
    return take_back(lesson, db)[id]


def test_a_task_that_gets_on_in_each_run_survives_any_number_of_deaths(lesson, db, id):
    for position in range(1, 11):
        assert die(lesson, db, id, position=position) == "queued"
    assert len(log_of(db, id)) == 10
    assert task_row(db, id).error.startswith("WorkerDied")
    # From here on, it does not get on.
    assert [die(lesson, db, id) for _ in range(2)] == ["queued", "failed"]


def test_the_count_begins_anew_with_what_a_run_has_recorded(lesson, db, id):
    assert die(lesson, db, id) == "queued"
    assert die(lesson, db, id, position=1) == "queued"
    assert [die(lesson, db, id) for _ in range(2)] == ["queued", "failed"]


def test_a_failed_step_is_nothing_that_stays(lesson, db, id):
    failed = {"position": 1, "output": None, "error": '{"type": "E", "final": false}'}
    assert [die(lesson, db, id, **failed) for _ in range(2)] == ["queued", "failed"]


def test_a_timeout_counts_whatever_the_run_has_recorded(lesson, db, id):
    execute(db, "update tasks set timeout = '0' where id = %s", id)
    ends = []
    for position in (1, 2):
        task = claim_one(lesson, db, id)
        with queries(lesson, db) as queue:
            record(queue, id, task.attempt, position=position)
        ends.append(take_back(lesson, db)[id])
    assert ends == ["queued", "failed"]
