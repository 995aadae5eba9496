"""Lesson 04: a recorded step is never run again, and only the run that has the task may record."""

# ruff: noqa: ARG001, ARG005  a step takes a key and a program an input, whether they use it or not

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta

import pytest
import sqlalchemy as sa

from shared.outside import Outside
from shared.processes import wait_until
from shared.testing import task_row, wait_for_status, waiting_for_a_lock, working

MINUTE = timedelta(minutes=1)


class Killed(BaseException):
    """Stands for the end of the process, where a real one would be slow to arrange."""


def execute(db, statement, *parameters):
    """One statement, committed; its rows, if it returns any."""
    with db.connect(autocommit=True) as connection:
        cursor = connection.execute(statement, parameters)
        return cursor.fetchall() if cursor.description else []


@contextmanager
def queries(lesson, db):
    with db.autocommit.connect() as connection:
        # What should not wait, and waits, fails instead of hanging for ever.
        connection.exec_driver_sql("set statement_timeout = '5s'")
        yield lesson.queries.Querier(connection)


def program(lesson, function, name="program"):
    """Register `function(ctx, input)` as a durable task."""
    function.__name__ = name
    return lesson.durable.durable(function)


def enqueue(lesson, db, name="program", input=None, **options):
    with db.autocommit.connect() as connection:
        return lesson.tasks.enqueue(connection, name, input, **options)


def new_task(lesson, db):
    if "program" not in lesson.tasks.registry:
        program(lesson, lambda ctx, input: None)
    return enqueue(lesson, db)


@contextmanager
def attempt(lesson, db, id):
    """The next attempt of this task, in the test's own hands: its context, and its queries."""
    execute(db, "update tasks set status = 'queued' where id = %s", id)
    with queries(lesson, db) as queue:
        worker_id = queue.register_worker(name="w", lease=MINUTE)
        (task,) = queue.claim_tasks(worker_id=worker_id, queue="default", at_most=1, limited=False)
        assert task.id == id
        yield lesson.durable.Context(queue, task, lambda statement: statement()), queue


def run_once(lesson, db, id):
    """The next attempt, by a worker's own code; the row of the task after it."""
    execute(db, "update tasks set status = 'queued' where id = %s", id)
    worker = lesson.worker.Worker(db, "w")
    with db.autocommit.connect() as slot, db.autocommit.connect() as dispatcher:
        worker._register(slot)
        (task,) = worker._claim(dispatcher, 1)
        assert task.id == id
        worker._run_task(slot, task)
    return task_row(db, id)


def log_rows(db, id):
    return execute(
        db,
        "select position, name, output, error, attempt from event_log where task_id = %s"
        " order by position",
        id,
    )


def record(queue, id, attempt, position=1, output='"done"', error=None):
    return queue.record_step(
        task_id=id,
        attempt=attempt,
        position=position,
        kind="step",
        name="step",
        input="[[], {}]",
        output=output,
        error=error,
    )


def dies(queue, when, position=1):
    """Let the process die around the record of this position."""
    real = queue.record_step

    def record_step(**values):
        if values["position"] == position and when == "before the record":
            raise Killed
        recorded = real(**values)
        if values["position"] == position:
            raise Killed
        return recorded

    queue.record_step = record_step


# A kill at every place, with real processes


STEPS = (1, 2, 3)
PLACES = [f"{when} {n}" for n in STEPS for when in ("before effect", "after effect", "recorded")]

DYING_APP = """

import os
import signal
from pathlib import Path

import durable as durable_module
from shared.outside import Outside

witness = Outside(Path(__file__).parent)


@durable_module.durable
def dying(ctx, place):
    outputs = []
    for n in (1, 2, 3):
        outputs.append(ctx.step(dying_step, place, n))
        die_at(place, f"recorded {n}")
    return outputs


def dying_step(key, place, n):
    die_at(place, f"before effect {n}")
    witness.record(f"{place}; {n}; {key}")
    die_at(place, f"after effect {n}")
    return [n, key]


def die_at(place, here):
    if place == here and f"{place} dies" not in witness.effects():
        witness.record(f"{place} dies")
        os.kill(os.getpid(), signal.SIGKILL)
"""

# Starts worker processes, all from one that has imported what they need, and says who has died.
HERD = """
import os
import sys
from datetime import timedelta
from pathlib import Path

import app
from shared.database import open_database
from worker import Worker

HERE = Path(__file__).resolve().parent
os.environ["LESSON_PARENT"] = str(os.getpid())
for _ in range(int(sys.argv[1])):
    if os.fork() == 0:
        with open_database(HERE) as db:
            Worker(db, str(os.getpid()), slots=1, lease=timedelta(hours=1)).run()
        os._exit(0)
while True:
    pid, status = os.wait()
    print(pid, flush=True)
"""


@contextmanager
def herd(lesson, tmp_path, workers, *more_tasks):
    """Worker processes with one slot each, of a copy of the lesson that has more tasks.

    A dead worker's lease ends at once, by its pid, and that of a slow one never.
    """
    copy = tmp_path / lesson.path.name
    leave_out = shutil.ignore_patterns("exercises", "breaks", "__pycache__", "*.md", "*.log")
    shutil.copytree(lesson.path, copy, ignore=leave_out)
    with (copy / "app.py").open("a") as file:
        file.writelines(more_tasks)
    (copy / "herd.py").write_text(HERD)
    process = subprocess.Popen(
        [sys.executable, "herd.py", str(workers)], cwd=copy, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_kill_at_every_place(lesson, db, tmp_path):
    """Nine tasks, nine places, nine dead processes; then each step is there once in the log."""
    program(lesson, lambda ctx, input: None, "dying")
    ids = {place: enqueue(lesson, db, "dying", place) for place in [*PLACES, "nowhere"]}
    with herd(lesson, tmp_path, len(PLACES) + 1, DYING_APP) as process:
        for _ in PLACES:
            pid = process.stdout.readline().strip()
            execute(db, "update workers set alive_until = '-infinity' where name = %s", pid)
        for id in ids.values():
            wait_for_status(db, id, "succeeded", "failed")
    effects = [line.split("; ") for line in Outside(tmp_path).effects() if "; " in line]
    tries = Counter((place, int(n)) for place, n, _ in effects)
    keys = {(place, int(n), key) for place, n, key in effects}
    for place, id in ids.items():
        task = task_row(db, id)
        assert (task.status, task.attempt) == ("succeeded", 1 if place == "nowhere" else 2), place
        for n in STEPS:
            assert tries[place, n] == (2 if place == f"after effect {n}" else 1), (place, n)
        of_first_run = [n for n in STEPS if place == "nowhere" or n < int(place[-1])]
        if place.startswith("recorded"):
            of_first_run.append(int(place[-1]))
        rows = log_rows(db, id)
        assert [row[0] for row in rows] == [1, 2, 3]
        assert [row[0] for row in rows if row[4] == 1] == of_first_run, place
        assert [row[2] for row in rows] == task.output, "the function got what was recorded"
        assert {(place, *row[2]) for row in rows} <= keys
    # Each step of each task has one key, however often it was tried; and nobody else has it.
    assert len(keys) == len({key for _, _, key in keys}) == len(ids) * len(STEPS)


# Answers from the log


@pytest.mark.parametrize("when", ["before the record", "after the record"])
def test_a_step_is_done_again_only_if_it_was_not_recorded(lesson, db, when):
    id, keys = new_task(lesson, db), []
    with attempt(lesson, db, id) as (ctx, queue):
        dies(queue, when)
        with pytest.raises(Killed):
            ctx.step(lambda key: keys.append(key))
    for _ in range(3):
        with attempt(lesson, db, id) as (ctx, _):
            assert ctx.step(lambda key: keys.append(key)) is None
    assert len(keys) == (2 if when == "before the record" else 1)
    assert len(set(keys)) == 1, "the same key at every try"


def test_a_recorded_step_is_never_run_again(lesson, db):
    id, calls = new_task(lesson, db), []

    def step(key, n):
        calls.append(n)
        return n * n

    for run in range(3):
        with attempt(lesson, db, id) as (ctx, _):
            assert [ctx.step(step, n) for n in range(run + 3)] == [n * n for n in range(run + 3)]
    assert calls == [0, 1, 2, 3, 4]


def test_every_step_of_every_task_has_a_key_of_its_own(lesson, db):
    keys = []
    for _ in range(2):
        with attempt(lesson, db, new_task(lesson, db)) as (ctx, _):
            for _ in range(3):
                ctx.step(lambda key: keys.append(key))
    assert len(set(keys)) == 6


def test_keys_do_not_come_back_with_the_ids(lesson, db):
    """Tables are made anew, ids begin at 1 again, and the bank still remembers the old keys."""
    keys = []
    for _ in range(2):
        execute(db, "truncate tasks restart identity cascade")
        execute(db, "truncate event_log")
        with attempt(lesson, db, new_task(lesson, db)) as (ctx, _):
            ctx.step(lambda key: keys.append(key))
    assert len(set(keys)) == 2


def test_a_long_log_is_answered_in_order(lesson, db):
    id = new_task(lesson, db)
    for _ in range(2):
        with attempt(lesson, db, id) as (ctx, _):
            assert [ctx.step(lambda key, n: n, n) for n in range(200)] == list(range(200))
    assert {row[4] for row in log_rows(db, id)} == {1}


VALUES = [
    None,
    0,
    -0.0,
    1e300,
    0.1,
    10**30,
    True,
    "",
    "☃ \U0001f600 \\u0000 \\",
    [],
    {"b": 1, "a": [1, 1.0, True, None, {"ä": {}}]},
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_what_a_step_returns_is_what_the_log_answers(lesson, db, value):
    """The same type, and the same order of keys: as Python writes it."""
    id = new_task(lesson, db)
    for _ in range(2):
        with attempt(lesson, db, id) as (ctx, _):
            assert repr(ctx.step(lambda key: value)) == repr(value)
    assert log_rows(db, id)[0][4] == 1


NOT_JSON = {
    "tuple": (1, 2),
    "set": {1},
    "nan": float("nan"),
    "infinity": [float("inf")],
    "nul": "a\0b",
    "half a surrogate": "\ud800",
    "keys": {1: "a"},
    "digits": 10**5000,
    "large": "x" * 1_000_001,
}


@pytest.mark.parametrize("value", NOT_JSON.values(), ids=NOT_JSON.keys())
def test_what_would_come_back_changed_is_a_step_that_fails(lesson, db, value):
    id = new_task(lesson, db)
    with attempt(lesson, db, id) as (ctx, _):
        with pytest.raises(lesson.durable.StepError, match=r"BadInput: .*(JSON|NUL)") as raised:
            ctx.step(lambda key: value)
        assert raised.value.type == "BadInput"
    ((_, _, output, error, _),) = log_rows(db, id)
    assert output is None
    assert error["type"] == "BadInput"


@pytest.mark.parametrize("value", NOT_JSON.values(), ids=NOT_JSON.keys())
def test_arguments_that_are_not_json_are_refused_before_anything_is_done(lesson, db, value):
    """And take no position: the steps after them are where they are in every run."""
    id, calls = new_task(lesson, db), []
    for _ in range(2):
        with attempt(lesson, db, id) as (ctx, _):
            with pytest.raises(lesson.tasks.BadInput):
                ctx.step(lambda key, value: calls.append(value), value)
            with pytest.raises(lesson.tasks.BadInput):
                ctx.step(lambda key, value: calls.append(value), value=value)
            assert ctx.step(lambda key: "first") == "first"
    assert calls == []
    assert [row[0] for row in log_rows(db, id)] == [1]


def test_what_a_step_does_to_its_arguments_does_not_reach_the_function(lesson, db):
    """In a later run the step is not called, and the function would see something else."""
    id, order = new_task(lesson, db), {"items": [1]}
    with attempt(lesson, db, id) as (ctx, _):
        ctx.step(lambda key, order: order["items"].append(2), order)
    assert order == {"items": [1]}


def test_arguments_are_in_the_log_for_people_to_read(lesson, db):
    id = new_task(lesson, db)
    with attempt(lesson, db, id) as (ctx, _):
        ctx.step(lambda key, a, b: None, 1, b=[2])
    assert execute(db, "select input from event_log where task_id = %s", id) == [
        ([[1], {"b": [2]}],)
    ]


def test_a_log_that_cannot_be_read_fails_its_own_task_only(lesson, db):
    program(lesson, lambda ctx, input: ctx.step(lambda key: 1))
    id = enqueue(lesson, db)
    with attempt(lesson, db, id) as (ctx, _):
        ctx.step(lambda key: 1)
    execute(db, "update event_log set output = cast(%s as json)", "1" * 5000)
    assert run_once(lesson, db, id).status == "waiting"
    assert "digits" in task_row(db, id).error


# The fence


ENDS = {
    "taken back": "update tasks set status = 'queued' where id = %s",
    "claimed again": "update tasks set attempt = attempt + 1 where id = %s",
    "succeeded": "update tasks set status = 'succeeded', output = '1' where id = %s",
    "failed": "update tasks set status = 'failed', error = 'x' where id = %s",
    "waiting": "update tasks set status = 'waiting', run_at = clock_timestamp() where id = %s",
}


@pytest.mark.parametrize("end", ENDS)
def test_a_run_that_has_lost_its_task_records_nothing(lesson, db, end):
    id = new_task(lesson, db)
    with attempt(lesson, db, id) as (ctx, queue):
        assert record(queue, id, attempt=1) == 1
        execute(db, ENDS[end], id)
        assert record(queue, id, attempt=1, output="2") == 0
        assert record(queue, id, attempt=1, position=2) == 0
        with pytest.raises(lesson.durable.LostTask):
            ctx.step(lambda key: "late")
    assert [(row[2], row[4]) for row in log_rows(db, id)] == [("done", 1)]


def test_two_workers_have_the_task_and_one_can_write(lesson, db):
    """Claim, take back, claim again: the old attempt is refused, the new one is not."""
    id = new_task(lesson, db)
    with attempt(lesson, db, id) as (zombie, _), attempt(lesson, db, id) as (ctx, queue):
        with pytest.raises(lesson.durable.LostTask):
            zombie.step(lambda key: "zombie")
        assert ctx.step(lambda key: "ours") == "ours"
        assert record(queue, id, attempt=1) == 0, "nor may it overwrite"
    assert [(row[2], row[4]) for row in log_rows(db, id)] == [("ours", 2)]


def test_a_zombie_does_not_overwrite_an_error_of_the_next_attempt(lesson, db):
    """The one kind of entry that may give way, and only to who has the task."""
    id = new_task(lesson, db)
    with attempt(lesson, db, id) as (_, queue):
        execute(db, "update tasks set attempt = 2 where id = %s", id)
        error = json.dumps({"type": "E", "error": "E", "traceback": "", "final": False})
        assert record(queue, id, attempt=2, output=None, error=error) == 1
        assert record(queue, id, attempt=1) == 0
    assert log_rows(db, id)[0][3]["type"] == "E"


def test_while_a_step_is_being_recorded_nobody_takes_the_task_away(lesson, db):
    id = new_task(lesson, db)
    with attempt(lesson, db, id), db.engine.connect() as one, queries(lesson, db) as other:
        assert record(lesson.queries.Querier(one), id, attempt=1) == 1  # and not committed yet
        execute(db, "delete from workers")
        assert list(other.take_back_tasks()) == [], "it passes over the locked row"
        one.commit()
        assert [lost.id for lost in other.take_back_tasks()] == [id]
    assert len(log_rows(db, id)) == 1


def test_a_record_waits_for_who_is_just_taking_the_task_away(lesson, db):
    """`exists (...)` would look at a snapshot in which the task is still ours, and write."""
    id = new_task(lesson, db)
    with attempt(lesson, db, id), db.engine.connect() as one, ThreadPoolExecutor(1) as thread:
        execute(db, "delete from workers")
        taken = list(lesson.queries.Querier(one).take_back_tasks())  # and not committed yet
        assert [lost.id for lost in taken] == [id]

        def late_record():
            with queries(lesson, db) as late:
                return record(late, id, attempt=1)

        late = thread.submit(late_record)
        wait_until(lambda: late.done() or waiting_for_a_lock(db), "the record is there")
        one.commit()
        assert late.result(timeout=20) == 0
    assert log_rows(db, id) == []


def test_losing_the_task_is_not_swallowed_by_except_exception(lesson, db):
    reached = []

    def function(ctx, input):
        try:
            ctx.step(lambda key: execute(db, "update tasks set attempt = attempt + 1"))
        except Exception:
            reached.append("except")
        reached.append("after")

    program(lesson, function)
    id = enqueue(lesson, db)
    task = run_once(lesson, db, id)
    assert reached == []
    assert (task.status, task.attempt, task.error) == ("running", 2, None), "left as it was"
    assert log_rows(db, id) == []


def test_a_run_that_has_lost_its_task_does_nothing_more(lesson, db):
    """Not even if the function catches everything."""
    id, calls = new_task(lesson, db), []
    with attempt(lesson, db, id) as (ctx, _):
        execute(db, "update tasks set attempt = 2 where id = %s", id)
        for _ in range(3):
            with pytest.raises(lesson.durable.LostTask):
                ctx.step(lambda key: calls.append(key))
    assert len(calls) == 1


def test_recording_the_same_step_twice_in_one_attempt_is_recording_it_once(lesson, db):
    """The reply to the first try was lost with the connection."""
    id = new_task(lesson, db)
    with attempt(lesson, db, id) as (_, queue):
        assert record(queue, id, attempt=1) == 1
        assert record(queue, id, attempt=1) == 1
    assert len(log_rows(db, id)) == 1


def test_the_log_is_read_in_the_order_of_its_positions(lesson, db):
    """And not in the order in which its rows lie in the table."""
    id = new_task(lesson, db)
    with attempt(lesson, db, id) as (_, queue):
        for position in (3, 1, 2):
            assert record(queue, id, attempt=1, position=position) == 1
        execute(db, "analyze event_log")
        assert [entry.position for entry in queue.load_log(task_id=id)] == [1, 2, 3]


def test_what_an_earlier_attempt_has_recorded_is_not_overwritten(lesson, db):
    id = new_task(lesson, db)
    with attempt(lesson, db, id) as (_, queue):
        assert record(queue, id, attempt=1) == 1
    with attempt(lesson, db, id) as (_, queue):
        assert record(queue, id, attempt=2, output='"again"') == 0
    assert log_rows(db, id)[0][2] == "done"


CUT = {
    "terminate": "select pg_terminate_backend(pid) from pg_stat_activity"
    " where application_name = current_setting('application_name') and pid <> pg_backend_pid()",
    "cancel": "select pg_cancel_backend(pid) from pg_stat_activity"
    " where application_name = current_setting('application_name') and pid <> pg_backend_pid()",
}


@pytest.mark.parametrize("cut", CUT)
def test_a_connection_that_breaks_between_doing_and_recording(lesson, db, cut):
    """The step is recorded when the database can be reached again, and not done again."""
    calls = []

    def step(key):
        calls.append(key)
        execute(
            db,
            CUT[cut],
        )
        return "done"

    program(lesson, lambda ctx, input: [ctx.step(step), ctx.step(lambda key: "next")])
    id = enqueue(lesson, db)
    with working(lesson.worker.Worker(db, "w", slots=1)):
        task = wait_for_status(db, id, "succeeded", "failed", "waiting")
    assert (task.status, task.output, task.attempt) == ("succeeded", ["done", "next"], 1)
    assert len(calls) == 1
    assert len(log_rows(db, id)) == 2


def test_a_reply_that_is_lost_after_the_commit(lesson, db):
    """The record is there, and the worker does not know: it records again, and goes on."""
    id, calls = new_task(lesson, db), []
    with attempt(lesson, db, id) as (ctx, queue):
        real, tries = queue.record_step, []

        def record_step(**values):
            tries.append(real(**values))
            if len(tries) == 1:
                raise ConnectionError
            return tries[-1]

        queue.record_step = record_step

        def persist(statement):
            try:
                return statement()
            except ConnectionError:
                return statement()

        ctx._persist = persist
        assert ctx.step(lambda key: calls.append(key)) is None
        assert tries == [1, 1]
    assert len(calls) == len(log_rows(db, id)) == 1


# Errors


def failing(error):
    def failing_step(key):
        raise error

    return failing_step


def seen(error):
    return type(error).__name__, str(error), error.step, error.type, error.traceback


@pytest.mark.parametrize("final", [False, True])
def test_an_error_is_the_same_in_the_run_in_which_it_happened_and_later(lesson, db, final):
    kind = lesson.tasks.NonRetryableError if final else ValueError
    id, errors = new_task(lesson, db), []
    for _ in range(3):
        with attempt(lesson, db, id) as (ctx, _):
            try:
                ctx.step(failing(kind("card declined")))
            except lesson.durable.StepError as error:
                errors.append(error)
            ctx.step(lambda key: "cancelled")
    assert len({seen(error) for error in errors}) == 1
    assert errors[0].type == kind.__name__
    assert str(errors[0]) == f"failing_step: {kind.__name__}: card declined"
    assert "raise error" in errors[0].traceback
    assert isinstance(errors[2], lesson.tasks.NonRetryableError) == final
    assert [row[4] for row in log_rows(db, id)] == [1, 1], "recorded once, in attempt 1"


def fails_so_often(times, calls):
    def step(key):
        calls.append(key)
        if len(calls) <= times:
            raise ConnectionError("the bank does not answer")
        return "charged"

    return step


def test_an_error_at_the_end_of_the_log_is_tried_again(lesson, db):
    calls = []
    step = fails_so_often(2, calls)
    program(lesson, lambda ctx, input: [ctx.step(lambda key: 1), ctx.step(step)])
    id = enqueue(lesson, db)
    assert run_once(lesson, db, id).status == "waiting"
    assert "the bank does not answer" in log_rows(db, id)[1][3]["error"], "it can be seen meanwhile"
    assert run_once(lesson, db, id).status == "waiting"
    task = run_once(lesson, db, id)
    assert (task.status, task.output) == ("succeeded", [1, "charged"])
    assert len(calls) == 3
    assert len(set(calls)) == 1, "with the same key"
    assert [(row[2], row[4]) for row in log_rows(db, id)] == [(1, 1), ("charged", 3)]


def test_a_final_error_is_not_tried_again(lesson, db):
    calls = []

    def step(key):
        calls.append(key)
        raise lesson.tasks.NonRetryableError("the card is stolen")

    program(lesson, lambda ctx, input: ctx.step(step))
    id = enqueue(lesson, db)
    with attempt(lesson, db, id) as (ctx, queue):
        dies(queue, "after the record")
        with pytest.raises(Killed):
            ctx.step(step)
    task = run_once(lesson, db, id)
    assert task.status == "failed"
    assert "the card is stolen" in task.error
    assert len(calls) == 1


def test_an_error_after_which_the_function_has_gone_on_is_its_answer_for_ever(lesson, db):
    calls, again = [], []

    def function(ctx, input):
        try:
            return ctx.step(fails_so_often(1, calls))
        except lesson.durable.StepError as error:
            ctx.step(lambda key: None)
            ctx.step(fails_so_often(1, again))
            return error.type

    program(lesson, function)
    id = enqueue(lesson, db)
    assert run_once(lesson, db, id).status == "waiting"
    assert run_once(lesson, db, id).output == "ConnectionError"
    assert (len(calls), len(again)) == (1, 2)


def test_once_the_next_step_has_begun_an_error_is_not_tried_again(lesson, db):
    """Killed in the gap of that next step. Would the first succeed now, two ways were gone."""
    id, calls, keys = new_task(lesson, db), [], []

    def function(ctx):
        try:
            ctx.step(fails_so_often(1, calls))
        except lesson.durable.StepError:
            return ctx.step(lambda key: keys.append(("cancel", key)))
        return ctx.step(lambda key: keys.append(("confirm", key)))

    with attempt(lesson, db, id) as (ctx, queue):
        dies(queue, "before the record", position=2)
        with pytest.raises(Killed):
            function(ctx)
    with attempt(lesson, db, id) as (ctx, _):
        function(ctx)
    assert len(calls) == 1
    assert [what for what, _ in keys] == ["cancel", "cancel"]
    assert len(set(keys)) == 1, "both with one key"


POISON = {
    "nul": ValueError("a\0b"),
    "half a surrogate": ValueError("\ud800"),
    "megabytes": ValueError("x" * 5_000_000),
    "exit": SystemExit(3),
    "cancelled": asyncio.CancelledError(),
    "group": ExceptionGroup("several", [ValueError("\0")]),
}


class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError("no")


@pytest.mark.parametrize("error", [*POISON.values(), Unspeakable()], ids=[*POISON, "no message"])
def test_any_error_can_be_recorded(lesson, db, error):
    id, again = new_task(lesson, db), []
    for _ in range(2):
        with attempt(lesson, db, id) as (ctx, _):
            with pytest.raises(lesson.durable.StepError) as raised:
                ctx.step(failing(error))
            again.append(seen(raised.value))
            ctx.step(lambda key: "the function goes on")
    assert again[0] == again[1]
    assert again[0][3] == type(error).__name__
    assert len(again[0][1]) < 11_000


def test_the_traceback_is_short_and_ends_where_it_happened(lesson, db):
    def deep(n):
        if n == 0:
            raise ValueError("at the bottom")
        deep(n - 1)

    def deep_step(key):
        deep(500)

    id = new_task(lesson, db)
    with attempt(lesson, db, id) as (ctx, _), pytest.raises(lesson.durable.StepError) as raised:
        ctx.step(deep_step)
    assert len(raised.value.traceback) <= 2000
    assert raised.value.traceback.rstrip().endswith('raise ValueError("at the bottom")')


def test_a_step_in_a_step_is_refused(lesson, db):
    inner = []

    def function(ctx, input):
        ctx.step(lambda key: ctx.step(lambda key: inner.append(key)))

    program(lesson, function)
    id = enqueue(lesson, db)
    task = run_once(lesson, db, id)
    assert task.status == "failed", "and not tried again: it is a mistake in the code"
    assert "StepInStep" in task.error
    assert inner == []


# In a queue


def test_a_durable_task_is_registered_once(lesson):
    program(lesson, lambda ctx, input: None)
    with pytest.raises(lesson.tasks.BadInput, match="already"):
        program(lesson, lambda ctx, input: None)


def test_a_function_without_steps_is_a_task_like_any_other(lesson, db):
    program(lesson, lambda ctx, input: input * 2)
    id = enqueue(lesson, db, input=4)
    assert run_once(lesson, db, id).output == 8
    assert log_rows(db, id) == []


def test_durable_and_other_tasks_share_the_slots_of_a_worker(lesson, db):
    program(lesson, lambda ctx, input: [ctx.step(lambda key, n: n, n) for n in range(input)])
    durable = [enqueue(lesson, db, input=n) for n in range(20)]
    other = [enqueue(lesson, db, "divide", [n, 1]) for n in range(20)]
    with working(lesson.worker.Worker(db, "w", slots=4)):
        for n in range(20):
            assert wait_for_status(db, durable[n], "succeeded", "failed").output == list(range(n))
            assert wait_for_status(db, other[n], "succeeded", "failed").output == n


@contextmanager
def counted(*engines):
    statements = []

    def count(connection, cursor, statement, *_):
        statements.append(statement)

    for engine in engines:
        sa.event.listen(engine, "before_cursor_execute", count)
    try:
        yield statements
    finally:
        for engine in engines:
            sa.event.remove(engine, "before_cursor_execute", count)


def test_ten_steps_cost_twelve_statements_and_their_replay_three(lesson, db):
    """One to claim, one for each step, one to finish; the log is loaded with one."""
    program(lesson, lambda ctx, input: [ctx.step(lambda key, n: n, n) for n in range(10)])
    id = enqueue(lesson, db)
    worker = lesson.worker.Worker(db, "w")
    with db.autocommit.connect() as slot, db.autocommit.connect() as dispatcher:
        worker._register(slot)
        for most in (12, 3):
            with counted(db.autocommit, db.engine) as statements:
                (task,) = worker._claim(dispatcher, 1)
                worker._run_task(slot, task)
            assert len(statements) <= most, statements
            assert task_row(db, id).output == list(range(10))
            execute(db, "update tasks set status = 'queued', output = null where id = %s", id)


def test_a_worker_is_killed_between_two_steps_of_many_tasks(lesson, db, tmp_path):
    """Twenty tasks in one process that dies, and another that finishes them all."""
    program(lesson, lambda ctx, input: None, "dying")
    ids = [enqueue(lesson, db, "dying", f"task {n}") for n in range(20)]
    with herd(lesson, tmp_path, 2, DYING_APP) as process:
        wait_until(lambda: len(Outside(tmp_path).effects()) > 5, "some steps are done")
        ((victim,), *_) = execute(db, "select name from workers order by id")
        os.kill(int(victim), signal.SIGKILL)
        assert process.stdout.readline().strip() == victim
        execute(db, "update workers set alive_until = '-infinity' where name = %s", victim)
        for id in ids:
            task = wait_for_status(db, id, "succeeded", "failed")
            assert task.output == [row[2] for row in log_rows(db, id)]
    effects = [line.split("; ") for line in Outside(tmp_path).effects()]
    tries = Counter((place, n) for place, n, _ in effects)
    assert len(tries) == 60
    assert sum(tries.values()) <= 61, "one step at most was in its gap: one slot"
