"""Lesson 13: which code runs a task, and what becomes of one that the code at hand cannot run."""

import pytest

from shared.testing import task_row, wait_for_status, working
from tests.helpers import by_hand, claim_tasks, enqueue, execute, queries, register
from tests.shop import check, deploy, effects, order, order_under_way


def edited(ctx, id):
    ctx.step(check, id)
    return order(ctx, id)


edited.__name__ = "order"


class Code:
    """A worker of a version, played by hand."""

    def __init__(self, lesson, db, version=""):
        self.id = register(lesson, db, version=version)
        self._queries = lambda: queries(lesson, db)

    def unpark(self):
        with self._queries() as queue:
            return list(queue.unpark_tasks(worker_id=self.id, at_most=10, skip=0))

    def claim(self):
        with self._queries() as queue:
            return [task.id for task in claim_tasks(queue, self.id, durable_names=["order"])]

    def park(self, id):
        with self._queries() as queue:
            attempt = queue.get_task(id=id).attempt
            assert queue.park_task(id=id, attempt=attempt, error="it does not fit") == 1


def new_order(lesson, db):
    deploy(lesson, order)
    return enqueue(lesson, db, "order", 7)


def new_task(db):
    """Of a name that nobody knows."""
    execute(db, "insert into tasks (name, input, max_attempts) values ('unheard_of', '1', 1)")
    return 1


def test_a_function_that_does_not_fit_its_log_is_parked_and_the_attempt_does_not_count(lesson, db):
    id = order_under_way(lesson, db)
    before = task_row(db, id)
    done = list(effects)
    deploy(lesson, edited)
    execute(db, "update tasks set status = 'queued'")
    with working(lesson.worker.Worker(db, "a", version="2")):
        wait_for_status(db, id, "waiting")
    row = task_row(db, id)
    assert (row.parked_by, row.run_at, row.awaits) == (["2"], None, None)
    assert row.error.startswith("NonDeterminismError: at position 1")
    assert row.attempt - row.uncounted == before.attempt - before.uncounted
    assert effects == done


def test_a_name_that_nobody_knows_is_parked_and_the_attempt_does_not_count(lesson, db):
    id = new_task(db)
    worker = lesson.worker.Worker(db, "a")
    with working(worker):
        row = wait_for_status(db, id, "waiting", "failed")
    assert (row.status, row.attempt - row.uncounted) == ("waiting", 0)
    assert row.parked_by == [f"worker {worker.lease.worker_id}"]
    assert "knows no task 'unheard_of'" in row.error


def test_what_other_code_has_parked_is_queued_once(lesson, db):
    id = new_task(db)
    two, three, also_three = (Code(lesson, db, version) for version in ("2", "3", "3"))
    assert two.claim() == [id]
    two.park(id)
    assert two.unpark() == []
    assert three.unpark() == [id]
    assert also_three.unpark() == []


def test_code_that_has_parked_a_task_does_not_claim_it_again(lesson, db):
    id = new_task(db)
    two, three = Code(lesson, db, "2"), Code(lesson, db, "3")
    assert two.claim() == [id]
    two.park(id)
    assert three.unpark() == [id]
    assert two.claim() == []
    with queries(lesson, db) as queue:
        assert queue.look_for_work(worker_id=two.id, queue="default") is False
        assert queue.look_for_work(worker_id=three.id, queue="default") is True
    assert three.claim() == [id]


def test_two_versions_do_not_pass_a_parked_task_to_and_fro(lesson, db):
    id = new_task(db)
    for code in 3 * [Code(lesson, db, version) for version in ("2", "3")]:
        code.unpark()
        for claimed in code.claim():
            code.park(claimed)
    assert task_row(db, id).parked_by == ["2", "3"]
    assert task_row(db, id).attempt == 2


def test_each_start_of_a_worker_without_a_version_is_code_of_its_own(lesson, db):
    id = new_task(db)
    first, second = Code(lesson, db), Code(lesson, db)
    assert first.claim() == [id]
    first.park(id)
    assert first.unpark() == []
    assert second.unpark() == [id]


def test_a_durable_task_belongs_to_the_version_that_begins_it(lesson, db):
    id = new_order(lesson, db)
    one, two, none = (Code(lesson, db, version) for version in ("1", "2", ""))
    assert one.claim() == [id]
    assert task_row(db, id).version == "1"
    execute(db, "update tasks set status = 'queued'")
    assert two.claim() == none.claim() == []
    assert one.claim() == [id]


def test_a_plain_task_belongs_to_no_version(lesson, db):
    id = enqueue(lesson, db)
    assert Code(lesson, db, "1").claim() == [id]
    assert task_row(db, id).version == ""
    execute(db, "update tasks set status = 'queued'")
    assert Code(lesson, db, "2").claim() == [id]


def test_retry_by_hand_lets_all_try_again(lesson, db):
    id = new_order(lesson, db)
    two = Code(lesson, db, "2")
    two.claim()
    two.park(id)
    by_hand(lesson, db, "retry", id)
    row = task_row(db, id)
    assert (row.status, row.parked_by, row.error) == ("queued", [], None)
    assert two.claim() == [id]


def test_a_version_is_moved_and_what_is_parked_is_tried(lesson, db):
    id = new_order(lesson, db)
    one, two = Code(lesson, db, "1"), Code(lesson, db, "2")
    one.claim()
    one.park(id)
    with db.autocommit.connect() as connection:
        assert lesson.versions.move_version(connection, "1", "2") == 1
        assert lesson.versions.move_version(connection, "1", "2") == 0
    assert one.claim() == []
    assert two.claim() == [id]


def test_versions_say_what_is_unfinished_and_who_is_there(lesson, db):
    id = new_order(lesson, db)
    one, _ = Code(lesson, db, "1"), Code(lesson, db, "2")
    one.claim()
    one.park(id)
    enqueue(lesson, db)
    with queries(lesson, db) as queue:
        rows = [tuple(vars(row).values()) for row in queue.list_versions()]
    assert rows == [("", 1, 0, 0), ("1", 1, 1, 1), ("2", 0, 0, 1)]


@pytest.mark.parametrize("version", ["x" * 101, "a b", "Zoë", 7, None], ids=repr)
def test_a_bad_version_is_refused(lesson, db, version):
    with pytest.raises(lesson.inputs.BadInput, match="a version is named with"):
        lesson.worker.Worker(db, "a", version=version)
