"""Race scripts: several sessions, one statement a line; what each gets, or which one it waits for.

    # A comment. The first lines of the file say what it is about.
    setup: insert into tasks (name, input) values ('note', '1')
    one: begin                  a session, and SQL; a line that is indented continues it
    one: ClaimTask()            a query of queries.sql; the arguments by name, those that are None
                                may be left out
        -> 1                    what it must answer: a run that differs says so, and fails
    two: ...                    wait for the answer to what this session has asked before

The answers of `setup` are not shown. Before the next line is read, each statement has ended, or
waits for a lock of another session.
"""

import ast
import inspect
import json
import re
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, LiteralString, cast, get_args

import psycopg

from shared import lessons
from shared.processes import wait_until, within
from tools.signatures import query_name
from tools.tree import Course, CourseError

if TYPE_CHECKING:  # slow, and not needed to list them
    from shared.database import Database

SETUP, WAIT = "setup", "..."
ANSWER = re.compile(r"\s+((\w+ goes on )?->.*)")
SECONDS = 20


class RaceError(CourseError):
    """The script cannot be played. The message is a sentence with the number of the line."""


@dataclass
class Step:
    """A statement of a session; a comment or an empty line has none."""

    number: int
    text: list[str]  # as it is written, without the answers
    session: str = ""
    statement: str = ""
    expected: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])


def race(course: Course, lesson: str | None, script: str | None) -> list[str] | None:
    """Play a race script of a lesson, or one of your own; without SCRIPT, list them."""
    if script is None:
        for each in course.chosen(lesson):
            for path in races(course, each):
                print(f"{each.name[:2]}  {path.stem:<25} {title(path)}")
        return None
    home = course.lesson(lesson)
    path = find(course, home, script)
    shown, wrong = play(home, path.read_text())
    print("\n".join(shown))
    return [f"{course.shown(path)}: {line}" for line in wrong] or None


def races(course: Course, lesson: Path) -> list[Path]:
    """Those of the lesson itself, for a copy that a reader is building."""
    home = lesson
    if (lesson / lessons.BUILD).exists():
        home = course.lesson(f"{lessons.number(lesson):02}")
    return sorted(home.glob("races/*.race"))


def title(path: Path) -> str:
    """The first line of the file."""
    return path.read_text().partition("\n")[0].lstrip("# ")


def find(course: Course, lesson: Path, script: str) -> Path:
    found = {path.stem: path for path in races(course, lesson)}
    path = found.get(script, Path(script))
    if path.is_file():
        return path
    known = ", ".join(found) or "none"
    raise RaceError(f"{script}: no such race, and no such file; {lesson.name} has {known}")


def play(lesson: Path, script: str) -> tuple[list[str], list[str]]:
    """Run it on fresh tables. The script with the answers, and sentences for those that are wrong.

    Raises RaceError.
    """
    from shared.testing import load, scratch_database

    steps = parse(script)
    with scratch_database(lesson, "race") as db, stage(db, load(lesson).queries.Querier) as race:
        shown = [line for step in steps for line in race.step(step)]
        race.end()
        return shown, race.wrong


def parse(script: str) -> list[Step]:
    steps: list[Step] = []
    for number, line in enumerate(script.splitlines(), 1):
        last = steps[-1] if steps else Step(0, [])
        if answer := ANSWER.fullmatch(line):
            if not last.session:
                raise RaceError(f"line {number}: an answer, and no statement above it")
            last.expected.append((number, answer[1].strip()))
        elif line.startswith((" ", "\t")) and line.strip():
            if not last.session or last.expected:
                raise RaceError(f"line {number}: this line is indented, and continues no statement")
            last.text.append(line)
            last.statement += f"\n{line.strip()}"
        elif said := re.fullmatch(r"(\w+): *(.*?);?\s*", line):
            steps.append(Step(number, [line], said[1], said[2]))
        elif not line.strip() or line.startswith("#"):
            steps.append(Step(number, [line]))
        else:
            raise RaceError(
                f"line {number}: `{line.strip()}` is no statement; one begins with its session, as"
                " in `one: begin`, and a comment with #"
            )
    return steps


class Session:
    """A connection that does one thing at a time, in a thread of its own."""

    def __init__(self, db: "Database", name: str) -> None:
        self.name = name
        self.connection = db.autocommit.connect()
        self.plain = cast("psycopg.Connection[Any]", self.connection.connection.driver_connection)
        self.pid = self.plain.info.backend_pid
        self.asked: Future[list[str]] | None = None  # until its answer has been told
        self._thread = ThreadPoolExecutor(1)

    def ask(self, do: Callable[[], list[str]]) -> None:
        self.asked = self._thread.submit(outcome, do)

    @property
    def is_busy(self) -> bool:
        return self.asked is not None and not self.asked.done()

    def answers(self) -> list[str]:
        asked, self.asked = self.asked, None
        return asked.result() if asked else []

    def close(self) -> None:
        self.plain.cancel_safe(timeout=10)
        self._thread.shutdown()
        self.connection.invalidate()  # not back to the pool, whatever it was in the middle of
        self.connection.close()


class Race:
    """The sessions of a script."""

    def __init__(self, db: "Database", querier: type[Any]) -> None:
        self.wrong: list[str] = []
        self._db, self._querier = db, querier
        self._look = db.connect(autocommit=True)
        self._sessions: dict[str, Session] = {}

    def step(self, step: Step) -> Iterator[str]:
        """Do it; the lines to show. Raises RaceError."""
        yield from step.text
        if not step.session:
            return
        if step.session not in self._sessions:
            self._sessions[step.session] = Session(self._db, step.session)
        session = self._sessions[step.session]
        waits = session.is_busy
        if step.statement == WAIT:
            self._wait_for(session, step.number)
        elif waits:
            raise RaceError(
                f"line {step.number}: {session.name} still {self._waits(session)},"
                " and hears nothing before that"
            )
        else:
            session.ask(self._understood(session, step))
        self._settle(step.number)
        told: list[str] = []
        if session.is_busy:
            told.append(f"-> {self._waits(session)}")
        elif not waits:
            told += [f"-> {answer}" for answer in session.answers()]
        for other in self._sessions.values():
            if other.asked and not other.is_busy:
                told += [f"{other.name} goes on -> {text}" for text in other.answers() or ["done"]]
        if step.session == SETUP:
            if mistakes := [line for line in told if line.startswith("-> error")]:
                raise RaceError(f"line {step.number}: {mistakes[0][3:]}")
            return
        yield from (f"    {line}" for line in told)
        for number, expected in step.expected:
            if expected not in told:
                was = "; ".join(told) or "nothing"
                self.wrong.append(f"line {number}: `{expected}` was expected, and there was: {was}")

    def end(self) -> None:
        """Raises RaceError if the end of the script leaves a session waiting."""
        for session in self._sessions.values():
            if session.is_busy:
                raise RaceError(
                    f"the script ends, and {session.name} still {self._waits(session)}: let that"
                    " session commit or roll back"
                )

    def close(self) -> None:
        for session in self._sessions.values():
            session.close()
        self._look.close()

    def _understood(self, session: Session, step: Step) -> Callable[[], list[str]]:
        """What a line asks for, to be done in the session's thread. Raises RaceError."""
        called = re.fullmatch(r"([A-Z]\w*)\((.*)\)", step.statement, re.DOTALL)
        if not called:
            return lambda: by_sql(session.plain, step.statement)
        query = getattr(self._querier(session.connection), query_name(called[1]), None)
        if query is None:
            raise RaceError(f"line {step.number}: there is no query {called[1]} in queries.sql")
        try:
            parsed = cast("ast.Call", ast.parse(f"f({called[2]})", mode="eval").body)
            arguments = {str(each.arg): ast.literal_eval(each.value) for each in parsed.keywords}
            known = inspect.signature(query)
            for name, parameter in known.parameters.items():
                if type(None) in get_args(parameter.annotation):
                    arguments.setdefault(name, None)
            known.bind(*parsed.args, **arguments)
        except (SyntaxError, ValueError, TypeError) as error:
            raise RaceError(f"line {step.number}: {called[1]}: {error}") from None
        return lambda: by_name(query, arguments)

    def _settle(self, number: int) -> None:
        """Until each statement has ended or waits. Raises RaceError."""
        self._until(self._is_settled, number, "a statement does not end, and waits for no session")

    def _wait_for(self, session: Session, number: int) -> None:
        if not session.is_busy:
            raise RaceError(
                f"line {number}: {session.name} has been asked nothing, or has answered"
            )
        self._until(lambda: not session.is_busy, number, f"{session.name} does not go on")

    def _until(self, condition: Callable[[], bool], number: int, otherwise: str) -> None:
        try:
            wait_until(condition, otherwise, SECONDS)
        except TimeoutError:
            raise RaceError(f"line {number}: after {within(SECONDS):g} s {otherwise}") from None

    def _is_settled(self) -> bool:
        """Does each busy session wait for one that is idle, or for one that waits for such a one?

        In a circle none does: Postgres is about to end one of them, with an error.
        """
        busy = [session for session in self._sessions.values() if session.is_busy]
        stands = {session.pid for session in self._sessions.values() if session not in busy}
        waits = {session.pid: self._blockers(session) for session in busy}
        while more := {pid for pid, whom in waits.items() if whom & stands} - stands:
            stands |= more
        return all(session.pid in stands for session in busy)

    def _blockers(self, session: Session) -> set[int]:
        row = self._look.execute("select pg_blocking_pids(%s)", (session.pid,)).fetchone()
        return set(row[0]) if row else set()

    def _waits(self, session: Session) -> str:
        whom = self._blockers(session)
        names = [other.name for other in self._sessions.values() if other.pid in whom]
        return f"waits for {' and '.join(names)}"


@contextmanager
def stage(db: "Database", querier: type[Any]) -> Generator[Race]:
    race = Race(db, querier)
    try:
        yield race
    finally:
        race.close()


def outcome(do: Callable[[], list[str]]) -> list[str]:
    """What it answers, or the database's error."""
    try:
        return do()
    except Exception as error:
        cause = getattr(error, "orig", error)  # SQLAlchemy wraps it
        if not isinstance(cause, psycopg.Error):
            raise
        return [f"error: {cause.diag.message_primary or str(cause).splitlines()[0]}"]


def by_sql(connection: psycopg.Connection[Any], statement: str) -> list[str]:
    cursor = connection.execute(cast(LiteralString, statement))
    if cursor.description is None:
        return [counted(cursor.rowcount)] if cursor.rowcount >= 0 else []
    names = [column.name for column in cursor.description]
    return [row_text(names, row) for row in cursor] or [counted(0)]


def by_name(query: Callable[..., Any], arguments: dict[str, Any]) -> list[str]:
    """One value, a row, some rows, a number of rows, or nothing: as queries.sql says."""
    answer = query(**arguments)
    returns = query.__annotations__["return"]
    if returns in (None, int):  # :exec, :execrows
        return [] if answer is None else [counted(answer)]
    answers: list[Any] = [answer] if answer is not None else []
    if isinstance(answer, Iterator):
        answers = list(cast(Iterator[Any], answer))
    return [as_row(each) for each in answers] or [counted(0)]


def as_row(answer: Any) -> str:
    if not is_dataclass(answer):
        return value_text(answer)
    return row_text(list(vars(answer)), vars(answer).values())


def counted(rows: int) -> str:
    return "1 row" if rows == 1 else f"{rows} rows"


def row_text(names: list[str], values: Any) -> str:
    """A single value stands for itself."""
    texts = [value_text(value) for value in values]
    if len(texts) == 1:
        return texts[0]
    return " ".join(f"{name}={text}" for name, text in zip(names, texts, strict=True))


def value_text(value: Any) -> str:
    if value is None or isinstance(value, bool | list | dict):
        return json.dumps(value)
    return str(value).replace("\n", " ")
