"""Hold a worker before each of its commits until somebody says how it goes on.

The question is a row in the lesson's schema: so the glass box shows it, and its page can answer.
"""

import select
import sys
from io import FileIO
from typing import Literal

import click
from rich.text import Text

from faults import witness
from shared.database import Database
from shared.story import console, say

When = Literal["before", "after"]
TABLE = """
create table stepper (
    number    int primary key,  -- of the commit
    statement text not null,
    changes   text not null,    -- what it will do
    answer    text,             -- null: the worker is held
    asks      int not null      -- the stepper's session: without it nobody is held any more
)
"""
# When the worker is killed; None: not at all, the commit goes through.
ANSWERS: dict[str, When | None] = {"": None, "b": "before", "a": "after"}


class Stepper:
    def __init__(self, db: Database, planned: list[str]) -> None:
        """planned: what each commit changes, as of an undisturbed run."""
        self._db, self._planned = db, planned
        # Unbuffered: `select` knows nothing of lines that have been read ahead.
        self._keys = FileIO(sys.stdin.fileno(), closefd=False)
        witness.rows(db, TABLE)
        self._session = db.connect(autocommit=True, application_name="the stepper")

    def close(self) -> None:
        self._session.close()

    def ask(self, at: int) -> str:
        """Returns the answer that is typed or that the page gives, whichever is first."""
        planned = self._planned[at - 1]
        say(f"held before commit {at} of {len(self._planned)}, which will change:")
        console.print(Text(planned))
        _, statement, changes = planned.split(maxsplit=2)
        insert = "insert into stepper values (%s, %s, %s, null, pg_backend_pid())"
        self._session.execute(insert, [at, statement, changes])
        self._prompt()
        typed = False
        while (answer := self._answer(at)) is None:
            if typed := bool(select.select([self._keys], [], [], 0.1)[0]):
                self._typed(at)
        if not typed:
            console.print("(answered on the page)")
        return answer

    def _prompt(self) -> None:
        console.print("Enter, b or a: ", end="")

    def _answer(self, at: int) -> str | None:
        ((answer,),) = witness.rows(self._db, "select answer from stepper where number = %s", at)
        return answer

    def _typed(self, at: int) -> None:
        line = self._keys.readline()
        if not line:
            raise click.Abort
        if (answer := line.decode(errors="replace").strip()) in ANSWERS:
            update = "update stepper set answer = %s where number = %s and answer is null"
            witness.rows(self._db, update, answer, at)
        else:
            self._prompt()
