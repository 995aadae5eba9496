"""Other engines on the same server, by turns with the last lesson and with the floor."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import sqlalchemy as sa
from psycopg import sql

from bench import jobs, report
from bench.floor import FLOOR
from bench.lesson import SECONDS, draining, opened, workflows
from bench.measures import BATCH, PAYLOAD, STEPS, BenchError, Rounds, Sizes, Values, check, summary

ROOT = Path(__file__).resolve().parents[1]
LOOK_SECONDS = 0.05
TITLES = {
    "drain_many_1": "tasks a second",
    "drain_many_2": "with two processes",
    "workflows_many": f"functions of {STEPS} steps a second",
}


@dataclass(frozen=True)
class Peer:
    """slots: tasks at once, the best of those that were tried. left: how many have not succeeded.

    share: of the tasks that the lesson gets, as some engines are slow.
    """

    package: str
    slots: int
    left: LiteralString
    share: float = 0.3
    has_steps: bool = False

    @property
    def engine(self) -> str:
        """Its module in bench/engines."""
        return self.package.removesuffix("-sdk")


PEERS = [
    Peer(
        "dbos",
        100,
        "select count(*) from dbos.workflow_status where status <> 'SUCCESS'",
        has_steps=True,
    ),
    Peer(
        "absurd-sdk",
        100,
        "select count(*) from absurd.t_q where state <> 'completed'",
        has_steps=True,
    ),
    Peer(
        "procrastinate",
        100,
        "select count(*) from procrastinate_jobs where status <> 'succeeded'",
        share=0.2,
    ),
    Peer("pgqueuer", 500, "select count(*) from pgqueuer", share=1),
]


def compare(url: str, path: Path, sizes: Sizes, rounds: int) -> Rounds:
    """Raises BenchError."""
    engines: dict[str, Callable[[Sizes], Values]] = {"floor": partial(ours, FLOOR, BATCH)}
    for slots in (BATCH, 5 * BATCH):
        name = f"lesson {path.name[:2]}, {slots} slots"
        engines[name] = partial(ours, jobs.load(path), slots)
    for peer in PEERS:
        engines[f"{peer.package} {installed(peer.package)}"] = partial(theirs, url, peer)
    found: Rounds = {name: [] for name in engines}
    for _ in range(rounds):
        for name, one_round in engines.items():
            found[name].append(one_round(sizes))
    return found


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        raise BenchError(f"{package} is missing: sh tools/setup.sh peers") from None


def ours(lesson: Any, slots: int, sizes: Sizes) -> Values:
    found: Values = {}
    with opened(lesson) as bench:
        for count, names in ((1, "a"), (2, "ab")):
            with bench.workers(*names, slots=slots) as workers:
                found |= draining(bench, workers, f"drain_many_{count}", sizes.many_tasks)
                if count == 1:
                    found |= workflows(bench, workers, "workflows_many", sizes.many_workflows)
    return found


def theirs(url: str, peer: Peer, sizes: Sizes) -> Values:
    payload, tasks = json.loads(PAYLOAD), int(peer.share * sizes.many_tasks)
    found = {
        f"drain_many_{count}": drain(url, peer, "nothing", payload, tasks, count)
        for count in (1, 2)
    }
    if peer.has_steps:
        count = 2 * sizes.many_workflows  # many, as those that began together end together
        found["workflows_many"] = drain(url, peer, "steps", STEPS, count, 1)
    return found


def drain(url: str, peer: Peer, task: str, input: Any, count: int, processes: int) -> float:
    """Tasks a second, from the first tenth to the last: an engine's start is not counted."""
    with database(url, f"test_bench_{peer.engine}") as own:

        def start(verb: str, *arguments: object) -> "subprocess.Popen[bytes]":
            command = [sys.executable, "-m", "bench.engines", peer.engine, verb, own]
            return subprocess.Popen([*command, *map(str, arguments)], cwd=ROOT)

        for verb, *arguments in (("setup", peer.slots), ("fill", task, json.dumps(input), count)):
            status = start(verb, *arguments).wait(SECONDS)
            check(status == 0, f"{peer.package}: {verb} has ended with status {status}")
        with psycopg.connect(own, autocommit=True) as watcher:
            watcher.execute("vacuum analyze")
            watcher.execute("checkpoint")
            workers = [start("work", peer.slots) for _ in range(processes)]
            try:
                return rate(watcher, peer, count)
            finally:
                for worker in workers:
                    worker.kill()
                    worker.wait()


def rate(watcher: psycopg.Connection[Any], peer: Peer, count: int) -> float:
    """Raises BenchError."""
    begin = time.monotonic()
    marks: list[tuple[float, int]] = []  # when, and how many were done
    done = 0
    while done < count:
        waited = time.monotonic() - begin
        check(waited < SECONDS, f"{peer.package}: after {SECONDS} s, {done} of {count} are done")
        time.sleep(LOOK_SECONDS)
        done = count - watcher.execute(peer.left).fetchall()[0][0]
        marks.append((time.monotonic(), done))
    first = next(mark for mark in marks if mark[1] >= 0.1 * count)
    last = next(mark for mark in marks if mark[1] >= 0.9 * count)
    check(first != last, f"{peer.package}: {count} were done between two looks: give it more")
    return (last[1] - first[1]) / (last[0] - first[0])


@contextmanager
def database(url: str, name: str) -> Iterator[str]:
    """An empty database with that name, and its address."""
    drop = sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name))
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(drop)
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        try:
            yield sa.make_url(url).set(database=name).render_as_string(hide_password=False)
        finally:
            connection.execute(drop)


def rows(found: Rounds) -> report.Rows:
    cells = summary(found)
    return [
        ["", *TITLES.values()],
        *([name, *(report.cell(cells[key].get(name)) for key in TITLES)] for name in found),
    ]
