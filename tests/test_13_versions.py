"""Lesson 13: a durable task is run to its end by workers of the version that has begun it."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from shared.processes import wait_until
from shared.testing import task_row, wait_for_status, working
from tests.helpers import (
    MINUTE,
    by_hand,
    claim_tasks,
    count,
    define,
    drop_workers,
    enqueue,
    enqueue_all,
    execute,
    limit,
    log_of,
    make_context,
    queries,
    register_worker,
    retry_after,
    run_verb,
    several,
    submitted,
    take_back,
    upkeep_rounds,
)
from tests.shop import broken, charge, confirm, deploy, effects, order, reserve
from tests.test_13_parking import edited, parked_by, worker


def begun(lesson, db, version, tasks=1):
    """Orders that this version has begun, and that wait; their ids."""
    retry_after(lesson, MINUTE)
    broken.add("confirm")
    deploy(lesson, order)
    ids = enqueue_all(lesson, db, "order", [7] * tasks)
    with working(worker(lesson, db, version)):
        wait_until(lambda: count(db, "waiting") == tasks, "all have begun")
    broken.clear()
    execute(db, "update tasks set status = 'queued', run_at = null")
    return ids


def versions(lesson, db):
    """version -> unfinished, parked, workers."""
    with queries(lesson, db) as queue:
        return {
            row.version: (row.unfinished, row.parked, row.workers) for row in queue.list_versions()
        }


def move(lesson, db, old, new):
    with db.engine.begin() as connection:
        return lesson.versions.move_version(connection, old, new)


# Who may run what


@pytest.mark.parametrize("other", ["2", ""])
def test_other_versions_leave_a_begun_task_alone_and_its_own_drains_it(lesson, db, other):
    ids = begun(lesson, db, "1", 3)
    assert {task_row(db, id).version for id in ids} == {"1"}
    deploy(lesson, edited())
    new = enqueue(lesson, db, "order", 8)
    with working(worker(lesson, db, other)):
        assert wait_for_status(db, new, "succeeded").version == other
        upkeep_rounds(lesson, db, 2)
        assert versions(lesson, db)["1"] == (3, 0, 0)
        assert versions(lesson, db)[other][2] == 1
        assert {task_row(db, id).attempt for id in ids} == {1}
    deploy(lesson, order)
    with working(worker(lesson, db, "1")):
        for id in ids:
            assert wait_for_status(db, id, "succeeded").version == "1"
    assert "1" not in versions(lesson, db)
    assert effects.count("charge") == 4


def test_a_task_that_no_version_has_begun_is_of_the_first_one_that_does(lesson, db):
    deploy(lesson, order)
    id = enqueue(lesson, db, "order", 7)
    assert task_row(db, id).version == ""
    with working(worker(lesson, db, "1")):
        assert wait_for_status(db, id, "succeeded").version == "1"


def test_a_worker_that_dies_before_the_first_step_has_begun_it(lesson, db):
    deploy(lesson, order)
    id = enqueue(lesson, db, "order", 7)
    with queries(lesson, db) as queue:
        first = register_worker(queue, version="1")
        claim_tasks(queue, first, durable_names=["order"])
    drop_workers(db)
    take_back(lesson, db)
    with queries(lesson, db) as queue:
        assert (
            claim_tasks(queue, register_worker(queue, version="2"), durable_names=["order"]) == []
        )
        assert len(claim_tasks(queue, register_worker(queue, version="1"))) == 1
    assert task_row(db, id).version == "1"


def test_a_task_that_workers_without_a_version_have_begun_stays_everybodys(lesson, db):
    """If it became the first version's that comes, and that could not run it, nobody else might."""
    (id,) = begun(lesson, db, "")
    assert task_row(db, id).version == ""
    deploy(lesson, edited())
    with working(worker(lesson, db, "2")):
        assert parked_by(db, id, "2").version == ""
    deploy(lesson, order)
    with working(worker(lesson, db, "3")):
        assert wait_for_status(db, id, "succeeded").version == ""


def test_plain_tasks_are_of_no_version(lesson, db):
    define(lesson)
    id = enqueue(lesson, db, "double", 3)
    with working(worker(lesson, db, "1")):
        assert wait_for_status(db, id, "succeeded").version == ""


def test_a_child_is_of_the_version_that_begins_it(lesson, db):
    define(lesson)
    id = enqueue(lesson, db, "run_run_double", 3)
    with working(worker(lesson, db, "1")):
        wait_for_status(db, id, "succeeded")
    rows = execute(db, "select name, version from tasks order by id")
    assert rows == [("run_run_double", "1"), ("run_double", "1"), ("double", "")]


def test_a_fork_of_what_a_version_has_begun_may_be_tried_by_all(lesson, db):
    (id,) = begun(lesson, db, "1")
    with db.engine.begin() as connection:
        fork = lesson.control.fork(connection, id, 1)
    deploy(lesson, order)
    with working(worker(lesson, db, "2")):
        assert wait_for_status(db, fork, "succeeded").version == ""
    assert task_row(db, id).attempt == 1


def test_a_retry_of_a_failed_task_is_for_the_version_that_has_begun_it(lesson, db):
    (id,) = begun(lesson, db, "1")
    by_hand(lesson, db, "cancel", id)
    by_hand(lesson, db, "retry", id)
    assert task_row(db, id).version == "1"
    assert versions(lesson, db) == {"1": (1, 0, 0)}, "and says that nobody of it is there"


# The order, the limit, the locks


def test_the_most_urgent_goes_first_whichever_kind_it_is_of(lesson, db):
    define(lesson)
    ids = several(lesson, db, 6, name="double", input=1)
    for id, version, priority in zip(ids, "21 2 1", [0, 9, 5, 7, 3, 9], strict=True):
        execute(
            db,
            "update tasks set version = %s, priority = %s where id = %s",
            version.strip(),
            priority,
            id,
        )
    with queries(lesson, db) as queue:
        of_2 = register_worker(queue, version="2")
        claimed = [claim_tasks(queue, of_2)[0].id for _ in range(4)]
        assert claimed == [ids[3], ids[2], ids[4], ids[0]]
        assert claim_tasks(queue, of_2) == []


def test_a_claim_takes_no_more_than_it_may_of_both_kinds_together(lesson, db):
    several(lesson, db, 10)
    execute(db, "update tasks set version = '2' where id %% 2 = 0")
    with queries(lesson, db) as queue:
        of_2 = register_worker(queue, version="2")
        assert len(claim_tasks(queue, of_2, at_most=4)) == 4
    assert count(db, "running") == 4


def test_a_limit_counts_all_versions_and_holds_for_each(lesson, db):
    several(lesson, db, 6)
    execute(db, "update tasks set version = '1' where id %% 2 = 0")
    limit(lesson, db, 2)
    with db.autocommit.connect() as connection:
        queue = lesson.queries.Querier(connection)
        of_1, of_2 = (register_worker(queue, version=version) for version in "12")
        claim = lesson.claim.claim
        assert len(claim(db, connection, of_1, "default", 5)) == 2
        assert claim(db, connection, of_2, "default", 5) == []
        assert not queue.look_for_work(worker_id=of_2, queue="default")


def test_a_worker_does_not_spin_on_hints_of_what_it_may_not_run(lesson, db, monkeypatch):
    """One look for a hint, and no claim; the upkeep has nothing that it could do."""
    seen = []
    for query, what in ("look_for_work", "look"), ("claim_tasks", "claim"):
        real = getattr(lesson.queries.Querier, query)

        def noted(*given, _real=real, _what=what, **values):
            seen.append(_what)
            return _real(*given, **values)

        monkeypatch.setattr(lesson.queries.Querier, query, noted)
    of_2 = worker(lesson, db, "2", timing=lesson.timing.Timing(seldom=60.0))
    with working(of_2):
        wait_until(lambda: of_2._listener.hears and "look" in seen, "it is there")
        upkeep_rounds(lesson, db, 1)
        seen.clear()
        for n in range(5):
            execute(
                db,
                "insert into tasks (name, input, version) values ('order', '7', '1')",
            )
            wait_until(lambda n=n: seen.count("look") > n, "it has heard of it")
        upkeep_rounds(lesson, db, 3)
        looks = seen.count("look")
    assert "claim" not in seen
    assert looks <= 5 * 2 + 5, "for each hint one, and one more after a short pause"
    assert count(db, "queued") >= 5


# What to do with the last old ones


def test_the_versions_say_whether_the_last_worker_of_one_may_go(lesson, db):
    begun(lesson, db, "1", 2)
    with queries(lesson, db) as queue:
        for version in ("1", "2", "2", ""):
            register_worker(queue, version=version)
        dead = register_worker(queue, version="3")
        execute(db, "update workers set alive_until = '-infinity' where id = %s", dead)
        task = claim_tasks(queue, 1, at_most=1)
        assert task == [], "worker 1 has gone"
    execute(
        db,
        "update tasks set status = 'waiting', parked_by = array['1'] where id ="
        " (select min(id) from tasks)",
    )
    assert versions(lesson, db) == {"": (0, 0, 1), "1": (2, 1, 1), "2": (0, 0, 2)}


def test_the_last_old_ones_are_moved_by_hand(lesson, db):
    ids = begun(lesson, db, "1", 4)
    _, parked, running, ended = ids
    execute(db, "update tasks set status = 'waiting', parked_by = array['1'] where id = %s", parked)
    execute(
        db,
        "update tasks set status = 'running', worker_id = 1, started_at = clock_timestamp()"
        " where id = %s",
        running,
    )
    by_hand(lesson, db, "cancel", ended)
    assert move(lesson, db, "1", "2") == 3
    rows = {id: task_row(db, id) for id in ids}
    assert [rows[id].version for id in ids] == ["2", "2", "2", "1"]
    assert [rows[id].status for id in ids] == ["queued", "queued", "running", "cancelled"]
    assert rows[parked].parked_by == []


def test_a_run_whose_version_is_moved_writes_on_and_is_the_others_afterwards(lesson, db):
    (id,) = begun(lesson, db, "1")
    with claimed_as(lesson, db, id, "1") as ctx:
        assert move(lesson, db, "1", "2") == 1
        ctx.step(charge, 7, 10)
        ctx.step(reserve, 7, 2)
        ctx.step(confirm, 7)
    assert log_of(db, id)[2].name == "confirm"
    execute(db, "update tasks set status = 'queued'")
    with queries(lesson, db) as queue:
        assert claim_tasks(queue, register_worker(queue, version="1")) == []
        assert len(claim_tasks(queue, register_worker(queue, version="2"))) == 1


@contextmanager
def claimed_as(lesson, db, id, version):
    with queries(lesson, db) as queue:
        (task,) = claim_tasks(queue, register_worker(queue, version=version))
        assert task.id == id
        yield make_context(lesson, queue, task)


def test_what_does_not_fit_the_version_that_it_was_moved_to_is_parked_and_can_go_back(lesson, db):
    (id,) = begun(lesson, db, "1")
    deploy(lesson, edited())
    move(lesson, db, "1", "2")
    with working(worker(lesson, db, "2")):
        parked_by(db, id, "2")
    move(lesson, db, "2", "1")
    deploy(lesson, order)
    with working(worker(lesson, db, "1")):
        assert wait_for_status(db, id, "succeeded").output == "done"


def test_a_task_that_is_moved_to_no_version_may_be_tried_by_all(lesson, db):
    (id,) = begun(lesson, db, "1")
    assert move(lesson, db, "1", "") == 1
    with working(worker(lesson, db)):
        assert wait_for_status(db, id, "succeeded").output == "done"


def test_a_move_and_the_end_of_a_child_do_not_wait_for_each_other(lesson, db):
    """The child's row is locked before its parent's, as the end of a child does it."""
    define(lesson)
    parent = enqueue(lesson, db, "run_double", 3, priority=1)
    execute(db, "update tasks set version = '1'")
    child = enqueue(lesson, db, "double", 3)
    execute(
        db,
        "update tasks set version = '1', parent_id = %s, parent_position = 1 where id = %s",
        parent,
        child,
    )
    with ThreadPoolExecutor(1) as threads, db.connect() as holder:
        holder.execute("select from tasks where id = %s for update", (child,))
        moving = submitted(db, threads, lambda: move(lesson, db, "1", "2"))
        holder.execute("select from tasks where id = %s for update nowait", (parent,))
        holder.rollback()
        assert moving.result(timeout=30) == 2


# What is refused


@pytest.mark.parametrize("version", ["a b", "x" * 101, "ä", "1\n", None, 7, ["1"]], ids=repr)
def test_a_bad_version_is_refused_with_a_sentence(lesson, db, version):
    with pytest.raises(lesson.inputs.BadInput, match="a version is named with 1 to 100 letters"):
        worker_of(lesson, db, version)
    with pytest.raises(lesson.inputs.BadInput, match="a version is named with"):
        move(lesson, db, version, "2")
    with pytest.raises(lesson.inputs.BadInput, match="a version is named with"):
        move(lesson, db, "2", version)


def worker_of(lesson, db, version):
    return lesson.worker.Worker(db, "w", version=version)


def test_a_version_is_not_moved_onto_itself_nor_what_is_of_none(lesson, db):
    with pytest.raises(lesson.inputs.BadInput, match="of that version already"):
        move(lesson, db, "2", "2")
    with pytest.raises(lesson.inputs.BadInput, match="a version is named with"):
        move(lesson, db, "", "2")


def test_the_verbs_show_the_versions_and_move_them(lesson, db):
    begun(lesson, db, "1", 2)
    shown = run_verb(lesson, "versions")
    assert shown.returncode == 0, shown.stderr
    (row,) = [line for line in shown.stdout.splitlines() if "1" in line]
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["1", "2", "0", "0"]
    moved = run_verb(lesson, "move-version", "1", "2")
    assert "2 tasks of version 1 are of 2 now" in moved.stdout, moved.stderr
    refused = run_verb(lesson, "move-version", "2", "2")
    assert refused.returncode != 0
    assert "of that version already" in refused.stderr
    bad = run_verb(lesson, "worker", "--version", "a b")
    assert "a version is named with" in bad.stderr
