"""How the engine is tried: crashes at every commit, random schedules, planted bugs, bad lines."""

from pathlib import Path

import click

from shared.lessons import NoSuchLesson, find


def lesson_with_worker(_: click.Context, __: click.Parameter, name: str | None) -> Path:
    """For click: the lesson that somebody means; 06, or the directory of a copy."""
    try:
        path = find(name)
    except NoSuchLesson as error:
        raise click.BadParameter(str(error)) from None
    if not (path / "worker.py").is_file():
        raise click.BadParameter(f"{path.name} has no worker")
    return path
