"""Exercise 2: the message says where the log has what is asked for."""

from datetime import timedelta

from shared.testing import wait_for_status, working


def charge(_key, order):
    return order


def reserve(_key, order):
    return order


def check(_key, order):
    return order


def failed(lesson, db, code):
    """The error of a task that has recorded charge and reserve, and gets this code then."""
    runs = iter([(charge, reserve), code])

    def order(ctx, id):
        for function in next(runs):
            ctx.step(function, id)
        raise RuntimeError("the first run ends here")

    lesson.timing.Timing.backoff = lambda *_: timedelta(0)
    lesson.tasks.registry.pop("order", None)
    lesson.context.durable(order)
    with db.autocommit.connect() as connection:
        id = lesson.tasks.enqueue(connection, "order", 7)
    with working(lesson.worker.Worker(db, "w")):
        return wait_for_status(db, id, "failed").error


def test_2_where_it_stands(lesson, db):
    error = failed(lesson, db, (reserve, charge))
    assert error.startswith("NonDeterminismError: at position 1, ")
    assert "\nwhat it asks for is recorded at position 2\n" in error
    error = failed(lesson, db, (check, charge, reserve))
    assert "\nwhat it asks for is not recorded\n" in error
    error = failed(lesson, db, (charge, charge, reserve))
    assert error.startswith("NonDeterminismError: at position 2, ")
    assert "\nwhat it asks for is not recorded\n" in error, "the one before is answered already"
