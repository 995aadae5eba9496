"""`python -m bench` does its work and adds it up. Nothing here looks at a speed."""

import json
import os
import re
import shutil
import sys
from pathlib import Path
from xml.etree import ElementTree

import psycopg
import pytest

from bench import peers, pgbench, picture, report, watched
from bench.growth import grow
from bench.measures import BATCH, MEASURES, BenchError, settings, summary
from bench.profile import profile
from shared.lessons import find, number
from tools.tree import environment, run

ROOT = Path(__file__).resolve().parents[1]

LAST = f"{number(find(None)):02}"


def test_the_benchmark_measures_a_lesson_and_the_floor(tmp_path: Path) -> None:
    file = tmp_path / "numbers.json"
    options = ["--quick", "--tasks", "20", "--lessons", LAST, "--json", str(file)]
    status, output = run([sys.executable, "-m", "bench", *options], ROOT, environment())
    assert status == 0, output

    result = json.loads(file.read_text())
    assert set(result) == {"settings", "count", "sizes", "rounds", "summary"}
    assert {"server_version", "fsync", "synchronous_commit", "cores"} <= set(result["settings"])
    assert {name: len(rounds) for name, rounds in result["rounds"].items()} == {"floor": 1, LAST: 1}
    (floor,), (lesson,) = result["rounds"].values()
    assert all(value > 0 for value in (*floor.values(), *lesson.values()))
    # The last lesson can do all that is measured, but for what is only the database's.
    measures = {measure.key for measure in MEASURES}
    batches, programs = {"drain_batch_1", "drain_batch_2"}, {"pgbench_1", "pgbench_16"}
    clients = {"enqueue_crowd"} if pgbench.program() else set[str]()
    assert set(lesson) & measures == measures - batches - programs - {"enqueue_crowd"} | clients
    assert batches | (programs if pgbench.program() else set()) <= set(floor)
    assert floor["drain_1_statements"] == pytest.approx(2, abs=0.1)
    assert floor["workflows_10_statements"] == 12
    # Steps and ends of several workflows share their statements.
    assert 1 < lesson["workflows_10_statements"] < 12

    assert result["summary"] == summary(result["rounds"])
    both = result["summary"]["drain_1"]
    assert both["floor"]["ratio"] == 1
    assert both[LAST]["ratio"] == lesson["drain_1"] / floor["drain_1"]
    assert "drain, 1 worker process" in output


def test_medians_extremes_and_ratios() -> None:
    rounds = {
        "floor": [{"drain_1": 50.0}, {"drain_1": 10.0}, {"drain_1": 40.0}],
        "01": [{"drain_1": 30.0, "idle": 7.0}, {"drain_1": 10.0}, {"drain_1": 20.0}],
    }
    found = summary(rounds)
    assert found["drain_1"]["01"] == {"median": 20, "min": 10, "max": 30, "ratio": 0.5}
    assert found["idle"] == {"01": {"median": 7, "min": 7, "max": 7, "ratio": None}}


def headings(page: str) -> list[str]:
    return [line for line in page.splitlines() if line.startswith("#")]


def test_the_pages_and_the_picture_are_made_from_the_figures(postgres: str, tmp_path: Path) -> None:
    rounds = {
        name: [{measure.key: place + n for place, measure in enumerate(MEASURES, 1)}]
        for n, name in enumerate(("floor", "09"))
    }
    result = {
        "settings": settings(postgres),
        "count": 1,
        "sizes": {"tasks": 20, "workflows": 4},
        "rounds": rounds,
        "summary": summary(rounds),
        "growth": grow(find(None), 20, full=False),
        # It looks at the server as a process of this machine.
        "profile": [] if os.environ.get("DATABASE_URL") else profile(find(None), BATCH),
    }
    pages = list(report.blocks(result))
    for name in pages:
        shutil.copy(ROOT / "docs" / name, tmp_path)
    report.write(tmp_path, report.blocks(result))
    written = {name: (tmp_path / name).read_text() for name in pages}
    report.write(tmp_path, report.blocks(result))
    for name, page in written.items():
        assert (tmp_path / name).read_text() == page
        before = (ROOT / "docs" / name).read_text()
        assert headings(page) == headings(before)
    page = written["numbers.md"]
    for case in (*result["growth"]["cases"], *result["growth"]["long"]):
        assert f"| {case['title']} | " in page
        assert f"| {report.number(case['rate'])} | " in page
    for part in result["profile"]:
        assert min(value for key, value in part.items() if key != "title") > 0
        assert f"| {part['title']} | {report.number(part['floor_client'])} | " in page
    for key, title in report.FIGURES:
        cells = result["summary"][key]
        floor, last = (report.number(cells[engine]["median"]) for engine in rounds)
        assert f"| {title} | {floor} | {last} |" in page
    drawn = ElementTree.fromstring(picture.draw(result))
    texts = [text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
    for key, title in picture.PANELS:
        assert title in texts
        for engine in rounds:
            assert report.number(result["summary"][key][engine]["median"]) in texts


def test_the_pages_and_the_picture_that_are_there_show_the_same_run() -> None:
    rows = table("measurements.md")
    drawn = ElementTree.parse(ROOT / "docs/numbers.svg")
    texts = [text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
    again = "`make bench ARGS=--write-docs` makes them again"
    medians: dict[str, list[str]] = {}
    for measure in MEASURES:
        title = measure.title + f"<br>{measure.unit}" * bool(measure.unit)
        assert title in rows, again
        medians[measure.key] = [cell.partition("<br>")[0] for cell in rows[title]]
        if measure.key in dict(picture.PANELS):
            assert set(medians[measure.key]) <= set(texts), again
    five = table("numbers.md")
    for key, title in report.FIGURES:
        assert five[title] == [medians[key][0], medians[key][-1]], again


def table(page: str) -> dict[str, list[str]]:
    """The rows of the page's tables, by their first cells."""
    lines = (ROOT / "docs" / page).read_text().splitlines()
    cells = [line[2:-2].split(" | ") for line in lines if line.startswith("| ")]
    return {first: rest for first, *rest in cells}


@pytest.mark.usefixtures("postgres")
def test_what_watching_costs_is_measured() -> None:
    found = watched.compare(find("01"), 50, 1)
    (alone,), (with_page,) = found.values()
    assert min(alone["rate"], with_page["rate"]) > 0
    assert with_page["cpu"] >= 0  # in ticks of 10 ms
    table = watched.rows(found)
    assert [row[0] for row in table] == ["", "nobody watches", "a page is open"]
    assert table[1][3] == "–"


def test_the_page_shows_the_engines_that_are_pinned() -> None:
    rows, pins = table("numbers.md"), (ROOT / "requirements/peers.in").read_text()
    for peer in peers.PEERS:
        shown = next(row for row in rows if row.startswith(f"{peer.package} "))
        pin = shown.replace(" ", r"(\[.*\])?==")
        assert re.search(f"^{pin}$", pins, re.M)
        assert (ROOT / f"bench/engines/{peer.engine}.py").exists()


def test_an_engine_that_is_not_installed_gets_a_sentence() -> None:
    with pytest.raises(BenchError, match=r"^no-such-engine is missing: sh tools/setup.sh peers$"):
        peers.installed("no-such-engine")


def test_another_engine_that_does_not_come_to_its_end_gives_no_figure(postgres, monkeypatch):
    monkeypatch.setattr(peers, "SECONDS", 0.1)
    peer = peers.Peer("none", 1, "select 9")
    late = pytest.raises(BenchError, match=r"^none: after 0.1 s, 1 of 10 are done$")
    with psycopg.connect(postgres, autocommit=True) as watcher, late:
        peers.rate(watcher, peer, 10)
