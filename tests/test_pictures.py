"""The pictures of rows that the READMEs show: each can be drawn, and shows what has changed."""

import tomllib

import pytest

from faults.crash import watched
from faults.pictures import Held, drawn, picture
from shared.lessons import lessons

PICTURES = [
    (lesson, name)
    for lesson in lessons()
    if (lesson / "rows.toml").exists()
    for name in tomllib.loads((lesson / "rows.toml").read_text())
]
IDS = [f"{lesson.name[:2]}-{name}" for lesson, name in PICTURES]


@pytest.mark.usefixtures("postgres")
@pytest.mark.parametrize(("path", "name"), PICTURES, ids=IDS)
def test_a_picture_of_a_lesson(path, name):
    acts = tomllib.loads((path / "rows.toml").read_text())[name]["acts"]
    lines = picture(path, name)
    captions = [act["show"] for act in acts if "show" in act]
    assert [line for line in lines if not line.startswith(" ")] == captions


def test_only_what_has_changed_is_drawn():
    heads = {"tasks": [("id", "status")], "workers": [("id", "name")]}
    shots = [
        {"tasks": [("1", "queued"), ("2", "queued")], "workers": [("7", "a")]},
        {"tasks": [("1", "queued"), ("2", "running")], "workers": [("7", "a"), ("8", "b")]},
        {"tasks": [("1", "queued"), ("3", "queued")], "workers": [("8", "b")]},
    ]
    with_heads = [{name: [*heads[name], *shot[name]] for name in heads} for shot in shots]
    assert list(drawn(list(zip(("One:", "Two:", "Three:"), with_heads, strict=True)))) == [
        "   tasks        workers",
        "   id status    id name",
        "One:",
        "   1  queued    7  a",
        "   2  queued",
        "Two:",
        "   2  running   8  b",
        "Three:",
        "   2  gone      7  gone",
        "   3  queued",
    ]


@pytest.mark.usefixtures("postgres")
def test_a_worker_that_never_comes_there(monkeypatch):
    with watched(lessons()[1], Held) as run:
        run.act({"start": "a"})
        monkeypatch.setenv("TEST_PATIENCE", "0.1")
        try:
            with pytest.raises(TimeoutError, match="no worker has come to: after ClaimTask"):
                run.act({"after": "ClaimTask"})
        finally:
            monkeypatch.undo()
            run.end()
