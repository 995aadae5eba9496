"""python -m bench [--quick] [--tasks N] [--rounds N] [--lessons 01,03] [--json FILE] [--write-docs]
python -m bench growth [--full]      the same drain in a table that has grown
python -m bench profile              where a task's CPU goes, the client's and the server's
python -m bench watched              the same drain, with `make watch` open and without
python -m bench peers [--write-docs] other engines, beside the last lesson and the floor
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click
import psycopg

from bench import floor, lesson, pgbench, picture, report
from bench.growth import grow
from bench.measures import BATCH, BenchError, Rounds, Sizes, settings, summary
from bench.profile import profile
from shared.lessons import LESSONS, NoSuchLesson, find, lessons, number
from shared.postgres import PostgresUnavailable, server
from shared.story import console, say
from shared.testing import drop_test_schemas

LEGEND = "Medians; below them the range over the rounds, and × the ratio to the floor in this run."
DOCS = LESSONS.parent / "docs"


def measure(paths: dict[str, Path], sizes: Sizes, count: int) -> dict[str, Any]:
    """All rounds, interleaved: what disturbs the machine for a while disturbs all engines."""
    with tidied() as url:
        engines = {name: partial(lesson.one_round, path) for name, path in paths.items()}
        engines = {"floor": floor.one_round, **engines}
        found: Rounds = {name: [] for name in engines}
        result: dict[str, Any] = {"settings": settings(url), "count": count}
        if pgbench.program() is None:
            say("there is no pgbench on PATH: its lines will be missing", style="yellow")
        for turn in range(1, count + 1):
            for name, one_round in engines.items():
                start, title = time.monotonic(), f"round {turn}, {name}"
                try:
                    found[name].append(one_round(sizes))
                except (BenchError, TimeoutError) as error:
                    raise BenchError(f"{title}: {error}") from error
                say(f"{title}: {time.monotonic() - start:.1f} s", style="dim")
    used = {"tasks": sizes.tasks, "workflows": sizes.workflows}
    return {**result, "sizes": used, "rounds": found, "summary": summary(found)}


@contextmanager
def tidied() -> Iterator[str]:
    """The URL of a server without what earlier runs have left, and without what this one leaves."""
    with server() as url:
        drop_test_schemas(url)
        yield url
        drop_test_schemas(url)


def measure_growth(path: Path, tasks: int, full: bool) -> dict[str, Any]:
    with tidied():
        found = grow(path, tasks, full)
    for table in report.growth_tables(found):
        report.show(table)
    return found


def measure_profile(tasks: int) -> list[dict[str, Any]]:
    with tidied():
        found = profile(find(None), tasks)
    report.show(report.profile_table(found))
    return found


def chosen(name: str | None, first: int, why: str) -> Path:
    """The lesson of that name, the last one for None; it must be one of those from `first` on."""
    try:
        path = find(name)
    except NoSuchLesson as error:
        raise click.BadParameter(str(error)) from None
    if number(path) < first:
        raise click.BadParameter(f"{name}: only from lesson {first:02} on, {why}")
    return path


@click.group(invoke_without_command=True)
@click.pass_context
@click.option("--quick", is_flag=True, help="one round with few tasks: does it work at all?")
@click.option("--tasks", type=click.IntRange(20), help="how many a round drains; default 1500")
@click.option("--rounds", type=click.IntRange(1), help="default 3")
@click.option("--lessons", "names", help="such as 01,06; default: all")
@click.option("--json", "file", type=click.Path(path_type=Path), help="write all figures there too")
@click.option("--write-docs", "docs", is_flag=True, help="measure growth too, and rewrite docs/")
def main(
    context: click.Context,
    quick: bool,
    tasks: int | None,
    rounds: int | None,
    names: str | None,
    file: Path | None,
    docs: bool,
) -> None:
    """Without a verb: what each lesson reaches, and what the bare database reaches."""
    if context.invoked_subcommand:
        return
    every = [path.name[:2] for path in lessons() if number(path)]
    wanted = names.split(",") if names else every
    paths = {name: chosen(name, 1, "there is a queue") for name in wanted}
    sizes = Sizes(tasks or (200 if quick else 1500))
    result = measure(paths, sizes, rounds or (1 if quick else 3))
    report.show(report.numbers(result))
    report.show(report.goals(result))
    console.print(f"{report.about(result)}\n{LEGEND}")
    if docs:
        result["growth"] = measure_growth(find(None), sizes.many_tasks, full=True)
        result["profile"] = measure_profile(20 * BATCH)
        (DOCS / "numbers.svg").write_text(picture.draw(result))
        report.write(DOCS, report.blocks(result))
    if file:
        file.write_text(json.dumps(result, indent=1) + "\n")


@main.command("growth")
@click.option(
    "--full", is_flag=True, help="also with 1 and 10 million finished tasks: 6 GB of disk"
)
@click.option("--lesson", "name", help="such as 03; default: the last one")
@click.option("--tasks", default=15_000, show_default=True, help="how many each drain drains")
def growth_verb(full: bool, name: str | None, tasks: int) -> None:
    """The same drain in a table that has grown, and what the claim reads there."""
    measure_growth(chosen(name, 3, "a task says when it was started"), tasks, full)


@main.command("profile")
@click.option("--batches", default=20, show_default=True, help=f"of {BATCH} tasks each")
def profile_verb(batches: int) -> None:
    """Where a task's CPU goes: of the last lesson, and of the floor."""
    measure_profile(batches * BATCH)


@main.command("watched")
@click.option("--lesson", "name", help="such as 03; default: the last one")
@click.option("--tasks", default=10_000, show_default=True, help="how many each drain drains")
@click.option("--rounds", default=3, show_default=True)
def watched_verb(name: str | None, tasks: int, rounds: int) -> None:
    """The same drain, with `make watch` open and without. (`make watch` installs what it needs.)"""
    from bench import watched

    with tidied():
        found = watched.compare(chosen(name, 1, "there is a queue"), tasks, rounds)
    report.show(watched.rows(found))


@main.command("peers")
@click.option("--tasks", default=1500, show_default=True, help="as for the other figures")
@click.option("--rounds", default=3, show_default=True)
@click.option("--write-docs", "docs", is_flag=True, help="rewrite the table in docs/numbers.md")
def peers_verb(tasks: int, rounds: int, docs: bool) -> None:
    """Other engines on the same server, by turns with the last lesson and the floor.

    They come with `sh tools/setup.sh peers`; each gets a database of its own, which is dropped.
    """
    from bench import peers

    sizes = Sizes(tasks)
    with tidied() as url:
        most = {"tasks": sizes.many_tasks, "workflows": sizes.many_workflows}
        result = {"settings": settings(url), "count": rounds, "sizes": most}
        table = peers.rows(peers.compare(url, find(None), sizes, rounds))
    report.show(table)
    if docs:
        text = f"{report.markdown(table)}\n\n{report.about(result)}"
        report.write(DOCS, {"numbers.md": {"peers": text}})


if __name__ == "__main__":
    try:
        main()
    except (BenchError, PostgresUnavailable, psycopg.OperationalError, TimeoutError) as error:
        raise SystemExit(f"no figures: {error}") from None
