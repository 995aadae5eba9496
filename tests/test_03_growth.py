"""What the queries read does not grow with the table. Held on rows and pages, not on time."""

from datetime import timedelta
from inspect import signature
from typing import Any

import pytest
import sqlalchemy as sa

from bench.growth import FINISHED, WAITING, buffers, explain_claim, rows_read, scans
from shared.database import Database
from shared.testing import Lesson
from tests.helpers import MINUTE, execute, register

CLAIMED = 10
FIRST_1000 = {"skip": 0, "at_most": 1000}


def explained(lesson: Lesson, db: Database, mode: Any) -> Any:
    """The plan of a claim of 10 from 100 queued tasks, rolled back."""
    with db.connect() as connection:
        connection.execute(
            "insert into tasks (name, input) select 'nothing', 'null' from generate_series(1, 100)"
        )
        plan = explain_claim(connection, lesson.queries, CLAIMED, mode)
        connection.rollback()
        return plan


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
def test_a_claim_reads_as_many_rows_as_it_claims_however_many_there_are(
    lesson: Lesson, db: Database, mode: str
) -> None:
    alone = buffers(explained(lesson, db, mode))
    with db.connect(autocommit=True) as connection:
        connection.execute(FINISHED, ("null", 20_000))
        connection.execute(WAITING, ("null", 20_000))
        connection.execute("vacuum analyze tasks")
    plan = explained(lesson, db, mode)

    read = [scan for scan in scans(plan) if scan.get("Relation Name") == "tasks"]
    assert {scan["Node Type"] for scan in read} == {"Index Scan"}
    assert {"tasks_queued", "tasks_pkey"} == {scan["Index Name"] for scan in read}
    for scan in read:
        assert rows_read(scan) == CLAIMED
    # In an index of a large table a row is a level or two further down: in each of its indexes.
    assert buffers(plan) <= alone + 10 * CLAIMED


def test_the_queries_read_few_rows_in_a_big_table(lesson, db):
    """100,000 finished, waiting and queued tasks each; 10 that are due, 10 that are running."""
    worker = register(lesson, db, lease=timedelta(hours=1))
    execute(
        db,
        "insert into tasks (name, input, status, output, run_at, attempt)"
        " select 'nothing', 'null', status, case when status = 'succeeded' then json 'null' end,"
        " clock_timestamp() + interval '1 day', (status = 'succeeded')::int"
        " from generate_series(1, 100000), unnest(array['succeeded', 'waiting', 'queued']) status",
    )
    ten = "where id in (select id from tasks where status = %s limit 10)"
    execute(db, f"update tasks set run_at = '-infinity' {ten}", "waiting")  # noqa: S608
    execute(
        db,
        "update tasks set status = 'running', attempt = 1, worker_id = 0,"  # noqa: S608
        f" started_at = clock_timestamp() {ten}",
        "queued",
    )
    execute(db, "vacuum analyze tasks")
    all_of = lesson.queries
    touched = {}
    mine = {"worker_id": worker, "queue": "default"}
    for name, query, values in [
        ("claim", "claim_tasks", {"limited": False, "skip": 0, "at_most": 10, "durable_names": []}),
        ("wake", "wake_tasks", FIRST_1000),
        ("take back", "take_back_tasks", FIRST_1000),
        ("give back", "give_back_tasks", {"running": [], "older_than": MINUTE, **FIRST_1000}),
        ("count", "count_running", {}),
        ("look", "look_for_work", {}),
    ]:
        sql = getattr(all_of, query.upper())
        asked = list(signature(getattr(all_of.Querier, query)).parameters)[1:]
        parameters = {f"p{n}": (mine | values)[each] for n, each in enumerate(asked, 1)}
        with db.autocommit.connect() as connection:
            plan = connection.execute(
                sa.text(f"explain (analyze, buffers, format json) {sql}"), parameters
            ).scalar_one()[0]["Plan"]
        nodes = list(walk(plan))
        scans = {node["Node Type"] for node in nodes if node.get("Relation Name") == "tasks"}
        assert "Seq Scan" not in scans, (name, scans)
        touched[name] = (max(rows_read(node) for node in nodes), buffers(plan))
    print(touched)
    assert min(touched[name][0] for name in ("claim", "wake", "take back", "count")) == 10
    # Ten lost ones may be compared with ten running ones, each with each, and more than once.
    assert all(rows <= 400 for rows, _ in touched.values()), touched
    # Each changed row costs some pages of each of five indexes.
    assert all(pages < 2000 for _, pages in touched.values()), touched


def walk(plan):
    yield plan
    for child in plan.get("Plans", []):
        yield from walk(child)
