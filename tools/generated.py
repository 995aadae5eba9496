"""db/: what sqlc makes of a lesson's schema.sql and queries.sql."""

import re
import shutil
import tempfile
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
    if status:
        unreachable = re.search(r"loadBytes|http\.Get|dial tcp|no end after", text)
        if unreachable:
            raise NoPlugin(
                f"sqlc says:\n{text.strip()}\n"
                "It could not load its Python plugin from the URL in sqlc.yaml. Connect to the "
                f"internet once (sqlc keeps it), or put a {PLUGIN} 1.3.0 on PATH, and try again."
            )
        raise CourseError(
            f"sqlc says:\n{text.strip()}\n"
            f"Mend {' or '.join(INPUTS)} and run it again. db/ is as it was."
        )
    return {path.name: path.read_bytes() for path in sorted((target / "db").glob("*.py"))}


def generate(lesson: Path) -> None:
    """Write db/ and its fingerprint. Raises CourseError, and then nothing was written."""
    with tempfile.TemporaryDirectory() as directory:
        files = make(lesson, Path(directory))
    db = lesson / "db"
    db.mkdir(exist_ok=True)
    for path in db.glob("*.py"):
        if path.name not in {*files, "__init__.py"}:
            path.unlink()
    for name, content in files.items():
        (db / name).write_bytes(content)
    (db / "__init__.py").touch()  # else type checkers take db for something else in each lesson
    record(lesson)


def check(course: Course) -> list[str]:
    """The fingerprints always; the files themselves where sqlc and its plugin can be had."""
    found: list[str] = []
    lessons = [lesson for lesson in course.lessons if (lesson / "sqlc.yaml").exists()]
    for lesson in lessons:
        remedy = f"run `make generate LESSON={selector(lesson)}`"
        then, now = recorded(lesson), fingerprint(lesson)
        if then is None:
            found.append(course.finding(lesson / "db/fingerprint.txt", "missing", remedy))
        elif then[0] != now[0]:
            wrong = f"{', '.join(INPUTS)}: one was edited after db/ was generated"
            found.append(course.finding(lesson / "db", wrong, remedy))
        elif then[1] != now[1]:
            found.append(course.finding(lesson / "db", "edited by hand", remedy))
        for path in (lesson / "db").iterdir() if (lesson / "db").is_dir() else ():
            if path.suffix != ".py" and path.name not in ("fingerprint.txt", "__pycache__"):
                found.append(course.finding(path, "sqlc did not make this", "take it away"))
    for lesson in lessons:
        try:
            found += differing(course, lesson)
        except NoPlugin as error:
            last = str(error).partition("\n")
            print(f"NOT REGENERATED, only the fingerprints were compared: {last[2] or last[0]}")
            break
        except CourseError as error:
            found.append(course.finding(lesson / "sqlc.yaml", str(error), "see above"))
    return found


def differing(course: Course, lesson: Path) -> list[str]:
    """Findings for files in db/ that are not what sqlc makes now. Raises CourseError."""
    with tempfile.TemporaryDirectory() as directory:
        fresh = {"__init__.py": b"", **make(lesson, Path(directory))}
    have = {path.name: path.read_bytes() for path in (lesson / "db").glob("*.py")}
    return [
        course.finding(
            lesson / "db" / name,
            "not what sqlc makes of schema.sql and queries.sql",
            f"run `make generate LESSON={selector(lesson)}`",
        )
        for name in sorted({*fresh, *have})
        if fresh.get(name) != have.get(name)
    ]
