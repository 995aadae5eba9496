"""Lesson 06: durable tasks that spawn tasks survive a kill anywhere."""

from shared.processes import wait_until, within, worker_processes
from shared.testing import task_row, wait_for_status
from tests.helpers import ENDED, announce, copy_of, enqueue, immortal, log_of, statuses


def finish_all(db, path, ids, workers=3, seconds=60):
    with immortal(path, workers) as look_after:
        wait_until(
            lambda: look_after() and all(task_row(db, id).status in ENDED for id in ids),
            "all have ended, whoever was killed",
            seconds,
        )


EFFECTS = ("card charged", "book reserved", "pen reserved", "confirmation sent")


def test_an_order_survives_a_kill_at_every_step_on_both_sides_of_the_effect(lesson, db):
    points = [f"{when}: {effect}" for effect in EFFECTS for when in ("before", "after")]
    orders = [
        {"id": n, "items": ["book", "pen"], "die_at": point} for n, point in enumerate(points)
    ]
    ids = [enqueue(lesson, db, "fulfil", order) for order in orders]
    finish_all(db, lesson.path, ids)
    effects = lesson.app.outside.effects()
    assert sum("the worker dies" in line for line in effects) == len(points)
    for id, order in zip(ids, orders, strict=True):
        row = task_row(db, id)
        assert (row.status, row.output) == (
            "succeeded",
            "card charged; book reserved, pen reserved",
        )
        for effect in EFFECTS:
            lines = [
                line for line in effects if line.startswith(f"order {order['id']}: {effect}, ")
            ]
            # One key: whoever charges the card can tell that it is the same charge. Twice only in
            # the gap between doing and recording.
            assert len(set(lines)) == 1, lines
            assert len(lines) == (2 if order["die_at"] == f"after: {effect}" else 1)
        names = ["charge_card", "reserve", "reserve", "send_confirmation"]
        assert [(entry.position, entry.name) for entry in log_of(db, id)] == [*enumerate(names, 1)]


NESTED = """

@durable
def top(ctx: Context, order: Order) -> list[str]:
    ctx.step(act, order, "top begins")
    children = [ctx.spawn(middle, {**order, "n": n}) for n in (1, 2)]
    found = ctx.gather(*children)
    ctx.step(act, order, "top ends")
    return found

@durable
def middle(ctx: Context, order: Order) -> str:
    ctx.step(act, order, f"middle {order['n']} begins")
    found = ctx.run(bottom, order)
    ctx.step(act, order, f"middle {order['n']} ends")
    return f"middle of {found}"

@durable
def bottom(ctx: Context, order: Order) -> str:
    ctx.step(act, order, f"bottom {order['n']} begins")
    return ctx.step(act, order, f"bottom {order['n']} ends")

def act(key: str, order: Order, what: str) -> str:
    return effect(key, what, order)

@durable
def fifty(ctx: Context, order: Order) -> list[int]:
    run = os.urandom(4).hex()
    children = [ctx.spawn(nap, [n, (n * 7) % 10 / 200]) for n in range(50)]
    seen: list[int] = []
    for child in ctx.as_completed(*children):
        seen.append(ctx.result(child))
        outside.record(f"run {run} saw {seen[-1]}")
        if len(seen) in (7, 31):
            ctx.step(act, order, f"{len(seen)} seen")
    ctx.step(act, order, "all seen")
    return seen

@task
def nap(input: list[float]) -> int:
    time.sleep(input[1])
    return int(input[0])
"""


def test_durable_tasks_three_deep_survive_kills_at_every_depth(lesson, db, tmp_path):
    path = copy_of(lesson, tmp_path, NESTED)
    announce(lesson, "top")
    points = ["before: top begins", "after: middle 1 begins", "before: bottom 2 begins"]
    points += ["after: bottom 1 ends", "before: middle 2 ends", "after: top ends"]
    ids = [enqueue(lesson, db, "top", {"id": n, "die_at": point}) for n, point in enumerate(points)]
    finish_all(db, path, ids)
    effects = lesson.app.outside.effects()
    assert sum("the worker dies" in line for line in effects) == len(points)
    for n, id in enumerate(ids):
        row = task_row(db, id)
        assert row.status == "succeeded", row.error
        assert row.output == ["middle of bottom 1 ends", "middle of bottom 2 ends"]
        lines = [line for line in effects if line.startswith(f"order {n}: ") and ", key" in line]
        assert len(set(lines)) == 10
        assert len(lines) == 10 + points[n].startswith("after")
    assert statuses(db) == {"succeeded": 5 * len(points)}


def test_fifty_children_are_seen_in_the_same_order_in_every_run(lesson, db, tmp_path):
    path = copy_of(lesson, tmp_path, NESTED)
    announce(lesson, "fifty")
    id = enqueue(lesson, db, "fifty", {"id": 1, "die_at": "before: all seen"})
    options = ("--slots", "10", "--lease", f"{within(1)}")
    with worker_processes(path, "a", options=options) as (worker,):
        wait_until(lambda: worker.exit_status is not None, "it has been killed")
    assert task_row(db, id).status == "running"
    with worker_processes(path, "b", options=options):
        order = wait_for_status(db, id, "succeeded").output
    assert sorted(order) == list(range(50))
    assert order != sorted(order), "they should not have ended in the order of the spawns"
    runs: dict[str, list[int]] = {}
    for line in lesson.app.outside.effects():
        if line.startswith("run "):
            _, run, _, child = line.split()
            runs.setdefault(run, []).append(int(child))
    assert len(runs) >= 2
    assert sum(seen == order for seen in runs.values()) >= 2, "one that was killed, one that ended"
    for seen in runs.values():
        assert seen == order[: len(seen)]
