"""Lesson 13: versions roll up, down and up again under load, and workers are killed meanwhile."""

import random

from shared.processes import WorkerProcess, wait_until
from shared.testing import task_row
from tests.helpers import (
    ENDED,
    OPTIONS,
    announce,
    copy_of,
    count,
    enqueue_all,
    execute,
    log_of,
    statuses,
)

# Version 1; version 2 has one step more, and a task that 1 does not know.
ONE = """

@durable
def parcel(ctx: Context, order: Order) -> str:
    ctx.step(write, order, "label")
    ctx.sleep(timedelta(seconds=order["wait"]))
    ctx.gather(*[ctx.spawn(pick, {**order, "n": n}) for n in (1, 2)])
    ctx.step(write, order, "sent")
    return "sent by 1"

@durable
def pick(ctx: Context, order: Order) -> str:
    return ctx.step(write, order, f"picked {order['n']}")

@durable
def patched(ctx: Context, order: Order) -> str:
    ctx.step(write, order, "begun")
    ctx.sleep(timedelta(seconds=order["wait"]))
    ctx.step(write, order, "ended")
    return "done"

def write(key: str, order: Order, what: str) -> str:
    return effect(key, what, order)
"""
TWO = (
    ONE.replace(
        '    ctx.step(write, order, "label")\n',
        '    ctx.step(write, order, "address")\n    ctx.step(write, order, "label")\n',
    )
    .replace("sent by 1", "sent by 2")
    .replace(
        '    ctx.step(write, order, "begun")\n',
        '    ctx.step(write, order, "begun")\n'
        '    if ctx.patched("a check"):\n        ctx.step(write, order, "checked")\n',
    )
    + """

@durable
def express(ctx: Context, order: Order) -> str:
    return ctx.step(write, order, "express")
"""
)
PICKS = ["child pick", "child pick"]
LOGS = {
    "sent by 1": ["step write", "timer sleep", *PICKS, "step write"],
    "sent by 2": ["step write", "step write", "timer sleep", *PICKS, "step write"],
}


def test_versions_that_roll_up_down_and_up_fail_no_task(lesson, db, tmp_path):
    """Pinned, parked and patched tasks side by side. A death costs an attempt, a deploy none."""
    paths = {version: tmp_path / version for version in "12"}
    for version, code in (("1", ONE), ("2", TWO)):
        paths[version].mkdir()
        paths[version] = copy_of(lesson, paths[version], code)
    announce(lesson, "parcel", "patched", "express")
    dice = random.Random(13)

    def worker(name):
        version = name[0]
        # Of one kind of task, both versions try what the other has begun: without --version.
        options = ("--queue", "open") if "open" in name else ("--version", version)
        return WorkerProcess(paths[version], name, *OPTIONS, *options)

    herd, ids = {}, []

    def roll(*names):
        """These workers run from now on; those of before are killed, or stop."""
        for name in herd.keys() - set(names):
            gone = herd.pop(name)
            gone.kill() if dice.random() < 0.5 else gone.stop()
        herd.update({name: worker(name) for name in names if name not in herd})

    def enqueue_some(n):
        wait = {"wait": 0.2}
        for name, queue in (("parcel", "default"), ("express", "default"), ("patched", "open")):
            orders = [{"id": f"{name} {n} {i}", **wait} for i in range(4)]
            ids.extend(enqueue_all(lesson, db, name, orders, queue=queue))

    def look_after():
        for name, process in herd.items():
            if process.exit_status is not None:
                herd[name] = worker(name)
        return True

    rolls = [("1a", "1open"), ("1a", "2a", "2open"), ("1a", "1open"), ("2a", "1a", "2open")]
    try:
        for n, names in enumerate(rolls):
            roll(*names)
            enqueue_some(n)
            begun = count(db, "succeeded", "waiting")
            wait_until(
                lambda begun=begun: look_after() and count(db, "succeeded", "waiting") > begun,
                "tasks go on",
                60,
            )
        wait_until(
            lambda: look_after() and all(task_row(db, id).status in ENDED for id in ids),
            "all have ended",
            120,
        )
    finally:
        for process in herd.values():
            process.kill()
    assert set(statuses(db)) == {"succeeded"}, execute(db, "select name, status, error from tasks")
    for id in ids:
        row = task_row(db, id)
        log = [f"{entry.kind} {entry.name}" for entry in log_of(db, id)]
        if row.name == "parcel":
            assert row.version == row.output[-1]
            assert log == LOGS[row.output]
        elif row.name == "express":
            assert row.version == "2"
        else:
            old = ["step write", "timer sleep", "step write"]
            assert log in (old, [old[0], "patch a check", *old])
    effects = lesson.app.outside.effects()
    assert len({line.split(", key")[0] for line in effects}) == len(set(effects)), "one key each"
