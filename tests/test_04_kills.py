"""Lesson 04: wherever a process is killed, what it has recorded is not done again."""

# ruff: noqa: ARG005  a step takes a key and a program an input, used or not

import os
import signal
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager

from shared.outside import Outside
from shared.processes import wait_until
from shared.testing import task_row, wait_for_status
from tests.helpers import copy_of, enqueue, execute, log_of, program

# A kill at every place, with real processes


STEPS = (1, 2, 3)


PLACES = [f"{when} {n}" for n in STEPS for when in ("before effect", "after effect", "recorded")]


DYING_APP = """

import os
import signal
from pathlib import Path

import context
from shared.outside import Outside

witness = Outside(Path(__file__).parent)


@context.durable
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
def herd(lesson, tmp_path, workers, more_tasks):
    """Worker processes with one slot each, of a copy of the lesson that has more tasks.

    A dead worker's lease ends at once, by its pid, and that of a slow one never.
    """
    copy = copy_of(lesson, tmp_path, more_tasks)
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
        rows = log_of(db, id)
        assert [row.position for row in rows] == [1, 2, 3]
        assert [row.position for row in rows if row.attempt == 1] == of_first_run, place
        assert [row.output for row in rows] == task.output, "the function got what was recorded"
        assert {(place, *row.output) for row in rows} <= keys
    # Each step of each task has one key, however often it was tried; and nobody else has it.
    assert len(keys) == len({key for _, _, key in keys}) == len(ids) * len(STEPS)


# In a queue


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
            assert task.output == [row.output for row in log_of(db, id)]
    effects = [line.split("; ") for line in Outside(tmp_path).effects()]
    tries = Counter((place, n) for place, n, _ in effects)
    assert len(tries) == 60
    assert sum(tries.values()) <= 61, "one step at most was in its gap: one slot"
