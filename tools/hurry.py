"""A pytest plugin: with --hurry=test_x.py::test_y, a test that is to fail does not wait long.

What they wait for does not come: nobody has written it yet.
"""

from collections.abc import Generator
from typing import Any, cast

import pytest

from shared.testing import environment

PATIENCE = "0.2"  # of the usual deadlines


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--hurry", action="append", default=[])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    test = f"{item.path.name}::{item.name.partition('[')[0]}"
    if test not in cast(list[str], item.config.getoption("--hurry")):
        return (yield)
    with environment(TEST_PATIENCE=PATIENCE):
        return (yield)
