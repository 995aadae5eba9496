import asyncio
import json
from typing import Any

import psycopg
from absurd_sdk import Absurd, AsyncAbsurd
from absurdctl import BUNDLED_SCHEMA_SQL


def setup(url: str, slots: int) -> None:  # noqa: ARG001
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(BUNDLED_SCHEMA_SQL)
    Absurd(url, queue_name="q").create_queue()


def fill(url: str, task: str, input: Any, count: int) -> None:
    """Its own function, in one statement: the client sends one for each task."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "select absurd.spawn_task('q', %s, %s::jsonb, '{}') from generate_series(1, %s)",
            (task, json.dumps(input), count),
        )


def work(url: str, slots: int) -> None:
    app = AsyncAbsurd(url, queue_name="q")

    @app.register_task(name="nothing")
    async def nothing(params: Any, ctx: Any) -> None:
        pass

    async def step() -> int:
        return 1

    @app.register_task(name="steps")
    async def steps(params: Any, ctx: Any) -> None:
        for number in range(params):
            await ctx.step(f"step {number}", step)

    asyncio.run(app.start_worker(concurrency=slots, poll_interval=0.01))
