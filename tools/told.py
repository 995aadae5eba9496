"""What a reader is told of a stage: what it is for, and what is to be written in it."""

import textwrap

from shared.lessons import number
from tools.changes import declared
from tools.signatures import remark, signature
from tools.stages import Change, Plan
from tools.tree import Course, settings

WIDTH = 96
WHAT = {"added": "new", "changed": "to be changed", "removed": "to be taken out"}


def title(planned: Plan) -> str:
    return f"{number(planned.lesson):02}, {settings(planned.lesson)['title']}"


def heading(planned: Plan, stage: int) -> str:
    return f"Stage {stage} of {len(planned.stages)}: {planned.stages[stage - 1].title}"


def tell(text: str, indent: str = "") -> None:
    print(textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent))


def introduce(course: Course, planned: Plan, number: int) -> None:
    """What a stage is for and what is to be written, with all that others need to call it."""
    stage = planned.stages[number - 1]
    print(heading(planned, number))
    tell(stage.purpose)
    describe(planned, of_stage(planned, number))
    print(
        f"\nHow far it is:  make next\n"
        f"A hint:         make next ARGS=--hint\n"
        f"The solution:   {course.shown(planned.lesson)}"
    )


def of_stage(planned: Plan, number: int) -> list[Change]:
    """In the order in which stages.toml names them."""
    named = planned.stages[number - 1].write

    def place(change: Change) -> int:
        return min(named.index(name) for name in planned.names(change) if name in named)

    return sorted((c for c in planned.changes if planned.owners.get(c) == number), key=place)


def describe(planned: Plan, changes: list[Change]) -> None:
    said = declared(planned.lesson)
    before = ""
    for file, symbol in changes:
        if file != before:
            print()
            tell(": ".join(filter(None, (file, said["added"].get(file)))))
            before = file
        kind = planned.changes[file, symbol]
        why = said[kind].get(f"{file}#{symbol}") or remark(planned.lesson, file, symbol)
        tell(": ".join(filter(None, (f"{symbol or file}, {WHAT[kind]}", why))), "  ")
        if kind != "removed":
            shown = signature(planned.lesson, file, symbol)
            if kind == "changed" and shown.startswith("table "):  # its new columns
                old = signature(planned.before or planned.lesson, file, symbol).split("\n")
                shown = "\n".join(line for line in shown.split("\n") if line not in old[1:])
            if shown:
                print(textwrap.indent(shown, " " * 6))
