"""Lesson 14: several worker processes on one machine, and one with a thousand slots."""

import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from shared.processes import wait_until, within, worker_processes
from shared.testing import working
from tests.helpers import (
    announce,
    copy_of,
    count,
    enqueue_all,
    execute,
    few_connections,
    run_verb,
)

HOLD = """
@task
def hold(seconds: float) -> None:
    time.sleep(seconds)
"""


@contextmanager
def supervised(path, tmp_path, *options):
    """`main.py workers ...`; yields the process, and a function that tells its output so far."""
    log = tmp_path / "supervisor.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "main.py", "workers", "--lease", f"{within(1)}", *options],
            cwd=path,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "NO_COLOR": "1"},
        )
    try:
        yield process, log.read_text
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(within(30))


def processes(db):
    """The worker processes that have a connection."""
    names = "select application_name from pg_stat_activity where application_name like %s"
    found = {int(name.split()[-1]) for (name,) in execute(db, names, f"{db.schema} %")}
    return found - {os.getpid()}


def names(db):
    return sorted(name for (name,) in execute(db, "select name from workers"))


def all_started(output, workers):
    wait_until(lambda: output().count(": started") >= workers, f"{workers} have started", 60)


def test_one_that_dies_is_started_again_and_sigterm_stops_all(lesson, db, tmp_path):
    with supervised(lesson.path, tmp_path, "--slots", "1") as (process, output):
        all_started(output, 2)
        assert names(db) == ["worker-1", "worker-2"]
        first = processes(db)
        assert len(first) == 2
        os.kill(min(first), signal.SIGKILL)
        all_started(output, 3)
        assert "has ended with status -9, and is started again" in output()
        assert len(processes(db) - first) == 1
        process.terminate()
        assert process.wait(within(30)) == 0
        assert output().count(": stopped, 0 tasks abandoned") == 2
    wait_until(lambda: not processes(db), "no process is left")


def test_what_cannot_start_is_not_tried_more_than_once_a_second(lesson, tmp_path, monkeypatch):
    tries = tmp_path / "tries"
    monkeypatch.setattr(lesson.supervisor, "RESTART_SECONDS", 0.5)
    monkeypatch.setattr(lesson.supervisor, "LOOK_SECONDS", 0.001)
    worker = lesson.supervisor.Supervised("w", ["sh", "-c", f"date +%s.%N >> {tries}; exit 3"])
    end = time.monotonic() + 1.6
    while time.monotonic() < end:
        worker.keep()
        time.sleep(0.01)
    times = [float(line) for line in tries.read_text().splitlines()]
    assert 2 <= len(times) <= 4


def test_a_second_ctrl_c_abandons_what_runs(lesson, db, tmp_path):
    path = copy_of(lesson, tmp_path, HOLD)
    announce(lesson, "hold")
    with supervised(path, tmp_path, "--processes", "2", "--slots", "1") as (process, output):
        all_started(output, 2)
        enqueue_all(lesson, db, "hold", [within(60)] * 2)
        wait_until(lambda: count(db, "running") == 2, "both run")
        process.send_signal(signal.SIGINT)
        wait_until(lambda: output().count("1 still running") == 2, "both are told")
        assert process.poll() is None, "it waits"
        process.send_signal(signal.SIGINT)
        assert process.wait(within(30)) == 0
        assert output().count(": stopped, 1 tasks abandoned") == 2


def test_the_workers_stop_when_the_supervisor_is_killed(lesson, db, tmp_path):
    with supervised(lesson.path, tmp_path, "--slots", "1") as (process, output):
        all_started(output, 2)
        process.kill()
        wait_until(lambda: not processes(db), "no process is left")
    assert names(db) == []


@pytest.mark.parametrize("bad", [["--processes", "0"], ["--processes", "x"], ["--slots", "x"]])
def test_bad_options_are_refused_at_once(lesson, db, bad):  # noqa: ARG001
    ended = run_verb(lesson, "workers", *bad)
    assert ended.returncode == 2
    assert bad[0] in ended.stderr


def test_what_each_worker_would_refuse_is_refused_once(lesson, db):  # noqa: ARG001
    ended = run_verb(lesson, "workers", "--slots", "1001")
    assert ended.returncode == 1
    assert "slots" in ended.stderr


def test_what_cannot_be_started_now_is_started_later(lesson, monkeypatch):
    def popen(*_, **__):
        raise OSError("no more processes")

    supervised = lesson.supervisor.Supervised("w", [sys.executable, "-c", "pass"])
    with monkeypatch.context() as patched:
        patched.setattr(lesson.supervisor.subprocess, "Popen", popen)
        supervised.keep()
    monkeypatch.setattr(lesson.supervisor, "RESTART_SECONDS", 0)
    supervised.keep()
    wait_until(lambda: not supervised.is_alive(), "it has run")


def test_a_thousand_slots_share_five_connections(lesson, db):
    """All of them are used at once: each task waits until all others run."""
    barrier, most = threading.Barrier(1000), []

    @lesson.tasks.task
    def meet(n):
        barrier.wait(within(60))
        return n

    connections = (
        "select count(*) from pg_stat_activity"
        " where application_name = current_setting('application_name')"
    )
    ids = enqueue_all(lesson, db, "meet", range(1000))
    with working(lesson.worker.Worker(db, "w", slots=1000)):

        def all_done():
            most.append(execute(db, connections)[0][0])
            return count(db, "succeeded") == len(ids)

        wait_until(all_done, "all have met", 90)
    assert execute(db, "select count(*) from tasks where attempt > 1") == [(0,)]
    assert max(most) <= 15, "and those of the worker itself, and of this test"


@pytest.mark.parametrize(
    ("name", "bad"), [("slots", 1001), ("slots", 0), ("connections", 0), ("connections", 1001)]
)
def test_a_number_out_of_range_is_refused(lesson, db, name, bad):
    with pytest.raises(lesson.inputs.BadInput, match=f"{name} is a whole number from 1 to 1,000"):
        lesson.worker.Worker(db, "w", **{name: bad})


def test_a_worker_makes_do_with_the_connections_that_there_are(lesson, db, caplog):
    """The server has no more: runs wait for one that is given back. It is said, but not often."""
    with few_connections(db, 9) as few:
        enqueue_all(lesson, db, "hopeless", range(100))
        worker = lesson.worker.Worker(few, "w", slots=40, connections=20)
        with caplog.at_level(logging.WARNING), working(worker):
            wait_until(lambda: count(db, "failed") == 100, "all have ended", 60)
        told = [record for record in caplog.records if "too many connections" in record.message]
        assert 1 <= len(told) <= 5


def test_kill_9_repeats_at_most_one_function_in_each_slot(lesson, db, tmp_path):
    """What was returned and is not stored yet is done again; what was stored never is."""
    slots = 20
    code = """
@task
def act(n: int) -> int:
    outside.record(f"act {n}")
    return n
"""
    path = copy_of(lesson, tmp_path, code)
    announce(lesson, "act")
    ids = enqueue_all(lesson, db, "act", range(3000))
    options = ("--slots", str(slots), "--lease", f"{within(1)}")
    deaths = 0
    while count(db, "succeeded") < len(ids):
        with worker_processes(path, "w", options=options) as (worker,):
            done = count(db, "succeeded")
            wait_until(lambda n=done: count(db, "succeeded") >= min(n + 700, 3000), "more", 60)
            if deaths < 3:
                worker.kill()
                deaths += 1
            else:
                wait_until(lambda: count(db, "succeeded") == 3000, "all", 60)
    effects = [int(re.findall(r"act (\d+)", line)[0]) for line in lesson.app.outside.effects()]
    again = len(effects) - len(set(effects))
    assert set(effects) == set(range(3000)), "none is lost"
    assert again <= deaths * slots
