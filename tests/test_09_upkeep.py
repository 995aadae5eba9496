"""Lesson 09: the upkeep looks when something is due, and not on a fixed beat alone."""

import threading
from datetime import timedelta

from shared.processes import working
from shared.testing import wait_for_status
from tests.helpers import enqueue, execute, hurry, log_of, program, queries, register

LONG = 600  # seconds: a look that comes to nobody's help
MINUTE = timedelta(minutes=1)


def looking_hardly_ever(lesson, db, **timing):
    """A worker at work. A look names the end of the lease of what runs: that is far away, too."""
    hurry(lesson, upkeep=LONG, **timing)
    return working(lesson.worker.Worker(db, "w", lease=timedelta(seconds=LONG)))


def pause(lesson, db):
    """Of an upkeep that has just looked, and has found nothing to do."""
    upkeep = lesson.upkeep.Upkeep(lesson.upkeep.CHORES, LONG)
    with queries(lesson, db) as queue:
        upkeep.next(queue, 0)
    return upkeep.pause()


def test_the_pause_ends_when_the_next_thing_is_due(lesson, db):
    assert pause(lesson, db) >= LONG / 2
    register(lesson, db, lease=4 * MINUTE)
    assert 180 < pause(lesson, db) <= 240, "a lease may have run out"
    enqueue(lesson, db, delay=3 * MINUTE)
    assert 120 < pause(lesson, db) <= 180, "a task is to be woken"
    execute(
        db,
        "insert into event_log (task_id, position, kind, name, input, due_at, attempt)"
        " select id, 1, 'timer', 'sleep', '120.0', now() + interval '2 m', 1 from tasks",
    )
    assert 60 < pause(lesson, db) <= 120, "a timer"
    execute(
        db,
        "update tasks set status = 'running', attempt = 1, started_at = now(), timeout = '1 m',"
        " worker_id = workers.id from workers",
    )
    assert 0 < pause(lesson, db) <= 60, "a run takes too long"


def test_a_hint_between_a_look_and_its_chore_is_kept_for_the_next_look(lesson, db):
    enqueue(lesson, db, delay=timedelta(microseconds=1))
    upkeep = lesson.upkeep.Upkeep({"wake": lambda _: None}, LONG)
    with queries(lesson, db) as queue:
        upkeep.next(queue, 0)
        upkeep.hint.set()
        assert upkeep.pause() == 0, "a chore is due"
        upkeep.next(queue, 0)
        assert upkeep.hint.is_set(), "the look did not see what the hint was for"


def test_a_sleep_ends_in_time_though_the_upkeep_looks_hardly_ever(lesson, db):
    """One that is shorter than its pause, and one that begins after that."""
    program(lesson, lambda ctx, seconds: ctx.sleep(timedelta(seconds=seconds)))
    with looking_hardly_ever(lesson, db):
        for seconds in (0.3, 0.01):
            wait_for_status(db, enqueue(lesson, db, "program", seconds), "succeeded")


def test_sleeps_that_end_one_after_the_other_all_end_in_time(lesson, db):
    """A look names the first timer that is due, and says nothing of those that follow it."""
    program(lesson, lambda ctx, seconds: ctx.sleep(timedelta(seconds=seconds)))
    ids = [enqueue(lesson, db, "program", seconds) for seconds in (0.5, 0.6, 0.7)]
    with looking_hardly_ever(lesson, db):
        for id in ids:
            wait_for_status(db, id, "succeeded")


def test_a_backoff_ends_in_time_too(lesson, db):
    """In a task, and in one after it: the first look of a worker that starts may still see one."""
    tries = []

    def fails_once(n):
        tries.append(n)
        if tries.count(n) == 1:
            raise ValueError

    lesson.tasks.task(fails_once)
    with looking_hardly_ever(lesson, db, first_backoff=timedelta(seconds=0.1)):
        for n in (1, 2):
            wait_for_status(db, enqueue(lesson, db, "fails_once", n), "succeeded")


def test_a_stop_does_not_wait_for_a_long_pause(lesson, db):
    before = threading.active_count()
    with looking_hardly_ever(lesson, db):
        wait_for_status(db, enqueue(lesson, db), "succeeded")
    assert threading.active_count() == before


def test_who_slept_on_a_worker_that_is_gone_wakes_on_another(lesson, db):
    program(lesson, lambda ctx, seconds: ctx.sleep(timedelta(seconds=seconds)))
    id = enqueue(lesson, db, "program", 0.5)
    with working(lesson.worker.Worker(db, "a")):
        wait_for_status(db, id, "waiting")
    before = log_of(db, id)[0].due_at
    with working(lesson.worker.Worker(db, "b")):
        row = wait_for_status(db, id, "succeeded")
    assert (row.attempt, log_of(db, id)[0].due_at) == (2, before)
    assert row.started_at >= before
