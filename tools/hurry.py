"""A pytest plugin: a test that is to fail does not wait long. --hurry=test_x.py::test_y: only that.

What they wait for does not come: it is broken, or nobody has written it yet.
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
    chosen = cast(list[str], item.config.getoption("--hurry"))
    if chosen and test not in chosen:
        return (yield)
    with environment(TEST_PATIENCE=PATIENCE):
        return (yield)
