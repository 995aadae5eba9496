"""A worker is struck at every one of its commits; what is promised holds all the same.

Here for lessons 01 and 03 and the last one; `make faults` does it for all of them.
"""

import os
import re
import signal
import sys

import click
import psycopg
import pytest

from faults import report, witness, workloads
from faults.crash import crash_test, every_point, tell_steps
from faults.proxy import Proxy, writes
from faults.stepper import ANSWERS
from shared.lessons import find, number

FIRST, QUEUE, LOG, CHILDREN, SLEEP = map(find, ("01", "03", "04", "06", "09"))
SIGNALS, LAST = map(find, ("11", None))


@pytest.fixture
def crash(path, postgres):  # noqa: ARG001  held for the whole session
    with crash_test(path) as test:
        yield test


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("path", [FIRST, QUEUE, LAST], ids=lambda path: path.name)
def test_a_worker_is_killed_at_every_commit(crash, path, when):
    points = every_point(crash, when)
    assert [wrong for point in points for wrong in point.violations] == []
    assert [point.at for point in points] == list(range(1, len(crash.commits) + 1))
    assert {point.statements for point in points} == set(crash.commits)
    for point in points:
        claimed = point.statements[-1].startswith("Claim")
        # Lessons 01 and 02 say so: what a dead worker has claimed and not ended is never ended.
        left_running = claimed if when == "after" else not claimed
        assert point.stuck == (1 if number(path) < 3 and left_running else 0), point
        if when == "after":
            assert point.ran_twice == 0, "what was recorded is not done again"


@pytest.mark.parametrize(
    ("path", "at", "statement", "change"),
    [
        (FIRST, 3, "ClaimTask", "running"),
        (LOG, 17, "RecordStep", "arrive"),
        (CHILDREN, 16, "SucceedTask", "tour: waiting -> queued"),
        (SLEEP, 38, "OpenTimer", "timer sleep"),
        (SLEEP, 41, "CompleteDueEntries", "tour: waiting -> queued"),
    ],
    ids=lambda value: value.name if hasattr(value, "name") else str(value),
)
def test_the_commits_that_the_lessons_name(crash, at, statement, change):
    lines = crash.commits_since_reset()
    assert len(lines) == len(crash.commits)
    number, name, changes = lines[at - 1].split(maxsplit=2)
    assert (number, name) == (str(at), statement)
    assert change in changes


def test_one_order_in_place_of_the_workload(postgres):  # noqa: ARG001  held for the whole session
    """The list of lesson 06, and a kill at two of its lines."""
    with crash_test(CHILDREN, ("fulfil", {"id": 1, "items": ["book", "pen"]})) as test:
        tenth = [line.strip() for line in test.commits_since_reset()[9].splitlines()]
        assert tenth[1:] == [
            "log of task 1: 3 child reserve -> pen reserved",
            "task 1 fulfil: waiting -> queued",
        ]
        points = [test.point(6, "after"), test.point(10, "before")]
        assert [(point.at, point.violations) for point in points] == [(6, []), (10, [])]
        assert [point.ran_twice for point in points] == [0, 1]
        test.expected[1] = workloads.Expected("fulfil", "failed")
        assert "task 1 has come to" in str(test.point(6, "after").violations)


@pytest.mark.parametrize("path", [SIGNALS], ids=lambda path: path.name)
def test_the_commits_of_a_letter_and_of_an_event(crash):
    """A task sends and another one emits, through the line that is watched, while one waits."""
    commits = [line.split(maxsplit=2)[1:] for line in crash.commits_since_reset()[15:25]]
    assert [(name, re.split(r"\n\s+", changes)) for name, changes in commits] == [
        ("ClaimTasks", ["task 6 send_letter: queued -> running"]),
        (
            "SendMessage",
            [
                "message letter to task 5: sent",
                "message letter to task 5: read at 4",
                "log of task 5: 4 signal letter -> hello",
                "task 5 answered: waiting -> queued",
            ],
        ),
        ("SucceedTask", ["task 6 send_letter: running -> succeeded"]),
        ("ClaimTasks", ["task 5 answered: queued -> running"]),
        ("OpenWait", ["log of task 5: 5 event the post is here"]),
        ("SuspendTask", ["task 5 answered: running -> waiting"]),
        ("ClaimTasks", ["task 7 bring_post: queued -> running"]),
        ("EmitEvent", ["event the post is here: emitted"]),
        (
            "TellEvents",
            [
                "log of task 5: 5 event the post is here -> now",
                "task 5 answered: waiting -> queued",
            ],
        ),
        ("MarkTold", ["event the post is here: told"]),
    ]


@pytest.mark.parametrize(
    ("answers", "done"), [(("", "", "b"), 2), (("", "", "a"), 3)], ids=["before", "after"]
)
@pytest.mark.parametrize("path", [FIRST], ids=lambda path: path.name)
def test_a_worker_is_held_at_each_commit_until_it_is_let_go(crash, answers, done):
    held = []
    planned = crash.commits_since_reset()

    def ask(at):
        held.append(at)
        assert crash.commits_since_reset() == planned[: at - 1]
        return ANSWERS[answers[at - 1]]

    crash.reset()
    assert crash.run_victim(None, "after", ask=ask)
    assert held == [1, 2, 3]
    assert crash.commits_since_reset() == planned[:done]
    assert crash.struck_at == crash.commits[2]


@pytest.mark.parametrize("path", [FIRST], ids=lambda path: path.name)
def test_keys_say_how_it_goes_on(crash, monkeypatch, capfd):
    reader, keys = os.pipe()
    monkeypatch.setattr(sys, "stdin", os.fdopen(reader))
    os.write(keys, b"\n\na\n")
    assert tell_steps(crash)
    assert "the worker is killed after its commit number 3" in capfd.readouterr().out
    crash.reset()
    with pytest.raises(click.ClickException, match="somebody else"):
        crash.run_victim(None, "after", ask=lambda _: os.kill(crash._victim, signal.SIGKILL))


@pytest.mark.parametrize("path", [LAST], ids=lambda path: path.name)
def test_a_worker_is_stopped_at_every_commit_and_goes_on_when_others_have_finished(crash):
    """What it has sent is on its way until then, and must come to nothing."""
    points = every_point(crash, "before", fault="stop")
    assert [wrong for point in points for wrong in point.violations] == []
    assert [point.at for point in points] == list(range(1, len(crash.commits) + 1))
    assert {point.statements for point in points} == set(crash.commits)


def test_a_notification_comes_through_the_proxy_at_once(postgres):
    proxy = Proxy(postgres, before_commit=lambda _: False, after_commit=lambda _: False)
    with proxy.running(), psycopg.connect(proxy.url, autocommit=True) as listener:
        listener.execute("listen bell")
        with psycopg.connect(postgres, autocommit=True) as other:
            other.execute("notify bell, 'rings'")
        (heard,) = listener.notifies(timeout=10, stop_after=1)
    assert heard.payload == "rings"


@pytest.mark.parametrize(
    ("sql", "is_write"),
    [
        ("with gone as (delete from tasks returning id) select id from gone", True),
        ("select id from tasks for update skip locked -- then update it", False),
        ("-- name: record_step :one\nselect complete_entry(1, 2)", True),
        ("select pg_notify('tasks', '')", True),
        ("select event_log.completion from event_log", False),
    ],
)
def test_which_statements_change_something(sql, is_write):
    assert writes(sql) == is_write


def test_the_witness_sees_what_must_never_be():
    """Else no crash would ever be found to have done harm."""
    with crash_test(LAST) as test:
        (id,) = [id for id, expected in test.expected.items() if expected.name == "tour"]
        assert witness.violations(test.look, at_most=1) == []
        test.rows("update event_log set output = '9' where task_id = %s and position = 1", id)
        test.rows("update event_log set output = '9' where task_id = %s and position = 2", id)
        test.rows("update event_log set settled = false where task_id = %s and position = 4", id)
        tomorrow = "update event_log set due_at = due_at + interval '1 day'"
        test.rows(tomorrow + " where task_id = %s and kind = 'timer'", id)
        for output, completion in ((None, None), ("null", 99)):
            test.rows(
                "update event_log set output = %s, completion = %s"
                " where task_id = %s and kind = 'timer' and name = 'sleep'",
                output,
                completion,
                id,
            )
        test.rows(
            "update tasks set attempt = attempt + 1, completions = completions + 1 where id = %s",
            id,
        )
        test.rows("update messages set position = 1")
        test.rows("update events set payload = '9'")
        found = "\n".join([*witness.violations(test.look, at_most=0), *test.violations(0)])
    for sentence in (
        "a message was read twice, or changed",
        "an event was changed",
        "somebody knows another payload of an event",
        "a message has answered what it must not",
        "two messages have answered one signal",
        "a signal has an answer that nobody has sent",
        "a step was recorded by an attempt that was not the task's",
        "a step was recorded twice",
        "an error was settled by a run that was not the task's",
        "the end of a child was told twice",
        "a timer's moment was changed",
        "a timer rang before its time",
        "a timer rang twice",
        "a task does not count what was completed in its log",
        "has left succeeded",
        "1 tasks ran at once, and the limit was 0",
    ):
        assert sentence in found


def test_the_page_of_promises_has_one_row_for_each_fault():
    rows = [line[2:-2].split(" | ") for line in report.PAGE.read_text().splitlines()]
    rows = [row for row in rows if len(row) == len(report.HEADER)]
    assert rows[0] == list(report.HEADER)
    assert [row[0] for row in rows[2:]] == report.TITLES
    assert {row[2] for row in rows[2:]} == {"0"}, "no promise is broken"
