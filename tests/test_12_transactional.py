"""Lesson 12: a task that ends in the transaction of its own work."""

import pytest
import sqlalchemy as sa

from shared.testing import task_row, wait_for_status
from tests.helpers import (
    attempt,
    by_hand,
    count,
    enqueue,
    execute,
    new_task,
    program,
    refusing,
    run_once,
)
from tests.test_12_transactions import balance, bank, lossy, one_slot, raising, take

__all__ = ["bank"]


def transactional(lesson, function, name="pay"):
    function.__name__ = name
    return lesson.transactions.transactional(function)


def test_the_work_and_the_tasks_end_are_one_transaction(lesson, db):
    transactional(lesson, lambda connection, amount: take(connection, amount))
    row = run_once(lesson, db, enqueue(lesson, db, "pay", 30))
    assert (row.status, row.output, row.attempt, balance(db)) == ("succeeded", "taken", 1, 70)
    work = "select xmin::text from bank where owner = 'ada'"
    assert execute(db, work) == execute(db, "select xmin::text from tasks")


def test_it_has_one_key_and_can_give_it_away(lesson, db):
    transactional(lesson, lambda _connection, _: lesson.tasks.task_key())
    row = run_once(lesson, db, enqueue(lesson, db, "pay"))
    assert row.output == str(row.log_id)


def test_what_it_raises_leaves_nothing_of_its_work_and_it_is_tried_again(lesson, db):
    calls = []

    def pay(connection, amount):
        take(connection, amount)
        lesson.tasks.enqueue(connection, "nothing", None)
        calls.append(1)
        if len(calls) == 1:
            raise ConnectionError("no answer")
        return "paid"

    transactional(lesson, pay)
    id = enqueue(lesson, db, "pay", 30)
    row = run_once(lesson, db, id)
    assert (row.status, row.error) == ("waiting", "ConnectionError: no answer")
    assert (balance(db), count(db, "queued")) == (100, 0)
    row = run_once(lesson, db, id)
    assert (row.status, row.output, balance(db)) == ("succeeded", "paid", 70)
    assert count(db, "queued") == 1


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (lambda _: {1}, "FinalBadInput: not JSON: a value of type set"),
        (lambda connection: connection.commit(), "EndedTransaction: the function has ended"),
    ],
)
def test_what_would_be_the_same_in_each_attempt_fails_at_once(lesson, db, bad, error):
    transactional(lesson, lambda connection, _: bad(connection))
    row = run_once(lesson, db, enqueue(lesson, db, "pay"))
    assert (row.status, row.attempt) == ("failed", 1)
    assert row.error.startswith(error)


def test_a_check_says_no(lesson, db):
    transactional(lesson, lambda connection, amount: take(connection, amount))
    row = run_once(lesson, db, enqueue(lesson, db, "pay", 1000, max_attempts=1))
    assert (row.status, balance(db)) == ("failed", 100)
    assert "CheckViolation" in row.error


@pytest.mark.parametrize("bad", ["async", "too few arguments", "no function"])
def test_what_is_no_transactional_task_is_refused(lesson, bad):
    async def asleep(_connection, _):
        pass

    functions = {"async": asleep, "too few arguments": lambda _connection: None, "no function": 7}
    with pytest.raises(lesson.inputs.BadInput, match="takes a connection and one JSON value"):
        lesson.transactions.transactional(functions[bad])


@pytest.mark.parametrize("end", ["cancelled", "another attempt"])
def test_a_task_that_was_lost_commits_nothing(lesson, db, end):
    def pay(connection, _):
        take(connection)
        if end == "cancelled":
            by_hand(lesson, db, "cancel", task_id[0])  # waits for nobody
        else:
            execute(db, "update tasks set attempt = attempt + 1")

    transactional(lesson, pay)
    task_id = [enqueue(lesson, db, "pay")]
    row = run_once(lesson, db, task_id[0])
    assert row.status == ("cancelled" if end == "cancelled" else "running")
    assert (row.error, balance(db)) == (None, 100)


def test_who_was_in_the_way_tries_again_at_once_with_the_same_input(lesson, db):
    seen = []

    def pay(connection, items):
        seen.append(list(items))
        items.append("mine")
        if len(seen) < 3:
            connection.execute(raising("40P01"))

    transactional(lesson, pay)
    row = run_once(lesson, db, enqueue(lesson, db, "pay", ["first"]))
    assert (row.status, row.attempt, seen) == ("succeeded", 1, [["first"]] * 3)


def test_a_database_that_refuses_its_end_is_no_error_of_the_task(lesson, db):
    transactional(lesson, lambda connection, _: take(connection))
    with refusing(db, "tasks", "new.status = 'succeeded'"):
        row = run_once(lesson, db, enqueue(lesson, db, "pay"))
    assert (row.status, row.error, balance(db)) == ("running", None, 100)


@pytest.mark.parametrize("amount", [30, 70])
@pytest.mark.parametrize("when", ["before", "after"])
def test_the_answer_to_the_commit_of_a_task_is_lost(lesson, db, when, amount, caplog):
    """With 70, the second try after a COMMIT that has arrived would be refused."""
    calls = []

    def pay(connection, amount):
        calls.append(1)
        return f"{take(connection, amount)} {len(calls)}"

    transactional(lesson, pay)
    id = enqueue(lesson, db, "pay", amount)
    with lossy(db, when, "SucceedTask") as (far, cuts), one_slot(lesson, far):
        row = wait_for_status(db, id, "succeeded", "failed", "waiting")
    assert (len(cuts), row.status, row.attempt) == (1, "succeeded", 1)
    # With 70, it is the failure of the second try that is void.
    assert ("void" in caplog.text) == (when == "after" and amount == 70)
    assert row.output == ("taken 1" if when == "after" else "taken 2")
    assert balance(db) == 100 - amount


def test_as_a_child_it_tells_its_parent_in_the_same_transaction(lesson, db):
    pay = transactional(lesson, lambda connection, amount: take(connection, amount))
    program(lesson, lambda ctx, _: ctx.run(pay, 30))
    parent = enqueue(lesson, db, "program")
    assert run_once(lesson, db, parent).status == "waiting"
    ((child,),) = execute(db, "select id from tasks where parent_id = %s", parent)
    assert run_once(lesson, db, child).status == "succeeded"
    one = "select xmin::text from bank where owner = 'ada'"
    assert execute(db, one) == execute(db, "select xmin::text from event_log")
    assert run_once(lesson, db, parent).output == "taken"


def test_a_retry_by_hand_and_a_replay_do_it_again(lesson, db):
    transactional(lesson, lambda connection, amount: take(connection, amount))
    id = enqueue(lesson, db, "pay", 60, max_attempts=1)
    assert run_once(lesson, db, id).status == "succeeded"
    by_hand(lesson, db, "replay", id)
    assert run_once(lesson, db, id).status == "failed"
    execute(db, "update bank set balance = 100")
    by_hand(lesson, db, "retry", id)
    assert run_once(lesson, db, id).status == "succeeded"
    assert balance(db) == 40


def test_it_is_no_step(lesson, db):
    pay = transactional(lesson, lambda connection, amount: take(connection, amount))
    with attempt(lesson, db, new_task(lesson, db)) as (ctx, _):
        for ask in (ctx.step, ctx.at_most_once, ctx.transaction):
            with pytest.raises(lesson.errors.FinalBadInput, match="pay is a task, and no step"):
                ask(pay, 30)


def test_one_connection_for_each_slot_and_one_more_for_each_transaction(lesson, db):
    most = []

    def pay(connection, _):
        connection.execute(sa.text("select 1"))
        most.append((db.engine.pool.checkedout(), db.autocommit.pool.checkedout()))

    transactional(lesson, pay)
    run_once(lesson, db, enqueue(lesson, db, "pay"))
    assert most[0][0] == 1
    assert task_row(db, 1).status == "succeeded"
    assert db.engine.pool.checkedout() == 0
