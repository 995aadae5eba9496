"""Lesson 00: is this machine ready, and two facts about Postgres. --help lists the verbs."""

import os
import platform
import subprocess
import sys
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import click

from db.queries import Querier
from shared.database import Database, open_database
from shared.processes import wait_until
from shared.story import check, feared, say, scene
from shared.verbs import group

HERE = Path(__file__).resolve().parent


def story(db: Database) -> None:
    with db.autocommit.connect() as connection:
        others = Querier(connection)  # sees what everybody sees: what is committed
        this_machine(db, others)
        all_or_nothing(others)
        for_update(db, others)
        skip_locked(db)


def this_machine(db: Database, others: Querier) -> None:
    scene("This machine")
    version = others.server_version() or 0
    server = "the one in DATABASE_URL" if os.environ.get("DATABASE_URL") else "embedded"
    say(f"Python {platform.python_version()} on {platform.system()} {platform.machine()}")
    say(f"Postgres {version // 10000}.{version % 10000}, {server}; our schema is {db.schema}")
    check(version >= 150000, "Postgres is 15 or newer")


def all_or_nothing(others: Querier) -> None:
    scene("Ada buys seats 1 and 2 in two transactions; her process is killed after the first")
    with seller("--autocommit", "Ada", "1", "2"):
        say(f"seat 1 is marked; what others see: {sold(others)}")
    feared(sold(others) == {1: "Ada"}, f"as feared: half of it was done: {sold(others)}")

    scene("Bea buys seats 2 and 3 in one transaction; her process is killed in the middle")
    with seller("Bea", "2", "3"):
        check(sold(others) == {1: "Ada"}, f"seat 2 is marked, and nobody sees it: {sold(others)}")
        check(others.first_unlocked_seat() == 3, "but it is locked: the first unlocked one is 3")
    wait_until(lambda: others.first_unlocked_seat() == 2, "seat 2 is unlocked")
    check(sold(others) == {1: "Ada"}, f"nothing was done, and seat 2 is unlocked: {sold(others)}")


def for_update(db: Database, others: Querier) -> None:
    scene("Cleo and Dan both want the first free seat: select ... for update")
    # Cleo's connection is closed first, or an error in here would leave Dan waiting for it.
    with ThreadPoolExecutor() as pool, db.engine.connect() as dan, db.engine.connect() as cleo:
        cleos_pid, dans_pid = Querier(cleo).backend_pid(), Querier(dan).backend_pid()
        say(f"Cleo has locked seat {Querier(cleo).first_free_seat()}")
        dans_seat = pool.submit(Querier(dan).first_free_seat)
        wait_until(lambda: others.waits_for(pid=dans_pid) == [cleos_pid], "Dan waits for Cleo")
        check(not dans_seat.done(), "Dan has no answer: he waits for a lock, and it is Cleo's")
        cleo.rollback()
        check(dans_seat.result() == 2, "Cleo rolls back, and at once Dan has seat 2")


def skip_locked(db: Database) -> None:
    scene("Once more: select ... for update skip locked")
    with db.engine.connect() as dan, db.engine.connect() as cleo:
        say(f"Cleo has locked seat {Querier(cleo).first_unlocked_seat()}")
        dans_seat = Querier(dan).first_unlocked_seat()
        check(dans_seat == 3, f"Dan does not wait: he has locked seat {dans_seat}")


@contextmanager
def seller(*arguments: str) -> Generator[None]:
    """`python main.py sell ...` in another process. It has marked one seat; at the end: kill -9."""
    command = [sys.executable, "main.py", "sell", *arguments]
    pipe = subprocess.PIPE  # the verb waits for Enter, and ends if this process does
    with subprocess.Popen(command, cwd=HERE, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise RuntimeError("the seller has ended, and says above why")
        yield
        process.kill()
    say(f"kill -9: its exit status is {process.returncode}")


def sold(queries: Querier) -> dict[int, str]:
    return {seat.number: seat.sold_to for seat in queries.list_seats() if seat.sold_to}


main = group(HERE, story)


@main.command("sell")
@click.argument("customer")
@click.argument("numbers", type=int, nargs=-1, required=True)
@click.option("--autocommit", is_flag=True, help="each seat in a transaction of its own")
def sell_verb(customer: str, numbers: tuple[int, ...], autocommit: bool) -> None:
    """Sell all these seats or none, with a pause after each: sell Ada 1 2."""
    with open_database(HERE) as db:
        engine = db.autocommit if autocommit else db.engine
        with engine.connect() as connection:  # left without a commit, it rolls back
            for number in numbers:
                if Querier(connection).sell_seat(customer=customer, number=number) == 0:
                    raise click.ClickException(f"seat {number} is not free")
                say(f"seat {number} is marked for {customer}; Enter goes on, Ctrl-C gives up")
                input()
            connection.commit()
            say("committed")


@main.command("status")
def status_verb() -> None:
    """Show the seats."""
    with open_database(HERE) as db, db.autocommit.connect() as connection:
        for seat in Querier(connection).list_seats():
            say(f"seat {seat.number}: {seat.sold_to or 'free'}")


if __name__ == "__main__":
    main()
