"""breaks/ and exercises/: patches, and the one test that says what each of them does."""

import re
from collections.abc import Iterator
from pathlib import Path

from tools.patches import apply, copy_of, unless
from tools.tree import Course


def breaks(course: Course, lesson: str | None = None) -> Iterator[str]:
    """Does each break fail its test?"""
    for each in course.chosen(lesson):
        for patch in sorted((each / "breaks").glob("*.patch")):
            yield from one_break(course, each, patch)


def one_break(course: Course, lesson: Path, patch: Path) -> list[str]:
    header = re.match(r"What: \S.*\nTest: (\S+)\n\n", patch.read_text())
    if not header:
        remedy = "begin with `What: one sentence.` and `Test: tests/test_x.py::test_y`"
        return [course.finding(patch, "it does not say what it breaks", remedy)]
    test = header[1]
    if not (course.root / test.partition("::")[0]).exists():
        return [course.finding(patch, f"there is no {test}", "name a test that exists")]
    with copy_of(lesson) as copy:
        if wrong := apply(course, copy, patch, for_readers=True):
            return wrong
        if wrong := unless("failed", course, copy, test):
            remedy = "sharpen the test or the break; it must fail by an assertion"
            return [course.finding(patch, f"{test} {wrong}", remedy)]
    return []


def exercises(course: Course, lesson: str | None = None) -> Iterator[str]:
    """Does each exercise fail as shipped, and pass with its solution?"""
    for each in course.chosen(lesson):
        home = each / "exercises"
        names = sorted(path.name for path in home.glob("[0-9]*_*") if path.is_dir())
        for path in sorted((home / "solutions").glob("*.patch")):
            if path.stem not in names:
                yield course.finding(path, "a solution without an exercise", "rename or delete it")
        for name in names:
            yield from one_exercise(course, each, name)


def one_exercise(course: Course, lesson: Path, name: str) -> Iterator[str]:
    home = lesson / "exercises"
    test, solution = home / name / f"test_{name}.py", home / "solutions" / f"{name}.patch"
    readme = home / name / "README.md"
    if missing := [path for path in (readme, test, solution) if not path.exists()]:
        for path in missing:
            yield course.finding(path, "missing", "an exercise needs it")
        return
    if "<details>" not in readme.read_text():
        yield course.finding(readme, "no hint", "add one in <details>")
    with copy_of(lesson) as copy:
        copied = str(copy / test.relative_to(lesson))
        if wrong := unless("failed", course, copy, copied):
            yield course.finding(test, f"unsolved, it {wrong}", "ask for what is not there yet")
        if found := apply(course, copy, solution, for_readers=True):
            yield from found
        elif wrong := unless("passed", course, copy, copied):
            remedy = "mend the solution or the test"
            yield course.finding(solution, f"with it, the test {wrong}", remedy)
