"""A worker is struck at every one of its commits; what is promised holds all the same.

Here for lessons 01, 03 and 06; `make faults` does it for all of them.
"""

import pytest

from faults.crash import crash_test, every_point, schema_of_its_own
from shared.testing import LESSONS, number

FIRST, QUEUE, LOG, LAST = sorted(LESSONS.glob("0[1346]_*"))


@pytest.fixture
def crash(path, postgres):
    with schema_of_its_own(path), crash_test(path, postgres) as test:
        yield test


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("path", [FIRST, QUEUE, LAST], ids=lambda path: path.name)
def test_a_worker_is_killed_at_every_commit(crash, path, when):
    result = every_point(crash, when)
    assert result.violations == []
    assert [point.at for point in result.points] == list(range(1, len(crash.commits) + 1))
    assert {point.statements for point in result.points} == set(crash.commits)
    for point in result.points:
        claimed = point.statements[-1].startswith("Claim")
        # Lessons 01 and 02 say so: what a dead worker has claimed and not ended is never ended.
        left_running = claimed if when == "after" else not claimed
        assert point.stuck == (1 if number(path) < 3 and left_running else 0), point
        if when == "after":
            assert point.ran_twice == 0, "what was recorded is not done again"


@pytest.mark.parametrize(
    ("path", "at", "statement", "change"),
    [
        (FIRST, 3, "claim_task", "running"),
        (LOG, 16, "record_step", "arrive"),
        (LAST, 16, "succeed_task", "tour: waiting -> queued"),
    ],
    ids=lambda value: value.name if hasattr(value, "name") else str(value),
)
def test_the_commits_that_the_lessons_name(crash, at, statement, change):
    commits = crash.changes_of_commits()
    assert len(commits) == len(crash.commits)
    assert commits[at - 1][-1].statement == statement
    assert any(change in one.change for one in commits[at - 1])


@pytest.mark.parametrize("path", [LAST], ids=lambda path: path.name)
def test_a_worker_is_stopped_at_every_commit_and_goes_on_when_others_have_finished(crash):
    """What it has sent is on its way until then, and must come to nothing."""
    result = every_point(crash, "before", fault="stop")
    assert result.violations == []
    assert [point.at for point in result.points] == list(range(1, len(crash.commits) + 1))
    assert {point.statements for point in result.points} == set(crash.commits)
