"""python -m tools VERB [--check] [LESSON]: see --help."""

import argparse
import os
import sys
from pathlib import Path

from tools import changes, generated
from tools.breaks import breaks
from tools.carry import carry
from tools.check import check
from tools.copies import copies, work
from tools.diffs import diffs, show
from tools.exercises import exercises
from tools.output import output
from tools.readme import readme
from tools.tree import Course, CourseError

VERBS = """
LESSON is 01, 01_simple_queue or a directory such as work/01_mine. Without --check, the verbs that
can be checked write what they make.

  changes [--check]            symbols that differ between neighbours, against lesson.toml
  carry LESSON                 merge a lesson's uncommitted edits into all later lessons
  readme [--check]             snippets and the table of changes; checks fences and links
  output [--check] [LESSON]    console blocks of the READMEs
  generate [LESSON]            db/, with sqlc; all lessons unless one is named
  generated --check            is db/ what sqlc made, and from the present files?
  diffs [--check]              diffs/00_to_01.patch and so on
  breaks [LESSON]              does each break fail its test?
  exercises [LESSON]           does each fail as shipped, and pass with its solution?
  copies [LESSON]              does a copy run outside the repository?
  check                        all checks
  work [LESSON] [NAME]         a reader's copy, work/01_mine
  diff [LESSON]                a lesson against the one before; a copy against its lesson
"""


def main(arguments: list[str], root: Path) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools",
        epilog=VERBS,
        usage="%(prog)s VERB [--check] [LESSON]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", metavar="VERB")
    parser.add_argument("lesson", metavar="LESSON", nargs="?")
    parser.add_argument("name", metavar="NAME", nargs="?", help="for work: the copy's name")
    parser.add_argument("--check", action="store_true", help="report only, write nothing")
    given = parser.parse_intermixed_args(arguments)  # output --check 01
    course = Course(root)
    try:
        found = do(course, given.verb, given.lesson, given.name, given.check)
    except CourseError as error:
        print(error, file=sys.stderr)
        return 1
    if found is None:
        parser.error(f"no such verb: {given.verb}")
    for line in found:
        print(line)
    if not found and (given.check or given.verb in ("breaks", "exercises", "copies")):
        print(f"{given.verb}: ok")
    return 1 if found else 0


def do(
    course: Course, verb: str, lesson: str | None, name: str | None, only_check: bool
) -> list[str] | None:
    """Returns the findings; None if there is no such verb."""
    match verb:
        case "changes" if only_check:
            return changes.check(course)
        case "changes":
            changes.show(course)
        case "carry":
            if not lesson:
                raise CourseError("carry which lesson? python -m tools carry 01")
            return carry(course, course.lesson(lesson))
        case "readme":
            return readme(course, check=only_check)
        case "output":
            return output(course, lesson, check=only_check)
        case "generate":
            for path in course.chosen(lesson):
                if lesson or (path / "sqlc.yaml").exists():
                    generated.generate(path)
                    print(f"{course.shown(path)}/db: generated")
        case "generated":
            return generated.check(course)
        case "diffs":
            return diffs(course, check=only_check)
        case "diff":
            show(course, course.lesson(lesson))
        case "breaks":
            return breaks(course, lesson)
        case "exercises":
            return exercises(course, lesson)
        case "copies":
            return copies(course, lesson)
        case "work":
            work(course, course.lesson(lesson), name)
        case "check":
            return ["some checks failed"] if check(course) else []
        case _:
            return None
    return []


if __name__ == "__main__":
    ROOT = os.environ.get("COURSE_ROOT") or Path(__file__).resolve().parents[1]
    sys.exit(main(sys.argv[1:], Path(ROOT).resolve()))
