"""Lesson 07: a fork begins with what it keeps of a log, and the old task stays as it is."""

from contextlib import contextmanager

import pytest

from shared.testing import task_row, wait_for_status, working
from tests.helpers import (
    ENDED,
    by_hand,
    claim_one,
    define,
    drop_workers,
    enqueue,
    execute,
    fail,
    finish,
    in_threads,
    log_of,
    needs,
    new_task,
    one_by_one,
    only,
    patiently,
    program,
    queries,
    record,
    run_once,
    run_program,
    suspended,
    take_back,
)
from tests.shop import unfit


@contextmanager
def transaction(db):
    with db.engine.begin() as connection:
        patiently(connection)
        yield connection


def fork(lesson, db, id, position):
    with transaction(db) as connection:
        return lesson.control.fork(connection, id, position)


def checksum(db, id):
    """Of all that belongs to a task: its row, its log, its children and theirs."""
    query = (
        "with recursive own (id) as (select %s::bigint"
        " union select tasks.id from own join tasks on tasks.parent_id = own.id)"
        " select md5(string_agg(line, chr(10) order by line)) from ("
        " select tasks::text as line from tasks where id in (select id from own) union all"
        " select event_log::text from event_log where task_id in (select id from own)) as lines"
    )
    return execute(db, query, id)[0][0]


def ended(lesson, db, *ids):
    """Their rows, when a worker has run them to their ends."""
    with working(lesson.worker.Worker(db, "w")):
        return [wait_for_status(db, id, *ENDED) for id in ids]


def waiting(lesson, db):
    """A task that waits for its child; their ids. Both return 6."""
    define(lesson)
    id = enqueue(lesson, db, "run_double", 3, priority=1)
    assert run_once(lesson, db, id).status == "waiting"
    return id, only(db, "double")


def define_parcel(lesson):
    """Charge, two children, a label. What was done, with its key; the first label is wrong."""
    double = define(lesson).double
    done: list[tuple[str, str]] = []

    def charge(key):
        done.append(("charge", key))
        return "charged"

    def label(key):
        labels = [what for what, _ in done].count("label")
        done.append(("label", key))
        return "right" if labels else "wrong"

    @lesson.context.durable
    def parcel(ctx, _):
        charged = ctx.step(charge)
        children = ctx.gather(ctx.spawn(double, 1), ctx.spawn(double, 2))
        return [charged, children, ctx.step(label)]

    return done


def test_what_lies_before_the_position_is_kept_and_the_rest_is_done_again(lesson, db):
    done = define_parcel(lesson)
    id = enqueue(lesson, db, "parcel", 7, priority=3, max_attempts=2)
    (old,) = ended(lesson, db, id)
    before = checksum(db, id)
    forked = fork(lesson, db, id, 3)
    (new,) = ended(lesson, db, forked)
    assert old.output == ["charged", [2, 4], "wrong"]
    assert new.output == ["charged", [2, 4], "right"]
    assert [what for what, _ in done] == ["charge", "label", "label"]
    assert len({key for _, key in done}) == 3, "what is done again has a new key"
    assert (new.name, new.input, new.priority, new.max_attempts) == ("parcel", 7, 3, 2)
    assert execute(db, "select count(*) from tasks where name = 'double'") == [(2,)]
    assert checksum(db, id) == before


def test_an_open_entry_gets_a_child_of_its_own(lesson, db):
    """The first child has ended, the second has not: each log is told of its own."""
    define_parcel(lesson)
    id = enqueue(lesson, db, "parcel")
    run_once(lesson, db, id)
    children = "select id from tasks where parent_id = %s order by id"
    (one,), (two,) = execute(db, children, id)
    assert finish(lesson, db, claim_one(lesson, db, one), "2") == 1
    forked = fork(lesson, db, id, 3)
    ((new,),) = execute(db, children, forked)
    assert new > forked, "a child's id is greater than its parent's: rows are locked in that order"
    assert [entry.child_id for entry in log_of(db, forked)] == [None, one, new]
    rows = ended(lesson, db, id, forked)
    assert [row.status for row in rows] == ["succeeded"] * 2
    assert [row.output[1] for row in rows] == [[2, 4]] * 2
    for row, second in zip(rows, (two, new), strict=True):
        log = log_of(db, row.id)
        assert [entry.child_id for entry in log] == [None, one, second, None]
        assert [entry.completion for entry in log] == [None, 1, 2, None]
        assert row.completions == 2


def test_a_child_that_is_forked_tells_nobody(lesson, db):
    id, (child,) = suspended(lesson, db)
    forked = fork(lesson, db, child, 0)
    before = task_row(db, id), log_of(db, id)
    assert finish(lesson, db, claim_one(lesson, db, child), "1") == 1
    told = task_row(db, id), log_of(db, id)
    assert told != before
    claim_one(lesson, db, id)
    told = task_row(db, id), log_of(db, id)
    assert finish(lesson, db, claim_one(lesson, db, forked), "2") == 1
    assert (task_row(db, id), log_of(db, id)) == told


@pytest.mark.parametrize("kind", ["child", "step"])
def test_a_kept_error_is_an_answer_even_for_a_retry(lesson, db, kind):
    """To have it done again, fork before it."""
    tries: list[object] = []

    def refuse(_):
        tries.append(1)
        raise lesson.tasks.NonRetryableError("no")

    lesson.tasks.task(refuse)
    id = enqueue(lesson, db, program(lesson, order_of(refuse, kind)).__name__)
    (row,) = ended(lesson, db, id)
    assert (row.status, len(tries)) == ("failed", 1)
    before = checksum(db, id)
    kept, again = fork(lesson, db, id, 2), fork(lesson, db, id, 1)
    assert [row.status for row in ended(lesson, db, kept)] == ["failed"]
    by_hand(lesson, db, "retry", kept)
    assert checksum(db, id) == before, "the retry has left the old task's child alone"
    assert [row.status for row in ended(lesson, db, kept, again)] == ["failed"] * 2
    assert len(tries) == 2, "by the fork before it"
    assert checksum(db, id) == before


def order_of(refuse, kind):
    def order(ctx, _):
        ctx.step(note)
        return ctx.run(refuse, 1) if kind == "child" else ctx.step(lambda key: refuse(key))

    return order


def note(_key):
    return 1


def test_an_error_that_would_be_tried_again_is_kept_as_an_answer(lesson, db):
    """The old task does the step again in its next attempt. The fork was told to keep it."""
    id = new_task(lesson, db)
    with queries(lesson, db) as queue:
        record(queue, id, claim_one(lesson, db, id).attempt, output=None, error=ERROR)
    forked = fork(lesson, db, id, 1)
    assert [entry.settled for entry in log_of(db, id) + log_of(db, forked)] == [False, True]


ERROR = '{"type": "E", "error": "E: no", "traceback": "", "final": false}'


# While the old task is in other hands


@pytest.mark.parametrize("hand", ["cancel", "retry", "replay"])
def test_a_fork_waits_for_no_hand_and_sees_the_task_before_it_or_after_it(lesson, db, hand):
    id, (child,) = suspended(lesson, db)
    if hand != "cancel":
        fail(lesson, db, child)
        fail(lesson, db, id)
    before = log_of(db, id)
    with transaction(db) as connection:
        getattr(lesson.control, hand)(connection, id)
        early = fork(lesson, db, id, 1)
    (entry,) = log_of(db, early)
    assert (entry.error, entry.settled) == (before[0].error, hand != "cancel")
    after = checksum(db, id)
    if hand == "replay":
        with pytest.raises(lesson.inputs.BadInput):
            fork(lesson, db, id, 1)
    else:
        late = fork(lesson, db, id, 1)
        assert [entry.completion for entry in log_of(db, late)] == [None]
        assert execute(db, "select status from tasks where parent_id = %s", late) == [("queued",)]
    assert checksum(db, id) == after


@pytest.mark.parametrize("status", ["queued", "running", "waiting"])
def test_a_task_that_has_not_ended_can_be_forked_and_goes_on(lesson, db, status):
    id, child = waiting(lesson, db)
    if status != "waiting":
        finish(lesson, db, claim_one(lesson, db, child), "6")
    run = claim_one(lesson, db, id) if status == "running" else None
    before = checksum(db, id)
    assert task_row(db, id).status == status
    forked = fork(lesson, db, id, 1)
    assert checksum(db, id) == before
    if run:
        assert finish(lesson, db, run, "6") == 1
    assert [row.output for row in ended(lesson, db, forked, id)] == [6, 6]


def test_nobody_waits_for_a_fork(lesson, db):
    """Its transaction is still open, and all that may happen to the old task happens."""
    id, child = waiting(lesson, db)
    with transaction(db) as connection:
        forked = lesson.control.fork(connection, id, 1)
        assert finish(lesson, db, claim_one(lesson, db, child), "6") == 1
        assert finish(lesson, db, claim_one(lesson, db, id), "6") == 1
        by_hand(lesson, db, "replay", id)
        by_hand(lesson, db, "cancel", id)
    assert [row.output for row in ended(lesson, db, forked)] == [6]


def test_many_forks_side_by_side_change_no_byte_of_the_old_task(lesson, db):
    """While a worker runs what is forked."""
    define_parcel(lesson)
    id = enqueue(lesson, db, "parcel")
    ended(lesson, db, id)
    before = checksum(db, id)
    forks: list[int] = []

    def fork_all():
        forks.extend(fork(lesson, db, id, position) for position in range(5))

    with working(lesson.worker.Worker(db, "w")):
        in_threads(fork_all, fork_all, fork_all)
        assert checksum(db, id) == before
        rows = [wait_for_status(db, forked, *ENDED) for forked in forks]
    assert [row.status for row in rows] == ["succeeded"] * 15
    assert checksum(db, id) == before


# Forks of forks, and all that can be done to a fork


def test_a_fork_of_a_fork_and_so_on(lesson, db):
    define_parcel(lesson)
    id = enqueue(lesson, db, "parcel")
    ended(lesson, db, id)
    ids = [id]
    for _ in range(50):
        ids.append(fork(lesson, db, ids[-1], 3))
    side = fork(lesson, db, ids[1], 0)
    assert [row.output for row in ended(lesson, db, ids[-1], side)] == [
        ["charged", [2, 4], "right"],
    ] * 2
    with queries(lesson, db) as queue:
        shown = [(row.id, row.depth, row.forked_from) for row in queue.list_forks(id=id)]
        assert list(queue.list_forks(id=10**9)) == []
    chain = [(fork, n, ids[n - 1] if n else None) for n, fork in enumerate(ids)]
    assert shown == [*chain, (side, 2, ids[1])]
    execute(db, "delete from tasks where id = any (%s)", ids[:-1])
    assert len(log_of(db, ids[-1])) == 4, "each log is whole"


def test_a_fork_is_cancelled_retried_and_replayed_like_any_task(lesson, db):
    done = define_parcel(lesson)
    id = enqueue(lesson, db, "parcel")
    ended(lesson, db, id)
    before = checksum(db, id)
    forked = fork(lesson, db, id, 3)
    by_hand(lesson, db, "cancel", forked)
    by_hand(lesson, db, "retry", forked)
    assert ended(lesson, db, forked)[0].status == "succeeded"
    assert [what for what, _ in done] == ["charge", "label", "label"]
    by_hand(lesson, db, "replay", forked)
    assert ended(lesson, db, forked)[0].status == "succeeded"
    assert [what for what, _ in done][3:] == ["charge", "label"]
    assert checksum(db, id) == before


def test_a_fork_has_all_its_attempts(lesson, db):
    define(lesson)
    id = enqueue(lesson, db, "double", 1, max_attempts=2)
    fail(lesson, db, id)
    forked = fork(lesson, db, id, 0)
    ends = []
    for _ in range(2):
        claim_one(lesson, db, forked)
        drop_workers(db)
        ends.append(take_back(lesson, db)[forked])
    assert ends == ["queued", "failed"]


def test_code_that_has_changed_is_noticed_in_what_is_kept(lesson, db):
    steps = [note]

    def other(_key):
        return 2

    def changing(ctx, _):
        return [ctx.step(steps[0]), ctx.step(other)]

    id = enqueue(lesson, db, program(lesson, changing).__name__)
    ended(lesson, db, id)
    before = checksum(db, id)
    steps[0] = other
    for position, status in ((1, unfit(lesson)), (0, "succeeded")):
        forked = fork(lesson, db, id, position)
        with working(lesson.worker.Worker(db, "w")):
            row = wait_for_status(db, forked, status)
        assert status == "succeeded" or row.error.startswith("NonDeterminismError")
    assert checksum(db, id) == before


# What is refused, and the verbs


@pytest.mark.parametrize("position", [3, 2**31 - 1, 2**31, -1, 1.5, True, "1", None])
def test_no_fork_at_a_position_that_is_not_in_the_log(lesson, db, position):
    id, _ = suspended(lesson, db, 2)
    with pytest.raises(lesson.inputs.BadInput):
        fork(lesson, db, id, position)
    assert execute(db, "select count(*) from tasks") == [(3,)]


@one_by_one("id", [10**9, 0, -1, 2**63, 1.5, "1"])
def test_no_fork_of_what_is_no_task(lesson, db, id):
    needs(lesson, "fork_task")
    for position in (0, 1):
        with pytest.raises(lesson.inputs.BadInput):
            fork(lesson, db, id, position)


def test_a_task_that_is_not_durable_is_forked_at_position_0(lesson, db):
    define(lesson)
    id = enqueue(lesson, db, "double", 4)
    (row,) = ended(lesson, db, fork(lesson, db, id, 0))
    assert row.output == 8
    with pytest.raises(lesson.inputs.BadInput):
        fork(lesson, db, id, 1)


def test_the_verbs_fork_and_show_the_tree(lesson, db):
    define_parcel(lesson)
    id = enqueue(lesson, db, "parcel")
    ended(lesson, db, id)
    shown = run_program(lesson, "fork", str(id), "3").stdout
    forked = max(row for (row,) in execute(db, "select id from tasks"))
    assert f"task {forked} is queued: a fork of task {id} at position 3" in shown
    assert run_program(lesson, "forks", str(id)).stdout.splitlines() == [
        f'task {id}: succeeded -> ["charged", [2, 4], "wrong"]',
        f"  task {forked}, from {id} at 3: queued",
    ]
