"""Lesson 13: changing code under running work. --help lists the verbs."""

import hashlib
import inspect
import subprocess
import sys
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import sqlalchemy as sa

import app
import run
from claim import limit_queue
from control import cancel, fork, replay, retry
from db.queries import Querier
from events import emit
from listen import wait_for_result
from rehearsal import export_log, rehearse
from schedules import delete, pause, resume, set_schedule
from shared.database import Database
from shared.processes import WorkerProcess, wait_until, worker_processes
from shared.story import check, count, feared, get, log_of, say, scene, status
from shared.verbs import verbs
from signals import send
from tasks import enqueue, registry
from versions import list_versions, move_version
from worker import Worker

HERE = Path(__file__).resolve().parent


def story(db: Database) -> None:
    failed(db)
    parked(db)
    pinned(db)
    patched(db)
    hashed()
    rehearsed()


def failed(db: Database) -> None:
    scene("An order is charged, and its function is edited; as in lesson 12")
    app.outside.forget()
    with workers("a", "--no-parking"):
        order = enqueue_one(db, "sell", {"id": 1})
        # A program that has the new code already: to this one, the name is not known.
        coupon = insert(db, "insert into tasks (name, input, max_attempts) values ('send_coupon', '1', 2)")
        wait_until(lambda: status(db, order) == "waiting", "it waits for the warehouse")
        wait_until(lambda: status(db, coupon) == "failed", "its tries are used up")
    feared(True, f"a new task, and a worker that is still the old one: {error(db, coupon)}")
    with workers("b", "--deploy", "edited", "--no-parking"):
        packed(db, order)
        wait_until(lambda: status(db, order) == "failed", "it does not fit")
    say(error(db, order))
    feared(effects("order 1: card charged") == 1, "an order has failed that was charged")
