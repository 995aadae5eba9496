"""Random faults on real processes, from seeds. faults/chaos.py says what is done and checked."""

import pytest

from faults.chaos import run
from shared.lessons import find


@pytest.mark.parametrize(
    ("number", "seed", "by_hand"),
    [
        ("03", 1, False),
        ("06", 2, False),
        ("07", 3, False),
        ("11", 4, False),
        ("11", 5, True),
        ("14", 6, False),
    ],
)
def test_nothing_is_lost_or_done_twice_under_random_faults(number, seed, by_hand):
    """Again, if it fails: python -m faults.chaos --seconds 4 --lesson NUMBER --seed SEED"""
    lines = []
    result = run(find(number), seed, seconds=4, say=lines.append, by_hand=by_hand)
    story = "\n".join([*lines, *result.violations, result.summary()])
    assert not result.violations, f"lesson {number}, seed {seed}\n{story}"
    assert result.faults.total() > 0, story
