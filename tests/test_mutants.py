"""The bugs that were planted: each fits its lesson, and some of them are killed here.

All of them: python -m faults.mutants
"""

from dataclasses import replace

import pytest

from faults.mutants import Edit, breaks, find_test, judge, plant, planted
from tools.patches import copy_of
from tools.tree import CourseError

MUTANTS = {mutant.name: mutant for mutant in planted()}
QUICK = [
    "succeed_no_attempt",
    "record_not_running",
    "take_back_by_id",
    "bury_unlocked",
    "lost_count",
    "spawn_in_two",
]


def test_every_bug_can_be_planted_and_names_a_test():
    assert len(MUTANTS) + len(breaks()) >= 25
    wrong = []
    for mutant in MUTANTS.values():
        try:
            find_test(mutant)
            with copy_of(mutant.lesson) as copy:
                plant(copy, mutant.edits)
        except CourseError as error:
            wrong.append(f"{mutant.name}: {error}")
        if not mutant.what.endswith(".") or any(edit.old == edit.new for edit in mutant.edits):
            wrong.append(f"{mutant.name}: the full stop of its sentence, or it changes nothing")
    assert wrong == []


@pytest.mark.parametrize("name", QUICK)
def test_a_planted_bug_is_killed(name):
    verdict = judge(MUTANTS[name])
    assert verdict.killed, verdict.why


def test_what_breaks_nothing_survives():
    """Else a runner that calls everything killed would pass as well."""
    (edit,) = MUTANTS["nan"].edits
    harmless = replace(edit, new=edit.old.replace("False", "not True"))
    assert harmless != edit
    verdict = judge(replace(MUTANTS["nan"], edits=(harmless,)))
    assert (verdict.killed, verdict.why) == (False, "passed: ")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"edits": (Edit("no such line", ""),)}, "0 times and not once"),
        ({"edits": (Edit("import", ""),)}, "and not once"),
        ({"edits": (Edit("a", "b", query="NoSuchQuery"),)}, "no query NoSuchQuery"),
        ({"edits": (Edit("@id and", "@other and", query="SucceedTask"),)}, "new parameters: other"),
        ({"killed_by": "test_that_nobody_has_written"}, "0 files have a test"),
    ],
)
def test_what_cannot_be_planted_or_tried_survives(change, why):
    verdict = judge(replace(MUTANTS["nan"], **change))
    assert not verdict.killed
    assert why in verdict.why
