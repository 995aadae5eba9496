"""What the claim reads does not grow with the table. Held on rows and pages, not on time."""

from typing import Any

import pytest

from bench.growth import FINISHED, WAITING, buffers, explain_claim, rows_read, scans
from shared.database import Database
from shared.testing import Lesson

CLAIMED = 10


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

    read = [scan for scan in scans(plan) if scan["Relation Name"] == "tasks"]
    assert {scan["Node Type"] for scan in read} == {"Index Scan"}
    assert {"tasks_queued", "tasks_pkey"} == {scan["Index Name"] for scan in read}
    for scan in read:
        assert rows_read(scan) == CLAIMED
    # In an index of a large table a row is a level or two further down: in each of its indexes.
    assert buffers(plan) <= alone + 10 * CLAIMED
