"""Lesson 07: two people who click at the same time, and a click while the task itself goes on."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from shared.processes import within
from shared.testing import task_row
from tests.helpers import (
    ALL,
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
    """Let something happen after the first call of a query."""

    def install(query, action):
        real, left = getattr(lesson.queries.Querier, query), [action]

        def hooked(self, **its_values):
            found = real(self, **its_values)
            found = list(found) if isinstance(found, Iterator) else found
            if left:
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


@pytest.mark.parametrize("spawns", [False, True])
def test_a_replay_is_refused_when_a_run_has_ended_meanwhile(lesson, db, just_after, spawns):
    """Nobody has asked for another one; nor would it know of the child that the run has spawned."""
    double = define(lesson).double
    id = enqueue(lesson, db, "run_double", 1)
    finish_it(lesson, db, id)

    def a_run_ends():
        by_hand(lesson, db, "replay", id)
        run = claim_one(lesson, db, id)
        with context(lesson, db, run) as ctx:
            if spawns:
                ctx.spawn(double, 1)
        assert finish(lesson, db, run) == 1

    just_after("list_replayed", a_run_ends)
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

    just_after("list_retried", another_retry)
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

    just_after("list_retried", a_replay)
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
            "lock_tasks",
            lambda: ends.append(submitted(db, threads, finish, lesson, db, run, "2")),
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
            "lock_tasks",
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
                orphans = submitted(db, threads, lambda: list(queue.cancel_orphans(**ALL)))
            assert orphans.result(timeout=within(20)) == []
    assert [task_row(db, which).status for which in (id, child)] == ["queued"] * 2


def test_a_retry_is_refused_when_a_child_has_failed_since_it_looked(lesson, db, just_after):
    id, (child,) = suspended(lesson, db)
    with queries(lesson, db) as queue:
        queue.cancel_task(id=id)
        just_after("list_retried", lambda: list(queue.cancel_orphans(**ALL)))
        refused(lesson, db, "retry", id)
    by_hand(lesson, db, "retry", id)
    assert [task_row(db, which).status for which in (id, child)] == ["queued"] * 2


# A tree is one thing


def failed_tree(db, levels):
    """Each the only child of the one before it; all have failed, but none has gone on from that."""
    ids = []
    with db.connect() as connection:
        for level in range(levels):
            ((id,),) = connection.execute(
                "insert into tasks (name, input, status, error, attempt, parent_id,"
                " parent_position) values ('double', '1', 'failed', 'E: no', 1, %s, %s)"
                " returning id",
                (ids[-1], 1) if ids else (None, None),
            )
            if level:
                connection.execute(
                    "insert into event_log (task_id, position, kind, name, input, error, child_id,"
                    " completion, attempt) values (%s, 1, 'child', 'double', '1', '{}', %s, 1, 1)",
                    (ids[-1], id),
                )
            ids.append(id)
    return ids


def test_a_retry_goes_down_however_many_levels_there_are(lesson, db):
    ids = failed_tree(db, 1500)
    by_hand(lesson, db, "retry", ids[0])
    assert statuses(db) == {"queued": 1500}
    assert execute(db, "select count(*) from event_log where completion is null") == [(1499,)]


@pytest.mark.parametrize("verb", ["retry", "replay"])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_whoever_holds_a_row_of_the_tree_is_waited_for_from_below(lesson, db, verb, which):
    """Until then, nothing above is locked: the holder may go up himself."""
    ids = failed_tree(db, 3)
    with ThreadPoolExecutor(1) as threads, db.connect() as holder:
        holder.execute("set lock_timeout = '5s'")
        holder.execute("select from tasks where id = %s for update", (ids[which],))
        hand = submitted(db, threads, by_hand, lesson, db, verb, ids[0])
        for id in reversed(ids[: which if verb == "retry" or which < 2 else 0]):
            holder.execute("select from tasks where id = %s for update", (id,))
        holder.rollback()
        hand.result(timeout=within(20))
    assert task_row(db, ids[0]).status == "queued"


# What cannot be


def test_a_child_that_was_deleted_cannot_be_retried_with_its_parent(lesson, db):
    id, (child, other) = suspended(lesson, db, 2)
    for task in (child, other, id):
        fail(lesson, db, task)
    execute(db, "delete from tasks where id = %s", child)
    before = task_row(db, id), task_row(db, other), log_of(db, id)
    with pytest.raises(lesson.inputs.BadInput, match=f"child {child} of task {id} was deleted"):
        by_hand(lesson, db, "retry", id)
    assert (task_row(db, id), task_row(db, other), log_of(db, id)) == before
    by_hand(lesson, db, "replay", id)
    assert log_of(db, id) == []


@pytest.mark.parametrize("verb", ["retry", "replay"])
@pytest.mark.parametrize("cancelled", ["before", "meanwhile"])
def test_a_child_of_a_cancelled_task_does_not_run_again(lesson, db, just_after, verb, cancelled):
    """It would be cancelled once more, or live on with nobody to end it."""
    id, (child,) = suspended(lesson, db)
    fail(lesson, db, child)
    if cancelled == "before":
        by_hand(lesson, db, "cancel", id)
    else:
        look = {"retry": "list_retried", "replay": "list_replayed"}[verb]
        just_after(look, lambda: by_hand(lesson, db, "cancel", id))
    with pytest.raises(lesson.inputs.BadInput, match=f"task {id}, which is cancelled"):
        by_hand(lesson, db, verb, child)
    assert task_row(db, child).status == "failed"
    with queries(lesson, db) as queue:
        lesson.upkeep.cancel_orphans(queue)
    by_hand(lesson, db, "retry", id)
    assert [task_row(db, which).status for which in (id, child)] == ["queued"] * 2


def test_a_task_is_not_cancelled_while_its_child_is_being_retried(lesson, db):
    """The upkeep would have found no living child, and never look again."""
    id, (child,) = suspended(lesson, db)
    fail(lesson, db, child)
    with ThreadPoolExecutor(1) as threads:
        with db.engine.begin() as connection:
            lesson.control.retry(connection, child)
            cancel = submitted(db, threads, by_hand, lesson, db, "cancel", id)
            assert not cancel.done()
        cancel.result(timeout=within(20))
    with queries(lesson, db) as queue:
        lesson.upkeep.cancel_orphans(queue)
    assert [task_row(db, which).status for which in (id, child)] == ["cancelled"] * 2
