"""Lesson 08: a hint is never more than a hint. Tests of earlier lessons pass without any.

Here are a few; NO_HINTS=1 pytest tests/test_0[1-7]_*.py runs them all.
"""

import pytest

from tests.test_06_waiting import (
    test_many_tiny_parents_and_children_on_many_slots_all_finish as test_many_families,
)
from tests.test_07_cancel import test_a_worker_cancels_orphans_in_its_upkeep as test_orphans
from tests.test_07_running_it_again import (
    test_a_retry_keeps_the_log_and_retries_the_failed_child as test_a_retry,
)

pytestmark = pytest.mark.usefixtures("silent")

__all__ = ["test_a_retry", "test_many_families", "test_orphans"]
