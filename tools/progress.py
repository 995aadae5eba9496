"""How far a reader's lesson is: the stages that hold, what fails first, and what comes next."""

import ast
from collections.abc import Iterable
from pathlib import Path

from shared.generated import fingerprint, recorded, selector
from shared.lessons import BUILD, number
from shared.postgres import server
from tools.generated import NoPlugin
from tools.judge import TEST_SECONDS, WHOLE_SECONDS, import_error, judge
from tools.outcomes import holds, show
from tools.patches import Case, NoReport
from tools.stages import Change, Plan, generate, plan
from tools.symbols import pieces, texts
from tools.told import describe, heading, introduce, of_stage, tell, title
from tools.tree import Course, CourseError

# A test that hangs is ended with its whole process, and pytest-xdist starts another one.
ENDED_IF_IT_HANGS = ("-n2", "--timeout-method=thread")
NO_PLUGIN = (
    "sqlc's Python plugin cannot be had on this machine, so db/ cannot be made of half of the SQL. "
    "Write what the later stages add to schema.sql and queries.sql as well, as the lesson has it: "
    "then the lesson's own db/ is taken. Lesson 00 says how sqlc finds its plugin."
)


def lesson_of(course: Course, copy: Path) -> Path:
    return course.lesson(f"{number(copy):02}")


def reached(copy: Path) -> int:
    """The number of the stage that was reached when it was last judged."""
    text = (copy / BUILD).read_text().partition("\n")[0]
    return max(int(text), 1) if text.isdecimal() else 1


def keep(copy: Path, stage: int, failed: Iterable[str] = ()) -> None:
    """failed: of all tests of the lesson, those to begin with next time."""
    (copy / BUILD).write_text("\n".join([str(stage), *failed]) + "\n")


def progress(course: Course, copy: Path) -> None:
    planned = plan(course, lesson_of(course, copy))
    count = len(planned.stages)
    stage = min(reached(copy), count)
    failed_last = (copy / BUILD).read_text().split("\n")[1:-1]
    keep(copy, stage, failed_last)  # it is the one that was touched last
    print(f"{course.shown(copy)}, lesson {title(planned)}\n")
    if wrong := syntax_error(copy) or stale_sql(planned, copy):
        print(f"{heading(planned, stage)}\n\n{wrong}")
        return
    with server():
        ended = tried(course, planned, copy, 1, stage)
        while (failing := first_failing(planned, ended)) is None and stage < count:
            stage += 1
            ended |= tried(course, planned, copy, stage, stage)
        if failing is None:
            whole(course, planned, copy, failed_last)
            return
    new = failing > reached(copy)
    if new:
        keep(copy, failing)
    if failing > 1:
        held = ["stage 1", "stages 1 and 2", f"stages 1 to {failing - 1}"][min(failing - 2, 2)]
        print(f"The tests of {held} hold.\n")
    if new:
        introduce(course, planned, failing)
    else:
        report(course, planned, copy, failing, ended)


def syntax_error(copy: Path) -> str:
    for path in sorted(copy.glob("*.py")):
        try:
            ast.parse(path.read_bytes())
        except SyntaxError as error:
            return f"{path.name}, line {error.lineno}: {error.msg}"
    return ""


def stale_sql(planned: Plan, copy: Path) -> str:
    """Make db/ again if the SQL has changed; what is wrong if that cannot be."""
    if recorded(copy) == fingerprint(copy):
        return ""
    try:
        generate(planned, copy)
    except NoPlugin:
        return NO_PLUGIN
    except CourseError as error:
        return str(error)
    return ""


def tried(course: Course, planned: Plan, copy: Path, first: int, last: int) -> dict[str, Case]:
    tests = [test for stage in planned.stages[first - 1 : last] for test in stage.tests]
    return outcomes(course, copy, tests)


def outcomes(
    course: Course, copy: Path, tests: list[str], seconds: float = TEST_SECONDS
) -> dict[str, Case]:
    try:
        return judge(course, copy, tests, *ENDED_IF_IT_HANGS, seconds=seconds)
    except NoReport as error:
        return {test: Case(test, "", "error", str(error), str(error)) for test in tests}


def first_failing(planned: Plan, ended: dict[str, Case]) -> int | None:
    """The number of the first stage that was tried and does not hold."""
    for n, stage in enumerate(planned.stages, 1):
        if any(test in ended and not holds(ended[test]) for test in stage.tests):
            return n
    return None


def report(course: Course, planned: Plan, copy: Path, number: int, ended: dict[str, Case]) -> None:
    """A stage of which a test fails."""
    tests = planned.stages[number - 1].tests
    missing = to_write(planned, copy, number)
    print(f"{heading(planned, number)}\n")
    if wrong := import_error(copy):  # then there is no use in any test
        tell(wrong)
    else:
        show(course, copy, {test: ended.get(test) for test in tests}, missing)
    if missing:
        print("\nStill to write:")
        describe(planned, [*missing])
    print(
        f"\nAgain:         make next\n"
        f"A hint:        make next ARGS=--hint\n"
        f"The solution:  {course.shown(planned.lesson)}"
    )


def to_write(planned: Plan, copy: Path, number: int) -> dict[Change, str]:
    """What is not there yet, still as it was, or still there; the first comes first."""
    absent: list[Change] = []
    untouched: list[Change] = []
    for file, symbol in of_stage(planned, number):
        path, was = copy / file, texts(pieces(file, planned.start.get(file, "")))
        now = texts(pieces(file, path.read_text())) if path.exists() else {}
        kind = planned.changes[file, symbol]
        if kind == "added" and symbol not in now:
            absent.append((file, symbol))
        elif symbol in now and (kind == "removed" or now[symbol] == was.get(symbol)):
            untouched.append((file, symbol))
    return {change: planned.changes[change] for change in absent + untouched}


def whole(course: Course, planned: Plan, copy: Path, failed_last: list[str]) -> None:
    """After the last stage: all tests of the lesson, and of earlier ones those that it could break.

    Those that have failed last come first.
    """
    files = sorted((course.root / "tests").glob(f"test_{number(copy):02}_*.py"))
    rounds = {file.name: [file.name] for file in files}
    if planned.keep:
        rounds["of earlier lessons"] = planned.keep
    if failed_last:
        rounds = {"what has failed last": failed_last, **rounds}
    print(f"All {len(planned.stages)} stages hold. Now all tests of the lesson, file by file:\n")
    ended: dict[str, Case] = {}
    for name, tests in rounds.items():
        found = outcomes(course, copy, tests, WHOLE_SECONDS)
        held = sum(map(holds, found.values()))
        print(f"  {name}: {held} of {len(found)} hold", flush=True)
        ended |= found
        if tests is failed_last and held < len(found):
            break
    failed = {test: case for test, case in ended.items() if not holds(case)}
    keep(copy, len(planned.stages), failed)
    if failed:
        print()
        show(course, copy, failed, {})
        print(f"\n{len(ended) - len(failed)} of {len(ended)} hold.  Again:  make next")
        return
    me = selector(copy)
    print(
        f"{len(ended)} tests, and all hold: you have built lesson {title(planned)}.\n\n"
        f"Its story:                       make run LESSON={me}\n"
        f"Yours beside the lesson's own:   make diff LESSON={me}\n"
        f"With the tests of those before:  make test LESSON={me}"
    )
