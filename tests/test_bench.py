"""`python -m bench` does its work and adds it up. Nothing here looks at a speed."""

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import picture, report
from bench.floor import pgbench
from bench.measures import MEASURES, summary
from tools.tree import environment, run

ROOT = Path(__file__).resolve().parents[1]


def test_the_benchmark_measures_a_lesson_and_the_floor(tmp_path: Path) -> None:
    file = tmp_path / "numbers.json"
    options = ["--quick", "--tasks", "20", "--lessons", "06", "--json", str(file)]
    status, output = run([sys.executable, "-m", "bench", *options], ROOT, environment())
    assert status == 0, output

    result = json.loads(file.read_text())
    assert set(result) == {"settings", "count", "sizes", "rounds", "summary"}
    assert {"server_version", "fsync", "synchronous_commit", "cores"} <= set(result["settings"])
    assert {name: len(rounds) for name, rounds in result["rounds"].items()} == {"floor": 1, "06": 1}
    (floor,), (lesson,) = result["rounds"].values()
    assert all(value > 0 for value in (*floor.values(), *lesson.values()))
    # The last lesson can do all that is measured, but for what is only the database's.
    batches, programs = {"drain_batch_1", "drain_batch_2"}, {"pgbench_1", "pgbench_16"}
    assert set(lesson) == {measure.key for measure in MEASURES} - batches - programs
    assert batches | (programs if pgbench() else set()) <= set(floor)
    assert floor["task_statements"] == pytest.approx(2, abs=0.1)
    assert floor["workflow_statements"] == 12
    # Each of ten steps is a statement, and so is the finish; the claim may be shared.
    assert lesson["workflow_statements"] > 11

    both = result["summary"]["drain_1"]
    assert both["floor"]["ratio"] == 1
    assert both["06"]["ratio"] == lesson["drain_1"] / floor["drain_1"]
    assert "drain, 1 worker process" in output


def test_medians_extremes_and_ratios() -> None:
    rounds = {
        "floor": [{"drain_1": 50.0}, {"drain_1": 10.0}, {"drain_1": 40.0}],
        "01": [{"drain_1": 30.0, "idle": 7.0}, {"drain_1": 10.0}, {"drain_1": 20.0}],
    }
    found = summary(rounds)
    assert found["drain_1"]["01"] == {"median": 20, "min": 10, "max": 30, "ratio": 0.5}
    assert found["idle"] == {"01": {"median": 7, "min": 7, "max": 7, "ratio": None}}


def test_the_page_and_the_picture_are_made_from_the_figures() -> None:
    docs = ROOT / "docs"
    result = json.loads((docs / "numbers.json").read_text())
    again = "`python -m bench docs` makes them again"
    page = (docs / "numbers.md").read_text()
    assert report.page(page, result) == page, again
    assert picture.draw(result) == (docs / "numbers.svg").read_text(), again
    assert result["summary"] == summary(result["rounds"])
    ElementTree.fromstring(picture.draw(result))
