"""A Postgres server: the one in DATABASE_URL, or else an embedded one."""

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager

INSTEAD = "Or set DATABASE_URL to a Postgres of your own; docker-compose.yml has one ready."


class PostgresUnavailable(Exception):
    """There is no server to be had. The message says why, and the way out."""


@contextmanager
def server() -> Generator[str]:
    """Yield the URL (for libpq) of a server that runs for as long as the context lasts.

    Raises PostgresUnavailable.
    """
    if url := os.environ.get("DATABASE_URL"):
        yield url
        return
    if sys.platform == "win32":
        raise PostgresUnavailable(f"Windows has no embedded Postgres. Use WSL. {INSTEAD}")
    from shared.embedded import Embedded  # imports what only Unix has

    embedded, owner = Embedded(), os.getpid()
    users = embedded.join()
    try:
        yield embedded.url
    finally:
        if os.getpid() == owner:  # a fork that ends must not stop the server of its parent
            embedded.leave(users)
