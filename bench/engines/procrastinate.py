import asyncio
from typing import Any

from procrastinate import App, PsycopgConnector


def app_at(url: str) -> App:
    app = App(connector=PsycopgConnector(conninfo=url, max_size=20))

    @app.task(name="nothing")
    async def nothing(input: Any) -> None:
        pass

    return app


def setup(url: str, slots: int) -> None:  # noqa: ARG001
    async def install() -> None:
        async with app_at(url).open_async() as app:
            await app.schema_manager.apply_schema_async()

    asyncio.run(install())


def fill(url: str, task: str, input: Any, count: int) -> None:
    async def defer() -> None:
        async with app_at(url).open_async() as app:
            await app.tasks[task].batch_defer_async(*({"input": input} for _ in range(count)))

    asyncio.run(defer())


def work(url: str, slots: int) -> None:
    async def run() -> None:
        async with app_at(url).open_async() as app:
            await app.run_worker_async(concurrency=slots, delete_jobs="never")

    asyncio.run(run())
