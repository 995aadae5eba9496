"""Exercise 3: of two transactions that each rely on what the other changes, one is done again."""

import threading

import sqlalchemy as sa

from shared.processes import within
from shared.testing import wait_for_status, working

BOTH = ("ann", "bob")
COUNT, OFF = "select count(*) from doctors where on_call", "update doctors set on_call = false"


def test_3_serializable(lesson, db):
    both_have_looked = threading.Barrier(2, timeout=within(10))
    calls = []

    def go_off(connection, name):
        first = name not in calls
        calls.append(name)
        on_call = connection.execute(sa.text(COUNT)).scalar_one()
        if first:
            both_have_looked.wait()
        if on_call == 1:
            return "stays"
        connection.execute(sa.text(f"{OFF} where name = :name"), {"name": name})
        return "is off"

    def level(connection):
        return connection.execute(sa.text("show transaction_isolation")).scalar_one()

    @lesson.context.durable
    def end_the_shift(ctx, name):
        return [ctx.serializable(go_off, name), ctx.transaction(level)]

    with db.engine.begin() as connection:
        connection.execute(sa.text("create table doctors (name text, on_call boolean)"))
        connection.execute(sa.text("insert into doctors values ('ann', true), ('bob', true)"))
        ids = [lesson.tasks.enqueue(connection, "end_the_shift", name) for name in BOTH]
    with working(lesson.worker.Worker(db, "w", slots=2)):
        rows = [wait_for_status(db, id, "succeeded", "failed") for id in ids]

    assert all(row.status == "succeeded" for row in rows), [row.error for row in rows]
    assert sorted(row.output[0] for row in rows) == ["is off", "stays"]
    assert {row.output[1] for row in rows} == {"read committed"}
    assert [row.attempt for row in rows] == [1, 1], "it is tried again in its own run"
    assert len(calls) == 3
    with db.connect() as connection:
        assert connection.execute(COUNT).fetchall() == [(1,)]
        kinds = connection.execute("select distinct kind from event_log").fetchall()
    assert kinds == [("transaction",)]
