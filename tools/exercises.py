"""exercises/N_name: the test fails as shipped, and passes with the solution."""

from pathlib import Path

from tools.patches import apply, copy_of, outcome
from tools.tree import Course


def exercises(course: Course, name: str | None = None) -> list[str]:
    return [finding for lesson in course.chosen(name) for finding in of_lesson(course, lesson)]


def of_lesson(course: Course, lesson: Path) -> list[str]:
    home = lesson / "exercises"
    names = sorted(path.name for path in home.glob("[0-9]*_*") if path.is_dir())
    found = [
        course.finding(path, "a solution without an exercise", "rename or delete it")
        for path in sorted((home / "solutions").glob("*.patch"))
        if path.stem not in names
    ]
    for name in names:
        found += one_exercise(course, lesson, name)
    return found


def one_exercise(course: Course, lesson: Path, name: str) -> list[str]:
    home = lesson / "exercises"
    test, solution = home / name / f"test_{name}.py", home / "solutions" / f"{name}.patch"
    readme = home / name / "README.md"
    missing = [path for path in (readme, test, solution) if not path.exists()]
    if missing:
        return [course.finding(path, "missing", "an exercise needs it") for path in missing]
    found: list[str] = []
    if "<details>" not in readme.read_text():
        found.append(course.finding(readme, "no hint", "add one in <details>"))
    with copy_of(lesson) as copy:
        copied = str(copy / test.relative_to(lesson))
        result, why = outcome(course, copy, copied)
        if result != "failed":
            wrong = f"unsolved, it must fail, and the outcome is {result} {why}".rstrip()
            found.append(course.finding(test, wrong, "let it ask for what is not there yet"))
        if wrong := apply(course, copy, solution, for_readers=True):
            return found + wrong
        result, why = outcome(course, copy, copied)
    if result != "passed":
        wrong = f"with the solution, the test must pass, and the outcome is {result} ({why})"
        found.append(course.finding(solution, wrong, "mend the solution or the test"))
    return found
