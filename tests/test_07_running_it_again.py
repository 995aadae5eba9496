"""Lesson 07: a task that has ended is retried with its log, or replayed without it."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from shared.processes import wait_until, within
from shared.testing import task_row, wait_for_status, waiting_for_a_lock, working
from tests.helpers import (
    ENDED,
    MINUTE,
    by_hand,
    claim_one,
    context,
    define,
    drop_workers,
    enqueue,
    execute,
    fail,
    finish,
    log_of,
    only,
    queries,
    statuses,
    submitted,
    suspended,
    take_back,
)


def stocked(lesson):
    """A task that fails for good as long as the list that comes with it is empty."""
    stock: list[int] = []

    @lesson.tasks.task
    def take(item):
        if not stock:
            raise lesson.tasks.NonRetryableError("out of stock")
        return item

    return take, stock


def test_what_a_retry_looks_at(lesson, db):
    """Failed children, and theirs; not one from whose failure the function has gone on."""
    define(lesson)
    top = enqueue(lesson, db, "run_run_double", 1)
    with context(lesson, db, claim_one(lesson, db, top)) as ctx:
        for name in ("run_double", "double", "refuse"):
            ctx.spawn(getattr(lesson.defined, name), 1)
    middle, succeeded, settled = only(db, "run_double"), only(db, "double"), only(db, "refuse")
    with context(lesson, db, claim_one(lesson, db, middle)) as ctx:
        ctx.spawn(lesson.defined.double, 1)
    assert finish(lesson, db, claim_one(lesson, db, succeeded)) == 1
    fail(lesson, db, settled)
    execute(db, "update event_log set settled = true where child_id = %s", settled)
    ((bottom,),) = execute(db, "select id from tasks where parent_id = %s", middle)
    fail(lesson, db, bottom)
    for id in (middle, top):
        execute(db, "update tasks set status = 'failed', error = 'E: no' where id = %s", id)
    with queries(lesson, db) as queue:
        found = [(task.id, task.of, task.status) for task in queue.list_retried(id=top)]
        tree = [(bottom, middle, "failed"), (middle, top, "failed"), (top, None, "failed")]
        assert found == tree
        execute(db, "delete from tasks where id = %s", bottom)
        found = [(task.id, task.of, task.status) for task in queue.list_retried(id=top)]
    assert sorted(found) == sorted([(bottom, middle, None), *tree[1:]])


def test_rows_are_locked_children_first(lesson, db):
    """Whoever waits for a child holds no parent yet."""
    id, (child,) = suspended(lesson, db)

    def lock():
        with db.engine.begin() as connection:
            lesson.queries.Querier(connection).lock_tasks(ids=[id, child])

    with ThreadPoolExecutor(1) as thread, db.connect() as holder:
        holder.execute("select from tasks where id = %s for update", (child,))
        both = submitted(db, thread, lock)
        assert not both.done()
        free = "select id from tasks order by id for update skip locked"
        with db.connect() as other:
            assert other.execute(free).fetchall() == [(id,)]
        holder.rollback()
        both.result(timeout=within(20))


def test_a_retry_keeps_the_log_and_retries_the_failed_child(lesson, db):
    take, stock = stocked(lesson)
    steps: list[str] = []

    @lesson.context.durable
    def order(ctx, item):
        ctx.step(lambda key: steps.append(key))
        return ctx.gather(ctx.spawn(take, item), ctx.spawn(take, item))

    id = enqueue(lesson, db, "order", "book")
    with working(lesson.worker.Worker(db, "w")):
        assert wait_for_status(db, id, *ENDED).status == "failed"
        stock.append(1)
        by_hand(lesson, db, "retry", id)
        row = wait_for_status(db, id, "succeeded")
    assert (row.output, len(steps)) == (["book", "book"], 1)
    assert statuses(db) == {"succeeded": 3}


def test_a_retry_goes_down_to_grandchildren(lesson, db):
    take, stock = stocked(lesson)

    @lesson.context.durable
    def middle(ctx, item):
        return ctx.run(take, item)

    @lesson.context.durable
    def top(ctx, item):
        return ctx.run(middle, item)

    id = enqueue(lesson, db, "top", "book")
    with working(lesson.worker.Worker(db, "w")):
        assert wait_for_status(db, id, *ENDED).status == "failed"
        stock.append(1)
        by_hand(lesson, db, "retry", id)
        assert wait_for_status(db, id, "succeeded").output == "book"
    assert statuses(db) == {"succeeded": 3}


def test_a_retry_leaves_a_failure_alone_that_the_function_has_gone_on_from(lesson, db):
    refuse = define(lesson).refuse
    works: list[int] = []

    def apologise(_):
        if not works:
            raise lesson.tasks.NonRetryableError("no mail")
        return "sorry"

    @lesson.context.durable
    def order(ctx, item):
        try:
            ctx.run(refuse, item)
        except lesson.children.ChildError:
            return ctx.step(apologise)

    id = enqueue(lesson, db, "order", "book")
    with working(lesson.worker.Worker(db, "w")):
        assert wait_for_status(db, id, *ENDED).status == "failed"
        works.append(1)
        by_hand(lesson, db, "retry", id)
        assert wait_for_status(db, id, "succeeded").output == "sorry"
    assert statuses(db) == {"succeeded": 1, "failed": 1}


def test_a_retry_does_no_step_again_from_whose_failure_the_function_has_gone_on(lesson, db):
    """The step is the last in the log, and the function waits for a child because it has failed."""
    take, stock = stocked(lesson)
    tries: list[str] = []

    def fails(key):
        tries.append(key)
        raise ValueError("no")

    @lesson.context.durable
    def order(ctx, item):
        child = ctx.spawn(take, item)
        with pytest.raises(lesson.errors.StepError):
            ctx.step(fails)
        return ctx.result(child)

    id = enqueue(lesson, db, "order", "book")
    with working(lesson.worker.Worker(db, "w", slots=1)):
        assert wait_for_status(db, id, *ENDED).status == "failed"
        stock.append(1)
        by_hand(lesson, db, "retry", id)
        assert wait_for_status(db, id, "succeeded").output == "book"
    assert len(tries) == 1


def test_a_retry_takes_a_child_along_that_failed_while_a_step_was_done(lesson, db):
    """The step comes after the child in the log, and yet it does not depend on the failure."""
    take, stock = stocked(lesson)
    steps: list[str] = []

    @lesson.context.durable
    def order(ctx, item):
        child = ctx.spawn(take, item)
        ctx.step(steps.append)
        return ctx.result(child)

    id = enqueue(lesson, db, "order", "book")
    with working(lesson.worker.Worker(db, "w")):
        assert wait_for_status(db, id, *ENDED).status == "failed"
        stock.append(1)
        by_hand(lesson, db, "retry", id)
        assert wait_for_status(db, id, "succeeded").output == "book"
    assert len(steps) == 1


@pytest.mark.parametrize("seen", ["result", "as_completed"])
def test_a_retry_leaves_a_failure_alone_after_which_another_child_was_spawned(lesson, db, seen):
    refuse = define(lesson).refuse
    take, stock = stocked(lesson)

    @lesson.context.durable
    def order(ctx, item):
        first = ctx.spawn(refuse, item)
        if seen == "result":
            with pytest.raises(lesson.children.ChildError):
                ctx.result(first)
        else:
            assert list(ctx.as_completed(first)) == [first]
        return ctx.run(take, item)

    id = enqueue(lesson, db, "order", "book")
    with working(lesson.worker.Worker(db, "w")):
        assert wait_for_status(db, id, *ENDED).status == "failed"
        stock.append(1)
        by_hand(lesson, db, "retry", id)
        assert wait_for_status(db, id, "succeeded").output == "book"
    assert task_row(db, only(db, "refuse")).attempt == 1


@pytest.mark.parametrize("ended", [False, True])
def test_a_child_that_was_retried_first_is_heard_when_its_parent_is(lesson, db, ended):
    id, (child,) = suspended(lesson, db)
    task = claim_one(lesson, db, child)
    with queries(lesson, db) as queue:
        queue.fail_task(id=child, attempt=task.attempt, error="E: no")
        parent = claim_one(lesson, db, id)
        queue.fail_task(id=id, attempt=parent.attempt, error="ChildError: no")
        before = log_of(db, id)
        by_hand(lesson, db, "retry", child)
        task = claim_one(lesson, db, child)
        if ended:
            finish(lesson, db, task, "7")
        assert log_of(db, id) == before, "the parent has ended with the first end"
        by_hand(lesson, db, "retry", id)
        if not ended:
            finish(lesson, db, task, "7")
    with context(lesson, db, claim_one(lesson, db, id)) as ctx:
        assert ctx.run(define(lesson).double, 0) == 7


def test_a_child_that_was_cancelled_by_hand_is_retried_with_its_parent(lesson, db):
    id, (child,) = suspended(lesson, db)
    with queries(lesson, db) as queue:
        queue.cancel_task(id=child)
        parent = claim_one(lesson, db, id)
        queue.fail_task(id=id, attempt=parent.attempt, error="ChildError: Cancelled")
    by_hand(lesson, db, "retry", id)
    assert task_row(db, child).status == "queued"
    entry = log_of(db, id)[0]
    assert (entry.output, entry.error, entry.completion) == (None, None, None)


def test_a_delay_is_not_cut_short_by_what_an_earlier_attempt_has_waited_for(lesson, db):
    """It was cancelled while it waited, retried, and has failed before its child's end."""
    id, (child,) = suspended(lesson, db)
    for verb in ("cancel", "retry"):
        by_hand(lesson, db, verb, id)
    task = claim_one(lesson, db, id)
    with queries(lesson, db) as queue:
        assert queue.retry_task(id=id, attempt=task.attempt, delay=MINUTE, error="E: no") == 1
    finish(lesson, db, claim_one(lesson, db, child))
    row = task_row(db, id)
    assert (row.status, row.completions) == ("waiting", 1)


def test_retry_and_replay_refuse_what_has_not_ended(lesson, db):
    id, (child,) = suspended(lesson, db)
    before = task_row(db, id), task_row(db, child), log_of(db, id)
    for again in (lesson.control.retry, lesson.control.replay):
        for which in (id, 10**9):
            with pytest.raises(lesson.inputs.BadInput), db.engine.begin() as connection:
                again(connection, which)
    assert (task_row(db, id), task_row(db, child), log_of(db, id)) == before


@pytest.mark.parametrize("first", ["retry", "replay"])
def test_a_replay_locks_the_children_in_the_order_of_a_retry(lesson, db, first):
    """Both wait for the first child. Had one of them locked the second, the other would need it."""
    id, children = suspended(lesson, db, 2)
    with queries(lesson, db) as queue:
        for child in children:
            assert queue.fail_task(
                id=child, attempt=claim_one(lesson, db, child).attempt, error="E: no"
            )
        queue.fail_task(id=id, attempt=claim_one(lesson, db, id).attempt, error="ChildError: no")

    def again(action):
        with db.engine.begin() as connection:
            action(connection, id)

    verbs = {name: getattr(lesson.control, name) for name in ("retry", "replay")}
    other = next(name for name in verbs if name != first)
    with ThreadPoolExecutor(2) as threads, db.connect() as holder:
        holder.execute("select from tasks where id = %s for update", (children[0],))
        one = threads.submit(again, verbs[first])
        wait_until(lambda: waiting_for_a_lock(db) == 1, f"the {first} waits")
        two = threads.submit(again, verbs[other])
        wait_until(lambda: waiting_for_a_lock(db) == 2, f"the {other} waits")
        holder.rollback()
        one.result(timeout=within(20))
        with pytest.raises(lesson.inputs.BadInput):
            two.result(timeout=within(20))
    assert task_row(db, id).status == "queued"


def test_a_replay_empties_the_log_and_begins_with_new_keys_and_children(lesson, db):
    double = define(lesson).double
    keys: list[str] = []

    @lesson.context.durable
    def order(ctx, n):
        ctx.step(lambda key: keys.append(key))
        return ctx.run(double, n)

    id = enqueue(lesson, db, "order", 4)
    with working(lesson.worker.Worker(db, "w")):
        wait_for_status(db, id, "succeeded")
        by_hand(lesson, db, "replay", id)
        assert wait_for_status(db, id, "succeeded").output == 8
    assert len(set(keys)) == 2
    children = execute(db, "select parent_id from tasks where name = 'double' order by id")
    assert children == [(None,), (id,)]


def test_a_replay_cancels_the_children_of_the_old_run(lesson, db):
    id, (one, two) = suspended(lesson, db, 2)
    running = claim_one(lesson, db, one)
    with queries(lesson, db) as queue:
        queue.cancel_task(id=id)
    by_hand(lesson, db, "replay", id)
    assert [task_row(db, child).status for child in (one, two)] == ["cancelled"] * 2
    assert finish(lesson, db, running) == 0
    row = task_row(db, id)
    assert (row.status, row.completions, log_of(db, id)) == ("queued", 0, [])


def test_a_replay_gives_all_attempts_back_and_a_retry_one(lesson, db):
    define(lesson)
    id = enqueue(lesson, db, "double", 1, max_attempts=2)

    def deaths():
        """In which statuses the task has come out of each, until it has failed."""
        ends = []
        while "failed" not in ends:
            claim_one(lesson, db, id)
            drop_workers(db)
            ends.append(take_back(lesson, db)[id])
        return ends

    assert deaths() == ["queued", "failed"]
    for verb, ends in (("retry", 1), ("replay", 2), ("retry", 1), ("replay", 2)):
        by_hand(lesson, db, verb, id)
        assert len(deaths()) == ends, verb
    by_hand(lesson, db, "replay", id)
    claim_one(lesson, db, id)
    by_hand(lesson, db, "cancel", id)
    by_hand(lesson, db, "retry", id)
    assert deaths() == ["failed"], "the cancelled attempt counts"
