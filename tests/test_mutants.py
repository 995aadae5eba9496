"""The bugs that were planted: each patch fits its lesson, and some of them are killed here.

All of them: python -m faults.mutants
"""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from faults.mutants import breaks, judge, planted
from tools.tree import Course, git

COURSE = Course(Path(__file__).resolve().parents[1])
QUICK = [
    "succeed_no_attempt",
    "record_not_running",
    "take_back_by_id",
    "bury_unlocked",
    "lost_count",
    "spawn_in_two",
]


def test_every_patch_fits_its_lesson_and_names_a_test():
    mutants = planted(COURSE)
    assert len(mutants) + len(breaks(COURSE)) >= 25
    wrong: list[str] = []
    for number, mutant in enumerate(mutants, 1):
        status, text = git("apply", "--check", str(mutant.patch), cwd=mutant.lesson)
        if status:
            wrong.append(f"{mutant.name} does not apply: {text.strip()}")
        file, _, test = mutant.test.partition("::")
        path = COURSE.root / file
        if not path.exists() or not re.search(rf"^def {test}\(", path.read_text(), re.M):
            wrong.append(f"{mutant.name}: there is no {mutant.test}")
        if not mutant.name.startswith(f"{number:02d}_") or not mutant.what.endswith("."):
            wrong.append(f"{mutant.name}: its number, or the full stop of its sentence")
    assert wrong == []


@pytest.mark.parametrize("name", QUICK)
def test_a_planted_bug_is_killed(name):
    (mutant,) = [mutant for mutant in planted(COURSE) if mutant.name.endswith(f"_{name}")]
    verdict = judge(COURSE, mutant)
    assert verdict.killed, verdict.why


def test_what_breaks_nothing_survives(tmp_path):
    """Else a runner that calls everything killed would pass as well."""
    (mutant,) = [mutant for mutant in planted(COURSE) if mutant.name.endswith("_nan")]
    text = mutant.patch.read_text()
    mutant = replace(mutant, patch=tmp_path / "harmless.patch")
    now_harmless = text.replace("(value, ensure", "(value, allow_nan=not True, ensure")
    assert now_harmless != text
    mutant.patch.write_text(now_harmless)
    verdict = judge(COURSE, mutant)
    assert (verdict.killed, verdict.why) == (False, "passed: ")
    mutant.patch.write_text(text.replace("try:", "no such line:"))
    verdict = judge(COURSE, mutant)
    assert not verdict.killed
    assert "does not apply" in verdict.why
