"""The canonical workload of a lesson: one task of each kind that its engine can run.

Expected is what it comes to when nothing goes wrong; it must come to the same when something does.
"""

import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import sqlalchemy as sa

from shared.database import open_database
from shared.outside import Outside
from shared.processes import wait_until

# What each task does, for people.
TASKS = {
    "note": "returns its number",
    "broken": "fails",
    "broken_once": "fails once on purpose, and works when it is tried again",
    "lost_for_good": "fails, and says that trying again is of no use",
    "journey": "durable: the steps pack; pay, which fails once on purpose and is tried again; "
    "break_down, which fails for good and is caught; arrive",
    "tour": "durable: the step set_out; two children note side by side; a child "
    "lost_for_good, whose failure is caught; a child journey; from lesson 09 on a timer, for which "
    "it first waits in vain; the step come_home",
    "answered": "durable: receives a message and a failure, which were sent before; an event, "
    "which has happened; then waits for a letter, and for an event; the step take_note",
    "send_letter": "sends that letter, with a key",
    "bring_post": "emits that event, and stays until it is told",
    "painted": "durable, from lesson 13 on: a patch, and the step paint, which it has brought",
}
Log = list[tuple[str, str]]  # kind and name of each entry
NAP = 0.2  # seconds: longer than it takes from a timer's commit to that of the suspension


@dataclass(frozen=True)
class Expected:
    """How a task ends. log: of a durable task, its event log."""

    name: str
    status: str
    output: Any = None
    log: Log = field(default_factory=Log)


def engine_of(modules: SimpleNamespace) -> Any:
    """The engine's names, whichever of a lesson's modules they stand in: `engine.enqueue`."""
    names: dict[str, Any] = {}
    found: dict[str, ModuleType] = vars(modules)
    for module in found.values():
        if module.__name__ not in ("app", "main", "db", "db.queries"):
            for name, value in vars(module).items():
                if getattr(value, "__module__", None) == module.__name__:
                    names[name] = value
    return SimpleNamespace(**names)


def register(modules: SimpleNamespace) -> Any:
    """Register the workload's tasks in a lesson's modules. Returns its engine."""
    engine, outside = engine_of(modules), modules.app.outside

    @engine.task
    def note(n: int) -> int:
        outside.record(f"note {n}")
        return n

    @engine.task
    def broken(_: None) -> None:
        outside.record("broken")
        raise ValueError("broken")

    if not hasattr(engine, "NonRetryableError"):
        return engine

    @engine.task
    def broken_once(_: None) -> str:
        outside.record("broken_once")
        if outside.effects().count("broken_once") == 1:
            raise ConnectionError("no answer")
        return "mended"

    @engine.task
    def lost_for_good(_: None) -> None:
        outside.record("lost_for_good")
        raise engine.NonRetryableError("there is no such address")

    if hasattr(engine, "durable"):
        register_durable(engine, modules.app, note, lost_for_good)
    return engine


def register_durable(engine: Any, app: Any, note: Any, lost_for_good: Any) -> None:
    outside: Outside = app.outside
    lesson = Path(app.__file__).parent

    def effect(what: str, key: str) -> str:
        outside.record(f"{what}, key {key}")
        return what

    def pack(key: str) -> str:
        return effect("pack", key)

    def pay(key: str) -> str:
        """Fails once."""
        effect("pay", key)
        if sum(line.startswith("pay, ") for line in outside.effects()) == 1:
            raise ConnectionError("no answer")
        return "paid"

    def break_down(key: str) -> str:
        effect("break_down", key)
        raise engine.NonRetryableError("no petrol")

    def arrive(key: str, got: list[Any]) -> list[Any]:
        effect("arrive", key)
        return got

    def paint(key: str) -> str:
        return effect("paint", key)

    @engine.durable
    def painted(ctx: Any, _: None) -> str:
        return ctx.step(paint) if ctx.patched("in colour") else "in black and white"

    @engine.durable
    def journey(ctx: Any, n: int) -> list[Any]:
        """Steps in place: one that fails once, one that fails for good and is caught."""
        got: list[Any] = [n, ctx.step(pack), ctx.step(pay)]
        try:
            ctx.step(break_down)
        except engine.StepError as error:
            got.append(error.type)
        return ctx.step(arrive, got)

    if not hasattr(engine, "ChildError"):
        return

    def set_out(key: str) -> str:
        return effect("set_out", key)

    def come_home(key: str, got: list[Any]) -> list[Any]:
        effect("come_home", key)
        return got

    @engine.durable
    def tour(ctx: Any, _: None) -> list[Any]:
        """Two children side by side, one that fails, one that is a durable task itself."""
        got: list[Any] = [ctx.step(set_out)]
        got += ctx.gather(ctx.spawn(note, 10), ctx.spawn(note, 11))
        try:
            ctx.run(lost_for_good, None)
        except engine.ChildError as error:
            got.append(error.type)
        got.append(ctx.run(journey, 2))
        if hasattr(ctx, "timer"):
            alarm = ctx.timer(timedelta(seconds=2 * NAP))
            with suppress(engine.WaitTimeout):
                ctx.result(alarm, timeout=timedelta(seconds=NAP))
            ctx.result(alarm)
        return ctx.step(come_home, got)

    if not hasattr(engine, "SignalError"):
        return

    def take_note(key: str, got: list[Any]) -> list[Any]:
        effect("take_note", key)
        return got

    @engine.durable
    def answered(ctx: Any, _: None) -> list[Any]:
        got: list[Any] = [ctx.receive("answer")]
        try:
            ctx.receive("answer")
        except engine.SignalError as error:
            got.append(str(error))
        got.append(ctx.wait_event("it has happened"))
        got += [ctx.receive("letter"), ctx.wait_event("the post is here")]
        return ctx.step(take_note, got)

    @engine.task
    def send_letter(id: int) -> None:
        with open_database(lesson) as db, db.autocommit.connect() as connection:
            engine.send(connection, id, "letter", "hello", key="letter")

    @engine.task
    def bring_post(_: None) -> None:
        """In the only slot: so the upkeep has told of the event before anything else is done."""
        with open_database(lesson) as db, db.autocommit.connect() as connection:
            engine.emit(connection, "the post is here", "now")
            untold = sa.text("select from events where not told")
            wait_until(lambda: not connection.execute(untold).all(), "it is told")


def register_sleepers(modules: SimpleNamespace) -> None:
    """Register what chaos adds from lesson 09 on: tasks that sleep, or wait for so long only."""
    engine = engine_of(modules)
    if not hasattr(engine, "Timers"):
        return

    @engine.task
    def doze(seconds: float) -> None:
        """In a slot."""
        time.sleep(seconds)

    def tell(key: str, what: Any) -> Any:  # noqa: ARG001
        return what

    @engine.durable
    def slumber(ctx: Any, seconds: float) -> str:
        ctx.sleep(timedelta(seconds=seconds))
        return ctx.step(tell, "awake")

    @engine.durable
    def impatient(ctx: Any, seconds: list[float]) -> str:
        """What it does next says whether the child was first, or the clock."""
        child = ctx.spawn(doze, seconds[0], max_attempts=1000)
        try:
            ctx.result(child, timeout=timedelta(seconds=seconds[1]))
            ctx.step(tell, "the child was first")
        except engine.WaitTimeout:
            ctx.step(tell, "the clock was first")
        ctx.result(child)
        return "both"

    @engine.durable
    def alarmed(ctx: Any, seconds: list[float]) -> str:
        """The same with a timer that goes on: both come, in the order that was recorded."""
        child = ctx.spawn(doze, seconds[0], max_attempts=1000)
        alarm = ctx.timer(timedelta(seconds=seconds[1]))
        for one in ctx.as_completed(child, alarm):
            ctx.step(tell, "the child" if one == child else "the clock")
        return "both"

    if hasattr(engine, "SignalError"):
        register_readers(engine, tell)


def register_readers(engine: Any, tell: Any) -> None:
    """From lesson 11 on: tasks that wait for messages called letter, and for events."""

    @engine.durable
    def reader(ctx: Any, seconds: list[float]) -> str:
        """One letter after the other; for each it waits so long at the most."""
        for each in seconds:
            try:
                letter = ctx.receive("letter", timeout=timedelta(seconds=each))
            except engine.WaitTimeout:
                letter = None
            ctx.step(tell, letter)
        return "read"

    @engine.durable
    def chooser(ctx: Any, input: dict[str, Any]) -> str:
        """A letter, an event, or the clock: all three come, in the order that was recorded."""
        letter, event, alarm = (timedelta(seconds=each) for each in input["seconds"])
        waits = [
            ctx.signal("letter", timeout=letter),
            ctx.event(input["event"], timeout=event),
            ctx.timer(alarm),
        ]
        for one in ctx.as_completed(*waits):
            ctx.step(tell, waits.index(one))
        return "all three"

    @engine.durable
    def listener(ctx: Any, event: str) -> str:
        ctx.step(tell, ctx.wait_event(event))
        return "told"


PAINTED: Log = [("patch", "in colour"), ("step", "paint")]
JOURNEY: Log = [("step", "pack"), ("step", "pay"), ("step", "break_down"), ("step", "arrive")]
TOUR: Log = [
    ("step", "set_out"),
    ("child", "note"),
    ("child", "note"),
    ("child", "lost_for_good"),
    ("child", "journey"),
]
TIMERS: Log = [("timer", "sleep"), ("timer", "timeout")]
HOME: Log = [("step", "come_home")]
ANSWERED: Log = [
    ("signal", "answer"),
    ("signal", "answer"),
    ("event", "it has happened"),
    ("signal", "letter"),
    ("event", "the post is here"),
    ("step", "take_note"),
]


def journeyed(n: int) -> list[Any]:
    return [n, "pack", "paid", "NonRetryableError"]


def enqueue(engine: Any, number: int, connection: sa.Connection) -> dict[int, Expected]:
    """Enqueue the workload; the ids and what each is to come to. Children are not among them."""
    add = engine.enqueue
    expected = {add(connection, "note", 1): Expected("note", "succeeded", 1)}
    if number == 2:
        engine.limit_queue(connection, "default", 2)
    if number < 3:
        expected[add(connection, "broken", None)] = Expected("broken", "failed")
        expected[add(connection, "note", 2)] = Expected("note", "succeeded", 2)
        return expected
    expected[add(connection, "lost_for_good", None)] = Expected("lost_for_good", "failed")
    for _ in range(2):  # the second finds the first
        id = add(connection, "note", 2, idempotency_key="note 2")
        expected[id] = Expected("note", "succeeded", 2)
    # One task that is tried again, and it comes last: so there is one order of commits only.
    if number == 3:
        id = add(connection, "broken_once", None)
        expected[id] = Expected("broken_once", "succeeded", "mended")
    elif number in (4, 5):
        id = add(connection, "journey", 1)
        expected[id] = Expected("journey", "succeeded", journeyed(1), JOURNEY)
    else:
        if number >= 11:
            expected |= enqueue_answered(engine, connection)
        if hasattr(engine, "Patches"):
            id = add(connection, "painted", None)
            expected[id] = Expected("painted", "succeeded", "paint", PAINTED)
        home = ["set_out", 10, 11, "NonRetryableError", journeyed(2)]
        log = [*TOUR, *(TIMERS if number >= 9 else []), *HOME]
        expected[add(connection, "tour", None)] = Expected("tour", "succeeded", home, log)
    return expected


def enqueue_answered(engine: Any, connection: sa.Connection) -> dict[int, Expected]:
    """Half of the answers are there; the others come from the tasks after it, one by one.

    There is no event to tell of before: so there is one order of commits.
    """
    id = engine.enqueue(connection, "answered", None)
    engine.send(connection, id, "answer", "yes")
    engine.send_error(connection, id, "answer", "no")
    engine.emit(connection, "it has happened", "today")
    connection.execute(sa.text("update events set told = true"))
    sender = engine.enqueue(connection, "send_letter", id)
    emitter = engine.enqueue(connection, "bring_post", None)
    got = ["yes", "answer: no", "today", "hello", "now"]
    return {
        id: Expected("answered", "succeeded", got, ANSWERED),
        sender: Expected("send_letter", "succeeded"),
        emitter: Expected("bring_post", "succeeded"),
    }


def children() -> list[Expected]:
    """Those of `tour`, in the order of their positions."""
    return [
        Expected("note", "succeeded", 10),
        Expected("note", "succeeded", 11),
        Expected("lost_for_good", "failed"),
        Expected("journey", "succeeded", journeyed(2), JOURNEY),
    ]
