"""python -m glass LESSON [--port N] [--control] [--terminal]"""

import os
import secrets
import socket
import sys
from contextlib import suppress
from pathlib import Path

import click
import uvicorn

from glass.activity import default_slots
from glass.control import Control
from glass.follow import Follower
from glass.history import History
from glass.page import Page
from glass.terminal import show
from shared.database import schema_name
from shared.lessons import NoSuchLesson, find
from shared.postgres import PostgresUnavailable, server
from shared.processes import stop_with_parent


def lesson_path(_: click.Context, __: click.Parameter, name: str) -> Path:
    try:
        return find(name)
    except NoSuchLesson as error:
        raise click.BadParameter(str(error)) from None


@click.command()
@click.argument("lesson", callback=lesson_path)
@click.option("--port", type=click.IntRange(0, 65535), default=8420, show_default=True)
@click.option("--control", is_flag=True, help="With buttons: start workers, kill them, enqueue.")
@click.option("--terminal", is_flag=True, help="In this terminal, without a page.")
def main(lesson: Path, port: int, control: bool, terminal: bool) -> None:
    """Show the rows of LESSON (03, or a copy such as work/03_mine) as they change."""
    stop_with_parent()
    schema = os.environ.get("LESSON_SCHEMA") or schema_name(lesson)
    history = History()
    try:
        with (
            server() as url,
            Follower(url, schema, history, default_slots(lesson)).running(),
            suppress(KeyboardInterrupt),
        ):
            if terminal:
                show(history, lesson.name)
            else:
                buttons = Control(lesson, schema, url, history) if control else None
                serve(Page(lesson.name, history, buttons), port)
    except PostgresUnavailable as error:
        raise click.ClickException(str(error)) from None


def serve(page: Page, port: int) -> None:
    """Until Ctrl-C. The address is printed when it can be opened."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            raise click.ClickException(f"port {port}: {error.strerror}. Try --port 0") from None
        listener.listen()
        port = listener.getsockname()[1]
        token = secrets.token_urlsafe(24)
        print(f"http://127.0.0.1:{port}/?token={token}", flush=True)
        print("Open this in a browser; Ctrl-C ends it.", file=sys.stderr)
        config = uvicorn.Config(
            page.application(port, token), log_level="warning", timeout_graceful_shutdown=3
        )
        server = uvicorn.Server(config)
        page.is_over = lambda: server.should_exit
        try:
            server.run(sockets=[listener])
        finally:
            if page.control:
                page.control.close()


if __name__ == "__main__":
    main()
