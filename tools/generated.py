"""db/: what sqlc makes of a lesson's schema.sql and queries.sql."""

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from shared.generated import INPUTS, fingerprint, record, recorded, selector
from tools.tree import Course, CourseError, environment, run

PLUGIN = "sqlc-gen-python"
SECONDS = 120  # the first time, sqlc loads the plugin and compiles it


class NoPlugin(CourseError):
    """The SQL may be right: sqlc or its Python plugin cannot be had on this machine."""


def make(lesson: Path, target: Path) -> dict[str, bytes]:
    """Run sqlc in `target`, an empty directory; name -> content of the files it makes.

    Raises CourseError with sqlc's own message.
    """
    env = environment()
    for name in INPUTS:
        if not (lesson / name).exists():
            raise CourseError(f"{lesson / name}: missing: it is what sqlc reads")
        shutil.copy(lesson / name, target / name)
    if not shutil.which("sqlc", path=env["PATH"]):
        raise NoPlugin("sqlc is not installed: run `make setup`")
    if shutil.which(PLUGIN, path=env["PATH"]):
        config = target / "sqlc.yaml"
        config.write_text(
            re.sub(r"(\bplugin: *)py$", r"\1py-local", config.read_text(), flags=re.M)
        )
    status, text = run(["sqlc", "generate"], target, env, SECONDS)
    if re.search(r"loadBytes|http\.Get|dial tcp|no end after", text if status else ""):
        raise NoPlugin(
            f"sqlc says:\n{text.strip()}\n"
            "It could not load its Python plugin from the URL in sqlc.yaml. Connect to the "
            f"internet once (sqlc keeps it), or put a {PLUGIN} 1.3.0 on PATH, and try again."
        )
    if status:
        raise CourseError(
            f"sqlc says:\n{text.strip()}\n"
            f"Mend {' or '.join(INPUTS)} and run it again. db/ is as it was."
        )
    # Without an __init__.py, type checkers take db for something else in each lesson.
    made = {path.name: path.read_bytes() for path in sorted((target / "db").glob("*.py"))}
    return {"__init__.py": b"", **made}


def write(lesson: Path) -> None:
    """Write db/ and its fingerprint. Raises CourseError, and then nothing was written."""
    with tempfile.TemporaryDirectory() as directory:
        files = make(lesson, Path(directory))
    shutil.rmtree(lesson / "db", ignore_errors=True)
    (lesson / "db").mkdir()
    for name, content in files.items():
        (lesson / "db" / name).write_bytes(content)
    record(lesson)


def generate(course: Course, lesson: str | None = None, check: bool = False) -> Iterator[str]:
    """db/, with sqlc. --check: is it what sqlc made, and from the present files?"""
    chosen = course.chosen(lesson)
    if not lesson:
        chosen = [each for each in chosen if (each / "sqlc.yaml").exists()]
    if check:
        yield from stale(course, chosen)
    for each in chosen if not check else ():
        write(each)
        print(f"{course.shown(each)}/db: generated")


def stale(course: Course, lessons: list[Path]) -> Iterator[str]:
    """The fingerprints always; the files themselves where sqlc and its plugin can be had."""
    for lesson in lessons:
        db, remedy = lesson / "db", f"run `make generate LESSON={selector(lesson)}`"
        then, now = recorded(lesson), fingerprint(lesson)
        if then is None:
            yield course.finding(db / "fingerprint.txt", "missing", remedy)
        elif then[0] != now[0]:
            wrong = f"{', '.join(INPUTS)}: one was edited after db/ was generated"
            yield course.finding(db, wrong, remedy)
        elif then[1] != now[1]:
            yield course.finding(db, "edited by hand", remedy)
        for path in db.glob("*"):
            if path.suffix != ".py" and path.name not in ("fingerprint.txt", "__pycache__"):
                yield course.finding(path, "sqlc did not make this", "take it away")
    for lesson in lessons:
        try:
            yield from differing(course, lesson)
        except NoPlugin as error:
            last = str(error).partition("\n")
            print(f"NOT REGENERATED, only the fingerprints were compared: {last[2] or last[0]}")
            break
        except CourseError as error:
            yield course.finding(lesson / "sqlc.yaml", str(error), "see above")


def differing(course: Course, lesson: Path) -> list[str]:
    """Findings for files in db/ that are not what sqlc makes now. Raises CourseError."""
    with tempfile.TemporaryDirectory() as directory:
        fresh = make(lesson, Path(directory))
    have = {path.name: path.read_bytes() for path in (lesson / "db").glob("*.py")}
    wrong = "not what sqlc makes of schema.sql and queries.sql"
    remedy = f"run `make generate LESSON={selector(lesson)}`"
    return [
        course.finding(lesson / "db" / name, wrong, remedy)
        for name in sorted({*fresh, *have})
        if fresh.get(name) != have.get(name)
    ]
