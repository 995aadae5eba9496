"""What it costs that somebody watches: the same drain, with `make watch` open and without."""

import http.client
import statistics
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import psutil

from bench import jobs, report
from bench.lesson import HERE, Bench, opened
from bench.measures import PAYLOAD, Values

TITLES = {"rate": "tasks/s", "wal": "WAL per task, bytes", "cpu": "CPU of the watcher, s"}


def compare(path: Path, tasks: int, rounds: int) -> dict[str, list[Values]]:
    """Drains with nobody watching and with somebody, in turn."""
    found: dict[str, list[Values]] = {"nobody watches": [], "a page is open": []}
    with opened(jobs.load(path)) as bench, bench.workers("a", "b"):
        drain(bench, tasks // 10)
        for _ in range(rounds):
            found["nobody watches"].append(drain(bench, tasks))
            with watching(path) as watcher:
                before = cpu(watcher)
                values = drain(bench, tasks)
                found["a page is open"].append({**values, "cpu": cpu(watcher) - before})
    return found


def drain(bench: Bench, tasks: int) -> Values:
    bench.empty()
    seconds, wal = bench.drain("nothing", PAYLOAD, tasks)
    return {"rate": tasks / seconds, "wal": wal / tasks}


def cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


@contextmanager
def watching(path: Path) -> Generator[psutil.Process]:
    """`make watch`, and somebody who takes all that the page is sent."""
    command = [sys.executable, "-m", "glass", str(path), "--port", "0"]
    glass = subprocess.Popen(command, cwd=HERE.parent, stdout=subprocess.PIPE, text=True)
    assert glass.stdout
    try:
        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        url = glass.stdout.readline().strip()
        browser.open(url, timeout=30).read()  # the cookie
        live = browser.open(f"{url.partition('?')[0]}live", timeout=30)
        live.readline()
        threading.Thread(target=take_all, args=[live], daemon=True).start()
        yield psutil.Process(glass.pid)
    finally:
        glass.terminate()
        glass.wait(30)


def take_all(stream: IO[bytes]) -> None:
    with suppress(OSError, ValueError, http.client.HTTPException):
        for _ in stream:
            pass


def rows(found: dict[str, list[Values]]) -> list[list[str]]:
    """A table: the medians, with the lowest and the highest round."""

    def cell(rounds: list[Values], key: str) -> str:
        values = [once[key] for once in rounds if key in once]
        if not values:
            return "–"
        low, high = report.number(min(values)), report.number(max(values))
        return f"{report.number(statistics.median(values))}\n{low}–{high}"

    titles = ["", *TITLES.values()]
    return [titles, *([name, *(cell(r, key) for key in TITLES)] for name, r in found.items())]
