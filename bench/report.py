"""The tables, for the terminal and for the pages in docs/. A cell may have several lines."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.measures import BATCH, GOALS, LEASE, MEASURES, STEPS
from tools.blocks import put

Rows = list[list[str]]  # the first one is the header

FIGURES = [
    ("drain_many_1", f"tasks a second, one worker process, {BATCH} slots"),
    ("workflows_many", f"functions of {STEPS} steps a second, the same"),
    ("step", "ms for a step of a function that runs alone"),
    ("idle", "ms until an idle worker starts a task"),
    ("recovery", f"s from `kill -9` to the next attempt, with a lease of {LEASE:g} s"),
]


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


def goals(result: dict[str, Any]) -> Rows:
    """What the last engine is to reach, and what it has reached in this run."""
    *_, last = result["rounds"]
    titles = {measure.key: measure.title for measure in MEASURES}
    rows = [["", f"lesson {last}", "goal", ""]]
    for goal in GOALS:
        cell = result["summary"].get(goal.key, {}).get(last, {})
        reached = cell.get("ratio" if goal.ratio else "median")
        if reached is not None:
            met = reached <= goal.value if goal.at_most else reached >= goal.value
            sign = "×" if goal.ratio else ""
            bound = "at most" if goal.at_most else "at least"
            found, wanted = f"{sign}{number(reached)}", f"{bound} {sign}{goal.value}"
            rows.append([titles[goal.key], found, wanted, "✓" if met else "✗"])
    return rows


def about(result: dict[str, Any]) -> str:
    s = result["settings"]
    return (
        f"Postgres {s['server_version']} ({s['server']}), fsync {s['fsync']}, synchronous_commit"
        f" {s['synchronous_commit']}, shared_buffers {s['shared_buffers']}, max_wal_size"
        f" {s['max_wal_size']}, wal_level {s['wal_level']}; {s['cores']} cores ({s['machine']}),"
        f" load {s['load_before']} before; Python {s['python']}, psycopg {s['psycopg']};"
        f" {s['date']};"
        f" {result['sizes']['tasks']:,} tasks and {result['sizes']['workflows']} workflows in each"
        f" round; rounds: {result['count']}."
    )


def growth_tables(growth: dict[str, Any]) -> tuple[Rows, Rows]:
    """Beside other rows, and the long drains."""
    beside = {
        "title": "in the table besides",
        "rate": f"drain of {growth['tasks']:,}, tasks/s",
        "rows": "rows read by a claim of 10",
        "buffers": "pages touched",
        "plan": "plan",
    }
    long = {
        "title": f"drain of {growth['long_tasks']:,}, tasks/s",
        "rate": "all",
        "first_fifth": "first fifth",
        "last_fifth": "last fifth",
        "dead": "dead rows it left",
    }
    return columns(beside, growth["cases"]), columns(long, growth["long"])


def profile_table(parts: list[dict[str, Any]]) -> Rows:
    titles = {
        "title": "CPU in µs for each",
        "floor_client": "floor: client",
        "floor_server": "floor: server",
        "client": "last lesson: client",
        "server": "last lesson: server",
    }
    return columns(titles, parts)


def columns(titles: dict[str, str], cases: list[dict[str, Any]]) -> Rows:
    def text(value: str | float) -> str:
        if isinstance(value, float):
            return number(value)
        return value if isinstance(value, str) else f"{value:,}"

    return [[*titles.values()], *([text(case[key]) for key in titles] for case in cases)]


def show(rows: Rows) -> None:
    """As wide as it has to be, also where the terminal is not, or where there is none."""
    table = Table(*rows[0], box=None, header_style="bold")
    table.columns[0].max_width = 26
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for row in rows[1:]:
        table.add_row(*map(Text, row))
    Console(width=200).print(table)


def markdown(rows: Rows) -> str:
    lines = [rows[0], ["---", *["--:"] * (len(rows[0]) - 1)], *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |".replace("\n", "<br>") for line in lines)


def figures(result: dict[str, Any]) -> Rows:
    """The few that a reader wants, of the floor and of the last engine that was measured."""
    *_, last = result["rounds"]
    growth = result["growth"]
    rows = [["", "floor", f"lesson {last}"]]
    for key, title in FIGURES:
        cells = result["summary"].get(key, {})
        shown = (number(cells[e]["median"]) if e in cells else "–" for e in ("floor", last))
        rows.append([title, *shown])
    alone, *_, most = growth["cases"]
    title = f"tasks a second, beside {most['title']} (and alone)"
    return [*rows, [title, "–", f"{number(most['rate'])} ({number(alone['rate'])})"]]


def blocks(result: dict[str, Any]) -> dict[str, dict[str, str]]:
    """What this run puts into the pages in docs/: page -> block -> content."""
    growth = "\n\n".join(map(markdown, growth_tables(result["growth"])))
    every = f"{markdown(numbers(result))}\n\n{about(result)}"
    return {
        "numbers.md": {
            "figures": markdown(figures(result)),
            "growth": growth,
            "profile": markdown(profile_table(result["profile"])),
        },
        "measurements.md": {"numbers": every},
    }


def write(docs: Path, blocks: dict[str, dict[str, str]]) -> None:
    """Into the pages in docs/, as from `blocks`."""
    for name, contents in blocks.items():
        page = docs / name
        text = page.read_text()
        for block, content in contents.items():
            text = put(text, block, content)
        page.write_text(text)
