"""Exercise 2: work in a different database is done once, however often its step is."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from shared.processes import wait_until
from shared.testing import wait_for_status, waiting_for_a_lock, working

TAKE = sa.text("update safe set coins = coins - :coins returning coins")


def test_2_elsewhere(lesson, db):
    with db.engine.begin() as connection:
        connection.execute(
            sa.text("create table applied_steps (key text primary key, output json)")
        )
        connection.execute(sa.text("create table safe (coins int)"))
        connection.execute(sa.text("insert into safe values (100)"))
    holding, go_on = [], []

    def take(connection, coins):
        output = {"left": connection.execute(TAKE, {"coins": coins}).scalar_one()}
        if coins == 99:
            raise ConnectionError("the alarm")
        if holding == ["first"]:
            holding.append("in it")
            wait_until(lambda: go_on, "the second one waits")
        return output

    step = lesson.elsewhere.once_in(db.engine, take)
    assert step.__name__ == "take"
    assert [step("a", 30), step("a", 30), step("b", 30)] == [
        {"left": 70},
        {"left": 70},
        {"left": 40},
    ]
    with pytest.raises(ConnectionError):
        step("c", 99)

    holding.append("first")
    with ThreadPoolExecutor() as threads, db.connect(autocommit=True) as look:
        both = [threads.submit(step, "c", 1)]
        wait_until(lambda: len(holding) == 2, "the first one is at work")
        both.append(threads.submit(step, "c", 1))
        wait_until(lambda: waiting_for_a_lock(db), "the second one waits for the key")
        go_on.append(True)
        assert [each.result() for each in both] == [{"left": 39}] * 2
        assert look.execute("select coins from safe").fetchall() == [(39,)]

    @lesson.context.durable
    def pay(ctx, _):
        return ctx.step(step, 9)

    with db.engine.begin() as connection:
        id = lesson.tasks.enqueue(connection, "pay", None)
    with working(lesson.worker.Worker(db, "w")):
        row = wait_for_status(db, id, "succeeded", "failed")
    assert row.output == {"left": 30}, row.error
