"""The tests that judge a lesson while it is being built, and the proof that they do."""

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from shared.lessons import number
from shared.postgres import server
from shared.processes import within
from tools.generated import NoPlugin
from tools.patches import Case, cases
from tools.stages import FILE, Plan, faults, make, plan
from tools.tree import Course, compared_files

TEST_SECONDS = 20  # for each test of a stage: one that hangs is ended
WHOLE_SECONDS = 120  # for each of the others
MOST_SECONDS = 1200


def judge(
    course: Course, copy: Path, tests: list[str], seconds: float = TEST_SECONDS, processes: int = 2
) -> dict[str, Case]:
    """Run these tests (of files or test functions): how each function ends, by its first failure.

    A test that hangs is ended, with its whole process, and pytest-xdist starts another one. In no
    process but pytest's own, only the main thread is ended.
    """
    options = [f"-n{processes}", f"--timeout={within(seconds):g}"]
    options += ["--timeout-method=thread"] if processes else []
    paths = [f"tests/{test}" for test in tests]
    found: dict[str, Case] = {}
    for case in cases(course, copy, *options, *paths, seconds=MOST_SECONDS):
        if case.test not in found or found[case.test].ended == "passed":
            found[case.test] = case
    return found


def stages(course: Course, lesson: str | None = None) -> Iterator[str]:
    """Do the tests of each stage pass on its solution, and on nothing less?"""
    chosen = [each for each in course.chosen(lesson) if lesson or (each / FILE).exists()]
    plans = [plan(course, each) for each in chosen]
    wrong = [line for each in plans for line in faults(course, each)]
    yield from wrong
    if wrong:
        return
    states = [(each, n) for each in plans for n in range(len(each.stages) + 1)]

    def tried(state: tuple[Plan, int]) -> list[str]:
        return list(one_state(course, *state))

    try:
        with server(), ThreadPoolExecutor(2) as threads:  # one server for all of them
            for found in threads.map(tried, states):
                yield from found
    except NoPlugin as error:
        print(f"NOT TRIED, the states between two lessons need sqlc's plugin: {error}")


def one_state(course: Course, plan: Plan, done: int) -> Iterator[str]:
    """After so many stages: their tests pass (of all of them, at the end), the next one's fail."""
    path = plan.lesson / FILE
    last = done == len(plan.stages)
    solved = plan.stages if last else plan.stages[max(done - 1, 0) : done]
    ahead = plan.stages[done : done + 1]
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory).resolve() / "copy" / f"{number(plan.lesson):02}_build"
        make(plan, done, copy)
        if last and compared_files(copy) != compared_files(plan.lesson):
            yield course.finding(path, "after the last stage, it is not the lesson", "see diff")
        tests = [test for stage in [*solved, *ahead] for test in stage.tests]
        ended = judge(course, copy, tests, processes=0)  # one starts sooner than two
    for stage, wanted in [*((s, "passed") for s in solved), *((s, "failed") for s in ahead)]:
        for test in stage.tests:
            case = ended.get(test)
            result = case.ended.replace("error", "failed") if case else "not run"
            if result != wanted:
                wrong = f"after stage {done}, {test} is {result}, not {wanted}"
                why = f" ({case.why})" if case and case.why else ""
                yield course.finding(path, wrong + why, "move it, or what it needs")
