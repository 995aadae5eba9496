"""pgbench: many clients at once, in C, so that it is the database that is measured."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from bench.measures import check
from shared.postgres import out_of_sight

HERE = Path(__file__).resolve().parent


def program() -> str | None:
    """The one that came with the embedded server, or the one on PATH; None if there is none."""
    if os.environ.get("DATABASE_URL"):
        return shutil.which("pgbench")
    from shared.embedded import Embedded

    return str(Embedded().wheel() / "pginstall/bin/pgbench")


def rate(
    program: str, conninfo: str, script: str, clients: int, each: int, options: str = ""
) -> float:
    """Transactions a second, of so many by each client. options: of its sessions."""
    own = str(conninfo_to_dict(conninfo).get("options") or "")
    arguments = ["--no-vacuum", "--protocol=prepared", f"--file={HERE / script}"]
    load = [f"--client={clients}", "--jobs=2" if clients > 1 else "--jobs=1"]
    with out_of_sight(make_conninfo(conninfo, options=f"{own} {options}")) as (url, environment):
        run = subprocess.run(
            [program, *arguments, *load, f"--transactions={each}", url],
            capture_output=True,
            env=environment,
            text=True,
            check=False,
        )
    rates = re.findall(r"^tps = ([\d.]+)", run.stdout, re.MULTILINE)
    check(run.returncode == 0 and len(rates) == 1, f"pgbench: {run.stderr or run.stdout}")
    return float(rates[0])
