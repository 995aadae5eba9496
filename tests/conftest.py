"""Most fixtures are in shared/testing.py: exercises and copies outside this directory need them."""

import gc
import os

import pytest

from faults import chaos
from shared.processes import WorkerProcess
from tools.forked import Program

WorkerProcess.start = Program  # a new Python takes longer to import than most workers work
pytest.register_assert_rewrite("tests.helpers", "tests.model")

# The longest begin first: else the last of them is still running when all other tests have ended.
LONG = ("crash_points", "model", "bench", "build", "cost", "chaos", "kills")


def pytest_collection_modifyitems(items):
    def rank(item):
        return next((n for n, stem in enumerate(LONG) if item.path.stem.endswith(stem)), len(LONG))

    items.sort(key=rank)


def pytest_collection_finish():
    gc.freeze()  # what there is now stays, and would be looked through again and again


@pytest.fixture
def own_server(tmp_path, monkeypatch):
    """An embedded server that is this test's own, and may be shut down."""
    if os.environ.get("DATABASE_URL"):
        pytest.skip("DATABASE_URL is set")
    monkeypatch.setenv("LESSON_SCHEMA", "test_own_server")
    monkeypatch.setenv("LESSON_OUTSIDE", str(tmp_path / "outside.log"))
    with chaos.own_server() as own:
        yield own


@pytest.fixture
def silent(db):
    """From lesson 08 on: no hint ever comes, and everything must work as before."""
    with db.connect(autocommit=True) as connection:
        connection.execute(SILENCE)


@pytest.fixture(autouse=True)
def no_hints(request):
    """NO_HINTS=1 pytest tests/test_0[1-7]_*.py"""
    if os.environ.get("NO_HINTS") and "db" in request.fixturenames:
        request.getfixturevalue("silent")


SILENCE = """
do $$ begin
    alter table tasks disable trigger tell_workers;
exception when undefined_object or undefined_table then null;  -- an earlier lesson
end $$
"""


@pytest.fixture
def world(lesson, db):
    """What the random schedules of one test share."""
    from tests.model import open_world

    with open_world(lesson, db) as opened:
        yield opened


@pytest.fixture(autouse=True)
def new_shop():
    """What the steps of the shop have done is of one test."""
    from tests import shop

    shop.effects.clear()
    shop.broken.clear()
