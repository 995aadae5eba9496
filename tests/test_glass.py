"""The glass box: every commit is seen, every earlier moment can be seen again, whatever happens."""

import io
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import timedelta
from functools import partial
from types import SimpleNamespace

import click
import pytest
from rich.console import Console

from faults import witness
from faults.stepper import Stepper
from glass import follow
from glass.control import Control, Refused
from glass.decoding import commits, rows
from glass.follow import Follower
from glass.history import Commit, History, Schema, Table, Written
from glass.terminal import draw
from glass.view import stepped, view
from shared import embedded
from shared.database import open_database
from shared.lessons import find
from shared.processes import wait_until, within, working
from shared.testing import environment, load

pytestmark = pytest.mark.skipif(
    "DATABASE_URL" in os.environ, reason="that server may not write what the glass box reads"
)


@contextmanager
def tables(number):
    """Fresh tables of a lesson, in a schema of this test's own."""
    path = find(number)
    with (
        environment(LESSON_SCHEMA=f"test_{os.getpid()}_glass_{path.name}"),
        open_database(path, reset=True) as db,
    ):
        yield SimpleNamespace(**{**vars(load(path)), "db": db, "path": path})


@contextmanager
def watched(db, url):
    history = History()
    with Follower(url, db.schema, history).running():
        found = lambda: any(moment.replaced for moment in history.moments)  # noqa: E731
        wait_until(found, "the tables are found")
        yield history


@pytest.fixture
def six(postgres, tmp_path, monkeypatch):  # noqa: ARG001  held for the whole session
    monkeypatch.setenv("LESSON_OUTSIDE", str(tmp_path / "outside.log"))
    with tables("06") as found:
        yield found


@pytest.fixture
def history(six, postgres):
    with watched(six.db, postgres) as found:
        yield found


def counts(history, moment=None):
    columns = view(history, moment).columns
    return {column.status: column.count for column in columns if column.count}


def run(six, *tasks):
    """Enqueue them, and let a worker bring them to an end; their ids."""
    with six.db.autocommit.connect() as connection:
        ids = [six.tasks.enqueue(connection, *task) for task in tasks]
    with working(six.worker.Worker(six.db, "a")):
        unended = "select id from tasks where status not in ('succeeded', 'failed')"
        wait_until(lambda: not execute(six.db, unended), "all tasks have ended")
    return ids


def execute(db, statement, *values):
    with db.connect(autocommit=True, application_name="the test") as connection:
        cursor = connection.execute(statement, values)
        return cursor.fetchall() if cursor.description else []


def test_not_one_change_is_missed(six, history):
    with six.db.engine.begin() as connection:
        for n in range(300):
            six.tasks.enqueue(connection, "nothing", None, priority=n % 3)
    run(six)
    wait_until(lambda: counts(history) == {"succeeded": 300}, "the end is seen")
    lives = {}
    for moment in history.moments:
        for change in moment.changes:
            if change.table == "tasks":
                lives.setdefault(change.key, []).append(change.after["status"])
    assert len(lives) == 300
    assert all(life == ["queued", "running", "succeeded"] for life in lives.values())


def test_each_earlier_moment_is_shown_as_it_was(six, history):
    """Compared with what triggers wrote down of the same commits."""
    witness.install(six.db)
    order = {"id": 1, "items": ["book", "unicorn"]}
    run(six, ("fulfil", order), ("flaky", 1), ("hopeless", None))
    told = execute(
        six.db,
        "select commit::text, after ->> 'id', after ->> 'status' from history"
        " where place = 'tasks' order by number",
    )
    xids = {xid for xid, _, _ in told}
    wait_until(lambda: xids <= {str(m.xid) for m in history.moments}, "all of it is seen")
    seen = set()
    for number, moment in enumerate(history.moments, 1):
        seen.add(str(moment.xid))
        expected = {id: status for xid, id, status in told if xid in seen}
        _, state = history.at(number)
        assert {row["id"]: row["status"] for row in state.get("tasks", {}).values()} == expected
    assert len(expected) == 5
    now = execute(
        six.db, "select id::text, started_at::text, awaits::text, log_id::text from tasks"
    )
    state = history.state["tasks"]
    assert {row[0]: row for row in now} == {
        key[0]: (key[0], row["started_at"], row["awaits"], row["log_id"])
        for key, row in state.items()
    }


def test_what_was_there_before_is_there(six, postgres):
    (id,) = run(six, ("divide", [6, 3]))
    with watched(six.db, postgres) as history:
        assert counts(history) == {"succeeded": 1}
        assert ("output", "2.0", 3) in view(history, task=str(id)).task.row
        assert counts(history, 0) == {}


def test_one_commit_stands_in_one_line(six, history):
    run(six, ("wait_for_a_nap", 0))
    wait_until(lambda: counts(history) == {"succeeded": 2}, "the end is seen")
    told = [[event.text for event in line.events] for line in view(history).lines]
    assert [
        "task 2: running → succeeded",
        "log of 1: 1 sleep → null, the first to end",
        "task 1: waiting → queued",
    ] in told


def test_a_reset_is_followed_and_does_not_wait(postgres):
    history = History()
    schema = f"test_{os.getpid()}_glass_06_durable_tasks"
    with Follower(postgres, schema, history).running():
        for n in range(1, 6):
            started = time.monotonic()
            with tables("06") as six:
                assert time.monotonic() - started < within(2)
                assert run(six, ("divide", [n, 1])) == [1]
                expected = f"[{n}, 1]", "succeeded"
                wait_until(partial(is_only_task, history, *expected), "the end is seen")
        life = ["queued", "running", "succeeded"]
        lives = [
            c.after["status"] for m in history.moments for c in m.changes if c.table == "tasks"
        ]
        assert lives[-12:] == 4 * life, "those of the tables that were made while it looked on"


def test_a_statement_that_fails_does_not_cost_the_slot(six, postgres, monkeypatch):
    monkeypatch.setattr(follow, "MARK", "select pg_not_before_postgres_16()")
    with watched(six.db, postgres) as history:
        for n in range(20):
            execute(six.db, "insert into tasks (name, input) values ('x', '1')")
            wait_until(lambda n=n: counts(history) == {"queued": n + 1}, "it is seen")
        assert [len(m.changes) for m in history.moments if m.xid] == 20 * [1]


def is_only_task(history, input, status):
    tasks = history.state.get("tasks", {}).values()
    return [(task["input"], task["status"]) for task in tasks] == [(input, status)]


def test_an_edited_schema_is_followed(six, history):
    execute(six.db, "alter table tasks add column colour text")
    execute(
        six.db,
        "alter table tasks drop constraint status_known,"
        " add constraint status_known check (status in ('queued', 'held'))",
    )
    wait_until(lambda: "colour" in history.schema.tables["tasks"].columns, "the column is seen")
    wait_until(lambda: history.schema.statuses == ["queued", "held"], "the statuses are seen")
    execute(six.db, "create table mine (a int)")
    wait_until(
        lambda: view(history).note.endswith("not shown: mine. "), "it says what it leaves out"
    )
    execute(six.db, "insert into tasks (name, input, colour) values ('x', '1', 'red')")
    wait_until(lambda: counts(history) == {"queued": 1}, "the row is seen")
    (row,) = history.state["tasks"].values()
    assert row["colour"] == "red"


def test_it_waits_for_a_transaction_that_is_open_and_says_so(six, postgres):
    history = History()
    with six.db.connect(application_name="psql") as other:
        other.execute("insert into tasks (name, input) values ('x', '1')")
        with Follower(postgres, six.db.schema, history).running():
            wait_until(lambda: history.note.startswith("waits until"), "it says what it waits for")
            # For one after the other: those of tests beside this one, too.
            wait_until(lambda: ("glass box", ["psql"]) in waits(history), "and for whom")
            other.commit()
            wait_until(lambda: counts(history) == {"queued": 1}, "it has begun")


def waits(history):
    return [
        (wait.waiter.label, [holder.label for holder in wait.holders])
        for wait in history.activity.waits
    ]


def test_who_waits_for_whom(six, history):
    run(six, ("divide", [6, 3]))
    with (
        ThreadPoolExecutor() as aside,
        six.db.connect(autocommit=True) as waiter,
        six.db.connect(application_name="psql") as holder,
    ):
        pair = waiter.info.backend_pid, [holder.info.backend_pid]
        pairs = lambda moment: [wait.pair for wait in view(history, moment).waits]  # noqa: E731
        holder.execute("update tasks set priority = 1")
        waiting = aside.submit(waiter.execute, "update tasks set priority = 2")
        wait_until(lambda: pair in pairs(None), "it is seen to wait")
        assert next(w for w in view(history).waits if w.pair == pair).holders[0].label == "psql"
        then = history.length
        assert pair in pairs(then)
        assert pair not in pairs(1)
        holder.rollback()
        waiting.result(within(20))
        wait_until(lambda: pair not in pairs(None), "and it is over")
        assert pair in pairs(then)


def test_a_glass_box_of_another_lesson_is_left_out(six, history):
    with (
        ThreadPoolExecutor() as aside,
        six.db.connect(autocommit=True, application_name="glass box of another") as waiter,
        six.db.connect(application_name="psql") as holder,
    ):
        holder.execute("lock tasks")
        waiting = aside.submit(waiter.execute, "select from tasks")
        blocked = "select pid from pg_locks where not granted and pid = %s"
        wait_until(lambda: execute(six.db, blocked, waiter.info.backend_pid), "it waits")
        then = time.monotonic()
        wait_until(lambda: history.activity.seen > then, "somebody has looked")
        pids = [wait.waiter.pid for wait in history.activity.waits]
        holder.rollback()
        waiting.result(within(20))
        assert waiter.info.backend_pid not in pids


def test_long_and_odd_values_come_through(six, history):
    odd = "it's [x]:'y' new-tuple: id[bigint]:7 old-key: \\ \n \"q\""
    long = "long " * 10_000
    execute(
        six.db,
        "insert into tasks (name, input, error, status)"
        " values (%s, to_json(%s::text), %s, 'failed')",
        odd,
        odd,
        long,
    )
    execute(six.db, "update tasks set priority = 3")  # the long value is not in the log
    wait_until(lambda: any(r["priority"] == "3" for r in history.state["tasks"].values()), "seen")
    (row,) = history.state["tasks"].values()
    assert (row["id"], row["name"], row["error"]) == ("1", odd, long)
    shown = {column: (value, length) for column, value, length in view(history, task="1").task.row}
    assert shown["error"] == (long[:2000], len(long))
    execute(six.db, "update tasks set id = default")
    wait_until(lambda: [*history.state["tasks"]] == [("2",)], "a row with another key")
    execute(six.db, "insert into tasks (name, input) values (repeat('x', 300), '1')")
    wait_until(lambda: counts(history).get("queued") == 1, "a long name")
    seen = view(history)
    cut = 119 * "x" + "…"
    assert seen.columns[0].cards[0].name == cut
    assert seen.lines[-1].events[0].text == f"task 3 {cut} is queued"
    assert history.state["tasks"]["2",]["error"] == long


def test_ten_thousand_tasks_are_counted_and_the_first_are_shown(six, history):
    execute(
        six.db,
        "insert into tasks (name, input) select 'nothing', 'null' from generate_series(1, 10000)",
    )
    wait_until(lambda: counts(history) == {"queued": 10_000}, "all are counted")
    seen = view(history)
    assert [card.id for card in seen.columns[0].cards] == [str(n) for n in range(1, 15)]
    assert seen.lines[-1].events[-1].text == "and 9,994 more rows"
    execute(six.db, "truncate tasks, event_log")
    wait_until(lambda: counts(history) == {}, "they are gone")
    assert [event.text for event in view(history).lines[-1].events] == ["tasks is emptied"]
    assert counts(history, history.length - 1) == {"queued": 10_000}


def test_a_worker_that_is_held_is_answered_by_a_key_or_on_the_page(
    six, history, postgres, monkeypatch
):
    reader, writer = os.pipe()
    monkeypatch.setattr(sys, "stdin", os.fdopen(reader))
    control = Control(six.path, six.db.schema, postgres, history)
    held = lambda: getattr(view(history).held, "number", None)  # noqa: E731
    # Without keys `ask` ends: a failure here does not hang.
    planned = 3 * ["  1  ClaimTasks  task 1 fulfil: queued -> running"]
    with (
        closing(Stepper(six.db, planned)) as stepper,
        ThreadPoolExecutor() as aside,
        os.fdopen(writer, "wb", buffering=0) as keys,
    ):
        answer = aside.submit(stepper.ask, 1)
        wait_until(lambda: held() == "1", "it is seen")
        assert view(history).held.changes == "task 1 fulfil: queued -> running"
        keys.write(b"x\nb\n")
        assert answer.result(within(20)) == "b"
        answer = aside.submit(stepper.ask, 2)
        wait_until(lambda: held() == "2", "it is seen")
        with pytest.raises(Refused, match="no worker is held before commit 1"):
            control.step(1, "a")
        control.step(2, "a")
        assert answer.result(within(20)) == "a"
        wait_until(lambda: held() is None, "it is seen")
        assert not control.may_crash
        keys.close()
        with pytest.raises(click.Abort):
            stepper.ask(3)
        wait_until(lambda: held() == "3", "it is seen")
    wait_until(lambda: held() is None, "nobody asks any more")
    with pytest.raises(Refused, match="no worker is held before commit 3"):
        control.step(3, "a")


def test_a_step_on_the_time_line_passes_over_heartbeats():
    history = History()
    workers = Table("workers", ["id", "alive_until"], ["id"])
    history.renew(Schema({"workers": workers}), {}, "a beginning")
    for verb, lease in [("insert", 1), ("update", 2), ("update", 3), ("delete", 3), ("insert", 4)]:
        row = {"id": "1", "alive_until": str(lease)}
        history.add(Commit(7, "", [Written(verb, "workers", row)]))
    assert [stepped(history, 6, -n) for n in range(7)] == [6, 5, 2, 1, 0, 0, 0]
    assert [stepped(history, 1, n) for n in range(5)] == [1, 2, 5, 6, 6]
    assert stepped(history, 99, 0) == 6


@pytest.mark.parametrize("by_log", [True, False])
def test_rows_that_are_too_old_to_be_kept_are_there_in_the_past(monkeypatch, by_log):
    monkeypatch.setattr("glass.history.MAX_ROWS", 3)
    history = History()
    history.renew(Schema({"t": Table("t", ["id"], ["id"])}), {}, "a beginning")
    for n in range(1, 6):
        kept = [str(id) for id in range(max(1, n - 2), n + 1)]
        if by_log:
            history.add(Commit(n, "", [Written("insert", "t", {"id": str(n)})]))
        else:
            history.sample({"t": {(id,): {"id": id} for id in kept}})
        assert sorted(key for (key,) in history.state["t"]) == kept
    ids = [sorted(key for (key,) in history.at(n)[1].get("t", {})) for n in range(1, 7)]
    assert ids == [[], ["1"], ["1", "2"], ["1", "2", "3"], ["2", "3", "4"], ["3", "4", "5"]]
    told = [[event.text for event in line.events] for line in view(history).lines]
    assert told[1:] == [[f"t, insert: id {n}"] for n in range(1, 6)]
    assert view(history).note.startswith("only the newest rows of t are here")


def test_the_terminal_shows_the_same(six, history):
    run(six, ("wait_for_a_nap", 0), ("hopeless", None))
    execute(six.db, "insert into tasks (name, input) values (%s, '1')", "\x1b[31m" + "[bold]red")
    wait_until(lambda: counts(history) == {"queued": 1, "succeeded": 2, "failed": 1}, "all is seen")
    console = Console(width=180, height=40, record=True, file=io.StringIO())
    console.print(draw(view(history), "06", 40))
    shown = console.export_text()
    assert "\x1b" not in shown
    for part in ["succeeded 2", "\\x1b[31m[bold]red", "wait_for_a_nap ●", "NonRetryableError"]:
        assert part in shown, shown
    assert len(shown.splitlines()) <= 40


@pytest.mark.parametrize("number", ["00", "01", "02", "03", "04", "05", "07"])
def test_every_lesson_has_a_picture(number, postgres):
    with tables(number) as lesson, watched(lesson.db, postgres) as history:
        seen = view(history)
        if number == "00":
            execute(lesson.db, "insert into seats values (99, 'Ada')")
            wait_until(lambda: ["99", "Ada"] in view(history).grids[0].rows, "the row is seen")
            return
        with lesson.db.autocommit.connect() as connection:
            lesson.tasks.enqueue(connection, "divide", [6, 3])
        with working(lesson.worker.Worker(lesson.db, "a")):
            wait_until(lambda: counts(history) == {"succeeded": 1}, "its end is seen")
        texts = [event.text for line in view(history).lines for event in line.events]
        assert "task 1 divide is queued" in texts
        assert "task 1: running → succeeded" in texts
        assert [column.status for column in seen.columns][:2] == ["queued", "running"]
        assert seen.grids == []


def test_a_task_that_sleeps_says_for_how_long(postgres):
    days = timedelta(days=10)
    with tables("09") as nine, watched(nine.db, postgres) as history:

        @nine.context.durable
        def nap(ctx, _):
            ctx.sleep(days)

        @nine.context.durable
        def wait(ctx, both):
            child = ctx.spawn(nine.app.nothing, None, queue="nobodys")
            ctx.gather(child, *([ctx.timer(days)] if both else []), timeout=days / 2)

        with nine.db.autocommit.connect() as connection:
            for task, input in ((nap, None), (wait, False), (wait, True)):
                nine.tasks.enqueue(connection, task.__name__, input)
        with working(nine.worker.Worker(nine.db, "a")):
            wait_until(lambda: counts(history) == {"waiting": 3, "queued": 2}, "all wait")
        waiting = next(c for c in view(history).columns if c.status == "waiting").cards
        assert [card.tags[-1] for card in waiting] == [
            ("due", "sleeps for 10 days"),
            ("due", "waits for 1 child, 5 days at most"),
            ("due", "waits for 2 entries, 5 days at most"),
        ]
        assert waiting[2].entries == ["child open", "timer open", "timer open"]
        (entry,) = view(history, task="1").task.log
        ((due_at,),) = execute(nine.db, "select due_at::text from event_log where task_id = 1")
        assert entry.remarks == ["attempt 1", f"due at {due_at[:19]}"]
        console = Console(width=180, height=40, record=True, file=io.StringIO())
        console.print(draw(view(history), "09", 40))
        assert "nap ◇" in console.export_text()
        execute(nine.db, "update event_log set due_at = now() where task_id = 1")
        with working(nine.worker.Worker(nine.db, "a")):
            wait_until(lambda: counts(history).get("succeeded") == 1, "it has woken")
        assert view(history, task="1").task.log[0].kind == "timer"


def test_a_transaction_and_what_is_done_at_most_once_have_marks_of_their_own(postgres):
    with tables("12") as twelve, watched(twelve.db, postgres) as history:
        marks = []

        @twelve.context.durable
        def three(ctx, _):
            ctx.step(lambda key: None)  # noqa: ARG005
            ctx.transaction(lambda connection: None)  # noqa: ARG005
            ctx.at_most_once(look)

        def look(_key):
            def running():
                return [card.entries for card in view(history).columns[1].cards]

            wait_until(lambda: [len(entries) for entries in running()] == [3], "the mark")
            marks.extend(running()[0])

        with twelve.db.autocommit.connect() as connection:
            twelve.tasks.enqueue(connection, "three", None)
        with working(twelve.worker.Worker(twelve.db, "a")):
            wait_until(lambda: counts(history) == {"succeeded": 1}, "it has ended")
        assert marks == ["step", "transaction", "once failed"]
        console = Console(width=180, height=40, record=True, file=io.StringIO())
        console.print(draw(view(history), "12", 40))
        assert "three ■▣▪" in console.export_text()


def test_a_task_that_is_parked_says_by_which_code_and_a_patch_has_a_mark(postgres):
    with tables("13") as thirteen, watched(thirteen.db, postgres) as history:

        @thirteen.context.durable
        def wait(ctx, _):
            ctx.patched("a patch")
            ctx.receive("approval")

        with thirteen.db.autocommit.connect() as connection:
            thirteen.tasks.enqueue(connection, "wait", None)
            with working(thirteen.worker.Worker(thirteen.db, "a", version="7")):
                wait_until(lambda: counts(history) == {"waiting": 1}, "it waits")
            thirteen.tasks.registry.pop("wait")
            thirteen.signals.send(connection, 1, "approval", "Ann")

            def parked():
                return next(card for column in view(history).columns for card in column.cards)

            with working(thirteen.worker.Worker(thirteen.db, "b", version="7")):
                wait_until(lambda: parked().tags[-1][1].startswith("parked"), "it is parked")
        assert parked().entries == ["patch", "signal"]
        assert [text for _, text in parked().tags] == [
            "attempt 2",
            "version 7",
            "parked: 7 cannot run it",
        ]


def test_a_task_that_waits_for_a_message_or_an_event_says_so(postgres):
    with tables("11") as eleven, watched(eleven.db, postgres) as history:

        @eleven.context.durable
        def wait(ctx, which):
            days = timedelta(days=10)
            waits = {
                "a": lambda: ctx.signal("approval"),
                "b": lambda: ctx.signal("approval", timeout=days),
                "c": lambda: ctx.event("the harbour is open"),
            }
            pending = [waits[each]() for each in which]
            return ctx.gather(*pending, timeout=days / 2 if which == "c" else None)

        with eleven.db.autocommit.connect() as connection:
            for which in ("a", "b", "c", "bc"):
                eleven.tasks.enqueue(connection, "wait", which)
            with working(eleven.worker.Worker(eleven.db, "a")):
                wait_until(lambda: counts(history) == {"waiting": 4}, "all wait")
            waiting = next(c for c in view(history).columns if c.status == "waiting").cards
            assert [card.tags[-1][1] for card in waiting] == [
                "waits for a message approval",
                "waits for a message approval, 10 days at most",
                "waits for the event the harbour is open, 5 days at most",
                "waits for 2 entries",
            ]
            assert waiting[3].entries == ["signal open", "event open"]
            console = Console(width=180, height=40, record=True, file=io.StringIO())
            console.print(draw(view(history), "11", 40))
            assert "wait ▷△" in console.export_text()
            eleven.signals.send(connection, 1, "approval", "Ann")
            eleven.signals.send(connection, 1, "thanks", "Bea")
            eleven.events.emit(connection, "the harbour is open", "Ada")
            list(eleven.queries.Querier(connection).tell_events(at_most=9, skip=0))
            eleven.queries.Querier(connection).mark_told()
        told = "event the harbour is open: all who waited have been told"
        wait_until(lambda: view(history).lines[-1].events[0].text == told, "the end is seen")
    texts = [[event.text for event in line.events] for line in view(history).lines[-5:]]
    assert texts[0] == [
        'message approval to task 1: "Ann", read at 1',
        'log of 1: 1 approval → "Ann", the first to end',
        "task 1: waiting → queued",
    ]
    assert texts[1] == ['message thanks to task 1: "Bea"']
    assert texts[2] == ['event the harbour is open has happened: "Ada"']


def test_without_the_log_the_tables_are_read_again_and_again(six, postgres):
    role = f"test_glass_{os.getpid()}"
    execute(six.db, f"create role {role} login")
    try:
        execute(six.db, f"grant usage on schema {six.db.schema} to {role}")
        execute(six.db, f"grant select on all tables in schema {six.db.schema} to {role}")
        with watched(six.db, f"{postgres}&user={role}") as history:
            assert "permission denied" in history.sampled
            run(six, ("divide", [6, 3]))
            wait_until(lambda: counts(history) == {"succeeded": 1}, "the end is seen")
            execute(six.db, "delete from tasks")
            wait_until(lambda: counts(history) == {}, "the row is gone")
    finally:
        execute(six.db, f"drop owned by {role}")
        execute(six.db, f"drop role {role}")


@pytest.mark.parametrize("level", ["logical", "replica"])
def test_a_server_that_crashes_is_followed_again(request, monkeypatch, level):
    settings = [s.replace("logical", level) for s in embedded.SETTINGS]
    monkeypatch.setattr(embedded, "SETTINGS", settings)
    own = request.getfixturevalue("own_server")
    path = find("03")
    with open_database(path, reset=True) as db, watched(db, own.url) as history:
        assert ("wal_level" in history.sampled) == (level == "replica")
        execute(db, "insert into tasks (name, input) values ('x', '1')")
        wait_until(lambda: counts(history) == {"queued": 1}, "the row is seen")
        with own.alone():
            own.stop(signal.SIGQUIT)
            wait_until(lambda: not view(history).connected, "it says so")
            own.start()
        execute(db, "insert into tasks (name, input) values ('y', '1')")
        wait_until(lambda: counts(history) == {"queued": 2}, "it goes on")
        assert (history.note, view(history).connected) == ("", True)
        notes = [moment.note for moment in history.moments if moment.note]
        assert notes == [
            "there are no rows yet",
            "the connection was lost, and this is a new beginning",
        ]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (
            "table s.t: INSERT: id[bigint]:1 a[text]:'null' b[text]:null c[integer[]]:'{1,2}'",
            [("insert", {"id": "1", "a": "null", "b": None, "c": "{1,2}"})],
        ),
        (
            "table s.t: UPDATE: old-key: id[bigint]:1 new-tuple: id[bigint]:2"
            " n[text]:unchanged-toast-datum v[character varying]:'it''s old-key: x[text]:1'",
            [("delete", {"id": "1"}), ("insert", {"id": "2", "v": "it's old-key: x[text]:1"})],
        ),
        ('table s.t: DELETE: "The ""key"""[numeric]:1.5', [("delete", {'The "key"': "1.5"})]),
        ("table s.t, s.u: TRUNCATE: (no-flags)", [("truncate", {}), ("truncate", {})]),
        ("table other.t: INSERT: id[bigint]:1", []),
        ("table s.t: DELETE: (no-tuple-data)", [("delete", {})]),
    ],
)
def test_a_line_of_the_log_is_read(line, found):
    assert [(written.verb, written.row) for written in rows(line, "s")] == found


def test_a_commit_that_changed_other_tables_is_left_out():
    lines = ["BEGIN 7", "table x.t: INSERT: id[bigint]:1", "COMMIT 7 (at 2026-01-01 00:00:00+00)"]
    assert list(commits(lines, "s")) == []
    (commit,) = commits(lines, "x")
    assert (commit.xid, commit.at) == (7, "2026-01-01 00:00:00+00")
