"""A shop whose code changes: what the tests of lesson 05 run, deploy and edit."""

import inspect

from shared.testing import task_row, wait_for_status, working
from tests.helpers import MINUTE, enqueue, execute, queries, retry_after, revive

# What the steps have done in the outside world, and the steps that fail.
effects = []


broken = set()


def step(name):
    """A function for `ctx.step`, of that name, which notes what it does and returns it."""

    def function(_key, *args, **kwargs):
        if name in broken:
            raise ConnectionError(f"{name} does not answer")
        effects.append(name)
        return [name, *args, *kwargs.values()]

    function.__name__ = name
    return function


charge, debit, reserve = step("charge"), step("debit"), step("reserve")


confirm, discount, check = step("confirm"), step("discount"), step("check")


def deploy(lesson, function):
    """This is the code from now on; the name of the task is that of the function."""
    lesson.tasks.registry.pop(function.__name__, None)
    lesson.context.durable(function)


def deployed(lesson, db, id, function):
    """One attempt with this code; the task's row after it."""
    deploy(lesson, function)
    execute(db, "update tasks set status = 'queued' where id = %s and status = 'waiting'", id)
    with working(lesson.worker.Worker(db, "w")):
        return wait_for_status(db, id, "succeeded", "failed", "waiting")


def begin(lesson, db, function, **options):
    """A new task and its first attempt; its id."""
    retry_after(lesson, MINUTE)  # nobody runs it before `deployed` does
    deploy(lesson, function)
    id = enqueue(lesson, db, function.__name__, 7, **options)
    deployed(lesson, db, id, function)
    return id


def retry(lesson, db, id):
    with queries(lesson, db) as queue:
        return revive(queue, id)


def unfit(lesson):
    """What a task is whose log does not fit. From lesson 13 on, it waits for other code."""
    return "waiting" if lesson.number >= 13 else "failed"


def line_of(function, mark):
    """The number of the line of the function that holds `mark`."""
    lines, first = inspect.getsourcelines(function)
    return next(first + n for n, line in enumerate(lines) if mark in line)


def columns(row):
    """The message's table: title -> (mark, recorded, asked)."""
    table = {}
    for line in row.error.splitlines()[2:5]:
        mark, title, rest = line[2], line[4:10].strip(), line[11:]
        table[title] = (mark, rest[:38].strip(), rest[38:].strip())
    return table


def order(ctx, id):
    """The code as it was: two steps are recorded, and the third has failed."""
    ctx.step(charge, id, 10)
    ctx.step(reserve, id, 2)
    ctx.step(confirm, id)
    return "done"


def order_under_way(lesson, db):
    broken.add("confirm")
    id = begin(lesson, db, order)
    assert task_row(db, id).status == "waiting"
    assert effects == ["charge", "reserve"]
    broken.clear()
    return id


def ends_early():
    def order(ctx, id):  # caught
        ctx.step(charge, id, 10)

    return order
