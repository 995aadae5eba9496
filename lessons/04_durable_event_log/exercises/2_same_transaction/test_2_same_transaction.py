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


def test_2_it_gets_a_copy_of_its_arguments(lesson, db, ledger):
    """In a later run it would not be called, and the list would be as it was."""

    def book_all(connection, amounts):
        while amounts:
            book(connection, amounts.pop())

    def books(ctx, _):
        amounts = [6, 5]
        ctx.transact(book_all, amounts)
        return amounts

    task = run(lesson, db, books, "succeeded", "failed")
    assert (task.status, task.output, ledger()) == ("succeeded", [6, 5], [5, 6])


def test_2_an_error_rolls_back_the_work_and_is_recorded(lesson, db, ledger):
    """The second run gets to know of it, and goes the same way."""

    def book_and_fail(connection):
        book(connection, 5)
        raise KeyError("a bug")

    def books(ctx, _):
        try:
            return ctx.transact(book_and_fail)
        except lesson.errors.StepError:
            booked = ctx.transact(book, 6)
        if task_row(db, 1).attempt == 1:
            raise RuntimeError("in the first attempt")
        return booked

    task = run(lesson, db, books, "succeeded", "failed")
    assert (task.status, task.attempt, task.output) == ("succeeded", 2, 6)
    assert ledger() == [6]
    names = "select name from event_log order by position"
    assert execute(db, names) == [("book_and_fail",), ("book",)]


def test_2_a_run_that_has_lost_its_task_leaves_nothing(lesson, db, ledger):
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
