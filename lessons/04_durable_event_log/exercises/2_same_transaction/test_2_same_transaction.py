"""Exercise 2: the work of a step and its record share a transaction."""

import pytest
import sqlalchemy as sa

from shared.testing import task_row, wait_for_status, working


def execute(db, statement):
    with db.connect(autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


@pytest.fixture
def ledger(db):
    execute(db, "create table ledger (amount int not null)")
    return lambda: [amount for (amount,) in execute(db, "select amount from ledger")]


def book(connection, amount):
    connection.execute(sa.text("insert into ledger values (:amount)"), {"amount": amount})
    return amount


def run(lesson, db, function, *statuses):
    assert hasattr(lesson.context.Context, "transact"), "Context.transact is yours to write"
    lesson.context.durable(function)
    with db.autocommit.connect() as connection:
        id = lesson.tasks.enqueue(connection, function.__name__, None)
    with working(lesson.worker.Worker(db, "w")):
        wait_for_status(db, id, *statuses)
    return task_row(db, id)


def test_2_same_transaction(lesson, db, ledger):
    """Done once, although the function runs twice."""

    def books(ctx, _):
        booked = ctx.transact(book, 5)
        if ctx.step(lambda _: len(ledger())) == 1 and task_row(db, 1).attempt == 1:
            raise RuntimeError("in the first attempt")
        return [booked, ctx.transact(book, 6)]

    task = run(lesson, db, books, "succeeded", "failed")
    assert (task.status, task.attempt, task.output) == ("succeeded", 2, [5, 6])
    assert ledger() == [5, 6]
    assert len(execute(db, "select * from event_log")) == 3


def test_an_error_rolls_back_the_work_and_records_nothing(lesson, db, ledger):
    def book_and_fail(connection):
        book(connection, 5)
        raise KeyError("a bug")

    def books(ctx, _):
        try:
            ctx.transact(book_and_fail)
        except KeyError:
            return ctx.transact(book, 6)

    task = run(lesson, db, books, "succeeded", "failed", "waiting")
    assert (task.status, task.output) == ("succeeded", 6)
    assert ledger() == [6]
    assert execute(db, "select position from event_log") == [(1,)]


def test_a_run_that_has_lost_its_task_leaves_nothing(lesson, db, ledger):
    def book_too_late(connection):
        execute(db, "update tasks set status = 'failed', error = 'given up'")
        return book(connection, 5)

    task = run(lesson, db, late_booking(book_too_late), "failed")
    assert task.error == "given up"
    assert ledger() == []
    assert execute(db, "select * from event_log") == []


def late_booking(step):
    def books(ctx, _):
        return ctx.transact(step)

    return books
