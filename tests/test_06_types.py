"""Lesson 06: a type checker understands the API."""

import json
import subprocess
import sys

import pytest

from tests.helpers import (
    copy_of,
)

TYPED = """
from typing import assert_type
from children import Pending
from context import Context, durable
from tasks import task

@task
def length(text: str) -> int:
    return len(text)

@durable
def inner(ctx: Context, n: int) -> list[str]:
    return [ctx.step(describe, n, unit="m")]

def describe(key: str, n: int, *, unit: str) -> str:
    return f"{n} {unit}"

@durable
def outer(ctx: Context, text: str) -> int:
    child = ctx.spawn(length, text, priority=1)
    assert_type(child, Pending[int])
    assert_type(ctx.gather(child, ctx.spawn(length, "b")), list[int])
    assert_type(ctx.run(inner, 3), list[str])
    assert_type(ctx.step(describe, 3, unit="m"), str)
    for done in ctx.as_completed(child):
        assert_type(ctx.result(done), int)
    ctx.run(inner, "three")  # pyright: ignore[reportCallIssue, reportArgumentType]
    ctx.spawn(length, text, prio=1)  # pyright: ignore[reportCallIssue]
    ctx.step(describe, "x", unit="m")  # pyright: ignore[reportArgumentType]
    return ctx.result(child)
"""


def test_a_type_checker_understands_the_api(lesson, tmp_path):
    pytest.importorskip("basedpyright", reason="it comes with `make check`")
    path = copy_of(lesson, tmp_path, "")
    (path / "typed.py").write_text(TYPED)
    (path / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    done = subprocess.run(
        [sys.executable, "-m", "basedpyright", "--outputjson", "typed.py"],
        cwd=path,
        capture_output=True,
        text=True,
    )
    found = json.loads(done.stdout)["generalDiagnostics"]
    assert [(d["range"]["start"]["line"], d["message"]) for d in found] == []
