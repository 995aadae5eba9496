"""Races and pictures in a README: filled from a run, and stale when they show something else."""

import pytest
from click.testing import CliRunner

from shared.lessons import lessons
from tools.__main__ import cli
from tools.tree import Course, copy_lesson

PAGE = """\
# A lesson

```race two_claims
```

- in a list:

  ```rows tasks
  ```
"""


@pytest.fixture
def readme(tmp_path):
    """Of a copy of lesson 01, which is a course of its own."""
    path = copy_lesson(lessons()[1], tmp_path / "lessons/01_copy") / "README.md"
    path.write_text(PAGE)
    return path


def tool(readme, *command):
    """The findings."""
    result = CliRunner().invoke(cli, command, obj=Course(readme.parents[2]))
    assert isinstance(result.exception, SystemExit | None), result.exc_info
    return [line for line in result.output.splitlines() if not line.endswith((": ok", ": written"))]


@pytest.mark.usefixtures("postgres")
def test_blocks_are_filled_and_checked(readme):
    assert tool(readme, "output") == []
    page = readme.read_text()
    assert "\none: ClaimTask()\n    -> id=1 name=note input=1\n" in page
    assert "\n  ClaimTask: a worker takes the oldest queued task:\n     1  send_receipt" in page
    assert tool(readme, "output", "--check") == []
    readme.write_text(page.partition("- in")[0].replace("-> id=1", "-> id=2"))
    (found,) = tool(readme, "output", "--check")
    assert "output of `race two_claims` is stale, first at `-> id=1 name=note input=1`" in found


@pytest.mark.usefixtures("postgres")
def test_what_cannot_be_run_is_a_finding(readme):
    readme.write_text("# A lesson\n\n```race two_clams\n```\n\n```rows asks\n```\n")
    clams, asks = tool(readme, "output")
    assert "two_clams: no such race, and no such file; 01_copy has explain, " in clams
    assert "01_copy/rows.toml has tasks" in asks


def test_a_block_that_nothing_fills_is_a_finding(readme):
    readme.write_text("# A lesson\n\n```rows\n```\n")
    (readme.parents[1] / "NOTES.md").write_text("```race two_claims\n```\n")
    page, notes, *_ = tool(readme, "readme", "--check")
    assert "NOTES.md: line 1: nobody runs this block" in notes
    assert "line 3: rows without a name" in page


@pytest.mark.usefixtures("postgres")
def test_a_race_by_hand(readme):
    (said, *_) = tool(readme, "race", "01")
    assert said.split(maxsplit=2)[:2] == ["01", "explain"]
    assert "What the claim reads" in said
    mine = readme.parents[1] / "mine.race"
    mine.write_text("one: ClaimTask()\n    -> 1 row\n")
    assert tool(readme, "race", "01", str(mine)) == [
        "one: ClaimTask()",
        "    -> 0 rows",
        "lessons/mine.race: line 2: `-> 1 row` was expected, and there was: -> 0 rows",
    ]
