"""Lesson 13: what other versions have queued and parked costs a worker nothing: pages, not time."""

import pytest

from bench.growth import buffers, explain_query
from tests.helpers import execute, register

OTHERS = 20_000


def explained(lesson, connection, mode, query, **values):
    return explain_query(connection, lesson.queries, query, values, mode)


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("of", ["no version", "its version"])
def test_a_claim_behind_many_tasks_of_another_version_reads_as_many_pages_as_without(
    lesson, db, mode, of
):
    worker = register(lesson, db, version="2")

    def claim():
        with db.connect() as connection:
            plan = explained(
                lesson,
                connection,
                mode,
                "claim_tasks",
                worker_id=worker,
                queue="default",
                durable_names=["nothing"],
                limited=False,
                at_most=10,
                skip=0,
            )
            claimed = connection.execute(
                "select count(*) from tasks where status = 'running'"
            ).fetchone()
            assert claimed == (10,)
            connection.rollback()
        return buffers(plan)

    version = "2" if of == "its version" else ""
    execute(
        db,
        "insert into tasks (name, input, version)"
        " select 'nothing', 'null', %s from generate_series(1, 100)",
        version,
    )
    execute(db, "analyze tasks")
    alone = claim()
    execute(
        db,
        "insert into tasks (name, input, version, priority)"
        " select 'nothing', 'null', '1', 9 from generate_series(1, %s)",
        OTHERS,
    )
    execute(db, "vacuum analyze tasks")
    behind = claim()
    assert behind <= alone + 100


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("case", ["of another version", "tried by this one"])
def test_looks_read_few_pages_however_much_is_queued_and_parked(lesson, db, mode, case):
    worker = register(lesson, db, version="2")
    version, tried = {"of another version": ("1", ["1"]), "tried by this one": ("", ["1", "2"])}[
        case
    ]
    execute(
        db,
        "insert into tasks (name, input, version, status, parked_by, attempt)"
        " select 'nothing', 'null', %s, status, %s, 1"
        " from generate_series(1, %s), unnest(%s::text[]) status",
        version,
        tried,
        OTHERS,
        ["waiting", "queued"] if case == "of another version" else ["waiting"],
    )
    execute(db, "vacuum analyze tasks")
    # The least of several: what a session has to read again about tables and functions, the first
    # time or when other tests have made some, counts too.
    look, chores = [], []
    with db.connect() as connection:
        for _ in range(5):
            of_work = {"worker_id": worker, "queue": "default"}
            look.append(explained(lesson, connection, mode, "look_for_work", **of_work))
            chores.append(explained(lesson, connection, mode, "look_for_chores", worker_id=worker))
    assert min(map(buffers, look)) < 20
    assert min(map(buffers, chores)) < 100
