"""Lesson 12: work in this database is committed with the record that it is done."""

# ruff: noqa: ARG005  a step takes a key and a program an input, used or not

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest
import sqlalchemy as sa

from faults.proxy import Proxy
from shared.database import Database
from shared.processes import within
from shared.testing import task_row, wait_for_status, working
from tests.helpers import (
    attempt,
    by_hand,
    claimed,
    count,
    enqueue,
    execute,
    log_of,
    new_task,
    program,
    refusing,
    run_once,
    submitted,
)


@pytest.fixture(autouse=True)
def bank(db):
    """Tables of this test's own; later lessons have no shop."""
    execute(db, "create table bank (owner text primary key, balance int check (balance >= 0))")
    execute(db, "insert into bank values ('ada', 100), ('bob', 100)")


def balance(db, owner="ada"):
    return execute(db, "select balance from bank where owner = %s", owner)[0][0]


def take(connection, amount=30, owner="ada"):
    connection.execute(
        sa.text("update bank set balance = balance - :amount where owner = :owner"),
        {"amount": amount, "owner": owner},
    )
    return "taken"


def raising(sqlstate):
    """An error that the database might answer."""
    return sa.text(f"do $$ begin raise exception 'no' using errcode = '{sqlstate}'; end $$")


def record_first(queue, id, attempt=1, output='"done"', error=None, kind="transaction"):
    return queue.record_first(
        id=id,
        attempt=attempt,
        position=1,
        kind=kind,
        name="take",
        input="[[], {}]",
        output=output,
        error=error,
    )


@contextmanager
def failing(lesson, db, match, error="StepError", id=None):
    """A run in which something fails like this."""
    expected = pytest.raises(getattr(lesson.errors, error), match=match)
    with attempt(lesson, db, id or new_task(lesson, db)) as (ctx, _), expected:
        yield ctx


ERROR = json.dumps({"type": "E", "error": "E", "traceback": "", "final": False})


# One transaction


def test_the_work_and_its_record_are_one_transaction(lesson, db):
    program(lesson, lambda ctx, input: ctx.transaction(take, 30, owner="ada"))
    task = run_once(lesson, db, enqueue(lesson, db, "program"))
    assert (task.status, task.output, balance(db)) == ("succeeded", "taken", 70)
    (entry,) = log_of(db, task.id)
    assert (entry.kind, entry.name, entry.output) == ("transaction", "take", "taken")
    assert entry.input == [[30], {"owner": "ada"}]
    work = "select xmin::text from bank where owner = 'ada'"
    assert execute(db, work) == execute(db, "select xmin::text from event_log")


def test_a_later_run_gets_the_answer_from_the_log(lesson, db):
    id = new_task(lesson, db)
    for _ in range(3):
        with attempt(lesson, db, id) as (ctx, _):
            assert ctx.transaction(take) == "taken"
    assert (balance(db), len(log_of(db, id))) == (70, 1)


def test_before_the_commit_nobody_sees_anything_of_it(lesson, db):
    seen = []

    def look(connection):
        take(connection)
        seen.append((balance(db), execute(db, "select * from event_log")))

    with attempt(lesson, db, new_task(lesson, db)) as (ctx, _):
        ctx.transaction(look)
    assert seen == [(100, [])]


def test_what_the_function_raises_leaves_nothing_of_its_work(lesson, db):
    calls = []

    def fails_once(connection):
        take(connection)
        calls.append(1)
        if len(calls) == 1:
            raise ConnectionError("no answer")
        return "taken"

    id = new_task(lesson, db)
    with attempt(lesson, db, id) as (ctx, _):
        with pytest.raises(lesson.errors.StepError, match="ConnectionError: no answer") as error:
            ctx.transaction(fails_once)
        assert not isinstance(error.value, lesson.errors.FinalStepError)
    assert (balance(db), log_of(db, id)[0].error["type"]) == (100, "ConnectionError")
    with attempt(lesson, db, id) as (ctx, _):
        assert ctx.transaction(fails_once) == "taken"
    assert (balance(db), len(calls), len(log_of(db, id))) == (70, 2, 1)


def test_an_error_from_which_the_function_went_on_is_not_undone_by_a_later_run(lesson, db):
    id = new_task(lesson, db)
    for _ in range(2):
        with attempt(lesson, db, id) as (ctx, _):
            with pytest.raises(lesson.errors.StepError, match="CheckViolation"):
                ctx.transaction(take, 1000)
            ctx.step(lambda key: "go on")
            execute(db, "update bank set balance = 5000")
    assert balance(db) == 5000
    assert [entry.settled for entry in log_of(db, id)] == [True, False]


@pytest.mark.parametrize("raised", [SystemExit(1), KeyboardInterrupt()], ids=repr)
def test_even_what_is_no_exception_is_the_steps_error(lesson, db, raised):
    def leave(connection):
        take(connection)
        raise raised

    with failing(lesson, db, type(raised).__name__) as ctx:
        ctx.transaction(leave)
    assert balance(db) == 100


def test_a_rule_of_the_database_says_no_at_the_commit(lesson, db):
    execute(db, "create table ledger (owner text references bank deferrable initially deferred)")

    def write(connection):
        connection.execute(sa.text("insert into ledger values ('nobody')"))

    id = new_task(lesson, db)
    with failing(lesson, db, "ForeignKeyViolation", id=id) as ctx:
        ctx.transaction(write)
    assert [entry.error["type"] for entry in log_of(db, id)] == ["IntegrityError"]
    assert execute(db, "select * from ledger") == []


def test_what_is_no_json_leaves_nothing_of_the_work_and_is_final(lesson, db):
    def a_set(connection):
        take(connection)
        return {1}

    with failing(lesson, db, "not JSON: a value of type set", "FinalStepError") as ctx:
        ctx.transaction(a_set)
    assert balance(db) == 100


@pytest.mark.parametrize("bad", ["a call", "a task", "too few arguments", "no JSON"])
def test_what_is_no_transaction_is_refused_and_takes_no_position(lesson, db, bad):
    calls = {
        "a call": lambda ctx: ctx.transaction("taken"),
        "a task": lambda ctx: ctx.transaction(lesson.app.nothing),
        "too few arguments": lambda ctx: ctx.transaction(lambda connection, amount: None),
        "no JSON": lambda ctx: ctx.transaction(lambda connection, amount: None, {1}),
    }
    id = new_task(lesson, db)
    with attempt(lesson, db, id) as (ctx, _):
        with pytest.raises(lesson.errors.FinalBadInput):
            calls[bad](ctx)
        assert ctx.transaction(take) == "taken"
    assert [entry.position for entry in log_of(db, id)] == [1]


def test_each_try_gets_the_arguments_as_they_were(lesson, db):
    seen = []

    def change(connection, items):
        seen.append(list(items))
        items.append("mine")
        if len(seen) < 3:
            connection.execute(raising("40001"))

    given = ["first"]
    with attempt(lesson, db, new_task(lesson, db)) as (ctx, _):
        ctx.transaction(change, given)
    assert (seen, given) == ([["first"]] * 3, ["first"])


# What the function may not do


def swallows(connection):
    take(connection)
    with suppress(sa.exc.IntegrityError):
        connection.execute(sa.text("insert into bank values ('ada', 1)"))


def commits_and_goes_on(connection):
    take(connection)
    connection.commit()
    connection.execute(sa.text("select 1"))


ENDS = {
    "commit()": lambda connection: connection.commit(),
    "rollback()": lambda connection: connection.rollback(),
    "close()": lambda connection: connection.close(),
    "SQL: commit": lambda connection: connection.execute(sa.text("commit")),
    "SQL: rollback": lambda connection: connection.execute(sa.text("rollback")),
    "commit(), and on": commits_and_goes_on,
}


def test_a_function_that_ends_its_transaction_is_found_out(lesson, db):
    for end in ENDS.values():
        id = new_task(lesson, db)
        with failing(lesson, db, "has ended its transaction", "FinalStepError", id) as ctx:
            ctx.transaction(end)
        assert [entry.error["type"] for entry in log_of(db, id)] == ["EndedTransaction"]
        execute(db, "delete from tasks")


def test_after_a_statement_that_was_refused_nothing_is_committed(lesson, db):
    with failing(lesson, db, "AbortedTransaction") as ctx:
        ctx.transaction(swallows)
    assert balance(db) == 100


def test_a_savepoint_may_be_rolled_back(lesson, db):
    def tries(connection):
        take(connection)
        with pytest.raises(sa.exc.IntegrityError), connection.begin_nested():
            connection.execute(sa.text("insert into bank values ('ada', 1)"))
        return "taken"

    with attempt(lesson, db, new_task(lesson, db)) as (ctx, _):
        assert ctx.transaction(tries) == "taken"
    assert balance(db) == 70


ASKS = {
    "step": lambda ctx: ctx.step(lambda key: 1),
    "at_most_once": lambda ctx: ctx.at_most_once(lambda key: 1),
    "transaction": lambda ctx: ctx.transaction(take),
    "signal": lambda ctx: ctx.signal("a"),
    "receive": lambda ctx: ctx.receive("a"),
    "event": lambda ctx: ctx.event("a"),
}


def test_nothing_can_be_asked_of_the_context_inside(lesson, db):
    id = new_task(lesson, db)
    with attempt(lesson, db, id) as (ctx, _):
        for ask in ASKS.values():

            def inside(connection, ask=ask):
                take(connection)
                ask(ctx)

            with pytest.raises(lesson.errors.FinalStepError, match="StepInStep"):
                ctx.transaction(inside)
        assert ctx.step(lambda key: "after it") == "after it"
    assert (balance(db), len(log_of(db, id))) == (100, len(ASKS) + 1)


# What belongs to the work


def test_a_task_that_is_enqueued_inside_is_there_if_the_work_is(lesson, db):
    def order(connection, fails):
        lesson.tasks.enqueue(connection, "nothing", None)
        connection.execute(sa.text("select enqueue('nothing', 'null')"))
        if fails:
            raise ValueError("no")

    with attempt(lesson, db, new_task(lesson, db)) as (ctx, _):
        with pytest.raises(lesson.errors.StepError):
            ctx.transaction(order, True)
        assert count(db, "queued") == 0
        ctx.transaction(order, False)
        assert count(db, "queued") == 2


def test_a_message_to_the_task_itself_is_sent_with_the_work(lesson, db):
    id = new_task(lesson, db)
    with attempt(lesson, db, id) as (ctx, _):
        ctx.transaction(lambda connection: lesson.signals.send(connection, id, "a", "from inside"))
        assert ctx.receive("a") == "from inside"


# The fence


def lost(db, id):
    execute(db, "update tasks set attempt = attempt + 1 where id = %s", id)


def test_a_run_that_has_lost_its_task_commits_nothing(lesson, db):
    id = new_task(lesson, db)
    with attempt(lesson, db, id) as (ctx, _):

        def slow(connection):
            take(connection)
            lost(db, id)

        with pytest.raises(lesson.fence.LostTask):
            ctx.transaction(slow)
        with pytest.raises(lesson.fence.LostTask):
            ctx.step(lambda key: "nor does it go on")
    assert (balance(db), log_of(db, id)) == (100, [])


def test_nor_does_it_record_an_error(lesson, db):
    id = new_task(lesson, db)
    with attempt(lesson, db, id) as (ctx, _):

        def slow(_connection):
            lost(db, id)
            raise ValueError("late")

        with pytest.raises(lesson.fence.LostTask):
            ctx.transaction(slow)
    assert log_of(db, id) == []


def test_two_runs_of_a_task_work_side_by_side_and_one_is_counted(lesson, db):
    """The zombie has the row, the next attempt waits for it, and then the zombie is refused."""
    id = new_task(lesson, db)
    with (
        attempt(lesson, db, id) as (zombie, _),
        attempt(lesson, db, id) as (ctx, _),
        ThreadPoolExecutor(1) as thread,
    ):
        other = []

        def slow(connection):
            take(connection)
            if not other:
                other.append(submitted(db, thread, lambda: run(ctx)))
            return "by a zombie"

        def run(ctx):
            ctx._log._thread = threading.get_ident()
            return ctx.transaction(take)

        with pytest.raises(lesson.fence.LostTask):
            zombie.transaction(slow)
        assert other[0].result(timeout=within(20)) == "taken"
    assert (balance(db), [entry.attempt for entry in log_of(db, id)]) == (70, [2])


def test_while_the_function_works_nobody_waits_for_the_tasks_row(lesson, db):
    """The record comes last, and its lock lasts for as long as a COMMIT takes."""
    id = new_task(lesson, db)
    with attempt(lesson, db, id) as (ctx, _):

        def slow(connection):
            take(connection)
            with db.engine.begin() as other:
                other.exec_driver_sql("set local lock_timeout = '200ms'")
                lesson.control.cancel(other, id)

        with pytest.raises(lesson.fence.LostTask):
            ctx.transaction(slow)
    assert (task_row(db, id).status, balance(db)) == ("cancelled", 100)


def test_who_stands_still_in_a_transaction_is_bounded(lesson, db):
    def setting(connection):
        return connection.exec_driver_sql("show idle_in_transaction_session_timeout").scalar_one()

    with attempt(lesson, db, new_task(lesson, db)) as (ctx, _):
        assert ctx.transaction(setting) == "5s"


def test_the_connection_goes_back_to_the_pool(lesson, db):
    """Each slot takes one more, at worst, and for the transaction only."""
    program(lesson, lambda ctx, _: [ctx.transaction(take, 1) for _ in range(5)])
    run_once(lesson, db, enqueue(lesson, db, "program"))
    assert db.engine.pool.checkedout() == 0
    assert db.engine.pool.checkedin() == 1


# RecordFirst, by hand


def test_what_this_attempt_has_recorded_stays(lesson, db):
    id = new_task(lesson, db)
    with claimed(lesson, db, id) as (_, queue):
        assert record_first(queue, id) == 1
        assert record_first(queue, id, output='"again"') == 0
        assert record_first(queue, id, output=None, error=ERROR) == 0
        assert queue.find_entry(id=id, position=1, attempt=1).output == "done"
    with claimed(lesson, db, id) as (_, queue):
        assert record_first(queue, id, attempt=2) == 0
        assert queue.find_entry(id=id, position=1, attempt=2) is None


def test_an_error_gives_way_to_the_next_attempt_only(lesson, db):
    id = new_task(lesson, db)
    with claimed(lesson, db, id) as (_, queue):
        assert record_first(queue, id, output=None, error=ERROR) == 1
        assert record_first(queue, id) == 0
    with claimed(lesson, db, id) as (_, queue):
        assert record_first(queue, id, attempt=1) == 0
        assert record_first(queue, id, attempt=2) == 1
    assert log_of(db, id)[0].output == "done"


def test_what_is_recorded_is_not_found_by_who_has_lost_the_task(lesson, db):
    id = new_task(lesson, db)
    with claimed(lesson, db, id) as (_, queue):
        assert record_first(queue, id) == 1
        lost(db, id)
        assert queue.find_entry(id=id, position=1, attempt=1) is None


def test_no_transaction_is_recorded_behind_a_hole(lesson, db):
    id = new_task(lesson, db)
    with claimed(lesson, db, id) as (_, queue):
        values = {"kind": "transaction", "name": "f", "input": "[]", "output": "1", "error": None}
        assert queue.record_first(id=id, attempt=1, position=2, **values) == 0


def test_no_transaction_is_recorded_while_somebody_takes_the_task_away(lesson, db):
    id = new_task(lesson, db)
    with (
        claimed(lesson, db, id) as (_, queue),
        db.engine.connect() as other,
        ThreadPoolExecutor(1) as thread,
    ):
        other.execute(sa.text("update tasks set attempt = 2"))
        late = submitted(db, thread, lambda: record_first(queue, id))
        other.commit()
        assert late.result(timeout=within(20)) == 0
    assert log_of(db, id) == []


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_a_second_try_waits_for_the_end_of_the_first(lesson, db, ends):
    """The line broke while the COMMIT was on its way: nobody knows yet whether it arrives."""
    id = new_task(lesson, db)
    with (
        claimed(lesson, db, id) as (_, queue),
        db.engine.connect() as first,
        ThreadPoolExecutor(1) as thread,
    ):
        assert record_first(lesson.queries.Querier(first), id, output='"first"') == 1
        second = submitted(db, thread, lambda: record_first(queue, id, output='"second"'))
        assert not second.done()
        getattr(first, ends)()
        assert second.result(timeout=within(20)) == (0 if ends == "commit" else 1)
    assert log_of(db, id)[0].output == ("first" if ends == "commit" else "second")


# What passes, and what does not


@pytest.mark.parametrize("sqlstate", ["40001", "40P01"])
def test_who_was_in_the_way_of_others_tries_again_at_once(lesson, db, sqlstate):
    calls = []

    def in_the_way(connection):
        take(connection)
        calls.append(1)
        if len(calls) == 1:
            connection.execute(raising(sqlstate))
        return "taken"

    with attempt(lesson, db, new_task(lesson, db)) as (ctx, _):
        assert ctx.transaction(in_the_way) == "taken"
    assert (len(calls), balance(db)) == (2, 70)


def test_two_transactions_that_wait_for_each_other(lesson, db):
    """A deadlock: Postgres ends one of them, which does its work again when the other is done."""
    both = threading.Barrier(2, timeout=within(20))
    calls = []

    def move(connection, payer, payee):
        calls.append(payer)
        take(connection, 10, payer)
        if calls.count(payer) == 1:
            both.wait()
        take(connection, -10, payee)
        return payer

    program(lesson, lambda ctx, two: ctx.transaction(move, *two))
    ids = [enqueue(lesson, db, "program", two) for two in (["ada", "bob"], ["bob", "ada"])]
    with working(lesson.worker.Worker(db, "w", slots=2)):
        rows = [wait_for_status(db, id, "succeeded", "failed") for id in ids]
    assert [(row.status, row.attempt) for row in rows] == [("succeeded", 1)] * 2
    assert (balance(db, "ada"), balance(db, "bob"), len(calls)) == (100, 100, 3)


def test_what_does_not_pass_is_the_steps_error_after_some_tries(lesson, db):
    calls = []

    def always(connection):
        calls.append(1)
        connection.execute(raising("40001"))

    with failing(lesson, db, "SerializationFailure") as ctx:
        ctx.transaction(always)
    assert len(calls) == lesson.transactions.MAX_TRIES


def break_line(connection):
    """The server ends the session that the function has."""
    pid = connection.exec_driver_sql("select pg_backend_pid()").scalar_one()
    connection.exec_driver_sql(f"select pg_terminate_backend({pid})")


def test_a_line_that_breaks_inside(lesson, db):
    calls = []

    def breaks(connection):
        take(connection)
        calls.append(1)
        if len(calls) == 1:
            break_line(connection)
        return "taken"

    with attempt(lesson, db, new_task(lesson, db)) as (ctx, _):
        assert ctx.transaction(breaks) == "taken"
    assert (len(calls), balance(db)) == (2, 70)


def test_a_function_that_swallows_that_its_line_broke_has_done_nothing(lesson, db):
    def swallows_it(connection):
        take(connection)
        with pytest.raises(sa.exc.OperationalError):
            break_line(connection)
        return "as if nothing had happened"

    with failing(lesson, db, "AbortedTransaction") as ctx:
        ctx.transaction(swallows_it)
    assert balance(db) == 100


@pytest.mark.parametrize("sqlstate", ["P0001", "42501", "25006", "55P03"])
def test_a_database_that_refuses_the_record_is_no_error_of_the_function(lesson, db, sqlstate):
    """Its work is rolled back, nothing is told to the function, and the task is given back."""
    told = []

    def function(ctx, _):
        try:
            ctx.transaction(take)
        except Exception as error:
            told.append(error)

    program(lesson, function)
    id = enqueue(lesson, db, "program")
    with refusing(db, "event_log", "new.kind = 'transaction'", sqlstate) as tries:
        row = run_once(lesson, db, id)
        assert tries() == lesson.transactions.MAX_TRIES
    assert (row.status, row.error, told) == ("running", None, [])
    assert (balance(db), log_of(db, id)) == (100, [])


def test_one_that_refuses_for_a_moment_only(lesson, db):
    execute(db, "create sequence seen")
    id = new_task(lesson, db)
    with refusing(db, "event_log", "nextval('seen') < 3"), attempt(lesson, db, id) as (ctx, _):
        assert ctx.transaction(take) == "taken"
    assert balance(db) == 70


# The answer to COMMIT is lost


@contextmanager
def lossy(db, when, statement):
    """The database through a line that is cut at the first COMMIT of this statement.

    before: the server never gets it. after: it has committed, and nobody is told.
    """
    cuts = []

    def hook(here):
        def cut(names):
            if here == when and statement in names and not cuts:
                cuts.append(names)
                return True
            return False

        return cut

    proxy = Proxy(db.conninfo, before_commit=hook("before"), after_commit=hook("after"))
    with proxy.running():
        yield Database(db.lesson, db.schema, proxy.url), cuts


def one_slot(lesson, db):
    return working(lesson.worker.Worker(db, "w", slots=1))


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_answer_to_the_commit_is_lost(lesson, db, when):
    calls = []

    def takes(connection):
        calls.append(1)
        return f"{take(connection)} {len(calls)}"

    program(lesson, lambda ctx, _: ctx.transaction(takes))
    id = enqueue(lesson, db, "program")
    with lossy(db, when, "RecordFirst") as (far, cuts), one_slot(lesson, far):
        row = wait_for_status(db, id, "succeeded", "failed", "waiting")
    assert (len(cuts), len(calls)) == (1, 2)
    assert (row.status, row.attempt, balance(db)) == ("succeeded", 1, 70)
    answer = "taken 1" if when == "after" else "taken 2"
    assert row.output == log_of(db, id)[0].output == answer, "what was committed, not what was last"


def test_the_answer_is_lost_and_the_second_try_fails(lesson, db):
    """There were 100, and 70 are gone: the second try is refused, and its error is void."""
    program(lesson, lambda ctx, _: ctx.transaction(take, 70))
    id = enqueue(lesson, db, "program")
    with lossy(db, "after", "RecordFirst") as (far, cuts), one_slot(lesson, far):
        row = wait_for_status(db, id, "succeeded", "failed", "waiting")
    assert len(cuts) == 1
    assert (row.status, row.output, balance(db)) == ("succeeded", "taken", 30)
    assert log_of(db, id)[0].error is None


# By hand


def test_a_retry_does_the_transaction_again_that_failed_last(lesson, db):
    program(lesson, lambda ctx, _: [ctx.transaction(take, 30), ctx.transaction(take, 100)])
    id = enqueue(lesson, db, "program", max_attempts=1)
    assert run_once(lesson, db, id).status == "failed"
    execute(db, "update bank set balance = 500")
    by_hand(lesson, db, "retry", id)
    row = run_once(lesson, db, id)
    assert (row.status, row.output, balance(db)) == ("succeeded", ["taken", "taken"], 400)


def test_a_replay_does_it_again_and_a_fork_does_not(lesson, db):
    program(lesson, lambda ctx, _: ctx.transaction(take))
    id = enqueue(lesson, db, "program")
    run_once(lesson, db, id)
    with db.engine.begin() as connection:
        forked = lesson.control.fork(connection, id, 1)
    assert (run_once(lesson, db, forked).output, balance(db)) == ("taken", 70)
    by_hand(lesson, db, "replay", id)
    assert (run_once(lesson, db, id).output, balance(db)) == ("taken", 40)


def test_a_step_that_becomes_a_transaction_under_way_is_noticed(lesson, db):
    id = new_task(lesson, db)
    with attempt(lesson, db, id) as (ctx, _):
        ctx.step(lambda key: "taken")
    with attempt(lesson, db, id) as (ctx, _):
        kinds = r"≠ kind +step +transaction"
        with pytest.raises(lesson.nondeterminism.NonDeterminismError, match=kinds):
            ctx.transaction(take)
    assert balance(db) == 100


@pytest.mark.parametrize("kind", ["signal", "timer", "child"])
def test_a_failed_transaction_gives_way_to_what_the_edited_function_asks_for(lesson, db, kind):
    id = new_task(lesson, db)
    with attempt(lesson, db, id) as (ctx, _), pytest.raises(lesson.errors.StepError):
        ctx.transaction(take, 1000)
    with attempt(lesson, db, id) as (ctx, _):
        if kind == "signal":
            ctx.signal("a")
        elif kind == "timer":
            ctx.timer(lesson.timers.timedelta(hours=1))
        else:
            ctx.spawn(lesson.app.nothing, None)
    (entry,) = log_of(db, id)
    assert (entry.kind, entry.error, entry.attempt) == (kind, None, 2)


def test_nobody_completes_a_transaction_from_outside(lesson, db):
    id = new_task(lesson, db)
    with attempt(lesson, db, id) as (ctx, _):
        ctx.transaction(take)
    completed = execute(db, "select complete_entry(%s, 1, '1', null)", id)
    assert (completed, log_of(db, id)[0].output) == ([(False,)], "taken")
