"""Building a lesson in stages: what the reader is told, and what the check of the stages finds."""

import os
import re
import sys
from pathlib import Path

import pytest

from shared.lessons import BUILD
from shared.processes import wait_until
from shared.testing import Lesson
from tests.test_tools import PLUGIN, SQLC, edit, only, tool, write
from tools import generated
from tools.changes import is_story, symbol_changes
from tools.layers import headed, keyed, laid
from tools.tree import Course, compared_files

COURSE = Course(Path(__file__).resolve().parents[1])

ONE = {
    "main.py": '"""The story."""\n',
    "sqlc.yaml": SQLC,
    "schema.sql": "create table things (\n    id int primary key\n);\n",
    "queries.sql": "-- name: GetThing :one\nselect * from things where id = @id;\n",
    "greet.py": '''\
"""Greets."""

from db.queries import SQL

GREETING = "hello"


def greet(name: str) -> str:
    return f"{GREETING}, {name}: {len(SQL)}"


def whisper(name: str) -> str:
    return name.lower()
''',
    "lesson.toml": 'title = "One"\nstarts_the_chain = true\n',
    "stages.toml": """\
given = ["sqlc.yaml"]

[[stage]]
title = "SQL"
purpose = "It asks."
write = ["schema.sql", "queries.sql"]
hint = "One table."
tests = ["test_01_one.py::test_asks"]

[[stage]]
title = "A greeting"
purpose = "It greets."
write = ["greet.py"]
hint = "Say hello."
tests = ["test_01_one.py::test_greets"]
""",
}
TWO = ONE | {
    "main.py": '"""The story."""\n\nfrom shout import Shout\n',
    "queries.sql": ONE["queries.sql"] + "\n-- name: CountThings :one\n"
    "-- All of them.\nselect count(*) from things;\n",
    "greet.py": '''\
"""Greets, and loudly."""

from db.queries import SQL
from shout import Shout

GREETING = "Hello"


def greet(name: str) -> str:
    return Shout(f"{GREETING}, {name}: {len(SQL)}").loud()
''',
    "shout.py": '''\
"""Shouts."""

import re


class Shout:
    """Something loud."""

    def __init__(self, text: str) -> None:
        self.text = text

    def loud(self) -> str:
        """In capitals.

        All of them.
        """
        return re.sub(":.*", "", self.text).upper()
''',
    "lesson.toml": """\
title = "Two"
[added]
"shout.py" = "Shouts."
"queries.sql#CountThings" = "Counts."
[changed]
"greet.py#greet" = "Loudly."
[removed]
"greet.py#whisper" = "Nobody does."
""",
    "stages.toml": """\
given = ["greet.py#GREETING"]
keep = ["test_01_one.py::test_asks"]

[[stage]]
title = "Counting"
purpose = "It counts."
write = ["queries.sql#CountThings"]
hint = "It is count(*)."
tests = ["test_02_two.py::test_counts"]

[[stage]]
title = "Loud"
purpose = "It is loud."
write = ["shout.py", "greet.py#greet", "greet.py#whisper"]
hint = "There is upper()."
tests = ["test_02_two.py::test_is_loud_enough", "test_02_two.py::test_does_not_whisper"]
""",
}
TESTS = {
    "tests/test_01_one.py": """\
import sys

def test_asks(lesson):
    assert len(lesson.queries.SQL) > 0

def test_greets(lesson):
    assert lesson.greet.greet("you").startswith("hello, you")
""",
    "tests/test_02_two.py": '''\
import pytest

def test_counts(lesson):
    assert len(lesson.queries.SQL) == 2

@pytest.mark.parametrize("name", ["you", "all"])
def test_is_loud_enough(lesson, name):
    """So that all can hear it."""
    assert lesson.shout.Shout(name).loud() == name.upper()
    assert lesson.greet.greet(name).startswith(f"HELLO, {name.upper()}")

def test_does_not_whisper(lesson):
    assert not hasattr(lesson.greet, "whisper")

def test_the_rest(lesson):
    assert lesson.greet.greet("you") == "HELLO, YOU"
''',
}


@pytest.fixture
def course(tmp_path, monkeypatch):
    """Two lessons with stages. Of SQL, sqlc's plugin makes a list."""
    plugin = tmp_path / "bin/fake-sqlc-gen-python"
    start = f"#!/bin/sh\nexec '{sys.executable}' '{plugin}.py'\n"
    write(tmp_path, {"bin/fake-sqlc-gen-python": start, "bin/fake-sqlc-gen-python.py": PLUGIN})
    plugin.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    monkeypatch.setattr(generated, "PLUGIN", "fake-sqlc-gen-python")
    # The tiny tests need no others: faster.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_PLUGINS", "shared.testing,pytest_timeout,xdist.plugin")
    course = Course(tmp_path / "course")
    write(course.root, {"pyproject.toml": "[tool.pytest.ini_options]\n", **TESTS})
    write(course.root / "lessons/01_one", ONE)
    write(course.root / "lessons/02_two", TWO)
    tool(course, "generate")
    return course


def solve(course, copy, *files):
    for file in files:
        (course.root / copy / file).write_text(TWO[file])


# The check of the stages


def test_stages_without_faults(course):
    assert tool(course, "stages") == "stages: ok\n"


# In stages.toml of lesson 02: what stands there | what is put there | what the finding says
FAULTS = r"""
"shout.py", | | shout.py#Shout is in no stage; put it into one
"shout.py", | "shout.py", "queries.sql#CountThings", | queries.sql#CountThings is there 2 times
"shout.py", | "shout.py", "schema.sql#things", | schema.sql#things does not differ
["greet.py#GREETING"] | ["greet.py#GREETING", "shout.py#Shout.loud"] | Shout.loud; before its class
"test_02_two.py::test_is_loud_enough", | "test_02_two.py::test_x", | no test_02_two.py::test_x
::test_is_loud_enough | ::test_does_not_whisper | test_does_not_whisper is there 2 times
::test_is_loud_enough | ::test_counts | test_02_two.py::test_counts is there 2 times
["test_02_two.py::test_counts"] | ["test_02_two.py::test_the_rest"] | stage 1; is failed, not passed
"greet.py#greet", "greet.py#whisper"] | "greet.py#greet"] | greet.py#whisper is in no stage
::test_asks | ::test_x | no test_01_one.py::test_x
::test_asks | ::test_greets | after stage 2, test_01_one.py::test_greets is failed, not passed
title = "Loud" | titel = "Loud" | titel
[[stage]] | [[stages]] | stage
"""


@pytest.mark.parametrize("fault", FAULTS.strip().split("\n"))
def test_a_fault_of_the_stages_is_found(course, fault):
    old, new, says = (part.strip() for part in fault.split("|"))
    toml = course.root / "lessons/02_two/stages.toml"
    assert old in toml.read_text()
    toml.write_text(toml.read_text().replace(old, new))
    told = tool(course, "stages 02", 1)
    assert [part for part in says.split("; ") if part not in told] == [], told


def test_a_test_that_passes_before_its_stage_is_found(course):
    tests = course.root / "tests/test_02_two.py"
    edit(tests, 'assert not hasattr(lesson.greet, "whisper")', "pass")
    told = tool(course, "stages 02", 1)
    only(told, "after stage 1", "test_does_not_whisper is passed, not failed")


def test_a_state_that_cannot_be_imported_is_found(course):
    """The loud greeting asks for a shout that is in a later stage."""
    toml = course.root / "lessons/02_two/stages.toml"
    edit(toml, "queries.sql#CountThings", 'queries.sql#CountThings", "greet.py#greet')
    edit(toml, '"shout.py", "greet.py#greet"', '"shout.py"')
    told = tool(course, "stages 02", 1)
    assert "after stage 1, greet.py, line 4: cannot import name 'Shout' from 'shout'" in told


def test_a_test_that_is_to_fail_has_less_patience(course, monkeypatch):
    """It would wait for what nobody has written yet. This one fails for nothing else."""
    monkeypatch.setenv("TEST_PATIENCE", "1")
    tests = course.root / "tests/test_02_two.py"
    edit(tests, 'assert not hasattr(lesson.greet, "whisper")', "assert within(10) == 10")
    edit(tests, "import pytest", "import pytest\nfrom shared.processes import within")
    assert tool(course, "stages 02") == "stages: ok\n"


def test_without_the_plugin_the_stages_are_not_tried(course, monkeypatch):
    lesson = course.root / "lessons/02_two"
    edit(lesson / "schema.sql", "(\n    id int primary key\n);", "(id int primary key, name text);")
    edit(lesson / "stages.toml", '"shout.py", ', '"shout.py", "schema.sql#things", ')
    tool(course, "generate")
    assert tool(course, "stages 02") == "stages: ok\n"
    monkeypatch.setattr(generated, "PLUGIN", "there-is-none")
    assert "NOT TRIED" in tool(course, "stages 02")


# What lies between two lessons


def neighbours():
    return [pytest.param(*pair, id=pair[1].name) for pair in COURSE.neighbours]


@pytest.mark.parametrize(("before", "after"), neighbours())
def test_nothing_and_everything_of_a_lesson_laid_over_the_one_before(before, after):
    start, goal = compared_files(before), compared_files(after)
    everything = {
        file: [*symbol_changes(file, start.get(file, ""), goal.get(file, ""))]
        for file in {*start, *goal}
    }
    assert laid(start, goal, everything) == goal
    nothing = laid(start, goal, {})
    assert {file: text for file, text in nothing.items() if file in start} == start


@pytest.mark.parametrize(("before", "after"), neighbours())
def test_imports_are_worked_out_as_they_are_written(before, after):
    files = {f: text for f, text in compared_files(after).items() if not is_story(f)}
    for file, text in files.items():
        if file.endswith(".py"):
            body = "".join(f"{part.gap}{part.text}\n" for part in keyed(file, text).values())
            assert headed(body, compared_files(before).get(file, ""), text, files) == text


OLD = '''\
"""Old."""

import re
from a import one, two


def first():
    return one(re)


def gone():
    return two


def last():
    return 1
'''
NEW = '''\
"""New."""

from a import two
from b import one


def first():
    return one


def between():
    return two


def last():
    return 2
'''


def mixed(*taken, moved=False):
    start = {"m.py": OLD, "a.py": "one = 1\ntwo = 1\n", "b.py": ""}
    goal = {"m.py": NEW, "a.py": "two = 1\n", "b.py": "one = 1\n"}
    move = {"a.py": ["one"], "b.py": ["one"]} if moved else {}
    return laid(start, goal, {"m.py": taken, **move})["m.py"]


def test_symbols_of_two_versions_stand_in_the_order_of_the_later_one():
    assert mixed("between", "last", moved=True) == (
        '"""New."""\n\nimport re\n\nfrom a import two\nfrom b import one\n\n\n'
        "def first():\n    return one(re)\n\n\ndef gone():\n    return two\n\n\n"
        "def between():\n    return two\n\n\ndef last():\n    return 2\n"
    )
    assert mixed("gone", moved=True) == (
        '"""New."""\n\nimport re\n\nfrom b import one\n\n\n'
        "def first():\n    return one(re)\n\n\ndef last():\n    return 1\n"
    )


def test_a_name_is_imported_from_where_it_is():
    assert "from a import one" in mixed("gone")
    assert "from b import one" in mixed("gone", moved=True)


def test_a_module_that_cannot_be_imported_is_told_only_while_a_lesson_is_built(tmp_path):
    lesson = tmp_path / "02_build"
    write(lesson, {"good.py": "x = 1\n", "bad.py": "import nowhere\n", "db/queries.py": ""})
    with pytest.raises(ImportError):
        Lesson(lesson)
    (lesson / BUILD).write_text("1\n")
    half = Lesson(lesson)
    assert half.good.x == 1
    with pytest.raises(ImportError, match="nowhere"):
        half.bad  # noqa: B018


# The reader


def test_a_reader_builds_a_lesson(course):
    told = tool(course, "build 02")
    assert "work/02_build is yours: the code of 01_one, to become lesson 02, Two." in told
    assert "\nIts small or boring parts are there already: greet.py#GREETING.\n" in told
    assert "Stage 1 of 2: Counting\nIt counts.\n\nqueries.sql\n  CountThings, new: Counts." in told
    copy = course.root / "work/02_build"
    assert (copy / "main.py").read_text() == TWO["main.py"]
    assert sorted(path.name for path in copy.iterdir()) == sorted(
        [BUILD, "db", "greet.py", "main.py", "queries.sql", "schema.sql", "shout.py", "sqlc.yaml"]
    )

    solve(course, copy, "queries.sql")
    told = tool(course, "next")
    assert "The tests of stage 1 hold.\n\nStage 2 of 2: Loud\nIt is loud.\n" in told
    assert (
        "\nshout.py: Shouts.\n  Shout, new\n      class Shout:\n"
        '          """Something loud."""\n  Shout.__init__, new\n'
        "      def __init__(self, text: str) -> None:\n"
        "  Shout.loud, new\n      def loud(self) -> str:\n"
        '          """In capitals."""\n'
        "\ngreet.py\n  greet, to be changed: Loudly.\n      def greet(name: str) -> str:\n"
        "  whisper, to be taken out: Nobody does.\n"
    ) in told

    edit(copy / "greet.py", "def whisper", "def silence")
    told = tool(course, "next 02")
    failing = (
        r"  FAILS  Is loud enough \(2 of 2 cases; here: (you|all)\)\n +So that all can hear it.\n"
    )
    assert re.search(failing, told), told
    assert "\n         there is no Shout in shout.py yet (AttributeError: " in told
    assert "\n         in line 9 of tests/test_02_two.py; alone:\n         LESSON=" in told
    assert " .venv/bin/pytest tests/test_02_two.py::test_is_loud_enough\n" in told
    assert "\n  holds  Does not whisper\n" in told
    assert "\ngreet.py\n  greet, to be changed: Loudly.\n" in told
    assert "  whisper" not in told
    assert tool(course, "next --hint") == (
        "work/02_build\nStage 2 of 2: Loud\n\nThere is upper().\n"
    )

    solve(course, copy, "shout.py")
    (copy / "greet.py").write_text(TWO["greet.py"] + "\n\ndef whisper(name):\n    return name\n")
    assert "         whisper is still in greet.py (" in tool(course, "next")

    solve(course, copy, "greet.py")
    edit(copy / "shout.py", "re.sub", "str or re.sub")
    told = tool(course, "build 02")
    assert "  FAILS  Is loud enough" in told
    assert "Still to write" not in told
    solve(course, copy, "shout.py")
    edit(copy / "greet.py", ": {len(SQL)}", ", {len(SQL)}")
    assert "  FAILS  The rest\n" in tool(course, "build 02")
    told = tool(course, "next")
    assert "\n  what has failed last: 0 of 1 hold\n\n  FAILS  The rest\n" in told
    solve(course, copy, "greet.py")
    told = tool(course, f"next {copy}")
    assert "All 2 stages hold." in told
    assert "\n  what has failed last: 1 of 1 hold\n" in told
    assert "\n  test_02_two.py: 4 of 4 hold\n  of earlier lessons: 1 of 1 hold\n" in told
    assert "5 tests, and all hold: you have built lesson 02, Two." in told


def test_what_a_reader_has_written_is_never_overwritten(course):
    tool(course, "build 02")
    mine = course.root / "work/02_build/greet.py"
    mine.write_text("mine = 1\n")
    tool(course, "build 02")
    told = tool(course, "build 02 --stage 2")
    assert "work/02_build_2 is yours: the code of 01_one and stage 1, to become" in told
    assert "Stage 2 of 2: Loud" in told
    assert "CountThings" in (course.root / "work/02_build_2/queries.sql").read_text()
    told = tool(course, "build 02 --stage 2", 1)
    assert told == (
        "work/02_build_2 is there already. For another one: make build LESSON=02 STAGE=2"
        " NAME=second\n"
    )
    assert "work/02_second is yours" in tool(course, "build 02 --stage 2 --name second")
    (course.root / "work/02_mine").mkdir()
    assert "work/02_mine is there already" in tool(course, "build 02 --name mine", 1)
    assert mine.read_text() == "mine = 1\n"


def test_a_lesson_that_is_being_built_can_play_the_lessons_races(course):
    write(course.root, {"lessons/02_two/races/two_counts.race": "# Two count at once.\n"})
    tool(course, "build 02")
    assert tool(course, "race work/02_build").startswith("02  two_counts ")


def test_the_first_lesson_begins_from_nothing(course):
    assert "work/01_build is yours: an empty queue, to become lesson 01, One." in tool(
        course, "build 01"
    )
    copy = course.root / "work/01_build"
    assert [(copy / name).read_text() for name in ("schema.sql", "queries.sql")] == ["", ""]
    assert (copy / "greet.py").read_text() == '"""Greets."""\n'
    assert "FAILS  Asks" in tool(course, "next")
    write(copy, {name: ONE[name] for name in ("schema.sql", "queries.sql")})
    assert "Stage 2 of 2: A greeting" in tool(course, "next")


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("build", "Which lesson?"),
        ("build 03", "03: no such lesson"),
        ("build 02 --stage 3", "STAGE=3: lesson 02 has the stages 1 to 2"),
        ("build 02 --stage 0", "STAGE=0: lesson 02 has the stages 1 to 2"),
        ("build 02 --stage x", "STAGE=x: lesson 02 has the stages 1 to 2"),
        ("next", "make build LESSON=01"),
        ("next 02", "make build LESSON=02"),
    ],
)
def test_what_cannot_be_built_gets_a_sentence(course, command, says):
    told = tool(course, command, 1)
    assert says in told
    assert told.count("\n") == 1


def test_a_lesson_without_stages_gets_a_sentence(course):
    (course.root / "lessons/01_one/stages.toml").unlink()
    told = tool(course, "build 01", 1)
    assert told == "01_one has no stages to build it in. Lessons that have: 02.\n"


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("greet.py", "def greet(:\n", "greet.py, line 1: invalid syntax"),
        ("greet.py", "\nimport nowhere\n", "greet.py, line 2: No module named 'nowhere'"),
        ("queries.sql", "-- name: A :one\nselect from from;\n", "sqlc says:"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_and_not_its_tests(course, file, text, says):
    tool(course, "build 02")
    (course.root / "work/02_build" / file).write_text(text)
    told = tool(course, "next")
    assert says in told
    assert "FAILS" not in told


def test_a_test_that_hangs_is_ended_with_all_that_it_has_started(course, monkeypatch):
    monkeypatch.setenv("TEST_PATIENCE", "0.1")
    tool(course, "build 02")
    copy = course.root / "work/02_build"
    solve(course, copy, "queries.sql")
    hang = f"""\
import subprocess, threading
process = subprocess.Popen(["sleep", "600"])
open({str(copy / "pid")!r}, "w").write(str(process.pid))
threading.Thread(target=threading.Event().wait).start()
threading.Event().wait()
"""
    edit(
        course.root / "tests/test_02_two.py",
        "    assert len(lesson.queries.SQL) == 2\n",
        "".join(f"    {line}\n" for line in hang.splitlines()),
    )
    assert "it took too long, and was ended" in tool(course, "next")
    pid = int((copy / "pid").read_text())
    wait_until(lambda: not alive(pid), "the process is gone")


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]


def test_without_the_plugin_the_lessons_own_sql_can_be_tried(course, monkeypatch):
    monkeypatch.setattr(generated, "PLUGIN", "there-is-none")
    tool(course, "build 02")
    copy = course.root / "work/02_build"
    assert "FAILS  Counts" in tool(course, "next")
    (copy / "queries.sql").write_text(TWO["queries.sql"].replace("count(*)", "1"))
    told = tool(course, "next")
    assert "sqlc's Python plugin cannot be had on this machine" in told
    assert "FAILS" not in told
    (copy / "queries.sql").write_text(TWO["queries.sql"].replace("-- All of them.\n", "\n"))
    assert "The tests of stage 1 hold." in tool(course, "next")
