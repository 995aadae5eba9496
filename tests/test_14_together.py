"""Lesson 14: what is written at the same moment is written together, and nobody waits."""

import gc
import re
import threading
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from sqlalchemy.sql.elements import TextClause

from shared.processes import wait_until, within, working
from shared.testing import task_row, waiting_for_a_lock
from tests.helpers import (
    by_hand,
    claim,
    claim_one,
    enqueue_all,
    execute,
    fences,
    log_of,
    patiently,
    queries,
    register,
    several,
    statuses,
    suspended,
    waiting_in,
)


class Commits:
    """The statement of a group, which takes as long as the test wants."""

    def __init__(self):
        self.sent = []
        self.go_on = threading.Event()

    def __call__(self, rows):
        self.sent.append(rows)
        assert self.go_on.wait(within(20))
        return {(1, 1), (2, 1), (3, 1)}


@contextmanager
def writing(group, *ids):
    """A thread for each row; what `write` has said to each, so far."""
    answers = {}
    with ThreadPoolExecutor(len(ids)) as threads:

        def write(id):
            answers[id] = group.write((id, 1), str(id))

        yield answers, [threads.submit(write, id) for id in ids]


def test_nobody_is_told_before_the_commit(lesson):
    commits = Commits()
    group = lesson.group.Group(commits)
    with writing(group, 1) as (first, _):
        wait_until(lambda: commits.sent, "the first one writes")
        with writing(group, 2, 3) as (others, _):
            wait_until(lambda: waiting_in(group) == 2, "the others wait")
            told = {**first, **others}
            commits.go_on.set()
    assert told == {}
    assert {**first, **others} == {1: True, 2: True, 3: True}


def running(lesson, db, n):
    """So many tasks that run, as their rows."""
    several(lesson, db, n)
    return [claim_one(lesson, db) for _ in range(n)]


def sent(do):
    """How often each query was sent meanwhile."""
    noted = Counter()

    def note(_connection, _cursor, statement, *_):
        noted.update(re.findall(r"-- name: (\w+)", statement))

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        do()
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)
    return noted


def test_steps_of_many_runs_share_a_statement_and_a_lost_one_is_told_alone(lesson, db):
    tasks = running(lesson, db, 8)

    def step(fence):
        try:
            return lesson.context.Context(fence).step(done)
        except lesson.fence.LostTask:
            return "lost"

    def done(_key):
        return "done"

    def do():
        with db.engine.begin() as psql, ThreadPoolExecutor(8) as threads:
            psql.exec_driver_sql("lock table event_log in share mode")
            with fences(lesson, db, tasks) as (made, group):
                steps = [threads.submit(step, fence) for fence in made]
                wait_until(lambda: waiting_in(group) == 7, "one writes, and the others wait")
                by_hand(lesson, db, "cancel", tasks[3].id)
                psql.rollback()
                outcomes.extend(step.result(within(20)) for step in steps)

    outcomes = []
    assert sent(do)["record_steps"] == 2
    assert [n for n, outcome in enumerate(outcomes) if outcome != "done"] == [3]
    assert [len(log_of(db, task.id)) for task in tasks] == [1, 1, 1, 0, 1, 1, 1, 1]


def test_a_step_that_is_long_or_has_failed_goes_alone(lesson, db):
    def long(_key):
        return "x" * 10_000

    def fails(_key):
        raise ValueError

    def do():
        with fences(lesson, db, running(lesson, db, 2)) as (made, _):
            one, other = map(lesson.context.Context, made)
            one.step(long)
            with pytest.raises(lesson.errors.StepError):
                other.step(fails)

    noted = sent(do)
    assert (noted["record_steps"], noted["record_step"]) == (0, 2)


def test_runs_wait_for_a_connection_and_no_more_are_made_than_are_wanted(lesson, db):
    used, go_on = [], threading.Event()

    def statement(queries):
        used.append(queries._conn.exec_driver_sql("select pg_backend_pid()").scalar())
        assert go_on.wait(within(20))

    with fences(lesson, db, running(lesson, db, 5)) as (made, _):
        with ThreadPoolExecutor(5) as threads:
            sending = [threads.submit(fence.send, statement) for fence in made]
            wait_until(lambda: len(used) == 2, "both connections are lent")
            go_on.set()
        for each in sending:
            each.result()
    assert (len(used), len(set(used))) == (5, 2)


def test_results_share_a_statement(lesson, db):
    enqueue_all(lesson, db, "nothing", [None] * 100)

    def do():
        with working(lesson.worker.Worker(db, "w", slots=100)):
            wait_until(lambda: statuses(db) == {"succeeded": 100}, "all have succeeded")

    noted = sent(do)
    assert noted["succeed_task"] == 0, "no slot has to store one alone"
    assert 0 < noted["succeed_tasks"] < 50


def test_siblings_that_end_together_change_their_parent_once(lesson, db):
    """And are told one after the other, in the order in which they were spawned."""
    id, children = suspended(lesson, db, 20)
    for child in children:
        claim_one(lesson, db, child)
    with db.connect() as connection:
        connection.execute(
            "update tasks set status = 'succeeded', output = '7' where id = any (%s)", [children]
        )
        (updated,) = connection.execute(
            "select pg_stat_get_xact_tuples_updated('tasks'::regclass)"
        ).fetchone()
    assert updated == len(children) + 2, "one for the count, and one to wake it"
    row = task_row(db, id)
    assert (row.status, row.completions, row.wake_after) == ("queued", 20, 0)
    assert [entry.completion for entry in log_of(db, id)] == list(range(1, 21))


def test_siblings_that_end_together_wake_those_who_have_waited_for_enough(lesson, db):
    """Of three parents, all in one statement: one waits for one more, and one has ended."""
    waits, awaited = suspended(lesson, db, 2)
    wakes, (first, *_) = suspended(lesson, db, 2)
    ended, (last, *_) = suspended(lesson, db, 1)
    execute(db, "update tasks set wake_after = 1 where id = %s", wakes)
    with queries(lesson, db) as queue:
        assert queue.cancel_task(id=ended) == 1
    before = vars(task_row(db, ended))
    ends = "update tasks set status = 'failed', error = 'E: no' where id = any (%s)"
    execute(db, ends, [awaited[0], first, last])
    rows = [task_row(db, id) for id in (waits, wakes)]
    assert [(row.status, row.completions, row.wake_after) for row in rows] == [
        ("waiting", 1, 1),
        ("queued", 1, 0),
    ]
    assert vars(task_row(db, ended)) == {**before, "completions": 1, "wake_after": 0}
    assert log_of(db, ended)[0].error["error"] == "E: no"


def test_a_siblings_end_reads_its_own_entry_however_many_there_are(lesson, db):
    """With the statistics of other tasks: no entry of theirs is open."""
    execute(
        db,
        "insert into tasks (name, input, status, output, attempt)"
        " select 'nothing', 'null', 'succeeded', 'null', 1 from generate_series(1, 5000)",
    )
    execute(
        db,
        "insert into event_log (task_id, position, kind, name, input, output, attempt)"
        " select id, position, 'step', 'done', 'null', 'null', 1"
        " from tasks, generate_series(1, 3) as position",
    )
    execute(db, "analyze tasks, event_log")
    id, children = suspended(lesson, db, 2000)
    with db.connect() as connection:
        ends = (
            "update tasks set status = 'succeeded', output = '7', attempt = 1 where id = any (%s)"
        )
        connection.execute(ends, [children[-100:]])
        (read,) = connection.execute(
            "select sum(pg_stat_get_xact_tuples_returned(oid)) from pg_class"
            " where relname ~ '^event_log' and relnamespace = current_schema()::regnamespace"
        ).fetchone()
    assert task_row(db, id).completions == 100
    assert 200 <= read < 10 * 100


@pytest.mark.parametrize("end", ["update tasks set status = 'cancelled'", "delete from tasks"])
def test_thousands_of_siblings_end_in_one_statement(lesson, db, end):
    """In a session that has made its plan for one: to compare each with each would take minutes."""
    id, (first, *others) = suspended(lesson, db, 5000)
    with db.autocommit.connect() as connection:
        patiently(connection, 10)
        for children in ([first], others):
            connection.exec_driver_sql(f"{end} where id = any (%s)", (children,))
    row = task_row(db, id)
    assert (row.status, row.completions) == ("queued", 5000)


def test_a_child_ends_although_it_gets_another_id(lesson, db):
    id, (child,) = suspended(lesson, db, 1)
    execute(db, "update tasks set id = default, status = 'cancelled' where id = %s", child)
    assert task_row(db, id).status == "queued"


def test_the_youngest_parent_is_locked_first(lesson, db):
    """As by whoever retries or cancels by hand: neither can wait for the other's second row."""
    parents = [suspended(lesson, db, 1) for _ in range(2)]
    (older, child), (younger, other) = ((id, children[0]) for id, children in parents)
    ends = "update tasks set status = 'cancelled' where id = any (%s)"
    with db.connect() as one, db.connect() as two, ThreadPoolExecutor(1) as threads:
        two.execute("select from tasks where id = %s for update", (younger,))
        ended = threads.submit(one.execute, ends, ([child, other],))
        wait_until(lambda: waiting_for_a_lock(db) == 1, "it waits for the younger one")
        two.execute("select from tasks where id = %s for update nowait", (older,))
        two.rollback()
        ended.result(within(20))


def test_each_statement_is_parsed_once(lesson, db, monkeypatch):
    parsed = []
    init = TextClause.__init__

    def counted(self, text, *args):
        parsed.append(text)
        init(self, text, *args)

    monkeypatch.setattr(TextClause, "__init__", counted)
    with db.autocommit.connect() as connection:
        enqueued = [lesson.tasks.enqueue(connection, "nothing", None) for _ in range(5)]
        told = [row.id for row in lesson.queries.Querier(connection).list_tasks(at_most=9)]
        assert told == enqueued[::-1]
        assert connection.execute(sa.text("select 1")).scalar_one() == 1
        assert connection.execute(sa.text("select 1")).scalar_one() == 1
    assert len(set(parsed)) == len(parsed) - 1, "the program's own statements are left alone"


def test_a_function_is_looked_at_once_and_not_kept(lesson, monkeypatch):
    looks = []
    signature = lesson.inputs.signature
    monkeypatch.setattr(
        lesson.inputs, "signature", lambda *args, **kw: looks.append(args) or signature(*args, **kw)
    )
    held = SimpleNamespace()

    def step(_key, number):
        return held, number

    check = partial(lesson.inputs.check_function, step, "a step is a def f(key, x)", "key")
    assert [check(1), check(2)] == ["step", "step"]
    with pytest.raises(lesson.inputs.BadInput, match="missing a required argument: 'number'"):
        check()
    assert len(looks) == 1
    step.__code__ = (lambda _key: held).__code__  # as a shell does that loads a module again
    assert check.func(*check.args) == "step"
    gone = weakref.ref(step)
    looks.clear()
    del step, check
    gc.collect()
    assert gone() is None, "nor what its closure holds"


def test_a_claim_leaves_nearly_every_row_on_its_page(lesson, db):
    """So it needs no entry in the log of the database for the rest of the row. (The end of a task
    does so too, but only where no snapshot keeps the first version: not beside other tests.)"""
    pages = "select (ctid::text::point)[0] from tasks order by id"
    several(lesson, db, 200)
    before = execute(db, pages)
    while claim(lesson, db, register(lesson, db), 20):
        pass
    assert statuses(db) == {"running": 200}
    moved = sum(was != now for was, now in zip(before, execute(db, pages), strict=True))
    assert moved < 40
