"""`make psql` and `make clean`: the server by hand."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from shared.postgres import PostgresUnavailable, out_of_sight, server
from tools.tree import Course


def psql(course: Course, lesson: str | None) -> None:
    """psql, on the tables of a lesson if one is given. Ends with its exit status."""
    home = course.lesson(lesson) if lesson else None
    program = shutil.which("psql") or wheel_psql()
    with server() as url:
        if home:
            from shared.database import schema_name  # slow: it imports SQLAlchemy

            schema = schema_name(home)
            options = f"{conninfo_to_dict(url).get('options') or ''} -csearch_path={schema}"
            url = make_conninfo(url, options=options.strip())
            print(
                f"psql: the tables of {schema}; \\dt lists them, \\q ends it. "
                "None? They are made when main.py runs there.",
                file=sys.stderr,
            )
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for psql, which sets a handler
        with out_of_sight(url) as (visible, environment):
            command = [program, "-d", visible]
            sys.exit(subprocess.run(command, env=environment, check=False).returncode)


def wheel_psql() -> Path:
    try:
        from shared.embedded import Embedded

        program = Embedded().wheel() / "pginstall/bin/psql"
    except (ImportError, PostgresUnavailable):
        raise PostgresUnavailable(
            "There is no psql. Debian and Ubuntu: apt install postgresql-client"
        ) from None
    print("psql: this one cannot edit lines; one on PATH would be used instead", file=sys.stderr)
    return program


def clean(_: Course) -> None:
    """Stop the embedded Postgres and remove all of it."""
    from shared.embedded import Embedded, open_file  # imports what only Unix has

    embedded = Embedded()
    if not embedded.home.exists():
        print("clean: there is no embedded Postgres to remove")
        return
    with embedded.alone():
        with open_file(embedded.home / "users") as users:
            if not embedded.lock(users):
                raise PostgresUnavailable(
                    "The embedded Postgres is in use: a story, worker, test or psql is running."
                )
            embedded.stop()
        shutil.rmtree(embedded.home)
    print(f"clean: removed {embedded.home}")
