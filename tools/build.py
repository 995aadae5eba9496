"""A reader writes a lesson stage by stage, in work/04_build."""

from pathlib import Path

from shared.lessons import BUILD, number
from tools.generated import NoPlugin
from tools.progress import NO_PLUGIN, lesson_of, progress, reached
from tools.stages import GIVEN, Plan, make, plan
from tools.told import heading, introduce, tell, title
from tools.tree import Course, CourseError


def build(course: Course, lesson: str | None, stage: str | None, name: str | None) -> None:
    """A lesson to be written by a reader, work/04_build; if it is there, how far it is."""
    if not lesson:
        raise CourseError("Which lesson? For the first: make build LESSON=01")
    home = course.lesson(lesson)
    if (home / BUILD).exists():
        return progress(course, home)
    planned = plan(course, home)
    count = len(planned.stages)
    if stage and not (stage.isdecimal() and 1 <= int(stage) <= count):
        raise CourseError(f"STAGE={stage}: lesson {number(home):02} has the stages 1 to {count}")
    mine = (name or f"build{f'_{stage}' if stage else ''}").removeprefix(f"{home.name[:2]}_")
    copy = course.root / "work" / f"{home.name[:2]}_{mine}"
    if not copy.exists():
        return begin(course, planned, copy, int(stage or 1))
    if stage or not (copy / BUILD).exists():
        again = f"make build LESSON={home.name[:2]}{f' STAGE={stage}' if stage else ''} NAME=second"
        raise CourseError(f"{course.shown(copy)} is there already. For another one: {again}")
    return progress(course, copy)


def next_(course: Course, lesson: str | None, hint: bool) -> None:
    """How far a reader's lesson is, and what comes next; of that which was touched last."""
    found = sorted((course.root / "work").glob(f"*/{BUILD}"), key=lambda path: path.stat().st_mtime)
    copies = [path.parent for path in found]
    if lesson:
        home = course.lesson(lesson)
        copies = [copy for copy in copies if home in (copy, lesson_of(course, copy))]
    if not copies:
        which = lesson if lesson and lesson.isdecimal() else "01"
        raise CourseError(f"There is no such lesson in work/ yet: make build LESSON={which}")
    if hint:
        planned = plan(course, lesson_of(course, copies[-1]))
        stage = min(reached(copies[-1]), len(planned.stages))
        print(f"{course.shown(copies[-1])}\n{heading(planned, stage)}\n")
        tell(planned.stages[stage - 1].hint)
    else:
        progress(course, copies[-1])


def begin(course: Course, planned: Plan, copy: Path, stage: int) -> None:
    missing = ""
    try:
        make(planned, stage - 1, copy)
    except NoPlugin:
        missing = NO_PLUGIN
    what = f"the code of {planned.before.name}" if planned.before else "an empty queue"
    if stage > 1:
        what += f" and stage{' 1' if stage == 2 else f's 1 to {stage - 1}'}"
    print(f"{course.shown(copy)} is yours: {what}, to become lesson {title(planned)}.\n")
    if planned.given:
        tell(f"Its small or boring parts are there already: {', '.join(given(planned))}.")
        print()
    introduce(course, planned, stage)
    if missing:
        print()
        tell(missing)


def given(planned: Plan) -> list[str]:
    """What nobody has to write: of a file that was there before, each symbol."""
    changes = [change for change, owner in planned.owners.items() if owner == GIVEN]
    old = {path.name for path in planned.before.iterdir()} if planned.before else set[str]()
    return [*dict.fromkeys(f"{f}#{symbol}" if f in old else f for f, symbol in changes)]
