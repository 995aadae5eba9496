"""breaks/*.patch: each names the one test that must fail, and it must fail."""

import re
from pathlib import Path

from tools.patches import apply, copy_of, outcome
from tools.tree import Course


def breaks(course: Course, name: str | None = None) -> list[str]:
    return [
        finding
        for lesson in course.chosen(name)
        for patch in sorted((lesson / "breaks").glob("*.patch"))
        for finding in one_break(course, lesson, patch)
    ]


def one_break(course: Course, lesson: Path, patch: Path) -> list[str]:
    head = patch.read_text().partition("\ndiff --git ")[0]
    what = re.findall(r"^What: \S.*$", head, re.M)
    tests = re.findall(r"^Test: (\S+)$", head, re.M)
    if len(what) != 1 or len(tests) != 1:
        remedy = "begin with `What: one sentence.` and `Test: tests/test_x.py::test_y`"
        return [course.finding(patch, "it does not say what it breaks", remedy)]
    if not (course.root / tests[0].partition("::")[0]).exists():
        return [course.finding(patch, f"there is no {tests[0]}", "name a test that exists")]
    with copy_of(lesson) as copy:
        if wrong := apply(course, copy, patch, for_readers=True):
            return wrong
        result, why = outcome(course, copy, tests[0])
    if result == "failed":
        return []
    wrong = f"{tests[0]} must fail, and the outcome is {result}{f' ({why})' if why else ''}"
    remedy = (
        "sharpen the test, or the break" if result == "passed" else "let it fail by an assertion"
    )
    return [course.finding(patch, wrong, remedy)]
