"""Each check of tools/ finds the fault that it is there to find, planted in a tiny course."""

import ast
import difflib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from shared.generated import record, stale
from tools import check, generated
from tools.__main__ import cli
from tools.symbols import pieces, snippet, texts
from tools.tree import Course, compared_files

MAIN = '''\
"""A lesson."""

import time

from db.queries import SQL

GREETING = "hello"


# Says it,
# politely.
def greet(name: str) -> str:
    return f"{GREETING}, {name}"


# Part two


class Clock:
    """Has seconds."""

    zero = 0.0

    # On a line of its own.
    def line(self) -> str:
        return f"{time.monotonic() % 10:6.2f}  ran"

    def reset(self) -> None:
        self.zero = time.monotonic()


if __name__ == "__main__":
    print(greet("world"))
    print(Clock().line(), len(SQL) > 0)
'''
SCHEMA = """\
-- The tables.

-- One row for each thing.
create table things (
    id int primary key, -- not; the end
    name text not null default 'a;b'
);

comment on table things is 'A thing.';

create index things_name on things (name);

create function f() returns int language sql as $$ select 1; $$;

alter table things add constraint named check (name <> '');
"""
QUERIES = """\
-- name: GetThing :one
-- By its id.
select * from things where id = @id;

-- name: CountThings :one
select count(*) from things;
"""
SQLC = """\
version: "2"
plugins:
  - name: py
    wasm:
      url: http://127.0.0.1:1/plugin.wasm
      sha256: "0000000000000000000000000000000000000000000000000000000000000000"
  - name: py-local
    process:
      cmd: fake-sqlc-gen-python
      format: json
sql:
  - engine: postgresql
    schema: schema.sql
    queries: queries.sql
    codegen:
      - plugin: py
        out: db
"""
PLUGIN = """\
import base64, json, sys
text = json.load(sys.stdin)
sql = [f"{q['name']}: {q['text']}" for q in text["queries"]]
made = base64.b64encode(f"SQL = {sql!r}\\n".encode()).decode()
print(json.dumps({"files": [{"name": "queries.py", "contents": made}]}))
"""
README = """\
# Lesson: a *title*

See [the schema](schema.sql), [below](#run-it) and [the other](../{other}/README.md#lesson-a-title).

<!-- changes -->
<!-- /changes -->

```python main.py#greet
```

- in a list:

  ```python main.py#Clock.line
  ```

```sql schema.sql#things
```

## Run it

```console
$ python main.py
```

```console part
$ python main.py
hello, world
```
"""
TESTS = """\
import os, subprocess, sys

def test_greets():
    run = [sys.executable, "main.py"]
    out = subprocess.run(run, cwd=os.environ["LESSON"], capture_output=True, text=True).stdout
    assert out.startswith("hello, world")

def test_passes():
    pass

def test_errors(no_such_thing):
    pass
"""
EXERCISE = """\
import os, pathlib

def test_1_loud():
    text = pathlib.Path(os.environ["LESSON"], "main.py").read_text()
    assert "upper()" in text
"""


def patch_of(file: str, text: str, old: str, new: str) -> str:
    """As git makes it."""
    before, after = text.splitlines(True), text.replace(old, new).splitlines(True)
    lines = difflib.unified_diff(before, after, f"a/{file}", f"b/{file}")
    return f"diff --git a/{file} b/{file}\n{''.join(lines)}"


BREAK = f"""\
What: it greets somebody else.
Test: tests/test_one.py::test_greets

{patch_of("main.py", MAIN, "{GREETING}, {name}", "{name}, {GREETING}")}"""
SOLUTION = patch_of("main.py", MAIN, "{GREETING}, {name}", "{GREETING.upper()}, {name}")


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """Two lessons that differ in one constant, with nothing wrong."""
    root = tmp_path_factory.mktemp("template")
    write(root, {"pyproject.toml": "[tool.pytest.ini_options]\n", "tests/test_one.py": TESTS})
    write(root, {"NOTES.md": "TEXT\n"})
    for name, other in (("01_one", "02_two"), ("02_two", "01_one")):
        lesson = {
            "main.py": MAIN,
            "clock.py": MAIN,
            "schema.sql": SCHEMA,
            "queries.sql": QUERIES,
            "sqlc.yaml": SQLC,
            "README.md": README.format(other=other),
            "lesson.toml": 'title = "A title"\n',
            "breaks/other.patch": BREAK,
            "exercises/1_loud/README.md": "<details>Shout.</details>\n",
            "exercises/1_loud/test_1_loud.py": EXERCISE,
            "exercises/solutions/1_loud.patch": SOLUTION,
        }
        write(root / "lessons" / name, lesson)
    for file in ("main.py", "clock.py"):
        edit(root / "lessons/02_two" / file, '"hello"', '"hello"  # again')
    named = 'title = "Two"\n[changed]\n"clock.py#GREETING" = "It has a comment."\n'
    named += '[added]\n"tasks.py" = "The tasks."\n'
    write(root, {"lessons/02_two/lesson.toml": named, "lessons/02_two/tasks.py": "TASKS = 1\n"})
    plugin = root / "bin/fake-sqlc-gen-python"
    start = f"#!/bin/sh\nexec '{sys.executable}' '{plugin}.py'\n"
    write(root, {"bin/fake-sqlc-gen-python": start, "bin/fake-sqlc-gen-python.py": PLUGIN})
    plugin.chmod(0o755)
    return root


@pytest.fixture
def course(template, tmp_path, monkeypatch):
    """A course of one's own to plant a fault in. All that is generated is up to date."""
    monkeypatch.setenv("PATH", str(template / "bin"), prepend=":")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # the tiny tests need none: faster
    monkeypatch.setattr(generated, "PLUGIN", "fake-sqlc-gen-python")
    course = Course(tmp_path / "course")
    if not (template / "diffs").exists():
        for verb in ("generate", "diffs", "readme", "output"):
            tool(Course(template), verb)
    shutil.copytree(template, course.root)
    return course


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, f"{old!r} is in {path.name} {text.count(old)} times"
    path.write_text(text.replace(old, new))


def one(course: Course) -> Path:
    return course.root / "lessons/01_one"


def two(course: Course) -> Path:
    return course.root / "lessons/02_two"


def only(told: str, *parts: str) -> None:
    """Exactly one finding, on one line, with these parts."""
    assert told.count("\n") == 1, told
    assert [part for part in parts if part not in told] == [], told


def tool(course: Course, command: str, status: int = 0) -> str:
    """What `python -m tools` prints, stderr included; it ends with this status."""
    result = CliRunner().invoke(cli, command.split(), obj=course)
    assert result.exit_code == status, result.output
    return result.output


def test_a_course_without_faults_has_no_findings(course):
    for verb in ("changes", "readme", "generate", "diffs", "output"):
        assert tool(course, f"{verb} --check") == f"{verb}: ok\n"
    for verb in ("breaks", "exercises"):
        assert tool(course, f"{verb} 01") == f"{verb}: ok\n"
    shown = (one(course) / "README.md").read_text()
    assert "```python main.py#greet\n# Says it,\n# politely.\ndef greet(name: str)" in shown
    assert 'return f"{GREETING}, {name}"\n```' in shown
    assert '  # On a line of its own.\n  def line(self) -> str:\n      return f"{time' in shown
    table = (two(course) / "CHANGES.md").read_text()
    assert "| added | `tasks.py` | The tasks. |\n" in table
    assert table.endswith("| changed | `clock.py#GREETING` | It has a comment. |\n")
    assert "| `main.py" not in table
    block = (two(course) / "README.md").read_text().partition("<!-- /changes -->")[0]
    assert "](CHANGES.md). As a diff: [01_to_02.patch](../../diffs/01_to_02.patch)." in block
    assert not (one(course) / "CHANGES.md").exists()


# Verb | file in lessons/ | what stands there | what is put there | what the finding says, if any
FAULTS = r"""
changes --check | 02_two/clock.py | f"{GREETING}, {name}" | GREETING + name | changed clock.py#greet
changes --check | 02_two/clock.py | # Says it, | # Says, | changed clock.py#greet
changes --check | 02_two/clock.py | greet("world") | greet("you") | changed clock.py#(module)
changes --check | 02_two/clock.py | zero = 0.0 | zero = 0.5 | changed clock.py#Clock
changes --check | 02_two/clock.py | zero = 0.0\n | zero = 0.0 \n | changed clock.py#Clock
changes --check | 02_two/clock.py | % 10 | % 100 | changed clock.py#Clock.line
changes --check | 02_two/clock.py | def reset | def a(_): 0\n    def reset | added clock.py#Clock.a
changes --check | 02_two/clock.py | \n    # On | \n\n    # On | blank lines before Clock.line
changes --check | 02_two/schema.sql | -- One row | -- A row | changed schema.sql#things
changes --check | 02_two/schema.sql | 'A thing.' | 'It.' | changed schema.sql#things
changes --check | 02_two/schema.sql | select 1; | select 2; | changed schema.sql#f
changes --check | 02_two/schema.sql | name <> '' | name <> 'x' | changed schema.sql#named
changes --check | 02_two/schema.sql | -- The tables. | set x = 1; | changed schema.sql#(file)
changes --check | 02_two/queries.sql | -- By its id. | -- By id. | changed queries.sql#GetThing
changes --check | 02_two/sqlc.yaml | engine: postgresql | engine: postgresql # | changed sqlc.yaml
changes --check | 02_two/clock.py | "hello"  # again | "hello" | clock.py#GREETING; not changed
changes --check | 02_two/lesson.toml | It has a comment. | | no sentence for clock.py#GREETING
changes --check | 02_two/lesson.toml | "tasks.py" | "main.py#x" = "It is."\n"tasks.py" | no sentence
changes --check | 02_two/lesson.toml | [added] | [added]\n"tasks.py#f" = "It is." | no sentence
readme | 01_one/README.md | python main.py#greet | python main.py#great | there is no main.py#great
readme --check | 02_two/CHANGES.md | The tasks. | Tasks. | 02_two/CHANGES.md: stale
readme --check | 02_two/README.md | As a diff | A diff | README.md; block of changes is stale
readme --check | 02_two/README.md | <!-- /changes --> | | 02_two/README.md; no block of changes
breaks 01 | 01_one/breaks/other.patch | test_greets | test_passes | test_passes must fail; passed
breaks 01 | 01_one/breaks/other.patch | test_greets | test_errors | must fail; error; no_such_thing
breaks 01 | 01_one/breaks/other.patch | test_greets | test_nothing | must fail; the outcome is error
breaks 01 | 01_one/breaks/other.patch | What: | | breaks/other.patch; does not say what it breaks
breaks 01 | 01_one/main.py | # Says it, | # Greets. | breaks/other.patch; does not apply; main.py
exercises 01 | 01_one/exercises/1_loud/test_1_loud.py | upper() | GREETING | must fail; passed
exercises 01 | 01_one/exercises/solutions/1_loud.patch | upper() | title() | must pass; failed
changes --check | 02_two/main.py | f"{GREETING}, {name}" | GREETING + name |
changes --check | 02_two/main.py | def reset | def restart |
changes --check | 02_two/clock.py | # Part two | # Part 2 |
changes --check | 02_two/clock.py | import time | import time, sys |
changes --check | 02_two/clock.py | A lesson. | Another lesson. |
changes --check | 02_two/schema.sql | -- The tables. | -- Tables. |
changes --check | 02_two/schema.sql | -- The tables. | /* Tables; */ |
readme --check | ../NOTES.md | TEXT | ```\nx\n``` | line 1: a fence without a label
readme --check | ../NOTES.md | TEXT | - a\n  ~~~\n  x\n  ~~~ | line 2: a fence without a label
readme --check | ../NOTES.md | TEXT | - a\n\n      ```\n      x | line 3: a fence without a label
readme --check | ../NOTES.md | TEXT | ```python\nx = 1\n``` | python without a source
readme --check | ../NOTES.md | TEXT | ```sql\nselect 1\n``` | sql without a source
readme --check | ../NOTES.md | TEXT | ```pyhton main.py#greet\n``` | label pyhton is not known
readme --check | ../NOTES.md | TEXT | ```text\nx | NOTES.md; the fence has no end
readme --check | ../NOTES.md | TEXT | - ```text\n  x\n\ny | the fence has no end
readme --check | ../NOTES.md | TEXT | ```console\n$ ls\n``` | nobody runs this block
readme --check | ../NOTES.md | TEXT | [x](nowhere.md) | NOTES.md; line 1: nowhere.md does not exist
readme --check | ../NOTES.md | TEXT | a `b\nc` d\ne [x](no.md) | no.md does not exist
readme --check | ../NOTES.md | TEXT | [x]: nowhere.md | nowhere.md does not exist
readme --check | ../NOTES.md | TEXT | <img src="nowhere.png"> | nowhere.png does not exist
readme --check | ../NOTES.md | TEXT | # A b\n[x](#a-c) | line 2: no heading for #a-c
readme --check | ../NOTES.md | TEXT | [x](lessons/01_one/README.md#run) | no heading for
readme --check | ../NOTES.md | TEXT | [x](/etc/passwd) | does not exist
readme --check | ../NOTES.md | TEXT | ```text\n[x](none)\n```\n````text\n```\n```` |
readme --check | ../NOTES.md | TEXT | `[x](none)` [y](https://x.org/a_(b)) |
readme --check | ../NOTES.md | TEXT | # `a_b`: c's [d](NOTES.md)!\n[x](#a_b-cs-d) |
output 01 | 01_one/main.py | print(greet("world")) | open("../../NOTES.md") | with 1; No such file
"""


@pytest.mark.parametrize("fault", FAULTS.strip().splitlines())
def test_a_fault_and_its_finding(course, fault):
    verb, file, old, new, says = (p.strip().replace(r"\n", "\n") for p in fault.split("|"))
    edit(course.root / "lessons" / file, old, new)
    if says:
        only(tool(course, verb, 1), *says.split("; "))
    else:
        assert tool(course, verb) == f"{verb.split()[0]}: ok\n"


def test_no_byte_of_a_file_escapes():
    """Tried on what is at hand: Python's own modules, and the lessons."""
    root = Path(__file__).parents[1]
    files = [*Path(ast.__file__).parent.glob("*.py"), *root.glob("lessons/*/*.*")]
    assert len(files) > 100
    for path in [path for path in files if path.suffix in (".py", ".sql")]:
        text = path.read_bytes().decode(errors="surrogateescape")
        *parts, end = pieces(path.name, text)
        whole = "".join(f"{part.gap}{part.text}\n" for part in parts) + end.gap
        assert whole == text + "\n", path


def test_the_symbols_of_sql():
    names = "(file) things things_name f named"
    assert " ".join(texts(pieces("schema.sql", SCHEMA))) == names
    assert texts(pieces("schema.sql", SCHEMA))["things"].startswith("-- One row for each thing.")
    assert "comment on table" in texts(pieces("schema.sql", SCHEMA))["things"]
    assert list(texts(pieces("queries.sql", QUERIES))) == ["GetThing", "CountThings"]


def test_the_symbols_of_python(tmp_path):
    (tmp_path / "main.py").write_text(MAIN)
    names = "(module) GREETING greet Clock Clock.line Clock.reset"
    assert " ".join(texts(pieces("main.py", MAIN))) == names
    shown = 'class Clock:\n    """Has seconds."""\n\n    zero = 0.0'
    assert snippet(tmp_path, "main.py#Clock") == shown
    assert snippet(tmp_path, "main.py#Clock.nothing") is None


def test_the_changes_can_be_pasted_into_lesson_toml(course):
    edit(two(course) / "clock.py", "% 10", "% 100")
    told = tool(course, "changes")
    assert '[added]\n"tasks.py" = "The tasks."\n[changed]\n"clock.py#GREETING" = "It has' in told
    assert '\n"clock.py#Clock.line" = ""\n' in told


def test_a_new_file_is_named_by_its_symbols_or_as_a_whole(course):
    write(two(course), {"new.py": "def f(): ...\n\n\nclass C:\n    def m(self): ...\n"})
    told = tool(course, "changes --check", 1).splitlines()
    assert [finding.split()[2] for finding in told] == ["new.py#f", "new.py#C"]
    toml = two(course) / "lesson.toml"
    toml.write_text(f'{toml.read_text()}"new.py" = "It is new."\n')
    tool(course, "changes --check")


def test_a_changed_order(course):
    path = two(course) / "queries.sql"
    first, second = path.read_text().split("\n\n")
    path.write_text(f"{second}\n{first}\n")
    only(tool(course, "changes --check", 1), "02_two/queries.sql: order of")


def test_a_lesson_that_starts_the_chain_is_not_compared(course):
    write(two(course), {"main.py": "", "lesson.toml": "starts_the_chain = true\n"})
    tool(course, "changes --check")
    edit(two(course) / "lesson.toml", "true\n", 'true\n[added]\n"main.py#x" = "It is."\n')
    only(tool(course, "changes --check", 1), "02_two/lesson.toml", "not compared")


def test_a_table_of_changes_that_should_not_be_there_is_deleted(course):
    shutil.copy(two(course) / "CHANGES.md", one(course))
    only(tool(course, "readme --check", 1), "01_one/CHANGES.md: lesson.toml names no changes")
    assert tool(course, "readme") == "lessons/01_one/CHANGES.md: deleted\nreadme: ok\n"


def test_a_readme_that_nobody_would_read_to_the_end(course):
    page = two(course) / "README.md"
    page.write_text(page.read_text() + "\n" * 350)
    only(tool(course, "readme --check", 1), "02_two/README.md: 3", "lines: cut it to 350")


def test_a_stale_snippet(course):
    edit(one(course) / "README.md", '{GREETING}, {name}"\n', '{GREETING}: {name}"\n')
    only(tool(course, "readme --check", 1), "01_one/README.md", "main.py#greet is stale")
    tool(course, "readme")
    tool(course, "readme --check")


def test_a_page_in_docs_shows_the_output_of_its_lesson(course):
    page = "```console part\n$ python main.py\nhello, world\n```\n"
    write(course.root, {"docs/01_more.md": page})
    tool(course, "readme --check")
    tool(course, "output --check")
    edit(course.root / "docs/01_more.md", "hello, world", "hello, you")
    only(tool(course, "output --check", 1), "docs/01_more.md: line 1: this part is not in")


def test_a_stale_output(course):
    edit(one(course) / "main.py", 'greet("world")', 'greet("you")')
    found = tool(course, "output 01 --check", 1).splitlines()
    assert "01_one/README.md" in found[0]
    assert "stale, first at `hello, you`" in found[0]
    assert "this part is not in the output" in found[1]
    told = tool(course, "output 01", 1).splitlines()
    assert "this part is not in the output" in told[0]
    assert told[1:] == ["lessons/01_one/README.md: written"]
    edit(one(course) / "README.md", "main.py\nhello, world\n", "main.py\nhello, you\n")
    tool(course, "output 01 --check")


def test_an_output_that_differs_only_where_it_is_masked_is_not_rewritten(course):
    path = one(course) / "README.md"
    before = path.read_text()
    assert "  ran True" in before
    assert tool(course, "output 01") == "output: ok\n"
    assert path.read_text() == before
    edit(path, "  ran True", "  ran Maybe")
    only(tool(course, "output 01 --check", 1), "stale, first at")
    toml = one(course) / "lesson.toml"
    toml.write_text(f"{toml.read_text()}[[masks]]\npattern = 'True|Maybe'\nreplace = '<yes>'\n")
    tool(course, "output 01 --check")


def test_a_part_is_rewritten_between_its_first_and_its_last_line(course):
    path = one(course) / "README.md"
    edit(one(course) / "main.py", 'print(greet("world"))', 'print("a\\nb\\nc\\nd")')
    edit(path, "part\n$ python main.py\nhello, world", "part\n$ python main.py\nb\nx\nd")
    tool(course, "output 01")
    assert "part\n$ python main.py\nb\nc\nd\n```" in path.read_text()


def test_the_output_of_a_command_that_fails(course):
    path = one(course) / "main.py"
    path.write_text(f"{path.read_text()}    raise SystemExit(3)\n")
    only(tool(course, "output 01", 1), "`python main.py` ended with 3")
    edit(one(course) / "README.md", "```console\n", "```console exit=3\n")
    tool(course, "output 01 --check")


def test_an_edited_schema(course):
    assert stale(one(course)) is None
    edit(one(course) / "schema.sql", "'A thing.'", "'Things.'")
    assert "make generate LESSON=" in stale(one(course))
    told = tool(course, "generate --check", 1)
    only(told, "01_one/db", "edited after db/ was generated", "make generate")
    tool(course, "generate 01")
    tool(course, "generate --check")
    assert stale(one(course)) is None


def test_an_edited_query_and_a_fingerprint_that_hides_it(course):
    edit(one(course) / "queries.sql", "count(*)", "count(id)")
    record(one(course))
    only(tool(course, "generate --check", 1), "01_one/db/queries.py", "not what sqlc makes")


@pytest.mark.parametrize("plugin", ["fake-sqlc-gen-python", "there-is-none"])
def test_a_hand_edited_db(course, monkeypatch, plugin):
    monkeypatch.setattr(generated, "PLUGIN", plugin)
    edit(one(course) / "db/queries.py", "SQL =", "# mine\nSQL =")
    told = tool(course, "generate --check", 1)
    assert "01_one/db: edited by hand" in told
    assert ("NOT REGENERATED" in told) == (plugin == "there-is-none")


def test_generate_without_a_plugin_says_what_to_do(course, monkeypatch):
    monkeypatch.setattr(generated, "PLUGIN", "there-is-none")
    before = (one(course) / "db/queries.py").read_bytes()
    told = tool(course, "generate 01", 1)
    assert "127.0.0.1:1/plugin.wasm" in told, "sqlc's own words"
    assert "or put a there-is-none 1.3.0 on PATH" in told
    assert (one(course) / "db/queries.py").read_bytes() == before


def test_generate_shows_sqlcs_error(course):
    edit(one(course) / "queries.sql", "count(*) from things", "count(*) from thinks")
    assert 'relation "thinks" does not exist' in tool(course, "generate 01", 1)


def test_sql_that_was_patched_together_with_its_db_may_run(course):
    edit(one(course) / "queries.sql", "count(*)", "count(id)")
    edit(one(course) / "db/queries.py", "count(*)", "count(id)")
    assert stale(one(course)) is None


def test_a_stale_diff(course):
    edit(two(course) / "main.py", "again", "once more")
    only(tool(course, "diffs --check", 1), "diffs/01_to_02.patch", "stale")
    write(course.root, {"diffs/02_to_03.patch": "x"})
    tool(course, "diffs")
    assert [path.name for path in (course.root / "diffs").iterdir()] == ["01_to_02.patch"]


def test_a_diff_makes_one_lesson_of_the_other(course):
    write(two(course), {"new.py": "x = 1\n"})
    (two(course) / "sqlc.yaml").unlink()
    tool(course, "diffs")
    patch = course.root / "diffs/01_to_02.patch"
    assert "diff --git a/new.py b/new.py" in patch.read_text()
    subprocess.run(["git", "apply", patch], cwd=one(course), check=True)
    assert compared_files(one(course)) == compared_files(two(course))


def test_a_break_that_forgets_what_sqlc_makes(course):
    patch = one(course) / "breaks/other.patch"
    patch.write_text(BREAK + patch_of("queries.sql", QUERIES, "count(*)", "count(id)"))
    only(tool(course, "breaks 01", 1), "its db/ is not what sqlc makes of its SQL")
    patch.write_text(BREAK + patch_of("schema.sql", SCHEMA, "-- The tables.", "-- All tables."))
    only(tool(course, "breaks 01", 1), "it does not bring its db/fingerprint.txt")


def test_an_exercise_that_errors_unsolved(course):
    edit(one(course) / "exercises/1_loud/test_1_loud.py", "import os,", "import nothing, os,")
    assert "unsolved, it must fail, and the outcome is error" in tool(course, "exercises 01", 1)


def test_an_exercise_that_is_not_complete(course):
    (one(course) / "exercises/solutions/1_loud.patch").unlink()
    write(one(course), {"exercises/solutions/2_lost.patch": SOLUTION})
    found = tool(course, "exercises 01", 1).splitlines()
    assert "2_lost.patch: a solution without an exercise" in found[0]
    assert "1_loud.patch: missing" in found[1]


def test_a_readers_copy(course):
    assert "LESSON=work/01_mine pytest" in tool(course, "work 01")
    assert (course.root / "work/01_mine/db/queries.py").exists()
    assert "NAME=second" in tool(course, "work 01", 1)
    tool(course, "work 01 second")
    assert (course.root / "work/01_second/main.py").exists()
    tool(course, "generate work/01_mine")
    edit(course.root / "work/01_mine/main.py", '"hello"', '"good morning"')
    tool(course, "diff work/01_mine")


@pytest.fixture
def committed(course):
    commit = "git init -q && git add -A && git -c user.name=a -c user.email=a@b commit -qm all"
    subprocess.run(commit, shell=True, cwd=course.root, check=True)
    return course


def test_carry_merges(committed):
    edit(one(committed) / "main.py", "% 10", "% 60")
    write(one(committed), {"new.py": "x = 1\n"})
    (one(committed) / "sqlc.yaml").unlink()
    assert "02_two/sqlc.yaml: lessons/01_one/sqlc.yaml is gone" in tool(committed, "carry 01", 1)
    merged = (two(committed) / "main.py").read_text()
    assert "% 60" in merged
    assert "# again" in merged
    assert (two(committed) / "new.py").read_text() == "x = 1\n"
    assert "merged" not in tool(committed, "carry 01", 1), "a second time changes nothing"
    assert (two(committed) / "main.py").read_text() == merged


def test_carry_ends_where_another_chain_starts(committed):
    edit(two(committed) / "lesson.toml", "[changed]", "starts_the_chain = true\n[changed]")
    edit(one(committed) / "main.py", "% 10", "% 60")
    tool(committed, "carry 01")
    assert "% 10" in (two(committed) / "main.py").read_text()


def test_carry_conflicts(committed):
    edit(one(committed) / "main.py", '"hello"', '"good morning"')
    assert "02_two/main.py: conflict with the edit" in tool(committed, "carry 01", 1)
    assert "<<<<<<< lessons/02_two/main.py" in (two(committed) / "main.py").read_text()
    assert "02_two/main.py: has conflict markers" in tool(committed, "carry 01", 1)


def test_check_runs_everything_and_names_what_failed(course, monkeypatch):
    def crash(_: Course) -> list[str]:
        raise ValueError("the tool itself is broken")

    programs = ("ruff check", "ruff format", "types")  # of the real course, not of this one
    ours = {name: find for name, find in check.CHECKS.items() if name not in programs}
    monkeypatch.setattr(check, "CHECKS", {"crash": crash, **ours})
    edit(two(course) / "main.py", "again", "once more")
    told = tool(course, "check", 1)
    assert "the tool itself is broken" in told
    assert "diffs/01_to_02.patch: stale: run `python -m tools diffs`" in told
    assert all(f"\n{name} " in f"\n{told}" for name in ours)


def test_a_lesson_that_is_hardly_there_and_one_that_is_not(course):
    write(course.root, {"lessons/03_three/main.py": "print()\n"})
    for command in ("output --check 03", "breaks 03", "exercises 03"):
        tool(course, command)
    assert "03_three/lesson.toml" in tool(course, "changes --check", 1)
    assert tool(course, "breaks 04", 1).startswith("04: no such lesson")
    tool(course, "brakes", 2)
