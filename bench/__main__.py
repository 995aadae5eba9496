"""python -m bench [--quick] [--tasks N] [--rounds N] [--lessons 01,03] [--json FILE] [--write-docs]
python -m bench growth [--full]      the same drain in a table that has grown
python -m bench docs                 docs/ again from docs/numbers.json, without measuring
"""

import json
import time
from pathlib import Path
from typing import Any

import click
import psycopg

from bench import floor, lessons, picture, report
from bench.growth import grow
from bench.measures import BenchError, Rounds, Sizes, settings, summary
from shared.postgres import PostgresUnavailable, server
from shared.story import console, say
from shared.testing import LESSONS, drop_test_schemas

LEGEND = "Medians; below them the range over the rounds, and × the ratio to the floor in this run."
DOCS = LESSONS.parent / "docs"
PATHS = {path.name[:2]: path for path in sorted(LESSONS.glob("[0-9][0-9]_*"))[1:]}


def measure(names: list[str], sizes: Sizes, count: int) -> dict[str, Any]:
    """All rounds, interleaved: what disturbs the machine for a while disturbs all engines."""
    with server() as url:
        drop_test_schemas(url)
        found: Rounds = {name: [] for name in ("floor", *names)}
        result: dict[str, Any] = {"settings": settings(url), "count": count}
        if floor.pgbench() is None:
            say("there is no pgbench on PATH: its lines will be missing", style="yellow")
        for number in range(1, count + 1):
            for name in found:
                start, title = time.monotonic(), f"round {number}, {name}"
                try:
                    found[name].append(
                        floor.one_round(url, sizes)
                        if name == "floor"
                        else lessons.one_round(PATHS[name], sizes)
                    )
                except (BenchError, TimeoutError) as error:
                    raise BenchError(f"{title}: {error}") from error
                say(f"{title}: {time.monotonic() - start:.1f} s", style="dim")
        drop_test_schemas(url)
    used = {"tasks": sizes.tasks, "workflows": sizes.workflows}
    return {**result, "sizes": used, "rounds": found, "summary": summary(found)}


def measure_growth(lesson: Path, tasks: int, full: bool) -> dict[str, Any]:
    with server() as url:
        drop_test_schemas(url)
        found = grow(lesson, tasks, full)
        drop_test_schemas(url)
    return found


def show_growth(growth: dict[str, Any]) -> None:
    report.show(report.grown(growth))
    report.show(report.long_drains(growth))


def write_docs(result: dict[str, Any]) -> None:
    (DOCS / "numbers.svg").write_text(picture.draw(result))
    page = DOCS / "numbers.md"
    page.write_text(report.page(page.read_text(), result))


@click.group(invoke_without_command=True)
@click.pass_context
@click.option("--quick", is_flag=True, help="one round with few tasks: does it work at all?")
@click.option("--tasks", type=click.IntRange(20), help="how many a round drains; default 1500")
@click.option("--rounds", type=click.IntRange(1), help="default 3")
@click.option("--lessons", "names", default=",".join(PATHS), show_default=True)
@click.option("--json", "file", type=click.Path(path_type=Path), help="write all figures there too")
@click.option("--write-docs", "docs", is_flag=True, help="measure growth too, and rewrite docs/")
def main(
    context: click.Context,
    quick: bool,
    tasks: int | None,
    rounds: int | None,
    names: str,
    file: Path | None,
    docs: bool,
) -> None:
    """Without a verb: what each lesson reaches, and what the bare database reaches."""
    if context.invoked_subcommand:
        return
    chosen = names.split(",")
    if unknown := [name for name in chosen if name not in PATHS]:
        raise click.BadParameter(f"{', '.join(unknown)}; there are {', '.join(PATHS)}")
    sizes = Sizes(tasks or (200 if quick else 1500))
    result = measure(chosen, sizes, rounds or (1 if quick else 3))
    report.show(report.numbers(result))
    console.print(f"{report.about(result)}\n{LEGEND}")
    if docs:
        result["growth"] = measure_growth(PATHS[max(PATHS)], 2 * sizes.tasks, full=True)
        show_growth(result["growth"])
        file = file or DOCS / "numbers.json"
    if file:
        file.write_text(json.dumps(result, indent=1) + "\n")
    if docs:
        write_docs(result)


@main.command("growth")
@click.option("--full", is_flag=True, help="also with a million finished tasks")
@click.option("--lesson", "name", default=max(PATHS), show_default=True)
@click.option("--tasks", default=1500, show_default=True, help="how many each drain drains")
def growth_verb(full: bool, name: str, tasks: int) -> None:
    """The same drain in a table that has grown, and what the claim reads there."""
    if not "03" <= name <= max(PATHS):
        raise click.BadParameter(f"{name}: from lesson 03 on, a task says when it was started")
    show_growth(measure_growth(PATHS[name], tasks, full))


@main.command("docs")
def docs_verb() -> None:
    """Rewrite the picture and the tables from docs/numbers.json, without measuring."""
    write_docs(json.loads((DOCS / "numbers.json").read_text()))


if __name__ == "__main__":
    try:
        main()
    except (BenchError, PostgresUnavailable, psycopg.OperationalError, TimeoutError) as error:
        raise SystemExit(f"no figures: {error}") from None
