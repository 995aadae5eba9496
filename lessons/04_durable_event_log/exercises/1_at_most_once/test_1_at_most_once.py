"""Exercise 1: rather not done than done twice."""

from datetime import timedelta

import pytest

from shared.testing import task_row, wait_for_status, working

sent = []


@pytest.fixture(autouse=True)
def nothing_is_sent_yet():
    sent.clear()


def send(_key, letter):
    sent.append(letter)
    return f"{letter} is sent"


def ask_a_person(_key):
    return "a person looks into it"


def take_back(db):
    """What others do with a task whose worker seems to be dead. Its run can record nothing now."""
    with db.connect(autocommit=True) as connection:
        connection.execute("update tasks set status = 'queued' where status = 'running'")


def run(lesson, db, function):
    assert hasattr(lesson.context.Context, "at_most_once"), "Context.at_most_once is yours to write"
    lesson.timing.Timing.backoff = lambda *_: timedelta(0)
    lesson.context.durable(function)
    with db.autocommit.connect() as connection:
        id = lesson.tasks.enqueue(connection, function.__name__, None)
    with working(lesson.worker.Worker(db, "w")):
        wait_for_status(db, id, "succeeded", "failed")
    return task_row(db, id)


def test_1_what_it_returns_is_the_answer_of_every_later_run(lesson, db):
    def ends(ctx, _):
        answer = [ctx.at_most_once(send, "letter 1"), ctx.at_most_once(send, letter="letter 2")]
        if task_row(db, 1).attempt == 1:
            raise RuntimeError("in the first attempt")
        return answer

    task = run(lesson, db, ends)
    assert (task.status, task.attempt) == ("succeeded", 2), task.error
    assert task.output == ["letter 1 is sent", "letter 2 is sent"]
    assert sent == ["letter 1", "letter 2"]


def test_1_after_a_death_in_the_gap_it_is_in_doubt_for_ever(lesson, db):
    def send_and_die(key, letter):
        send(key, letter)
        take_back(db)

    def ends(ctx, _):
        try:
            ctx.at_most_once(send_and_die, "letter 1")
        except lesson.errors.StepError as error:
            answer = [error.type, ctx.step(ask_a_person)]
        if task_row(db, 1).attempt == 2:
            raise RuntimeError("in the second attempt")
        return answer

    task = run(lesson, db, ends)
    assert (task.status, task.attempt) == ("succeeded", 3), task.error
    assert task.output == ["Doubtful", "a person looks into it"]
    assert sent == ["letter 1"]


def test_1_after_an_error_it_is_not_tried_again(lesson, db):
    def send_in_vain(key, letter):
        send(key, letter)
        raise ConnectionError("no answer: is it sent?")

    def ends(ctx, _):
        ctx.at_most_once(send_in_vain, "letter 1")

    task = run(lesson, db, ends)
    assert task.status == "failed"
    assert sent == ["letter 1"]
