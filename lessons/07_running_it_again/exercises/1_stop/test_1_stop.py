"""Exercise 1: the children end, the task goes on."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from shared.processes import wait_until
from shared.testing import task_row, wait_for_status, waiting_for_a_lock, working


def test_1_stop(lesson, db):
    over = threading.Event()

    @lesson.tasks.task
    def ask(carrier):
        if carrier != "quick":
            over.wait(20)
        return carrier

    @lesson.context.durable
    def ask_for_me(ctx, carrier):
        return ctx.run(ask, carrier)

    @lesson.context.durable
    def prices(ctx, carriers):
        pending = [ctx.spawn(ask_for_me, carrier) for carrier in carriers]
        found = []
        for one in ctx.as_completed(*pending):
            try:
                found.append(ctx.result(one))
            except lesson.children.ChildError as error:
                found.append(error.type)
        return found

    def stop(id):
        with db.engine.begin() as connection:
            lesson.control.stop(connection, id)

    def children(id):
        with db.connect() as connection:
            query = "select id from tasks where parent_id = %s order by id"
            return [child for (child,) in connection.execute(query, (id,)).fetchall()]

    assert hasattr(lesson.control, "stop"), "control.stop is yours to write"
    with db.autocommit.connect() as connection:
        id = lesson.tasks.enqueue(connection, "prices", ["slow", "quick", "slow"])
        other = lesson.tasks.enqueue(connection, "prices", ["slow"])
    with working(lesson.worker.Worker(db, "w")), ThreadPoolExecutor(1) as thread:
        wait_until(lambda: task_row(db, id).completions == 1, "the quick one has answered")
        wait_until(lambda: len(children(other)) == 1, "the other one asks too")
        slow = children(id)[0]
        wait_for_status(db, slow, "waiting")
        with db.connect() as holder:
            holder.execute("select from tasks where id = %s for update", (slow,))
            stopped = thread.submit(stop, id)
            wait_until(lambda: stopped.done() or waiting_for_a_lock(db), "it waits for the first")
            holder.rollback()
        stopped.result()
        row = wait_for_status(db, id, "succeeded", "failed", "cancelled")
        assert (row.status, row.output) == ("succeeded", ["quick", "Cancelled", "Cancelled"])
        wait_for_status(db, children(slow)[0], "cancelled")
        for which in (id, 10**9):
            with pytest.raises(lesson.inputs.BadInput):
                stop(which)
        over.set()
        assert wait_for_status(db, other, "succeeded", "failed").output == ["slow"]
