"""A Postgres server: the one in DATABASE_URL, or else an embedded one."""

import os
import re
import sys
import tempfile
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
        check_url(url)
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


def check_url(url: str) -> None:
    """What libpq says of a URL that it cannot read has the password in it, so it is not said.

    A password with a / or @ in it ends too early, and its rest would be shown as a host or a port.
    """
    from psycopg import Error
    from psycopg.conninfo import conninfo_to_dict

    found = re.match(r"[a-z0-9+.-]+://", url)
    scheme = found[0] if found else ""
    try:
        given = conninfo_to_dict(url)
        torn = scheme != "" and (
            any("@" in str(given.get(part) or "") for part in ("host", "dbname"))
            or not re.fullmatch(r"[\d,]*", str(given.get("port") or ""))
        )
    except (Error, ValueError):
        torn = True
    if torn:
        other = scheme not in ("", "postgresql://", "postgres://")
        raise PostgresUnavailable(
            "DATABASE_URL cannot be read."
            + (f" It begins with {scheme} and not with postgresql://." if other else "")
            + " It has the form postgresql://user:password@host:5432/database, or"
            " host=... dbname=... as libpq wants it. In the first one write special characters of"
            " a password as %40 (@), %2F (/), %25 (%) and so on."
        ) from None


@contextmanager
def out_of_sight(url: str) -> Generator[tuple[str, dict[str, str]]]:
    """The URL and the environment for a program that libpq is in.

    The arguments of a program are there for all users of the machine to see, in `ps`. So passwords
    are passed in the environment, and those for which it has no variable in a file.
    """
    from psycopg.conninfo import make_conninfo
    from psycopg.pq import Conninfo

    given: dict[str, str] = {}
    secrets: dict[str, str] = {}
    for option in Conninfo.parse(url.encode()):
        if option.val:
            kind = secrets if option.dispchar == b"*" else given
            kind[option.keyword.decode()] = option.val.decode()
    environment = dict(os.environ)
    if password := secrets.pop("password", None):
        environment["PGPASSWORD"] = password
    with tempfile.NamedTemporaryFile("w", prefix="libpq-") as file:  # for its owner only
        if secrets:
            file.write("[secrets]\n" + "".join(f"{n}={v}\n" for n, v in secrets.items()))
            file.flush()
            environment |= {"PGSERVICE": "secrets", "PGSERVICEFILE": file.name}
        yield make_conninfo("", **given), environment
