"""The page: what it shows, as JSON, and what its buttons do. On 127.0.0.1 only; see guard.py."""

import asyncio
import json
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psycopg
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from glass.control import Control, Refused
from glass.guard import Guard
from glass.history import History
from glass.view import stepped, view

STATIC = Path(__file__).parent / "static"


class Page:
    def __init__(self, title: str, history: History, control: Control | None) -> None:
        self.title, self.history, self.control = title, history, control
        self.is_over: Callable[[], bool] = lambda: False  # then what is live ends, too

    def application(self, port: int, token: str) -> Starlette:
        routes = [
            Route("/", self.index),
            Route("/view", self.view),
            Route("/live", self.live),
            Route("/value", self.value),
            Mount("/static", StaticFiles(directory=STATIC)),
        ]
        if self.control:
            routes.append(Route("/do", self.do, methods=["POST"]))
        return Starlette(routes=routes, middleware=[Middleware(Guard, port=port, token=token)])

    async def index(self, _: Request) -> Response:
        text = (STATIC / "index.html").read_text()
        return Response(text, media_type="text/html; charset=utf-8")

    def look(self, moment: int | None, task: str | None) -> str:
        """A view, as JSON, and what the page has to know besides."""
        control = self.control
        buttons = control and {
            "names": control.names,
            "verbs": control.verbs,
            "crash": control.may_crash,
        }
        seen = {"title": self.title, "buttons": buttons, **vars(view(self.history, moment, task))}
        return json.dumps(seen, default=vars)

    async def view(self, request: Request) -> Response:
        """As it was after so many moments, and so many steps on from there."""
        asked = request.query_params
        try:
            at, steps = int(asked.get("at", "")), int(asked.get("steps", "0"))
        except ValueError:
            return PlainTextResponse("at=NUMBER", 400)
        moment = stepped(self.history, at, steps)
        text = await run_in_threadpool(self.look, moment, asked.get("task"))
        return Response(text, media_type="application/json")

    async def live(self, request: Request) -> Response:
        """What is now, as often as it changes, and twice a second in any case."""

        async def events() -> AsyncIterator[str]:
            task = request.query_params.get("task")
            version, sent = -1, 0.0
            while not (self.is_over() or await request.is_disconnected()):
                started = time.monotonic()
                if self.history.version != version or started > sent + 0.5:
                    version, sent = self.history.version, started
                    yield f"data: {await run_in_threadpool(self.look, None, task)}\n\n"
                await asyncio.sleep(min(1, max(0.1, 9 * (time.monotonic() - started))))

        return StreamingResponse(events(), media_type="text/event-stream")

    async def value(self, request: Request) -> Response:
        """All of a value of the task, however long."""
        asked = request.query_params
        try:
            at = int(asked.get("at", ""))
        except ValueError:
            return PlainTextResponse("at=NUMBER", 400)
        with self.history.lock:
            _, state = self.history.at(at)
        row = state.get("tasks", {}).get((asked.get("task", ""),), {})
        return PlainTextResponse(row.get(asked.get("column", "")) or "")

    async def do(self, request: Request) -> Response:
        assert self.control
        control = self.control
        verbs: dict[str, Callable[[dict[str, Any]], str]] = {
            "signal": lambda asked: control.signal(int(asked["pid"]), str(asked["name"])),
            "cut": lambda asked: control.cut(int(asked["pid"])),
            "worker": lambda asked: control.worker(str(asked["lease"])),
            "enqueue": lambda asked: control.enqueue(str(asked["name"]), str(asked["input"])),
            "by_hand": lambda asked: control.by_hand(str(asked["name"]), int(asked["task"])),
            "step": lambda asked: control.step(int(asked["number"]), str(asked["answer"])),
            "crash": lambda _: control.crash(),
        }
        try:
            asked = await request.json()
            return PlainTextResponse(await run_in_threadpool(verbs[asked["do"]], asked))
        except (Refused, psycopg.Error, OSError, subprocess.SubprocessError) as error:
            return PlainTextResponse(f"{error}", 409)
        except (KeyError, ValueError, TypeError) as error:
            return PlainTextResponse(f"not understood: {error!r:.100}", 400)
