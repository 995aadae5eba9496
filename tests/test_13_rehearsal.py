"""Lesson 13: exported logs against edited functions: the right verdict, without any effect."""

import json
from contextlib import suppress
from datetime import timedelta

import pytest

from shared.testing import wait_for_status, working
from tests.helpers import (
    copy_of,
    define,
    enqueue,
    execute,
    log_of,
    run_once,
    run_program,
    run_verb,
)
from tests.shop import (
    begin,
    broken,
    charge,
    check,
    confirm,
    debit,
    deploy,
    effects,
    line_of,
    order,
    order_under_way,
    reserve,
)

HOUR = timedelta(hours=1)


def export(lesson, db, id):
    """As it comes out of a file."""
    with db.autocommit.connect() as connection:
        return json.loads(json.dumps(lesson.rehearsal.export_log(connection, id)))


def rehearsed(lesson, history, function):
    function.__name__ = history["name"]
    deploy(lesson, function)
    return lesson.rehearsal.rehearse(history)


def run_to_a_wait(lesson, db, function):
    """The log of its first run, in which it comes to something that it waits for."""
    deploy(lesson, function)
    id = enqueue(lesson, db, function.__name__, 7, priority=1)
    assert run_once(lesson, db, id).status == "waiting"
    return export(lesson, db, id)


def finished(lesson, db, function, *statuses):
    deploy(lesson, function)
    id = enqueue(lesson, db, function.__name__, 7, priority=1)
    with working(lesson.worker.Worker(db, "w")):
        wait_for_status(db, id, *statuses or ("succeeded",))
    return export(lesson, db, id)


def misfit(lesson, history, function):
    """The sentence with which it does not fit; it names the line."""
    with pytest.raises(lesson.nondeterminism.NonDeterminismError) as error:
        rehearsed(lesson, history, function)
    line = f"line {line_of(function, '# caught')}, in "
    assert line in str(error.value)
    return str(error.value)


# Steps


def test_the_code_as_it_is_goes_on_where_the_log_ends(lesson, db):
    history = export(lesson, db, order_under_way(lesson, db))
    assert rehearsed(lesson, history, order) == "it goes on after position 2"
    assert effects == ["charge", "reserve"], "nothing was done"


def test_a_finished_log_ends_with_the_return(lesson, db):
    history = export(lesson, db, begin(lesson, db, order))
    log = log_of(db, history["id"])
    assert rehearsed(lesson, history, order) == "it returns where the log ends"
    assert (len(effects), log_of(db, history["id"])) == (3, log)


def test_an_inserted_step_does_not_fit_and_the_line_is_named(lesson, db):
    history = export(lesson, db, order_under_way(lesson, db))

    def edited(ctx, id):
        ctx.step(charge, id, 10)
        ctx.step(check, id)  # caught
        ctx.step(reserve, id, 2)

    says = misfit(lesson, history, edited)
    assert says.startswith("at position 2, the function does not do what its log has recorded")
    assert "if ctx.patched(" in says
    assert "parked" not in says, "nothing is, here"
    assert effects == ["charge", "reserve"]


def test_a_function_that_ends_early_does_not_fit(lesson, db):
    history = export(lesson, db, order_under_way(lesson, db))

    def edited(ctx, id):  # caught
        ctx.step(charge, id, 10)

    assert "has returned" in misfit(lesson, history, edited)


def test_a_function_that_fails_where_its_log_goes_on_does_not_fit(lesson, db):
    """The worker would call it a failed attempt; but the run that wrote the log did not fail."""
    history = export(lesson, db, order_under_way(lesson, db))

    def edited(ctx, id):
        ctx.step(charge, id, 10)
        raise KeyError("amount")  # caught

    says = misfit(lesson, history, edited)
    assert says.startswith("after position 1, the function fails, and its log goes on: KeyError")


def test_a_function_that_fails_where_its_log_ends_fits(lesson, db):
    def refused(ctx, id):
        ctx.step(charge, id)
        raise ValueError("sold out")

    broken.clear()
    history = export(lesson, db, begin(lesson, db, refused))
    says = rehearsed(lesson, history, refused)
    assert says == "it fails where the log ends: ValueError: sold out"


def test_a_step_at_the_end_that_has_failed_is_tried_again_and_may_be_another(lesson, db):
    broken.add("confirm")
    history = export(lesson, db, begin(lesson, db, order))
    assert [entry["name"] for entry in history["log"]] == ["charge", "reserve", "confirm"]

    def edited(ctx, id):
        ctx.step(charge, id, 10)
        ctx.step(reserve, id, 2)
        ctx.step(debit, id)

    assert rehearsed(lesson, history, edited) == "it goes on after position 2"


def test_an_error_that_was_caught_is_raised_again(lesson, db):
    def goes_on(ctx, id):
        with suppress(lesson.errors.StepError):
            ctx.step(charge, id)
        ctx.step(confirm, id)
        return "done"

    def does_not(ctx, id):
        ctx.step(charge, id)  # caught
        ctx.step(confirm, id)

    broken.add("charge")
    history = export(lesson, db, begin(lesson, db, goes_on))
    assert rehearsed(lesson, history, goes_on) == "it returns where the log ends"
    assert "after position 1, the function fails" in misfit(lesson, history, does_not)


def test_a_patch_makes_the_edit_fit(lesson, db):
    history = export(lesson, db, order_under_way(lesson, db))

    def edited(ctx, id):
        ctx.step(charge, id, 10)
        if ctx.patched("a check"):
            ctx.step(check, id)
        ctx.step(reserve, id, 2)
        if ctx.patched("a check at the end"):
            ctx.step(check, id)
        ctx.step(confirm, id)

    assert rehearsed(lesson, history, edited) == "it goes on after position 2"


# Everything that somebody else completes


def waits_and_children(lesson):
    """Functions under way, an edit of each, and how the rehearsals of both end."""
    double = define(lesson).double

    def child(ctx, n):
        ctx.step(charge, n)
        return ctx.run(double, n)

    def other_child(ctx, n):
        ctx.step(charge, n)
        return ctx.run(double, n + 1)  # caught

    def timer(ctx, _):
        ctx.sleep(HOUR)

    def other_timer(ctx, _):
        ctx.sleep(2 * HOUR)  # caught

    def timeout(ctx, n):
        with suppress(lesson.errors.WaitTimeout):
            ctx.result(ctx.spawn(double, n), timeout=HOUR)

    def without_timeout(ctx, n):
        ctx.result(ctx.spawn(double, n))
        ctx.step(charge, n)  # never comes here

    def signal(ctx, _):
        return ctx.receive("approval", timeout=HOUR)

    def other_signal(ctx, _):
        return ctx.receive("consent", timeout=HOUR)  # caught

    def event(ctx, _):
        return ctx.wait_event("the harbour is open")

    def not_event_but_signal(ctx, _):
        return ctx.receive("the harbour is open")  # caught

    def first_of(ctx, _):
        waits = [ctx.signal("approval"), ctx.timer(HOUR)]
        ctx.first_of(*waits)

    def first_of_in_another_order(ctx, _):
        waits = [ctx.timer(HOUR), ctx.signal("approval")]  # caught
        ctx.first_of(*waits)

    def marked(ctx, n):
        if ctx.patched("a check"):
            ctx.step(check, n)
        ctx.sleep(HOUR)

    def without_the_step(ctx, _):
        ctx.patched("a check")
        ctx.sleep(HOUR)  # caught

    return {
        "child": (child, other_child, "it waits for child double at position 2"),
        "timer": (timer, other_timer, "it waits for timer sleep at position 1"),
        "timeout": (timeout, without_timeout, "it waits for child double at position 1"),
        "signal": (signal, other_signal, "it waits for signal approval at position 1"),
        "event": (
            event,
            not_event_but_signal,
            "it waits for event the harbour is open at position 1",
        ),
        "first_of": (
            first_of,
            first_of_in_another_order,
            "it waits for 1 of 2: signal approval at position 1, timer sleep at position 2",
        ),
        "patch": (marked, without_the_step, "it waits for timer sleep at position 3"),
    }


KINDS = ["child", "timer", "timeout", "signal", "event", "first_of", "patch"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_waits_waits_in_the_rehearsal(lesson, db, kind):
    function, _, says = waits_and_children(lesson)[kind]
    history = run_to_a_wait(lesson, db, function)
    assert rehearsed(lesson, history, function) == says


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "timeout"])
def test_an_edit_of_what_waits_does_not_fit(lesson, db, kind):
    function, edited, _ = waits_and_children(lesson)[kind]
    history = run_to_a_wait(lesson, db, function)
    edited.__name__ = function.__name__
    assert "does not do what its log has recorded" in misfit(lesson, history, edited)


def test_a_wait_that_lost_its_timeout_waits_on(lesson, db):
    """Entries that nobody asks for, at the end of a log that has not ended: nothing contradicts."""
    function, edited, _ = waits_and_children(lesson)["timeout"]
    history = run_to_a_wait(lesson, db, function)
    assert [entry["name"] for entry in history["log"]] == ["double", "timeout"]
    assert rehearsed(lesson, history, edited) == "it waits for child double at position 1"


def test_what_was_completed_is_answered_and_what_was_first_stays_first(lesson, db):
    double = define(lesson).double

    def before(ctx, n):
        children = [ctx.spawn(double, n), ctx.spawn(double, n + 1)]
        first = ctx.first_of(*children, ctx.timer(HOUR))
        ctx.step(charge, children.index(first))
        ctx.gather(*children)
        try:
            ctx.receive("approval", timeout=timedelta(0))
        except lesson.errors.WaitTimeout:
            ctx.step(check, n)
        return ctx.wait_event("open")

    def after(ctx, n):
        children = [ctx.spawn(double, n), ctx.spawn(double, n + 1)]
        first = ctx.first_of(*children, ctx.timer(HOUR))
        ctx.step(charge, 1 - children.index(first))  # caught

    execute(db, "insert into events (name) values ('open')")
    history = finished(lesson, db, before)
    assert rehearsed(lesson, history, before) == "it returns where the log ends"
    after.__name__ = "before"
    assert "at position 4" in misfit(lesson, history, after)


def test_a_rehearsal_needs_no_database_and_does_nothing(lesson, db):
    def charges(ctx, n):
        ctx.step(charge, n)

    def spawns(ctx, n):
        ctx.spawn(define(lesson).double, n)
        ctx.step(charge, n)

    for function in (charges, spawns):
        history = {"id": 7, "name": function.__name__, "input": 7, "log": []}
        assert rehearsed(lesson, history, function) == "it goes on after position 0"
    assert execute(db, "select count(*) from tasks") == [(0,)]
    assert effects == []


def test_a_bare_except_does_not_let_a_rehearsal_do_anything(lesson, db):  # noqa: ARG001
    def swallows(ctx, n):
        for _ in range(3):
            with suppress(BaseException):
                ctx.step(charge, n)
        return "done"

    history = {"id": 7, "name": "swallows", "input": 7, "log": []}
    assert rehearsed(lesson, history, swallows) == "it goes on after position 0"
    assert effects == []


# Bad exports


def entry(position=1, **other):
    plain = {"kind": "step", "name": "charge", "input": [[7, 10], {}], "output": 1, "error": None}
    return {"position": position, **plain, "settled": False, "completion": None, **other}


GOOD = {"id": 7, "name": "order", "input": 7, "status": "waiting", "log": [entry()]}
BAD = {
    "no object": (["a log"], "an export has an id, a name, an input and a log"),
    "no log": ({key: GOOD[key] for key in ("id", "name", "input")}, "an export has"),
    "another type": ({**GOOD, "id": "7"}, "an export has"),
    "unknown": ({**GOOD, "name": "parcel"}, "there is no durable task 'parcel' here"),
    "plain": ({**GOOD, "name": "double"}, "there is no durable task 'double' here"),
    "no JSON": ({**GOOD, "input": float("nan")}, "not JSON"),
    "a field too few": ({**GOOD, "log": [{"position": 1}]}, "entry 1 of the log has not"),
    "a field too many": ({**GOOD, "log": [entry(extra=1)]}, "entry 1 of the log has not"),
    "a field of another type": ({**GOOD, "log": [entry(kind=3)]}, "entry 1 of the log has not"),
    "an entry that is none": ({**GOOD, "log": [entry(), 3]}, "entry 2 of the log has not"),
    "a hole": ({**GOOD, "log": [entry(2)]}, "has no entry at position 1"),
    "no error": ({**GOOD, "log": [entry(error="no")]}, "the error at position 1"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_export_is_refused_with_a_sentence(lesson, db, bad):  # noqa: ARG001
    history, says = BAD[bad]
    define(lesson)
    deploy(lesson, order)
    with pytest.raises(lesson.inputs.BadInput, match=says):
        lesson.rehearsal.rehearse(history)
    assert lesson.rehearsal.rehearse(GOOD) == "it goes on after position 1"


def test_what_is_no_task_cannot_be_exported(lesson, db):
    with db.autocommit.connect() as connection:
        for id in (0, 7, "7"):
            with pytest.raises(lesson.inputs.BadInput):
                lesson.rehearsal.export_log(connection, id)


# The verbs

CODE = """

@durable
def parcel(ctx: Context, n: int) -> str:
    ctx.step(write_label, n)
    return ctx.receive("picked up")


def write_label(_key: str, n: int) -> str:
    return f"label {n}"
"""
EDITED = CODE.replace(
    "    return ctx.receive", "    ctx.step(write_label, n + 1)\n    return ctx.receive"
)


def test_the_verbs_export_and_rehearse(lesson, db, tmp_path):
    path = copy_of(lesson, tmp_path, CODE)
    copied = type(lesson)(path)
    id = enqueue(copied, db, "parcel", 7)
    assert run_once(copied, db, id).status == "waiting"
    exported = run_verb(copied, "export", str(id))
    assert exported.returncode == 0, exported.stderr
    good, bad = tmp_path / "7.json", tmp_path / "no.json"
    good.write_text(exported.stdout)
    fits = run_verb(copied, "rehearse", str(good))
    assert fits.stdout.endswith("7.json: it fits: it waits for signal picked up at position 2\n")
    assert fits.returncode == 0
    (path / "app.py").write_text((path / "app.py").read_text().replace(CODE, EDITED))
    bad.write_text("{")
    edited = run_program(copied, "rehearse", str(good), str(bad), str(tmp_path / "missing.json"))
    assert edited.returncode == 1
    assert "7.json: it does not fit: at position 2, the function" in edited.stdout
    assert "no.json: it cannot be rehearsed: " in edited.stdout
    assert "missing.json: it cannot be rehearsed: " in edited.stdout
    assert "Traceback" not in edited.stderr
