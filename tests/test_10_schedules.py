"""Lesson 10: a schedule starts one task for each tick, however many workers look."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from psycopg.errors import CheckViolation

from bench.growth import buffers, scans
from faults.proxy import Proxy
from shared.processes import WorkerProcess, wait_until, within, working
from shared.testing import wait_for_status
from tests.helpers import (
    count,
    due_chores,
    execute,
    hurry,
    in_threads,
    one_by_one,
    only,
    patiently,
    queries,
    refusing,
    run_program,
    run_verb,
    submitted,
)
from tests.shop import unfit

HOUR, MINUTE, SECOND = (timedelta(**{unit: 1}) for unit in ("hours", "minutes", "seconds"))
YEARLY, EVERY_SECOND = "0 0 1 1 *", "* * * * * *"


def put(lesson, db, name="s", cron=YEARLY, task="nothing", input=None, **options):
    with db.autocommit.connect() as connection:
        patiently(connection)
        lesson.schedules.set_schedule(connection, name, cron, task, input, **options)


def by_hand(lesson, db, what, name="s"):
    with db.autocommit.connect() as connection:
        patiently(connection)
        getattr(lesson.schedules, what)(connection, name)


def tick(lesson, db):
    """What any worker's upkeep does."""
    with queries(lesson, db) as queue:
        lesson.schedules.tick(queue)


def set_back(db, duration, name="s"):
    """As if nobody had looked for so long; the moment of the first tick that was missed."""
    ((moment,),) = execute(
        db,
        "update schedules set next_at = date_trunc('second', now()) - %s where name = %s"
        " returning next_at",
        duration,
        name,
    )
    return moment.astimezone(UTC)


def started(db):
    """The keys of the tasks, in the order in which they were made."""
    return [key for (key,) in execute(db, "select idempotency_key from tasks order by id")]


def key(moment, name="s"):
    return f"schedule {name} {moment:%Y-%m-%dT%H:%M:%SZ}"


def row(db, columns="next_at, error", name="s"):
    (found,) = execute(db, f"select {columns} from schedules where name = %s", name)  # noqa: S608
    return found


def new_year():
    return datetime(datetime.now(UTC).year + 1, 1, 1, tzinfo=UTC)


def test_a_tick_starts_one_task_and_the_next_one_is_a_year_later(lesson, db):
    options = {"queue": "q", "priority": 7, "max_attempts": 3, "timeout": HOUR}
    put(lesson, db, input={"a": [1.0, "ß"]}, **options)
    assert row(db) == (new_year(), None)
    tick(lesson, db)
    assert started(db) == [], "it is not due"
    moment = set_back(db, 5 * SECOND)
    tick(lesson, db)
    columns = "name, input, queue, priority, max_attempts, timeout, status, attempt"
    expected = ("nothing", {"a": [1.0, "ß"]}, "q", 7, 3, HOUR, "queued", 0)
    assert execute(db, f"select {columns} from tasks") == [expected]  # noqa: S608
    assert started(db) == [key(moment)]
    assert row(db) == (new_year(), None)
    tick(lesson, db)
    assert started(db) == [key(moment)]


def start(lesson, queue, schedule):
    """What follows when a worker has found that this schedule is due."""
    lesson.schedules.start(queue, schedule)


def test_of_two_workers_that_have_found_it_due_one_starts_the_task(lesson, db):
    put(lesson, db)
    set_back(db, SECOND)
    with queries(lesson, db) as ann, queries(lesson, db) as bob:
        (seen,) = ann.list_due_schedules()
        assert [each.name for each in bob.list_due_schedules()] == ["s"]
        start(lesson, ann, seen)
        moved = set_back(db, -HOUR)
        start(lesson, bob, seen)
    assert len(started(db)) == 1
    assert row(db)[0] == moved, "the second one has moved it on again"


def test_nobody_waits_for_a_worker_that_stands_still(lesson, db):
    """Its statement is done, and not committed."""
    put(lesson, db)
    set_back(db, SECOND)
    with queries(lesson, db) as queue:
        (seen,) = queue.list_due_schedules()
        with db.engine.begin() as connection:
            start(lesson, lesson.queries.Querier(connection), seen)
            start(lesson, queue, seen)
            assert started(db) == []
    assert len(started(db)) == 1


def test_of_many_workers_at_the_same_moment(lesson, db):
    put(lesson, db, cron=EVERY_SECOND, missed="all")
    lesson.schedules.MAX_TICKS = 7
    first = set_back(db, 60 * SECOND)

    def worker():
        with queries(lesson, db) as queue:
            while row(db)[0] < first + 60 * SECOND:
                lesson.schedules.tick(queue)

    in_threads(*[worker] * 6)
    keys = started(db)
    assert len(keys) >= 60
    assert keys == [key(first + n * SECOND) for n in range(len(keys))]


def test_next_at_that_is_set_back_by_hand_starts_nothing_twice(lesson, db):
    put(lesson, db, cron=EVERY_SECOND, missed="all")
    set_back(db, 5 * SECOND)
    tick(lesson, db)
    assert len(started(db)) >= 6
    first = set_back(db, 10 * SECOND)
    tick(lesson, db)
    keys = sorted(started(db))
    assert len(keys) >= 11
    assert keys == [key(first + n * SECOND) for n in range(len(keys))]


CHANGES = {
    "cron": "update schedules set cron = '0 0 2 1 *'",
    "time zone": "update schedules set timezone = 'Asia/Tokyo'",
    "missed": "update schedules set missed = 'none'",
    "pause": "update schedules set next_at = null",
    "another tick": "update schedules set next_at = now() + interval '1 hour'",
    "delete": "delete from schedules",
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_was_changed_since_a_worker_looked_is_not_overwritten(lesson, db, change):
    put(lesson, db)
    set_back(db, SECOND)
    with queries(lesson, db) as queue:
        (seen,) = queue.list_due_schedules()
        execute(db, change)
        before = execute(db, "select * from schedules")
        start(lesson, queue, seen)
    assert started(db) == []
    assert execute(db, "select * from schedules") == before


def test_a_task_gets_the_input_that_is_there_now(lesson, db):
    put(lesson, db, input=1)
    set_back(db, SECOND)
    with queries(lesson, db) as queue:
        (seen,) = queue.list_due_schedules()
        put(lesson, db, input=2)
        start(lesson, queue, seen)
    assert execute(db, "select input from tasks") == [(2,)]


def test_an_edit_that_comes_late_starts_no_tick_again(lesson, db):
    """It was worked out for a tick that a worker starts first; and the task is another one now."""
    put(lesson, db, cron=EVERY_SECOND)
    late = row(db, "clock_timestamp() - interval '1 hour'")[0]
    clock, looks = lesson.schedules.clock, [late]
    lesson.schedules.clock = lambda queue: looks.pop() if looks else clock(queue)
    put(lesson, db, cron="*/2 * * * * *", task="send_receipt")
    assert looks == []
    assert row(db)[0] > late + HOUR, "it has looked at the clock once more"


def test_a_tick_that_has_come_before_the_pause_ended_is_not_started(lesson, db):
    put(lesson, db, cron=EVERY_SECOND)
    by_hand(lesson, db, "pause")
    late = row(db, "clock_timestamp() - interval '1 hour'")[0]
    clock, looks = lesson.schedules.clock, [late]
    lesson.schedules.clock = lambda queue: looks.pop() if looks else clock(queue)
    by_hand(lesson, db, "resume")
    assert looks == []
    assert row(db)[0] > late + HOUR


def test_an_edit_waits_for_a_tick_and_looks_at_the_clock_then(lesson, db):
    put(lesson, db, cron=EVERY_SECOND)
    with ThreadPoolExecutor(1) as threads, db.connect() as holder:
        holder.execute("select from schedules for update")
        edit = submitted(db, threads, lambda: put(lesson, db, cron="*/2 * * * * *"))
        passed = row(db, "next_at + interval '3 s'")[0]
        wait_until(lambda: row(db, "clock_timestamp()")[0] > passed, "several ticks have passed")
        ((released,),) = holder.execute("select clock_timestamp()").fetchall()
        holder.commit()
        edit.result(timeout=within(20))
    assert row(db)[0] > released


def test_setting_it_again_forgets_nothing(lesson, db):
    """As a program does that sets its schedules whenever it starts."""
    put(lesson, db, cron="0 0 * * *", input=1)
    moment = set_back(db, 30 * HOUR)
    put(lesson, db, cron="0 0 * * *", input=2, missed="all")
    assert row(db, "next_at, missed, input") == (moment, "all", 2)
    by_hand(lesson, db, "pause")
    put(lesson, db, cron="0 0 * * *", input=3)
    assert row(db, "next_at, missed, input") == (None, "latest", 3)


@pytest.mark.parametrize("edit", [{"cron": "30 4 * * *"}, {"timezone": "Asia/Tokyo"}])
def test_another_time_holds_from_now_on(lesson, db, edit):
    put(lesson, db, cron="0 0 * * *", missed="all")
    set_back(db, 30 * HOUR)
    put(lesson, db, **{"cron": "0 0 * * *", "missed": "all", **edit})
    assert datetime.now(UTC) < row(db)[0] <= datetime.now(UTC) + 24 * HOUR
    tick(lesson, db)
    assert started(db) == []
    by_hand(lesson, db, "pause")
    put(lesson, db, cron="1 1 * * *")
    assert row(db) == (None, None), "a pause stays"


def test_a_pause_ends_by_hand_and_what_it_missed_is_forgotten(lesson, db):
    put(lesson, db, missed="all")
    by_hand(lesson, db, "resume")
    set_back(db, HOUR)
    by_hand(lesson, db, "pause")
    by_hand(lesson, db, "pause")
    tick(lesson, db)
    assert row(db) == (None, None)
    by_hand(lesson, db, "resume")
    by_hand(lesson, db, "resume")
    assert row(db) == (new_year(), None)
    tick(lesson, db)
    assert started(db) == []
    by_hand(lesson, db, "delete")
    assert execute(db, "select * from schedules") == []
    for what in ("pause", "resume", "delete"):
        with pytest.raises(lesson.inputs.BadInput, match="there is no schedule 's'"):
            by_hand(lesson, db, what)
        with pytest.raises(lesson.inputs.BadInput, match="a schedule is named with"):
            by_hand(lesson, db, what, "a\0")


def test_a_schedule_is_there_when_the_callers_transaction_commits(lesson, db):
    with db.engine.connect() as connection:
        lesson.schedules.set_schedule(connection, "s", YEARLY, "nothing", None)
        connection.rollback()
    assert execute(db, "select * from schedules") == []


def test_all_ticks_of_a_long_time_leave_the_others_their_turn(lesson, db):
    lesson.schedules.MAX_TICKS = 10
    put(lesson, db, "long", EVERY_SECOND, missed="all")
    put(lesson, db, "other")
    first = set_back(db, 25 * SECOND, "long")
    set_back(db, SECOND, "other")
    tick(lesson, db)
    keys = started(db)
    assert keys[:10] == [key(first + n * SECOND, "long") for n in range(10)]
    assert keys[10].startswith("schedule other ")
    assert len(keys) == 11
    with queries(lesson, db) as queue:
        assert due_chores(queue) == ["tick"]
    tick(lesson, db)
    tick(lesson, db)
    assert started(db)[11:26] == [key(first + n * SECOND, "long") for n in range(10, 25)]


def test_the_upkeep_sleeps_until_the_next_tick(lesson, db):
    put(lesson, db)
    set_back(db, -MINUTE)
    upkeep = lesson.upkeep.Upkeep(lesson.upkeep.CHORES, 600)
    with queries(lesson, db) as queue:
        upkeep.next(queue, 0)
    assert 50 < upkeep.pause() <= 60
    by_hand(lesson, db, "pause")
    with queries(lesson, db) as queue:
        upkeep.next(queue, 0)
    assert upkeep.pause() >= 300


def test_the_tick_after_a_tick_is_in_time_though_the_upkeep_looks_hardly_ever(lesson, db):
    hurry(lesson, upkeep=600)
    put(lesson, db, cron=EVERY_SECOND)
    with working(lesson.worker.Worker(db, "w")):
        wait_until(lambda: count(db, "succeeded") >= 2, "two ticks")


def test_four_workers_and_a_tick_each_second(lesson, db):
    put(lesson, db, cron=EVERY_SECOND, missed="all")
    workers = [lesson.worker.Worker(db, name, slots=1) for name in "abcd"]
    with working(workers[0]), working(workers[1]), working(workers[2]), working(workers[3]):
        wait_until(lambda: count(db, "succeeded") >= 3, "three ticks")
    keys = started(db)
    first = datetime.strptime(keys[0], "schedule s %Y-%m-%dT%H:%M:%S%z")
    assert keys == [key(first + n * SECOND) for n in range(len(keys))]
    late = "extract(epoch from created_at) - floor(extract(epoch from created_at))"
    assert float(max(execute(db, f"select {late} from tasks"))[0]) < within(0.5)  # noqa: S608


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_worker_is_killed_at_the_commit(lesson, db, postgres, monkeypatch, when):
    put(lesson, db, cron=EVERY_SECOND, missed="all")
    first = set_back(db, 3 * SECOND)
    victims = []

    def strike(names):
        if "StartTicks" in names and victims and victims[0].exit_status is None:
            os.kill(victims[0].pid, signal.SIGKILL)
            return True
        return bool(victims) and victims[0].exit_status is not None

    hooks = {"before_commit": lambda _: False, "after_commit": lambda _: False}
    with Proxy(postgres, **{**hooks, f"{when}_commit": strike}).running() as line:
        with monkeypatch.context() as patch:
            patch.setenv("DATABASE_URL", line.url)
            victims.append(WorkerProcess(lesson.path, "victim"))
        try:
            wait_until(lambda: victims[0].exit_status == -signal.SIGKILL, "it is killed")
        finally:
            victims[0].kill()
    assert (started(db) == []) is (when == "before")
    assert (row(db)[0] == first) is (when == "before")
    tick(lesson, db)
    keys = started(db)
    assert len(keys) >= 4
    assert keys == [key(first + n * SECOND) for n in range(len(keys))]


BAD = {
    "a name with a blank": ({"name": "a b"}, "a schedule is named with"),
    "a name with a line break": ({"name": "a\n"}, "a schedule is named with"),
    "no name": ({"name": ""}, "a schedule is named with"),
    "a long name": ({"name": "x" * 101}, "a schedule is named with"),
    "a number as a name": ({"name": 5}, "a schedule is named with"),
    "cron": ({"cron": "tomorrow"}, "'tomorrow': Wrong number of fields"),
    "time zone": ({"timezone": "CEST"}, "a time zone has a name"),
    "no such task": ({"task": "nothin"}, "there is no task 'nothin'; registered: "),
    "a dict as a task": ({"task": {}}, "there is no task"),
    "NaN": ({"input": float("nan")}, "not JSON"),
    "missed": ({"missed": "some"}, "missed is 'none', 'latest' or 'all'"),
    "a list as missed": ({"missed": []}, "missed is 'none'"),
    "queue": ({"queue": ""}, "a queue is named"),
    "timeout": ({"timeout": -HOUR}, "timeout is a timedelta"),
    "an option that is not": ({"delay": HOUR}, "there is no option delay"),
}


@one_by_one(("mistake", "why"), BAD.values())
def test_a_mistake_is_refused_and_nothing_is_written(lesson, db, mistake, why):
    with pytest.raises(lesson.inputs.BadInput, match=why):
        put(lesson, db, **mistake)
    assert execute(db, "select * from schedules") == []


def type_in(db, name, cron=YEARLY, timezone="UTC", task="nothing", input="null"):
    """What somebody types into psql; it is due."""
    execute(
        db,
        "insert into schedules (name, cron, timezone, task, input, next_at)"
        " values (%s, %s, %s, %s, cast(%s as text)::json, now() - interval '1 s')",
        *(name, cron, timezone, task, input),
    )


def test_a_row_that_makes_no_sense_is_paused_and_says_why(lesson, db):
    type_in(db, "a", cron="garbage")
    type_in(db, "b", timezone="../Mars")
    type_in(db, "c", cron="0 0 30 2 *")
    put(lesson, db, "well")
    set_back(db, timedelta(0), "well")
    tick(lesson, db)
    reasons = {"a": "BadInput: 'garbage': Wrong", "b": "BadInput: a time zone", "c": "Bad day"}
    for name, why in reasons.items():
        next_at, error = row(db, name=name)
        assert next_at is None
        assert why in error
    assert [key.split()[1] for key in started(db)] == ["well"]
    put(lesson, db, "a")
    assert row(db, name="a") == (new_year(), None), "mended"


def test_a_pause_by_hand_stays_even_if_an_error_came_before_it(lesson, db):
    type_in(db, "s", timezone="../Mars")
    tick(lesson, db)
    by_hand(lesson, db, "pause")
    put(lesson, db)
    assert row(db) == (None, None)


def test_a_task_that_nobody_knows_or_can_read_fails_by_itself(lesson, db):
    """A worker with older code starts what only a newer one knows."""
    type_in(db, "newer", task="not_known_here")
    type_in(db, "deep", input="[" * 3000 + "]" * 3000)
    type_in(db, "digits", input="9" * 5000)
    put(lesson, db, "well")
    execute(db, "update schedules set max_attempts = 1")
    set_back(db, timedelta(0), "well")
    fails = unfit(lesson) == "failed"  # or waits for other code
    with working(lesson.worker.Worker(db, "w")):
        wait_until(lambda: count(db, "failed") == (3 if fails else 2), "they have failed")
        wait_until(lambda: count(db, "succeeded") == 1, "and that one has not")
    assert execute(db, "select count(*) from schedules where next_at > now()") == [(4,)]
    assert (
        "not_known_here"
        in execute(db, "select error from tasks where id = %s", only(db, "not_known_here"))[0][0]
    )


def test_a_schedule_whose_task_the_database_refuses_stops_no_other(lesson, db):
    for name in "abc":
        put(lesson, db, name, task="work" if name == "a" else "nothing")
        set_back(db, SECOND, name)
    with refusing(db, "tasks", "new.name = 'work'") as tries:
        tick(lesson, db)
        assert tries() == 1
        assert sorted(key.split()[1] for key in started(db)) == ["b", "c"]
        with pytest.raises(lesson.connection.DBAPIError):
            tick(lesson, db)
    tick(lesson, db)
    assert sorted(key.split()[1] for key in started(db)) == ["a", "b", "c"]


BOUNDS = {
    "never": "next_at = '-infinity'",
    "always": "next_at = 'infinity'",
    "a year that Python cannot read": "next_at = '12000-01-01'",
    "a long cron": "cron = repeat('x', 201)",
    "a long zone": "timezone = repeat('x', 101)",
    "a long task": "task = repeat('x', 201)",
    "no task": "task = ''",
    "no queue": "queue = ''",
    "a long queue": "queue = repeat('x', 101)",
    "a long name": "name = repeat('x', 101)",
    "missed": "missed = 'some'",
    "no attempts": "max_attempts = 0",
    "a long timeout": "timeout = '1000000 years'",
}


@pytest.mark.parametrize("change", BOUNDS.values(), ids=BOUNDS)
def test_what_no_worker_could_read_or_start_is_refused_by_the_table(db, change):
    execute(
        db,
        "insert into schedules (name, cron, timezone, task, input)"
        " values ('s', '0 * * * *', 'UTC', 'nothing', 'null')",
    )
    with pytest.raises((CheckViolation, psycopg.errors.IntervalFieldOverflow)):
        execute(db, f"update schedules set {change}")  # noqa: S608


def test_many_schedules_cost_a_look_few_pages(lesson, db):
    execute(
        db,
        "insert into schedules (name, cron, timezone, task, input, next_at)"
        " select 's' || id, '0 0 1 1 *', 'UTC', 'nothing', 'null', now() + id * interval '1 h'"
        " from generate_series(1, 20000) as id",
    )
    execute(db, "vacuum analyze schedules")
    with db.connect() as connection:
        for name in ("look_for_chores", "list_due_schedules"):
            text = getattr(lesson.queries, name.upper()).replace("\\:", ":").replace(":p1", "1")
            explain = "explain (analyze, buffers, format json) "
            plan = connection.execute(explain + text).fetchone()[0][0]["Plan"]
            seen = [s for s in scans(plan) if s.get("Relation Name") == "schedules"]
            assert {scan["Node Type"] for scan in seen} <= {"Index Scan", "Index Only Scan"}, name
            assert 0 < sum(buffers(scan) for scan in seen) <= 10, name


def test_a_worker_runs_what_a_schedule_has_started(lesson, db):
    put(lesson, db, task="divide", input=[6, 3])
    set_back(db, SECOND)
    with working(lesson.worker.Worker(db, "w")):
        wait_until(lambda: started(db), "it is started")
        assert wait_for_status(db, only(db, "divide"), "succeeded").output == 2


def test_the_verbs(lesson, db):
    def schedule(*arguments):
        done = run_verb(lesson, "schedule", *arguments)
        return done.returncode, done.stdout + done.stderr

    status, said = schedule("set", "s", "0 0 30 2 *", "nothing")
    assert status == 1
    assert "Error: '0 0 30 2 *': Bad day-of-month" in said
    zone = ("--timezone", "Asia/Tokyo", "--missed", "all", "--priority", "3")
    assert schedule("set", "s", YEARLY, "divide", "[6, 3]", *zone)[0] == 0
    columns = "cron, timezone, task, input, missed, priority"
    assert row(db, columns) == (YEARLY, "Asia/Tokyo", "divide", [6, 3], "all", 3)
    said = run_program(lesson, "schedule", "list").stdout
    tick = f"{new_year().year - 1}-12-31 15:00:00+00:00"
    assert f"s: {YEARLY} in Asia/Tokyo, divide([6, 3]), missed all, next {tick}" in said
    assert schedule("pause", "s")[0] == 0
    assert row(db)[0] is None
    assert "there is no schedule 't'; `schedule list` shows them" in schedule("delete", "t")[1]
