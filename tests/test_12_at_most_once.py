"""Lesson 12: what is done at most once is marked before it begins, and the mark is an answer."""

# ruff: noqa: ARG005  a step takes a key and a program an input, used or not

import psycopg
import pytest
import sqlalchemy as sa

from shared.testing import task_row
from tests.helpers import (
    Killed,
    attempt,
    by_hand,
    dies,
    enqueue,
    execute,
    log_of,
    new_task,
    program,
    refusing,
    run_once,
)

UNKNOWN = r"begun in attempt 1, and nobody knows whether it was done"


def once(calls, result="done"):
    """A function that notes the keys with which it was called."""

    def book(key):
        calls.append(key)
        if isinstance(result, BaseException):
            raise result
        return result

    return book


def interrupted(lesson, db, id, calls):
    """A run that dies after it has done it, and before that is recorded."""
    with attempt(lesson, db, id) as (ctx, queue):
        dies(queue, "before the record")
        with pytest.raises(Killed):
            ctx.at_most_once(once(calls))


def fails(lesson, match=UNKNOWN):
    return pytest.raises(lesson.errors.AtMostOnceError, match=match)


def test_its_result_is_recorded_and_answers_later_runs(lesson, db):
    id, calls = new_task(lesson, db), []
    for _ in range(3):
        with attempt(lesson, db, id) as (ctx, _):
            assert ctx.at_most_once(once(calls)) == "done"
    (entry,) = log_of(db, id)
    assert (entry.kind, entry.name, entry.output, entry.error) == ("once", "book", "done", None)
    assert (entry.attempt, len(calls)) == (1, 1)


def test_the_mark_is_there_before_it_begins_and_is_an_answer(lesson, db):
    seen = []
    id = new_task(lesson, db)
    with attempt(lesson, db, id) as (ctx, _):
        ctx.at_most_once(lambda key: seen.extend(log_of(db, id)))
    (mark,) = seen
    assert (mark.kind, mark.output, mark.attempt) == ("once", None, 1)
    assert mark.error["type"] == "Unknown"
    assert mark.error["error"].startswith(UNKNOWN)
    assert lesson.errors.is_error_entry(mark.error)
    assert mark.error["final"]


def test_after_a_death_in_the_gap_it_is_not_begun_again(lesson, db):
    id, calls = new_task(lesson, db), []
    interrupted(lesson, db, id, calls)
    for _ in range(2):
        with attempt(lesson, db, id) as (ctx, _), fails(lesson) as failed:
            ctx.at_most_once(once(calls))
        assert failed.value.type == "Unknown"
        assert isinstance(failed.value, lesson.errors.FinalStepError)
    assert len(calls) == 1


def test_a_task_that_does_not_catch_that_fails_for_good_and_says_what_to_do(lesson, db):
    calls = []
    program(lesson, lambda ctx, _: ctx.at_most_once(once(calls)))
    id = enqueue(lesson, db, "program")
    interrupted(lesson, db, id, calls)
    row = run_once(lesson, db, id)
    assert (row.status, row.attempt, len(calls)) == ("failed", 2, 1)
    assert row.error.startswith("AtMostOnceError: book: begun in attempt 1, and nobody knows")
    assert "`retry` does it again" in row.error


@pytest.mark.parametrize("error", [TimeoutError("no answer"), SystemExit(1)], ids=repr)
def test_its_own_error_is_final_because_it_may_have_been_done(lesson, db, error):
    calls = []
    program(lesson, lambda ctx, _: ctx.at_most_once(once(calls, error)))
    row = run_once(lesson, db, enqueue(lesson, db, "program"))
    assert (row.status, row.attempt, len(calls)) == ("failed", 1, 1)
    assert row.error.startswith(f"AtMostOnceError: book: {type(error).__name__}")


def test_after_its_error_no_later_run_does_it_again(lesson, db):
    """Though the worker died before the function could go on, and the error is the log's last."""
    id, calls = new_task(lesson, db), []
    for _ in range(2):
        with attempt(lesson, db, id) as (ctx, _), fails(lesson, "TimeoutError"):
            ctx.at_most_once(once(calls, TimeoutError("no answer")))
    assert len(calls) == 1


def test_what_it_returned_and_cannot_be_stored_is_its_error(lesson, db):
    calls = []
    program(lesson, lambda ctx, _: ctx.at_most_once(once(calls, {1})))
    row = run_once(lesson, db, enqueue(lesson, db, "program"))
    assert (row.status, len(calls)) == ("failed", 1)
    assert "not JSON: a value of type set" in row.error


def test_a_function_can_go_on_from_not_knowing_and_every_run_goes_the_same_way(lesson, db):
    """Even after a retry by hand, which does nothing again that the function has gone on from."""
    calls, fail = [], [True]

    def function(ctx, _):
        try:
            ctx.at_most_once(once(calls))
        except lesson.errors.AtMostOnceError as error:
            ctx.step(lambda key, what: calls.append(what), error.type)
        if fail:
            raise lesson.tasks.NonRetryableError("later")
        return len(calls)

    program(lesson, function)
    id = enqueue(lesson, db, "program")
    interrupted(lesson, db, id, calls)
    assert run_once(lesson, db, id).status == "failed"
    fail.clear()
    by_hand(lesson, db, "retry", id)
    assert run_once(lesson, db, id).output == 2
    assert [entry.settled for entry in log_of(db, id)] == [True, False]
    assert calls[1:] == ["Unknown"]


def test_who_retries_by_hand_has_looked_and_then_it_is_done_again(lesson, db):
    calls = []
    program(lesson, lambda ctx, _: ctx.at_most_once(once(calls)))
    id = enqueue(lesson, db, "program")
    interrupted(lesson, db, id, calls)
    run_once(lesson, db, id)
    by_hand(lesson, db, "retry", id)
    row = run_once(lesson, db, id)
    assert (row.status, row.output, len(calls)) == ("succeeded", "done", 2)
    assert len(set(calls)) == 1, "under the same key"


def test_a_replay_does_it_again_under_another_key(lesson, db):
    calls = []
    program(lesson, lambda ctx, _: ctx.at_most_once(once(calls)))
    id = enqueue(lesson, db, "program")
    run_once(lesson, db, id)
    by_hand(lesson, db, "replay", id)
    assert run_once(lesson, db, id).status == "succeeded"
    assert len(set(calls)) == len(calls) == 2


@pytest.mark.parametrize("position", [0, 1])
def test_a_fork_made_meanwhile_knows_as_little_as_anybody(lesson, db, position):
    """Position 1 is the mark; at 0 the person wants it done by the fork."""
    calls, forks = [], []
    id = new_task(lesson, db)

    def book(key):
        calls.append(key)
        if len(calls) == 1:
            with db.engine.begin() as connection:
                forks.append(lesson.control.fork(connection, id, position))
        return "done"

    with attempt(lesson, db, id) as (ctx, _):
        assert ctx.at_most_once(book) == "done"
    with attempt(lesson, db, forks[0]) as (ctx, _):
        if position == 0:
            assert ctx.at_most_once(book) == "done"
        else:
            with fails(lesson):
                ctx.at_most_once(book)
    assert len(calls) == (2 if position == 0 else 1)


def test_two_equal_ones_are_two(lesson, db):
    calls = []
    with attempt(lesson, db, new_task(lesson, db)) as (ctx, _):
        ctx.at_most_once(once(calls))
        ctx.at_most_once(once(calls))
    assert len(set(calls)) == 2


def test_it_cannot_be_asked_for_what_is_no_step_and_takes_no_position_then(lesson, db):
    id, calls = new_task(lesson, db), []
    with attempt(lesson, db, id) as (ctx, _):
        with pytest.raises(lesson.errors.FinalBadInput, match=r"write ctx\.at_most_once"):
            ctx.at_most_once("booked")
        assert ctx.at_most_once(once(calls)) == "done"
    assert [entry.position for entry in log_of(db, id)] == [1]


def test_nothing_is_asked_of_the_context_inside(lesson, db):
    with attempt(lesson, db, new_task(lesson, db)) as (ctx, _), fails(lesson, "StepInStep"):
        ctx.at_most_once(lambda key: ctx.step(lambda key: 1))


# The fence, and answers that were lost


def test_a_zombie_that_comes_back_does_not_replace_what_others_were_told(lesson, db):
    id, calls = new_task(lesson, db), []
    with attempt(lesson, db, id) as (zombie, _):

        def slow(key):
            calls.append(key)
            with attempt(lesson, db, id) as (ctx, _), fails(lesson):
                ctx.at_most_once(slow)

        with pytest.raises(lesson.fence.LostTask):
            zombie.at_most_once(slow)
    assert (len(calls), log_of(db, id)[0].error["type"]) == (1, "Unknown")


def test_who_has_lost_the_task_does_not_even_begin(lesson, db):
    id, calls = new_task(lesson, db), []
    with attempt(lesson, db, id) as (ctx, _):
        execute(db, "update tasks set attempt = 2 where id = %s", id)
        with pytest.raises(lesson.fence.LostTask):
            ctx.at_most_once(once(calls))
    assert (calls, log_of(db, id)) == ([], [])


def test_a_mark_that_is_refused_is_not_followed_by_the_call(lesson, db):
    calls = []
    program(lesson, lambda ctx, _: ctx.at_most_once(once(calls)))
    lesson.connection.MAX_REFUSALS = 2
    with refusing(db, "event_log", "new.kind = 'once'"):
        row = run_once(lesson, db, enqueue(lesson, db, "program"))
    assert (row.status, row.error, calls) == ("running", None, [])


@pytest.mark.parametrize("write", ["record_first", "record_step"])
def test_the_answer_to_either_write_is_lost(lesson, db, write):
    """Each is carried out twice, and it is done once."""
    id, calls, tries = new_task(lesson, db), [], []
    with attempt(lesson, db, id) as (ctx, queue):
        real = getattr(type(queue), write)

        def lossy(self, **values):
            tries.append(real(self, **values))
            if len(tries) == 1:
                raise sa.exc.OperationalError("insert", None, psycopg.OperationalError("gone"))
            return tries[-1]

        setattr(type(queue), write, lossy)
        assert ctx.at_most_once(once(calls)) == "done"
    assert (len(tries), len(calls), log_of(db, id)[0].output) == (2, 1, "done")


@pytest.mark.parametrize("result", ["done", ValueError("no")], ids=["output", "error"])
def test_a_mark_that_arrives_late_does_not_replace_the_result(lesson, db, result):
    """Its line was broken, and the server had it still."""
    id, marks = new_task(lesson, db), []
    with attempt(lesson, db, id) as (ctx, queue):
        real = type(queue).record_first

        def note(self, **values):
            marks.append(values)
            return real(self, **values)

        type(queue).record_first = note
        if result == "done":
            assert ctx.at_most_once(once([], result)) == "done"
        else:
            with fails(lesson, "ValueError"):
                ctx.at_most_once(once([], result))
        recorded = log_of(db, id)
        assert real(queue, **marks[0]) == 0
    assert log_of(db, id) == recorded


# Edits


@pytest.mark.parametrize(("was", "now"), [("step", "at_most_once"), ("at_most_once", "step")])
def test_another_promise_for_the_same_function_is_noticed(lesson, db, was, now):
    id, calls = new_task(lesson, db), []
    book = once(calls)
    with attempt(lesson, db, id) as (ctx, _):
        getattr(ctx, was)(book)
    noticed = pytest.raises(lesson.nondeterminism.NonDeterminismError, match="≠ kind")
    with attempt(lesson, db, id) as (ctx, _), noticed:
        getattr(ctx, now)(book)
    assert len(calls) == 1


def test_its_death_counts_against_the_task(lesson, db):
    """The mark is an error: no progress that would begin the count again."""
    id, calls = new_task(lesson, db), []
    execute(db, "update tasks set max_attempts = 1 where id = %s", id)
    interrupted(lesson, db, id, calls)
    execute(db, "delete from workers")
    with db.autocommit.connect() as connection:
        list(lesson.queries.Querier(connection).take_back_tasks(at_most=10, skip=0))
    row = task_row(db, id)
    assert (row.status, row.error.split(":")[0]) == ("failed", "WorkerDied")
