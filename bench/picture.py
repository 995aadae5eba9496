"""docs/numbers.svg: throughput lesson by lesson, and what the bare database reaches."""

from typing import Any
from xml.sax.saxutils import escape

from bench.report import number

PANELS = [
    ("enqueue_one", "Enqueue, one by one: tasks/s"),
    ("drain_1", "Drain, 1 worker process: tasks/s"),
    ("drain_2", "Drain, 2 worker processes: tasks/s"),
    ("workflows_10", "Workflows of 10 steps, 10 slots: per second"),
]
WIDTH, COLUMN, LABEL, BAR, ROW, HEAD, FOOT = 760, 380, 70, 210, 24, 44, 40

# The background is the picture's own, so that it can be read wherever it is shown.
STYLE = """
  .back { fill: #ffffff } .text { fill: #1f2328 } .faint { fill: #59636e }
  .floor { fill: #8c959f } .lesson { fill: #0969da } .range { stroke: #1f2328 }
  text { font: 13px system-ui, sans-serif } .title { font-weight: 600 } .small { font-size: 12px }
  @media (prefers-color-scheme: dark) {
    .back { fill: #0d1117 } .text { fill: #f0f6fc } .faint { fill: #9198a1 }
    .floor { fill: #6e7681 } .lesson { fill: #4493f8 } .range { stroke: #f0f6fc }
  }"""


def draw(result: dict[str, Any]) -> str:
    """A bar for the median, and a thin line from the lowest to the highest round."""
    engines = list(result["rounds"])
    panels = [(title, result["summary"].get(key, {})) for key, title in PANELS]
    panels = [(title, cells) for title, cells in panels if cells]
    panel_height = HEAD + ROW * len(engines)
    height = panel_height * ((len(panels) + 1) // 2) + FOOT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"'
        f' width="{WIDTH}" height="{height}">',
        "<title>Throughput of each lesson and of the bare database</title>",
        f"<style>{STYLE}\n</style>",
        f'<rect class="back" width="{WIDTH}" height="{height}"/>',
    ]
    for place, (title, cells) in enumerate(panels):
        left, top = COLUMN * (place % 2) + 16, panel_height * (place // 2)
        parts += draw_panel(title, cells, engines, left, top)
    parts.append(
        f'<text class="faint small" x="16" y="{height - 14}">floor: plain psycopg, one row at a'
        f" time, the fewest statements. Bars are medians, lines the range of the rounds.</text>"
    )
    return "\n".join([*parts, "</svg>", ""])


def draw_panel(
    title: str, cells: dict[str, Any], engines: list[str], left: int, top: int
) -> list[str]:
    most = max(cell["max"] for cell in cells.values())
    parts = [f'<text class="text title" x="{left}" y="{top + 30}">{escape(title)}</text>']
    for row, engine in enumerate(engines):
        y = top + HEAD + ROW * row
        name = engine if engine == "floor" else f"lesson {engine}"
        parts.append(f'<text class="text small" x="{left}" y="{y + 14}">{name}</text>')
        if engine not in cells:
            parts.append(f'<text class="faint small" x="{left + LABEL}" y="{y + 14}">–</text>')
            continue
        median, low, high = (cells[engine][key] * BAR / most for key in ("median", "min", "max"))
        kind, x, middle = "floor" if engine == "floor" else "lesson", left + LABEL, y + 9.5
        parts += [
            f'<rect class="{kind}" x="{x}" y="{y + 2}" width="{median:.1f}" height="15" rx="2"/>',
            f'<path class="range" d="M{x + low:.1f} {middle}H{x + high:.1f}"/>',
            f'<text class="text small" x="{x + high + 8:.1f}" y="{y + 14}">'
            f"{number(cells[engine]['median'])}</text>",
        ]
    return parts
