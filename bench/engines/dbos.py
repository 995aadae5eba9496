import os
import time
from typing import Any

from dbos import DBOS, DBOSClient

VERSION = "1"  # of the application: a worker runs the workflows of its own


@DBOS.workflow(name="nothing")
def nothing(_: Any) -> None:
    pass


@DBOS.step()
def step(number: int) -> int:
    return number


@DBOS.workflow(name="steps")
def steps(count: int) -> None:
    for number in range(count):
        step(number)


def launch(url: str) -> None:
    DBOS(
        config={
            "name": "bench",
            "system_database_url": url,
            "sys_db_pool_size": 20,
            "run_admin_server": False,
            "log_level": "WARNING",
            "application_version": VERSION,
            "executor_id": str(os.getpid()),
        }
    )
    DBOS.launch()


def setup(url: str, slots: int) -> None:
    launch(url)
    DBOS.register_queue(
        "q", worker_concurrency=slots, polling_interval_sec=0.01, on_conflict="always_update"
    )
    DBOS.destroy()


def fill(url: str, task: str, input: Any, count: int) -> None:
    client = DBOSClient(system_database_url=url)
    for _ in range(count):
        client.enqueue({"queue_name": "q", "workflow_name": task, "app_version": VERSION}, input)
    client.destroy()


def work(url: str, slots: int) -> None:  # noqa: ARG001
    launch(url)
    time.sleep(3600)
