import asyncio
import json
from typing import Any

import asyncpg
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.queries import Queries


async def driver(url: str) -> AsyncpgDriver:
    return AsyncpgDriver(await asyncpg.connect(url))


def setup(url: str, slots: int) -> None:  # noqa: ARG001
    async def install() -> None:
        await Queries(await driver(url)).install()

    asyncio.run(install())


def fill(url: str, task: str, input: Any, count: int) -> None:
    async def enqueue() -> None:
        payload = json.dumps(input).encode()
        await Queries(await driver(url)).enqueue([task] * count, [payload] * count, [0] * count)

    asyncio.run(enqueue())


def work(url: str, slots: int) -> None:
    async def run() -> None:
        worker = PgQueuer(await driver(url))

        @worker.entrypoint("nothing")
        async def nothing(job: Any) -> None:
            pass

        await worker.run(batch_size=slots)

    asyncio.run(run())
