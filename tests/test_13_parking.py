"""Lesson 13: a task that this code cannot run waits for other code, and loses nothing meanwhile."""

from datetime import timedelta

import pytest

from shared.processes import wait_until
from shared.testing import task_row, wait_for_status, working
from tests.helpers import (
    ENDED,
    by_hand,
    claim_one,
    claim_tasks,
    define,
    drop_workers,
    due_chores,
    enqueue,
    execute,
    log_of,
    only,
    queries,
    register_worker,
    run_claimed,
    run_once,
    run_verb,
    suspended,
    upkeep_rounds,
)
from tests.shop import (
    begin,
    charge,
    check,
    confirm,
    deploy,
    deployed,
    effects,
    order,
    order_under_way,
    reserve,
)


def edited():
    """`order`, with a step before everything else."""

    def order(ctx, id):
        ctx.step(check, id)
        ctx.step(charge, id, 10)
        ctx.step(reserve, id, 2)
        ctx.step(confirm, id)
        return "done"

    return order


def worker(lesson, db, version="", **options):
    return lesson.worker.Worker(db, f"of {version or 'none'}", version=version, **options)


def is_parked(row):
    return row.status == "waiting" and row.run_at is None and row.awaits is None


def parked_by(db, id, *codes):
    """Its row, once just these have tried it, and it is parked."""
    wait_until(
        lambda: is_parked(task_row(db, id)) and sorted(task_row(db, id).parked_by) == list(codes),
        f"parked by {', '.join(codes)}",
    )
    return task_row(db, id)


def parked_order(lesson, db):
    """An order under way that version 2 could not run; its id."""
    id = order_under_way(lesson, db)
    deploy(lesson, edited())
    execute(db, "update tasks set status = 'queued' where id = %s", id)
    with working(worker(lesson, db, "2")):
        parked_by(db, id, "2")
    return id


# A run that meets what its code cannot run


def test_a_log_that_does_not_fit_waits_and_no_attempt_is_used_up(lesson, db):
    id = order_under_way(lesson, db)
    log = log_of(db, id)
    execute(db, "update tasks set max_attempts = 2 where id = %s", id)
    row = deployed(lesson, db, id, edited())
    assert is_parked(row)
    assert (row.attempt, row.uncounted) == (2, 1), "the second was none"
    assert log_of(db, id) == log
    assert effects == ["charge", "reserve"], "nothing was done"
    assert row.error.startswith("NonDeterminismError: at position 1, ")
    for advice in ("is parked", f"`python main.py retry {id}`", "if ctx.patched(", "old version"):
        assert advice in row.error


@pytest.mark.parametrize("version", ["", "2"])
def test_each_code_tries_it_once(lesson, db, version):
    """Two workers of one version are one code; without a version, each start of one is."""
    id = order_under_way(lesson, db)
    deploy(lesson, edited())
    execute(db, "update tasks set status = 'queued' where id = %s", id)
    with working(worker(lesson, db, version)), working(worker(lesson, db, version)):
        wait_until(lambda: len(task_row(db, id).parked_by) == (1 if version else 2), "parked")
        row = task_row(db, id)
        upkeep_rounds(lesson, db, 5)
        assert task_row(db, id) == row
    assert row.attempt - row.uncounted == 1


def test_two_versions_that_both_cannot_run_it_do_not_pass_it_to_and_fro(lesson, db):
    id = order_under_way(lesson, db)
    deploy(lesson, edited())
    execute(db, "update tasks set status = 'queued' where id = %s", id)
    with working(worker(lesson, db, "2")), working(worker(lesson, db, "3")):
        row = parked_by(db, id, "2", "3")
        upkeep_rounds(lesson, db, 5)
        assert task_row(db, id) == row
    assert row.attempt == 3, "one try each"


@pytest.mark.parametrize("version", ["", "3"])
def test_code_that_fits_takes_it_up_by_itself(lesson, db, version):
    id = parked_order(lesson, db)
    deploy(lesson, order)
    with working(worker(lesson, db, version)):
        row = wait_for_status(db, id, "succeeded", seconds=10)
    assert (row.output, row.error, row.parked_by) == ("done", None, ["2"])
    assert effects == ["charge", "reserve", "confirm"]


def test_an_unknown_name_is_parked_by_each_code_once_and_runs_where_it_is_known(lesson, db):
    id = begin(lesson, db, order)
    id = enqueue(lesson, db, "order", 7, max_attempts=1)
    known = lesson.tasks.registry.pop("order")
    with working(worker(lesson, db, "1")), working(worker(lesson, db, "2")):
        row = parked_by(db, id, "1", "2")
        upkeep_rounds(lesson, db, 3)
        assert task_row(db, id) == row
    assert (row.attempt, row.uncounted) == (2, 2)
    assert "UnknownTask: this worker knows no task 'order'" in row.error
    lesson.tasks.registry["order"] = known
    with working(worker(lesson, db, "3")):
        row = wait_for_status(db, id, "succeeded")
    assert (row.version, row.attempt) == ("3", 3), "it has begun only now, and is of this version"


def test_a_plain_task_of_an_unknown_name_is_parked_too(lesson, db):
    define(lesson)
    id = enqueue(lesson, db, "double", 4)
    known = lesson.tasks.registry.pop("double")
    with working(worker(lesson, db, "1")):
        parked_by(db, id, "1")
    lesson.tasks.registry["double"] = known
    with working(worker(lesson, db, "2")):
        row = wait_for_status(db, id, "succeeded")
    assert (row.output, row.version) == (8, ""), "any version may run it"


def test_a_function_that_is_not_durable_any_more_does_not_do_its_steps_again(lesson, db):
    id = order_under_way(lesson, db)

    def plain(n):
        effects.append("not durable")
        return n

    plain.__name__ = "order"
    lesson.tasks.registry.pop("order")
    lesson.tasks.task(plain)
    execute(db, "update tasks set status = 'queued' where id = %s", id)
    with working(worker(lesson, db, "2")):
        row = parked_by(db, id, "2")
        other = enqueue(lesson, db, "order", 7)
        assert wait_for_status(db, other, "succeeded").output == 7, "one without a log is in order"
    assert "here 'order' is not a durable task" in row.error
    assert effects == ["charge", "reserve", "not durable"]


def test_a_log_with_a_hole_still_fails(lesson, db):
    """No other code could run it either."""
    id = order_under_way(lesson, db)
    execute(db, "delete from event_log where task_id = %s and position = 1", id)
    row = deployed(lesson, db, id, order)
    assert row.status == "failed"
    assert "has no entry at position 1" in row.error


def test_code_without_a_version_that_is_gone_is_not_kept_for_ever(lesson, db):
    id = order_under_way(lesson, db)
    for _ in range(3):
        row = deployed(lesson, db, id, edited())
        assert is_parked(row)
        assert len(row.parked_by) == 1
    assert row.attempt == 4


def test_a_worker_that_was_taken_for_dead_can_still_park(lesson, db):
    id = order_under_way(lesson, db)
    execute(db, "update tasks set status = 'queued' where id = %s", id)
    deploy(lesson, edited())
    task = claim_one(lesson, db, id)
    drop_workers(db)
    row = run_claimed(lesson, db, task)
    assert is_parked(row)
    assert row.parked_by == [f"worker {row.worker_id}"]


def test_a_parked_task_takes_no_place_in_a_limited_queue(lesson, db):
    define(lesson)
    with db.autocommit.connect() as connection:
        lesson.claim.limit_queue(connection, "default", 1)
    id = enqueue(lesson, db, "double", 4)
    known = lesson.tasks.registry.pop("double")
    with working(worker(lesson, db, "1", slots=1)):
        parked_by(db, id, "1")
        lesson.tasks.registry["double"] = known
        other = enqueue(lesson, db, "double", 5)
        wait_for_status(db, other, "succeeded")
        assert is_parked(task_row(db, id)), "it was told once that this version cannot"


def test_it_is_for_workers_of_its_queue(lesson, db):
    id = parked_order(lesson, db)
    with queries(lesson, db) as queue:
        here = register_worker(queue, version="3")
        elsewhere = register_worker(queue, of="elsewhere", version="3")
        assert due_chores(queue, elsewhere) == []
        assert list(queue.unpark_tasks(worker_id=elsewhere, at_most=9, skip=0)) == []
        assert due_chores(queue, here) == ["unpark"]
        assert list(queue.unpark_tasks(worker_id=here, at_most=9, skip=0)) == [id]
        assert due_chores(queue, here) == []


def test_a_chore_is_due_only_for_code_that_has_not_tried(lesson, db):
    parked_order(lesson, db)
    with queries(lesson, db) as queue:
        same = register_worker(queue, version="2")
        assert due_chores(queue, same) == []
        assert list(queue.unpark_tasks(worker_id=same, at_most=9, skip=0)) == []
        assert due_chores(queue, register_worker(queue)) == ["unpark"], "a start without a version"


def test_what_other_code_has_unparked_is_passed_over_by_who_has_tried(lesson, db):
    id = parked_order(lesson, db)
    with queries(lesson, db) as queue:
        tried, new = (register_worker(queue, version=version) for version in "23")
        list(queue.unpark_tasks(worker_id=new, at_most=9, skip=0))
        assert not queue.look_for_work(worker_id=tried, queue="default")
        assert claim_tasks(queue, tried) == []
        assert queue.look_for_work(worker_id=new, queue="default")
        assert [task.id for task in claim_tasks(queue, new)] == [id]


# What else may happen to a parked task


@pytest.mark.parametrize("unparked", [False, True], ids=["parked", "queued for code that has gone"])
def test_a_retry_by_hand_lets_all_try_again_at_once(lesson, db, unparked):
    id = parked_order(lesson, db)
    if unparked:
        with queries(lesson, db) as queue:
            gone = register_worker(queue, version="3")
            list(queue.unpark_tasks(worker_id=gone, at_most=9, skip=0))
    deploy(lesson, order)
    with working(worker(lesson, db, "2")):
        upkeep_rounds(lesson, db, 2)
        assert task_row(db, id).status != "succeeded", "nobody says that version 2 was mended"
        by_hand(lesson, db, "retry", id)
        row = wait_for_status(db, id, "succeeded")
    assert row.parked_by == []
    assert effects == ["charge", "reserve", "confirm"]


def test_a_retry_does_nothing_to_what_waits_for_something_else(lesson, db):
    id = order_under_way(lesson, db)
    execute(db, "update tasks set parked_by = array['1']")
    row = task_row(db, id)
    with pytest.raises(lesson.inputs.BadInput, match="has not failed"):
        by_hand(lesson, db, "retry", id)
    assert task_row(db, id) == row


def test_a_failed_task_that_is_retried_may_be_tried_by_all(lesson, db):
    id = parked_order(lesson, db)
    by_hand(lesson, db, "cancel", id)
    assert task_row(db, id).status == "cancelled"
    by_hand(lesson, db, "retry", id)
    row = task_row(db, id)
    assert (row.status, row.parked_by) == ("queued", [])


def test_a_parked_task_is_cancelled_with_its_children(lesson, db):
    id, (child,) = parked_parent(lesson, db)
    by_hand(lesson, db, "cancel", id)
    with working(worker(lesson, db, "2", queue="elsewhere")):
        wait_for_status(db, child, "cancelled")
    assert task_row(db, id).status == "cancelled"


def parked_parent(lesson, db, children=1):
    """A parked task that waited for its children, which nobody has run yet; their ids."""
    id, ids = suspended(lesson, db, children)
    with queries(lesson, db) as queue:
        execute(db, "update tasks set status = 'queued' where id = %s", id)
        task = claim_one(lesson, db, id)
        assert queue.park_task(id=id, attempt=task.attempt, error="E: no") == 1
    assert is_parked(task_row(db, id))
    return id, ids


def test_children_of_a_parked_task_end_and_are_found_later(lesson, db):
    id, children = parked_parent(lesson, db, 2)
    for child in children:
        task = claim_one(lesson, db, child)
        with queries(lesson, db) as queue:
            assert queue.succeed_task(id=child, attempt=task.attempt, output="2") == 1
    row = task_row(db, id)
    assert is_parked(row), "what it had waited for does not make it queued"
    assert row.completions == 2
    assert [entry.output for entry in log_of(db, id)] == [2, 2]


def test_a_timeout_does_not_wake_a_parked_task(lesson, db):
    double = define(lesson).double

    def program(ctx, n):
        return ctx.result(ctx.spawn(double, n), timeout=timedelta(hours=1))

    deploy(lesson, program)
    id = enqueue(lesson, db, "program", 7, priority=1)
    assert run_once(lesson, db, id).deadline == 2
    execute(db, "update tasks set status = 'queued' where id = %s", id)
    task = claim_one(lesson, db, id)
    with queries(lesson, db) as queue:
        assert queue.park_task(id=id, attempt=task.attempt, error="E: no") == 1
        execute(db, "update event_log set due_at = clock_timestamp() where kind = 'timer'")
        assert len(list(queue.complete_due_entries(at_most=9, skip=0))) == 1
    assert is_parked(task_row(db, id))
    assert log_of(db, id)[1].completion == 1, "and it is in the log"


def test_a_parent_waits_for_a_parked_child(lesson, db):
    define(lesson)
    id = enqueue(lesson, db, "run_double", 3, priority=1)
    assert run_once(lesson, db, id).status == "waiting"
    child = only(db, "double")
    known = lesson.tasks.registry.pop("double")
    with working(worker(lesson, db, "1")):
        parked_by(db, child, "1")
        assert task_row(db, id).status == "waiting"
    lesson.tasks.registry["double"] = known
    with working(worker(lesson, db, "2")):
        assert wait_for_status(db, id, "succeeded").output == 6


def test_a_message_to_a_parked_task_is_kept(lesson, db):
    def program(ctx, _):
        return ctx.receive("approval")

    deploy(lesson, program)
    id = enqueue(lesson, db, "program", 7)
    assert run_once(lesson, db, id).status == "waiting"
    task = None
    execute(db, "update tasks set status = 'queued' where id = %s", id)
    task = claim_one(lesson, db, id)
    with queries(lesson, db) as queue:
        assert queue.park_task(id=id, attempt=task.attempt, error="E: no") == 1
    with db.engine.begin() as connection:
        lesson.signals.send(connection, id, "approval", "Ann")
    assert is_parked(task_row(db, id))
    with working(worker(lesson, db, "2")):
        assert wait_for_status(db, id, "succeeded").output == "Ann"


def test_a_fork_of_a_parked_task_may_be_tried_by_all(lesson, db):
    id = parked_order(lesson, db)
    with db.engine.begin() as connection:
        fork = lesson.control.fork(connection, id, 0)
    row = task_row(db, fork)
    assert (row.status, row.version, row.parked_by) == ("queued", "", [])
    with working(worker(lesson, db, "2")):
        row = wait_for_status(db, fork, "succeeded")
    assert row.version == "2", "from position 0, it begins with this version"
    assert is_parked(task_row(db, id))


def test_a_replay_forgets_who_could_not_run_it(lesson, db):
    id = parked_order(lesson, db)
    by_hand(lesson, db, "cancel", id)
    execute(db, "update tasks set version = '1' where id = %s", id)
    by_hand(lesson, db, "replay", id)
    row = task_row(db, id)
    assert (row.status, row.version, row.parked_by) == ("queued", "", [])
    with working(worker(lesson, db, "2")):
        row = wait_for_status(db, id, *ENDED)
    assert (row.status, row.version) == ("succeeded", "2")


def test_a_deploy_fails_no_task_and_uses_up_no_attempt_of_a_last_one(lesson, db):
    """First fails: in lesson 12, each try of a worker that does not know it is an attempt."""
    id = enqueue_unknown(lesson, db, max_attempts=1)
    for version in ("1", "2", "3"):
        with working(worker(lesson, db, version)):
            wait_until(lambda version=version: version in task_row(db, id).parked_by, "tried")
    row = parked_by(db, id, "1", "2", "3")
    assert row.attempt - row.uncounted == 0


def enqueue_unknown(lesson, db, **options):
    define(lesson)
    id = enqueue(lesson, db, "double", 1, **options)
    lesson.tasks.registry.pop("double")
    return id


def test_the_verbs_say_what_is_parked(lesson, db):
    id = parked_order(lesson, db)
    shown = run_verb(lesson, "status")
    assert "parked" in shown.stdout, shown.stderr
    retried = run_verb(lesson, "retry", str(id))
    assert retried.returncode == 0, retried.stderr
    assert task_row(db, id).status == "queued"
