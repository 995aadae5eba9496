"""Every race script of the lessons, as a test: the answers that it states are those that come.

`make check` compares what the READMEs show of them.
"""

import re

import pytest

from shared.lessons import lessons
from tools.races import RaceError, parse, play

pytestmark = pytest.mark.usefixtures("postgres")
SCRIPTS = [path for lesson in lessons() for path in sorted(lesson.glob("races/*.race"))]


@pytest.mark.parametrize("path", SCRIPTS, ids=[f"{p.parts[-3][:2]}-{p.stem}" for p in SCRIPTS])
def test_a_race_of_a_lesson(path):
    script = path.read_text()
    assert script.startswith("# ")
    assert any(step.expected for step in parse(script)), "it states no answer"
    assert play(path.parents[1], script)[1] == []


@pytest.fixture
def theatre():
    """Play on lesson 00's tables."""
    lesson = lessons()[0]
    return lambda *lines: play(lesson, "\n".join(lines))


BEA = ("bea: begin", "bea: SellSeat(customer='Bea', number=2)")
SECOND = "cem: update seats set sold_to = 'Cem' where number = 2"


def test_what_each_session_gets_and_who_waits(theatre):
    shown, wrong = theatre("# Two sales.", *BEA, SECOND, "", "bea: commit")
    assert shown == [
        "# Two sales.",
        *BEA,
        "    -> 1 row",
        SECOND,
        "    -> waits for bea",
        "",
        "bea: commit",
        "    cem goes on -> 1 row",
    ]
    assert wrong == []
    assert theatre(*shown) == (shown, [])  # what is shown is a script, too


def test_an_answer_that_is_not_the_one_that_was_stated(theatre):
    shown, wrong = theatre(*BEA, "    -> 0 rows", "bea: commit", "    cem goes on -> 1 row")
    assert shown == [*BEA, "    -> 1 row", "bea: commit"]
    assert wrong == [
        "line 3: `-> 0 rows` was expected, and there was: -> 1 row",
        "line 5: `cem goes on -> 1 row` was expected, and there was: nothing",
    ]


def test_answers_of_all_kinds(theatre):
    shown, _ = theatre(
        "setup: SellSeat(number=1, customer='Ann')",
        "bea: select * from seats where number < 3 order by number",
        "bea: select sold_to",
        "     from seats where number = 2;",
        "bea: select true as one, array[1, 2] as two, json_build_object('a', '') as three",
        "bea: delete from seats where number > 2",
        "bea: FirstFreeSeat()",
        "bea: ListSeats()",
        "bea: selct 1",
    )
    assert [line for line in shown if line.startswith("  ")] == [
        "    -> number=1 sold_to=Ann",
        "    -> number=2 sold_to=null",
        "     from seats where number = 2;",
        "    -> null",
        '    -> one=true two=[1, 2] three={"a": ""}',
        "    -> 4 rows",
        "    -> 2",
        "    -> number=1 sold_to=Ann",
        "    -> number=2 sold_to=null",
        '    -> error: syntax error at or near "selct"',
    ]


def test_a_circle_is_a_deadlock_and_not_a_wait(theatre):
    shown, wrong = theatre(
        "bea: begin",
        "cem: begin",
        "bea: select from seats where number = 1 for update",
        "cem: select from seats where number = 2 for update",
        "bea: select from seats where number = 2 for update",
        "    -> waits for cem",
        "cem: select from seats where number = 1 for update",
    )
    assert wrong == []
    told = " ".join(shown[shown.index("    -> waits for cem") :])
    assert told.count("error: deadlock detected") == 1
    assert "goes on" in told


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (["bea: begin", "begin"], "line 2: `begin` is no statement; one begins with its session"),
        (["    -> 1 row"], "line 1: an answer, and no statement above it"),
        (["# Two.", "  begin"], "line 2: this line is indented, and continues no statement"),
        (["bea: SellSeats(number=1)"], "line 1: there is no query SellSeats in queries.sql"),
        (["bea: SellSeat(number=1)"], "line 1: SellSeat: missing a required argument: 'customer'"),
        (["bea: SellSeat(number=1, customer=open('x'))"], "line 1: SellSeat: malformed node"),
        (["bea: SellSeat(number=)"], "line 1: SellSeat: invalid syntax"),
        (["bea: SellSeat(1, 'Bea')"], "line 1: SellSeat: too many positional arguments"),
        (["setup: selct 1"], "line 1: error: syntax error"),
        (["bea: ..."], "line 1: bea has been asked nothing, or has answered"),
        ([*BEA, SECOND, "cem: begin"], "line 4: cem still waits for bea, and hears nothing before"),
        ([*BEA, SECOND], "the script ends, and cem still waits for bea: let that session commit"),
    ],
)
def test_a_script_that_cannot_be_played(theatre, lines, sentence):
    with pytest.raises(RaceError, match="^" + re.escape(sentence)):
        theatre(*lines)


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (["bea: select pg_sleep(100)"], "line 1: after 1 s a statement does not end, and waits"),
        ([*BEA, SECOND, "cem: ..."], "line 4: after 1 s cem does not go on"),
    ],
)
def test_a_session_that_never_ends(theatre, monkeypatch, lines, sentence):
    monkeypatch.setenv("TEST_PATIENCE", "1")
    monkeypatch.setattr("tools.races.SECONDS", 1)
    with pytest.raises(RaceError, match="^" + re.escape(sentence)):
        theatre(*lines)
