"""The tests that judge a lesson while it is being built, and the proof that they do."""

import importlib
import os
import tempfile
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from shared.lessons import number
from shared.postgres import server
from shared.processes import within
from tools.changes import STORY
from tools.forked import forked
from tools.generated import NoPlugin
from tools.patches import Case, NoReport, cases
from tools.stages import FILE, Plan, faults, make, plan
from tools.tree import Course, compared_files, environment, last_line

TEST_SECONDS = 20  # for each test of a stage: one that hangs is ended
WHOLE_SECONDS = 120  # for each of the others
MOST_SECONDS = 600


def judge(
    course: Course, copy: Path, tests: list[str], *options: str, seconds: float = TEST_SECONDS
) -> dict[str, Case]:
    """Run tests (files, or single functions): how each function ends, by its first failure."""
    found: dict[str, list[Case]] = {}
    command = [f"--timeout={within(seconds):g}", *options, *(f"tests/{test}" for test in tests)]
    for case in cases(course, copy, *command, seconds=MOST_SECONDS):
        found.setdefault(case.test, []).append(case)
    return {test: worst(copy, each) for test, each in found.items()}


def worst(copy: Path, found: list[Case]) -> Case:
    """The first case of a test that has failed, if there is one."""
    failed = [case for case in found if case.ended in ("failed", "error")]
    if not failed or len(found) == 1:
        return (failed or found)[0]
    parameters = failed[0].name.partition("[")[2].removesuffix("]").removeprefix(f"{copy.name}-")
    return replace(failed[0], others=f"{len(failed)} of {len(found)} cases; here: {parameters}")


def import_error(copy: Path) -> str:
    """Which module cannot be imported, and which line of which file is to blame."""
    names = sorted(path.stem for path in copy.glob("*.py") if path.name not in STORY)
    status, text = forked(imports, names, copy, environment(), 60)
    return last_line(text) if status else ""


def imports(names: list[str]) -> int:
    """In the copy's directory."""
    for name in names:
        try:
            importlib.import_module(name)
        except BaseException as error:
            frames = traceback.extract_tb(error.__traceback__)
            here = [f for f in frames if os.path.dirname(f.filename) == os.getcwd()]
            where = (
                f"{os.path.basename(here[-1].filename)}, line {here[-1].lineno}" if here else name
            )
            print(f"{where}: {error}")
            return 1
    return 0


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
        if wrong := import_error(copy):
            yield course.finding(path, f"after stage {done}, {wrong}", "move what is missing")
        kept = plan.keep if last else []
        tests = [*kept, *(test for stage in [*solved, *ahead] for test in stage.tests)]
        hurry = [f"--hurry={test}" for stage in ahead for test in stage.tests]
        plugin = ["-p", "tools.hurry"] if hurry else []
        try:
            ended = judge(course, copy, tests, *plugin, *hurry)
        except NoReport as error:
            yield course.finding(path, f"after stage {done}, the tests cannot be run", str(error))
            return
    failing = {test for stage in ahead for test in stage.tests}
    for test in tests:
        case, wanted = ended.get(test), "failed" if test in failing else "passed"
        result = case.ended.replace("error", "failed") if case else "not run"
        if result != wanted:
            wrong = f"after stage {done}, {test} is {result}, not {wanted}"
            why = f" ({case.why})" if case and case.why else ""
            yield course.finding(path, wrong + why, "move it, or what it needs")
