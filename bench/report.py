"""The tables, for the terminal and for docs/numbers.md. A cell may have several lines."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.measures import MEASURES

Rows = list[list[str]]  # the first one is the header


def number(value: float) -> str:
    """Three digits of it, and all of those before the point."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}"


def cell(found: dict[str, Any] | None) -> str:
    """Median, range over the rounds, and the ratio to the floor's median."""
    if found is None:
        return "–"
    ratio = "" if found["ratio"] in (None, 1) else f"\n×{number(found['ratio'])}"
    return f"{number(found['median'])}\n{number(found['min'])}–{number(found['max'])}{ratio}"


def numbers(result: dict[str, Any]) -> Rows:
    engines, summary = list(result["rounds"]), result["summary"]
    return [
        ["", *engines],
        *(
            [f"{measure.title}\n{measure.unit}".strip(), *(cell(cells.get(e)) for e in engines)]
            for measure in MEASURES
            if (cells := summary.get(measure.key))
        ),
    ]


def about(result: dict[str, Any]) -> str:
    s = result["settings"]
    return (
        f"Postgres {s['server_version']} ({s['server']}), fsync {s['fsync']}, synchronous_commit"
        f" {s['synchronous_commit']}, shared_buffers {s['shared_buffers']}, max_wal_size"
        f" {s['max_wal_size']}; {s['cores']} cores ({s['machine']}), load {s['load_before']}"
        f" before; Python {s['python']}, psycopg {s['psycopg']}; {s['date']};"
        f" {result['sizes']['tasks']:,} tasks and {result['sizes']['workflows']} workflows in each"
        f" round; rounds: {result['count']}."
    )


def grown(growth: dict[str, Any]) -> Rows:
    header = [
        "in the table besides",
        f"drain of {growth['tasks']:,}, tasks/s",
        "rows read by a claim of 10",
        "pages touched",
        "plan",
    ]
    return [
        header,
        *(
            [
                case["title"],
                number(case["rate"]),
                f"{case['rows']:,.0f}",
                f"{case['buffers']:,}",
                case["plan"],
            ]
            for case in growth["cases"]
        ),
    ]


def long_drains(growth: dict[str, Any]) -> Rows:
    header = [f"drain of {growth['long_tasks']:,}, tasks/s", "all", "first fifth", "last fifth"]
    return [
        [*header, "dead rows it left"],
        *(
            [
                case["title"],
                *(number(case[key]) for key in ("rate", "first_fifth", "last_fifth")),
                f"{case['dead_after'] - case['dead_before']:,}",
            ]
            for case in growth["long"]
        ),
    ]


def show(rows: Rows) -> None:
    """As wide as it has to be, also where the terminal is not, or where there is none."""
    table = Table(*rows[0], box=None, header_style="bold")
    table.columns[0].max_width = 26
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for row in rows[1:]:
        table.add_row(*map(Text, row))
    Console(width=150).print(table)


def markdown(rows: Rows) -> str:
    lines = [rows[0], ["---", *["--:"] * (len(rows[0]) - 1)], *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |".replace("\n", "<br>") for line in lines)


def page(text: str, result: dict[str, Any]) -> str:
    """docs/numbers.md with the tables between its markers, `<!-- x -->` and `<!-- /x -->`."""
    growth = result["growth"]
    sections = {
        "numbers": f"{markdown(numbers(result))}\n\n{about(result)}",
        "growth": f"{markdown(grown(growth))}\n\n{markdown(long_drains(growth))}",
    }
    for name, section in sections.items():
        start, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
        before, _, rest = text.partition(start)
        _, found, after = rest.partition(end)
        if not found:
            raise ValueError(f"docs/numbers.md has lost its markers of {name!r}")
        text = f"{before}{start}\n{section}\n{end}{after}"
    return text
