"""Random faults on real processes, from seeds. faults/chaos.py says what is done and checked."""

import pytest

from faults.chaos import run

CASES = [("03", 1), ("06", 2), ("06", 3), ("06", 4)]


@pytest.mark.parametrize(("lesson", "seed"), CASES)
def test_nothing_is_lost_or_done_twice_under_random_faults(lesson, seed):
    """Again, if it fails: python -m faults.chaos --lesson LESSON --seed SEED"""
    lines = []
    result = run(lesson, seed, seconds=4, say=lines.append)
    assert result.violations == [], f"seed {seed}\n" + "\n".join([*lines, result.summary()])
    assert result.faults.total() > 3
