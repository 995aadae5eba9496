"""A proxy between a worker and Postgres. It sees each commit; it can cut, freeze or delay the line.

It reads as much of the frontend/backend protocol, version 3, as that needs ("Message Formats" in
the PostgreSQL documentation). A request of the client ends with Sync, or is a simple Query; the
server's answer to it ends with ReadyForQuery, which says whether a transaction is open.
"""

import asyncio
import re
import struct
import tempfile
import threading
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from psycopg.conninfo import conninfo_to_dict, make_conninfo

NOT_ENCRYPTED = (80877103, 80877104)  # requests for TLS and for GSSAPI, to be answered with N

# Statements that change rows, and calls that do; a NOTIFY is sent when it commits.
WRITES = re.compile(r"\b(insert|delete)\b|(?<!for )\bupdate\b|\b(complete_entr\w+|pg_notify)\s*\(")

# Told the names of the statements, in the proxy's thread. True: close the connection. It may also
# call `freeze`: then this message is the first that is kept back.
Hook = Callable[[tuple[str, ...]], bool]


class Proxy:
    """One listening socket. `url` is what workers connect to, instead of the server's own.

    before_commit: called before a request is passed on that will commit if it succeeds.
    after_commit: called when the server has committed a change, and its answer not yet passed on.
    """

    def __init__(self, upstream: str, *, before_commit: Hook, after_commit: Hook) -> None:
        self.url = ""
        self.delay = 0.0  # seconds for each request
        self._conninfo = upstream
        self._upstream = conninfo_to_dict(upstream)
        self._before = before_commit
        self._after = after_commit
        self._loop = asyncio.new_event_loop()
        self._open = asyncio.Event()  # not set: nothing is passed on, and nobody is told
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def freeze(self) -> None:
        """Half-open: connections stay, and nothing comes through any more."""
        self._open.clear()

    def thaw(self) -> None:
        self._loop.call_soon_threadsafe(self._open.set)

    def cut(self) -> None:
        """Reset all connections. New ones are possible."""

        def abort() -> None:
            for writer in self._writers:
                writer.transport.abort()

        self._loop.call_soon_threadsafe(abort)

    async def serve(self, started: Callable[[], None], directory: Path) -> None:
        self._open.set()
        port = str(self._upstream.get("port") or 5432)
        server = await asyncio.start_unix_server(self._serve, directory / f".s.PGSQL.{port}")
        self.url = make_conninfo(self._conninfo, host=str(directory), port=port)
        async with server:
            started()
            await server.serve_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = str(self._upstream.get("host") or ""), self._upstream.get("port") or 5432
        try:
            if host.startswith("/"):
                server = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
            else:
                server = await asyncio.open_connection(host or "127.0.0.1", int(port))
        except OSError:  # the server is down: the client gets what it would get without a proxy
            writer.transport.abort()
            return
        writers = {writer, server[1]}
        self._writers |= writers
        line = Line()
        try:
            async with asyncio.TaskGroup() as pumps:
                await self._start(reader, writer, server[1])
                pumps.create_task(self._requests(reader, server[1], line))
                pumps.create_task(self._answers(server[0], writer, line))
        except* (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client is gone, or the server, or the line is cut here
        finally:
            self._writers -= writers
            for one in writers:
                one.transport.abort()

    async def _start(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        server: asyncio.StreamWriter,
    ) -> None:
        """The first packet has no type."""
        while True:
            head = await reader.readexactly(8)
            length, code = struct.unpack("!II", head)
            if code not in NOT_ENCRYPTED:
                server.write(head + await reader.readexactly(length - 8))
                return
            writer.write(b"N")

    async def _requests(
        self, reader: asyncio.StreamReader, server: asyncio.StreamWriter, line: "Line"
    ) -> None:
        request = b""
        while True:
            kind, body, message = await read_message(reader)
            request += message
            line.note_request(kind, body)
            if kind in b"SQX" or not line.ready:  # also what it sends to log in
                if self.delay:
                    await asyncio.sleep(self.delay)
                if line.will_commit() and self._before(line.asked):
                    raise ConnectionAbortedError
                await self._open.wait()
                server.write(request)
                await server.drain()
                request = b""

    async def _answers(
        self, server: asyncio.StreamReader, writer: asyncio.StreamWriter, line: "Line"
    ) -> None:
        answer = b""
        while True:
            kind, body, message = await read_message(server)
            if kind == b"A":  # a notification comes at any moment, and is no part of an answer
                await self._open.wait()
                writer.write(message)
                continue
            answer += message
            committed = line.note_answer(kind, body)
            if kind == b"Z" or not line.ready:
                if committed and self._after(committed):
                    raise ConnectionAbortedError
                await self._open.wait()
                writer.write(answer)
                await writer.drain()
                answer = b""

    @contextmanager
    def running(self) -> Generator["Proxy"]:
        started = threading.Event()
        with tempfile.TemporaryDirectory(prefix="proxy") as directory:
            serve = self.serve(started.set, Path(directory))
            thread = threading.Thread(target=self._run, args=(serve,), daemon=True)
            thread.start()
            if not started.wait(10):
                raise TimeoutError("the proxy does not start")
            try:
                yield self
            finally:
                self._loop.call_soon_threadsafe(self._cancel)
                thread.join(10)

    def _run(self, serve: Coroutine[Any, Any, None]) -> None:
        with (
            suppress(asyncio.CancelledError),
            asyncio.Runner(loop_factory=lambda: self._loop) as run,
        ):
            run.run(serve)

    def _cancel(self) -> None:
        for task in asyncio.all_tasks(self._loop):
            task.cancel()


class Line:
    """What is known of one connection: its prepared statements, its transaction."""

    def __init__(self) -> None:
        self.ready = False  # logged in
        self.asked: tuple[str, ...] = ()  # by the statements of this request and its transaction
        self._prepared: dict[bytes, str] = {}
        self._sql = ""
        self._in_transaction = False
        self._changed: tuple[str, ...] = ()

    def note_request(self, kind: bytes, body: bytes) -> None:
        if kind == b"P":
            name, sql, _ = body.split(b"\0", 2)
            self._prepared[name] = sql.decode(errors="replace")
        elif kind == b"B":
            self._ask(self._prepared[body.split(b"\0", 2)[1]])
        elif kind == b"Q":
            self._ask(body[:-1].decode(errors="replace"))

    def _ask(self, sql: str) -> None:
        self._sql = sql
        if not self._in_transaction:
            self.asked = ()
        if writes(sql):
            self.asked += (statement_name(sql),)

    def will_commit(self) -> bool:
        if self._in_transaction:
            return bool(self.asked) and self._sql.strip().upper() == "COMMIT"
        return bool(self.asked)

    def note_answer(self, kind: bytes, body: bytes) -> tuple[str, ...]:
        """The names of the statements that changed something, if this says that they committed."""
        if kind == b"C":
            tag = body[:-1].decode()
            if tag == "ROLLBACK":
                self._changed = ()
            elif writes(self._sql) and tag.rpartition(" ")[2] not in ("0", ""):
                self._changed += (statement_name(self._sql),)
        elif kind == b"Z":
            self.ready = True
            self._in_transaction = body != b"I"
            if not self._in_transaction:
                changed, self._changed, self.asked = self._changed, (), ()
                return changed
        return ()


async def read_message(reader: asyncio.StreamReader) -> tuple[bytes, bytes, bytes]:
    """Its type, its body, and the whole of it."""
    head = await reader.readexactly(5)
    body = await reader.readexactly(struct.unpack("!I", head[1:])[0] - 4)
    return head[:1], body, head + body


def writes(sql: str) -> bool:
    return bool(WRITES.search(re.sub(r"--.*", "", sql)))


def statement_name(sql: str) -> str:
    """`ClaimTasks`, as in queries.sql; sqlc's generated code carries it in a comment."""
    found = re.search(r"-- name: (\w+)", sql)
    if not found:
        return sql.split()[0]
    return "".join(word.capitalize() for word in found[1].split("_"))
