"""python -m tools VERB: see --help."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from shared.postgres import PostgresUnavailable
from tools.breaks import breaks, exercises
from tools.build import build, next_
from tools.carry import carry
from tools.changes import changes
from tools.check import check
from tools.copies import work
from tools.diffs import diff, diffs
from tools.generated import generate
from tools.judge import stages
from tools.output import output
from tools.postgres import clean, psql
from tools.races import race
from tools.readme import readme
from tools.tree import Course, CourseError

LESSON = click.Argument(["lesson"], required=False)
ONE_LESSON = click.Argument(["lesson"])
NAME = click.Argument(["name"], required=False)
HINT = click.Option(["--hint"], is_flag=True, help="A hint for the stage that was reached.")
NAMED = click.Option(["--name"], help="For another copy.")
SCRIPT = click.Argument(["script"], required=False)
STAGE = click.Option(["--stage"], help="Begin with the solution of those before.")
CHECK = click.Option(["--check"], is_flag=True, help="Report only, write nothing.")


class Verbs(click.Group):
    """A verb's findings are printed; the exit status is 1 if there are any."""

    def invoke(self, ctx: click.Context) -> None:
        found, status = None, 0
        try:
            found = super().invoke(ctx)
            for line in found or ():
                click.echo(line)
                status = 1
        except (CourseError, PostgresUnavailable) as error:
            click.echo(error, err=True)
            status = 1
        if found is not None and not status:
            click.echo(f"{ctx.invoked_subcommand}: ok")
        ctx.exit(status)


@click.group(cls=Verbs)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Keep the copies honest that the lessons are.

    LESSON is 01, 01_simple_queue or a directory such as work/01_mine. Without --check, the verbs
    that have it write what they make.
    """
    ctx.obj = ctx.obj or Course(Path(__file__).resolve().parents[1])


def verb(do: Callable[..., Iterable[str] | None], *parameters: click.Parameter) -> None:
    """A function's name is the verb, and its docstring the help."""
    callback: Any = click.pass_obj(do)
    name = do.__name__.rstrip("_")  # next_
    cli.add_command(click.Command(name, None, callback, list(parameters), do.__doc__))


verb(changes, CHECK)
verb(carry, ONE_LESSON)
verb(readme, CHECK)
verb(output, CHECK, LESSON)
verb(generate, CHECK, LESSON)
verb(diffs, CHECK)
verb(breaks, LESSON)
verb(exercises, LESSON)
verb(stages, LESSON)
verb(check)
verb(work, LESSON, NAME)
verb(build, LESSON, STAGE, NAMED)
verb(next_, LESSON, HINT)
verb(diff, LESSON)
verb(psql, LESSON)
verb(race, LESSON, SCRIPT)
verb(clean)

if __name__ == "__main__":
    cli(prog_name="python -m tools")
