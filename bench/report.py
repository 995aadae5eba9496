"""The tables: one for the terminal, and those in docs/numbers.md, between markers."""

import re
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.measures import MEASURES, Measure
from shared.story import console


def number(value: float) -> str:
    """Three digits of it, and all of those before the point."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def engines(result: dict[str, Any]) -> list[str]:
    return list(result["rounds"])


def label(measure: Measure) -> str:
    return f"{measure.title}, {measure.unit}" if measure.unit else measure.title


def lines(result: dict[str, Any]) -> list[tuple[Measure, dict[str, dict[str, float | None]]]]:
    """The measures that have a figure, with their cells by engine."""
    found = result["summary"]
    return [(measure, found[measure.key]) for measure in MEASURES if measure.key in found]


def about(result: dict[str, Any]) -> str:
    s = result["settings"]
    return (
        f"Postgres {s['server_version']} ({s['server']}), fsync {s['fsync']}, synchronous_commit"
        f" {s['synchronous_commit']}, shared_buffers {s['shared_buffers']}, max_wal_size"
        f" {s['max_wal_size']}; {s['cores']} cores ({s['machine']}), load {s['load_before']}"
        f" before; Python {s['python']}, psycopg {s['psycopg']}; {s['date']};"
        f" {result['sizes']['tasks']:,} tasks and {result['sizes']['workflows']} workflows in each"
        f" of {result['count']} rounds."
    )


def wide(columns: int) -> Console:
    """So many columns also where the terminal has fewer, or where there is none."""
    return Console(width=columns, highlight=False)


def show(result: dict[str, Any]) -> None:
    """Below each median, the lowest and the highest round, and the ratio to the floor's median."""
    table = Table("", *engines(result), box=None, header_style="bold")
    table.columns[0].width = 24
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for measure, cells in lines(result):
        title = f"{measure.title}\n[dim]{measure.unit}[/dim]"
        table.add_row(title, *(in_terminal(cells.get(engine)) for engine in engines(result)))
    wide(26 + 14 * len(engines(result))).print(table)
    console.print(about(result))
    console.print("Each figure is a median; below it, the range over the rounds.", style="dim")
    console.print("× is its ratio to the floor in this run.", style="dim")


def in_terminal(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return "[dim]–[/dim]"
    extremes = f"{short(cell['min'])}–{short(cell['max'])}"
    ratio = "" if cell["ratio"] in (None, 1) else f"\n[cyan]×{number(cell['ratio'])}[/cyan]"
    return f"{number(cell['median'])}\n[dim]{extremes}[/dim]{ratio}"


def short(value: float) -> str:
    return f"{value / 1000:.1f}k" if value >= 10_000 else number(value)


def in_markdown(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return "–"
    ratio = "" if cell["ratio"] in (None, 1) else f", ×{number(cell['ratio'])}"
    extremes = f"{number(cell['min'])}–{number(cell['max'])}"
    return f"{number(cell['median'])}{ratio} <sub>{extremes}</sub>"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def numbers_table(result: dict[str, Any]) -> str:
    header = ["", *engines(result)]
    rows = [
        [label(measure), *(in_markdown(cells.get(engine)) for engine in engines(result))]
        for measure, cells in lines(result)
    ]
    return f"{markdown(header, rows)}\n\n{about(result)}"


def growth_tables(growth: dict[str, Any]) -> list[tuple[list[str], list[list[str]]]]:
    """Header and rows: of the table that has grown, and of the long drain."""
    tasks = growth["tasks"]
    grown = [
        "in the table besides",
        f"drain of {tasks:,}, tasks/s",
        "pages per claim of 10",
        "plan",
    ]
    drained = [f"drain of {10 * tasks:,}", "tasks/s", "first fifth", "last fifth", "dead rows left"]
    cases = [
        [
            case["title"],
            number(case["rate"]),
            *(f"{case[key]:,.0f}" for key in ("rows", "buffers")),
            case["plan"],
        ]
        for case in growth["cases"]
    ]
    drains = [
        [
            case["title"],
            *(number(case[key]) for key in ("rate", "first_fifth", "last_fifth")),
            f"{case['dead_after'] - case['dead_before']:,}",
        ]
        for case in growth["long"]
    ]
    return [(grown, cases), (drained, drains)]


def show_growth(growth: dict[str, Any]) -> None:
    for header, rows in growth_tables(growth):
        table = Table(*header, box=None, header_style="bold")
        for row in rows:
            table.add_row(*row)
        wide(130).print(table)


def growth_section(growth: dict[str, Any]) -> str:
    return "\n\n".join(markdown(header, rows) for header, rows in growth_tables(growth))


def fill(page: Path, sections: dict[str, str]) -> None:
    """Write each section between its markers, `<!-- name -->` and `<!-- /name -->`."""
    text = page.read_text()
    for name, section in sections.items():
        pattern = rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)"
        text, found = re.subn(
            pattern, lambda m, s=section: f"{m[1]}{s}{m[2]}", text, flags=re.DOTALL
        )
        if not found:
            raise SystemExit(
                f"{page}: the markers <!-- {name} --> and <!-- /{name} --> are missing"
            )
    page.write_text(text)
