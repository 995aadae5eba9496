"""Most fixtures are in shared/testing.py: exercises and copies outside this directory need them."""

import os

import pytest

from faults import chaos

pytest.register_assert_rewrite("tests.helpers", "tests.model")


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
