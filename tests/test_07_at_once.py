"""Lesson 07: two people who click at the same time, and a click while the task itself goes on."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from shared.processes import within
from shared.testing import task_row
from tests.helpers import (
    by_hand,
    claim_one,
    context,
    define,
    enqueue,
    execute,
    fail,
    finish,
    log_of,
    new_task,
    queries,
    record,
    statuses,
    submitted,
    suspended,
)


@pytest.fixture
def just_after(lesson, monkeypatch):
    """Let something happen after the first call of a query, with these values among others."""

    def install(query, action, **values):
        real, left = getattr(lesson.queries.Querier, query), [action]

        def hooked(self, **its_values):
            found = real(self, **its_values)
            found = list(found) if isinstance(found, Iterator) else found
            if left and values.items() <= its_values.items():
                left.pop()()
            return found

        monkeypatch.setattr(lesson.queries.Querier, query, hooked)

    return install


def refused(lesson, db, name, id):
    """By hand; and it must be refused as a whole."""
    with pytest.raises(lesson.inputs.BadInput):
        by_hand(lesson, db, name, id)


def finish_it(lesson, db, id):
    """Claim this task, which must be the next, and let it succeed."""
    assert finish(lesson, db, claim_one(lesson, db, id)) == 1


@pytest.mark.parametrize("at_first", ["running", "succeeded"])
def test_a_replay_is_refused_when_a_run_has_ended_meanwhile(lesson, db, just_after, at_first):
    """It would not know of the child that the run has spawned."""
    double = define(lesson).double
    id = enqueue(lesson, db, "run_double", 1)
    runs = [claim_one(lesson, db, id)]
    if at_first == "succeeded":
        finish(lesson, db, runs.pop())

    def a_run_ends():
        if at_first == "succeeded":
            by_hand(lesson, db, "replay", id)
            runs.append(claim_one(lesson, db, id))
        with context(lesson, db, runs[0]) as ctx:
            ctx.spawn(double, 1)
        assert finish(lesson, db, runs[0]) == 1

    just_after("detach_children", a_run_ends)
    refused(lesson, db, "replay", id)
    children = execute(db, "select id from tasks where parent_id = %s", id)
    assert children == [(entry.child_id,) for entry in log_of(db, id)]


@pytest.mark.parametrize("child_ends", [finish_it, fail])
def test_a_retry_is_refused_when_another_one_has_come_to_an_end_meanwhile(
    lesson, db, just_after, child_ends
):
    """The task has failed again: of something else, or of the same child."""
    id, (one, two) = suspended(lesson, db, 2)
    fail(lesson, db, one)
    finish_it(lesson, db, two)
    fail(lesson, db, id)
    logs = []

    def another_retry():
        by_hand(lesson, db, "retry", id)
        execute(db, "update tasks set priority = 2 where id = %s", one)
        child_ends(lesson, db, one)
        fail(lesson, db, id)
        logs.append(log_of(db, id))

    just_after("list_failed_entries", another_retry)
    refused(lesson, db, "retry", id)
    assert logs == [log_of(db, id)]


def test_a_retry_is_refused_when_that_of_a_child_is(lesson, db, just_after):
    """The child is replayed meanwhile, and waits for a child of its own that has ended."""
    define(lesson)
    top = enqueue(lesson, db, "run_run_double", 1)
    ids = [top]
    for name in ("run_double", "double"):
        task = claim_one(lesson, db, ids[-1])
        with context(lesson, db, task) as ctx, pytest.raises(lesson.event_log.Suspended):
            ctx.run(getattr(lesson.defined, name), 1)
        ids += [id for (id,) in execute(db, "select id from tasks where parent_id = %s", task.id)]
    middle = ids[1]
    for id in reversed(ids):
        fail(lesson, db, id)

    def a_replay():
        by_hand(lesson, db, "replay", middle)
        with context(lesson, db, claim_one(lesson, db, middle)) as ctx:
            ctx.spawn(lesson.defined.double, 1)
        finish(lesson, db, claim_one(lesson, db))

    just_after("list_failed_entries", a_replay, task_id=middle)
    refused(lesson, db, "retry", top)
    assert log_of(db, middle)[0].completion == 1
    assert statuses(db) == {"failed": 2, "running": 1, "succeeded": 1}


def test_a_retry_locks_all_children_before_it_tells_of_the_end_of_one(lesson, db, just_after):
    """To tell of an end locks the parent, for which the end of the other child waits."""
    id, (one, two) = suspended(lesson, db, 2)
    for task in (one, two, id):
        fail(lesson, db, task)
    by_hand(lesson, db, "retry", one)
    finish(lesson, db, claim_one(lesson, db, one), "1")
    by_hand(lesson, db, "retry", two)
    run = claim_one(lesson, db, two)
    ends = []
    with ThreadPoolExecutor(1) as threads:
        just_after(
            "get_task",
            lambda: ends.append(submitted(db, threads, finish, lesson, db, run, "2")),
            id=two,
        )
        by_hand(lesson, db, "retry", id)
        assert ends[0].result(timeout=within(20)) == 1
    with context(lesson, db, claim_one(lesson, db, id)) as ctx:
        double = define(lesson).double
        assert ctx.gather(ctx.spawn(double, 0), ctx.spawn(double, 1)) == [1, 2]


def test_a_retry_and_a_replay_lock_the_task_before_its_log(lesson, db, just_after):
    """A step has failed: the retry wants to drop it from the log, the replay to delete the log."""
    id = new_task(lesson, db)
    task = claim_one(lesson, db, id)
    with queries(lesson, db) as queue:
        record(queue, id, task.attempt, output=None, error='{"type": "E", "final": true}')
        queue.fail_task(id=id, attempt=task.attempt, error="E: no")
    with ThreadPoolExecutor(1) as threads:
        replays = []
        just_after(
            "revive_task",
            lambda: replays.append(submitted(db, threads, by_hand, lesson, db, "replay", id)),
        )
        by_hand(lesson, db, "retry", id)
        with pytest.raises(lesson.inputs.BadInput):
            replays[0].result(timeout=within(20))


# Children that have not ended when their parent is retried


def test_the_children_of_a_task_that_is_being_retried_are_no_orphans(lesson, db):
    id, (child,) = suspended(lesson, db)
    with queries(lesson, db) as queue:
        queue.cancel_task(id=id)
        with ThreadPoolExecutor(1) as threads:
            with db.engine.begin() as connection:
                lesson.control.retry(connection, id)
                orphans = submitted(db, threads, queue.cancel_orphans)
            assert orphans.result(timeout=within(20)) == 0
    assert [task_row(db, which).status for which in (id, child)] == ["queued"] * 2


def test_a_retry_is_refused_when_a_child_has_failed_since_it_looked(lesson, db, just_after):
    id, (child,) = suspended(lesson, db)
    with queries(lesson, db) as queue:
        queue.cancel_task(id=id)
        just_after("list_failed_entries", queue.cancel_orphans)
        refused(lesson, db, "retry", id)
    by_hand(lesson, db, "retry", id)
    assert [task_row(db, which).status for which in (id, child)] == ["queued"] * 2
