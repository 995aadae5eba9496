"""Each check of tools/ finds the fault that it is there to find, planted in a tiny course."""

import ast
import difflib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shared.generated import record, stale
from tools import changes, check, generated
from tools.__main__ import main
from tools.breaks import breaks
from tools.carry import carry
from tools.copies import copies
from tools.diffs import diffs
from tools.exercises import exercises
from tools.output import output
from tools.readme import readme
from tools.symbols import pieces, snippet, texts
from tools.tree import Course

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
import pytest

def test_greets():
    run = [sys.executable, "main.py"]
    out = subprocess.run(run, cwd=os.environ["LESSON"], capture_output=True, text=True).stdout
    assert out.startswith("hello, world")

def test_of_something_else():
    pass

@pytest.fixture
def broken():
    raise RuntimeError("no such thing")

def test_errors(broken):
    pass
"""
EXERCISE = """\
import os, pathlib

def test_1_loud():
    text = pathlib.Path(os.environ["LESSON"], "main.py").read_text()
    assert "upper()" in text
"""


def patch_of_main(old: str, new: str) -> str:
    """As git makes it."""
    before, after = MAIN.splitlines(True), MAIN.replace(old, new).splitlines(True)
    lines = difflib.unified_diff(before, after, "a/main.py", "b/main.py")
    return "diff --git a/main.py b/main.py\n" + "".join(lines)


BREAK = f"""\
What: it greets somebody else.
Test: tests/test_one.py::test_greets

{patch_of_main("{GREETING}, {name}", "{name}, {GREETING}")}"""
SOLUTION = patch_of_main("{GREETING}, {name}", "{GREETING.upper()}, {name}")


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """Two lessons that differ in one constant, with nothing wrong."""
    root = tmp_path_factory.mktemp("template")
    write(root, {"pyproject.toml": "[tool.pytest.ini_options]\n", "tests/test_one.py": TESTS})
    for name, other in (("01_one", "02_two"), ("02_two", "01_one")):
        lesson = {
            "main.py": MAIN,
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
    edit(root / "lessons/02_two/main.py", '"hello"', '"hello"  # again')
    named = 'title = "Two"\n[changed]\n"main.py#GREETING" = "It has a comment."\n'
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
        made = Course(template)
        for lesson in made.lessons:
            generated.generate(lesson)
        assert diffs(made, check=False) == []
        assert readme(made, check=False) == []
        assert output(made, None, check=False) == []
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


def only(found: list[str], *parts: str) -> None:
    """Exactly one finding, on one line, with these parts."""
    assert len(found) == 1, found
    assert "\n" not in found[0]
    for part in parts:
        assert part in found[0]


def test_a_course_without_faults_has_no_findings(course):
    assert changes.check(course) == []
    assert readme(course, check=True) == []
    assert generated.check(course) == []
    assert diffs(course, check=True) == []
    assert output(course, None, check=True) == []
    assert breaks(course, "01") == []
    assert exercises(course, "01") == []
    assert copies(course, "01") == []
    shown = (one(course) / "README.md").read_text()
    assert "```python main.py#greet\n# Says it,\n# politely.\ndef greet(name: str)" in shown
    assert 'return f"{GREETING}, {name}"\n```' in shown
    assert '  # On a line of its own.\n  def line(self) -> str:\n      return f"{time' in shown
    table = (two(course) / "README.md").read_text()
    assert "<summary>Symbol by symbol (1), without the story</summary>\n\n| |" in table
    assert "| added | `tasks.py` | The tasks. |\n\n</details>\n\nThe whole diff" in table
    assert "GREETING" not in table.partition("<!-- /changes -->")[0]


# Symbols


def test_no_byte_of_a_file_escapes():
    """Tried on what is at hand: Python's own modules, and the lessons."""
    root = Path(__file__).parents[1]
    files = [*Path(ast.__file__).parent.glob("*.py"), *root.glob("lessons/*/*.sql")]
    assert len(files) > 100
    for path in [*files, *root.glob("lessons/*/*.py")]:
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
    assert " ".join(texts(pieces("main.py", MAIN))) == (
        "(module) GREETING greet Clock Clock.line Clock.reset"
    )
    shown = 'class Clock:\n    """Has seconds."""\n\n    zero = 0.0'
    assert snippet(tmp_path, "main.py#Clock") == shown
    assert snippet(tmp_path, "main.py#Clock.nothing") is None


# Changes

UNDECLARED = [
    ("main.py", 'f"{GREETING}, {name}"', "GREETING + name", "changed main.py#greet"),
    ("main.py", "# Says it,", "# Says,", "changed main.py#greet"),
    ("main.py", "# Part two", "# Part 2", "changed main.py#(module)"),
    ("main.py", "import time", "import time\nimport sys", "changed main.py#(module)"),
    ("main.py", 'print(greet("world"))', 'print(greet("you"))', "changed main.py#(module)"),
    ("main.py", "zero = 0.0", "zero = 0.5", "changed main.py#Clock"),
    ("main.py", "def reset", "def restart", "added main.py#Clock.restart"),
    ("main.py", "% 10", "% 100", "changed main.py#Clock.line"),
    ("main.py", "\n\n    # On a line", "\n\n\n    # On a line", "blank lines before Clock.line"),
    ("main.py", "    zero = 0.0\n", "    zero = 0.0 \n", "changed main.py#Clock"),
    ("schema.sql", "-- The tables.", "-- Tables.", "changed schema.sql#(file)"),
    ("schema.sql", "-- One row", "-- A row", "changed schema.sql#things"),
    ("schema.sql", "'A thing.'", "'It.'", "changed schema.sql#things"),
    ("schema.sql", "select 1;", "select 2;", "changed schema.sql#f"),
    ("schema.sql", "name <> ''", "name <> 'x'", "changed schema.sql#named"),
    ("queries.sql", "-- By its id.", "-- By id.", "changed queries.sql#GetThing"),
    ("sqlc.yaml", "engine: postgresql", "engine: postgresql #", "changed sqlc.yaml"),
]


@pytest.mark.parametrize(
    ("file", "old", "new", "named"),
    UNDECLARED,
    ids=[f"{i} {u[3]}" for i, u in enumerate(UNDECLARED)],
)
def test_an_undeclared_change(course, file, old, new, named):
    edit(two(course) / file, old, new)
    found = changes.check(course)
    assert any(named in finding for finding in found), found
    assert len(found) == (2 if "restart" in new else 1), found


def test_a_declared_change_that_is_none(course):
    edit(two(course) / "main.py", '"hello"  # again', '"hello"')
    only(changes.check(course), "02_two/lesson.toml", "main.py#GREETING", "not changed")


def test_a_declaration_without_a_sentence(course):
    edit(two(course) / "lesson.toml", "It has a comment.", "")
    only(changes.check(course), "no sentence for main.py#GREETING")


def test_a_new_file_is_named_by_its_symbols_or_as_a_whole(course):
    write(two(course), {"new.py": "def f(): ...\n\n\nclass C:\n    def m(self): ...\n"})
    assert [finding.split()[2] for finding in changes.check(course)] == ["new.py#f", "new.py#C"]
    toml = two(course) / "lesson.toml"
    toml.write_text(f'{toml.read_text()}"new.py" = "It is new."\n')
    assert changes.check(course) == []


def test_a_changed_order(course):
    path = two(course) / "queries.sql"
    first, second = path.read_text().split("\n\n")
    path.write_text(f"{second}\n{first}\n")
    found = changes.check(course)
    assert "order of" in found[0]
    assert "02_two/queries.sql" in found[0]


def test_a_lesson_that_starts_the_chain_is_not_compared(course):
    write(two(course), {"main.py": "", "lesson.toml": "starts_the_chain = true\n"})
    assert changes.check(course) == []
    edit(two(course) / "lesson.toml", "true\n", 'true\n[added]\n"main.py#x" = "It is."\n')
    only(changes.check(course), "02_two/lesson.toml", "not compared")


# Markdown


def test_a_stale_snippet(course):
    edit(one(course) / "README.md", '{GREETING}, {name}"\n', '{GREETING}: {name}"\n')
    only(readme(course, check=True), "01_one/README.md", "main.py#greet is stale")
    assert readme(course, check=False) == []
    assert readme(course, check=True) == []


def test_a_snippet_of_nothing(course):
    edit(one(course) / "README.md", "python main.py#greet\n", "python main.py#great\n")
    only(readme(course, check=False), "01_one/README.md", "no main.py#great")


def test_a_stale_table_of_changes(course):
    edit(two(course) / "README.md", "| The tasks. |", "| Tasks. |")
    only(readme(course, check=True), "02_two/README.md", "table of changes is stale")


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("```\nx\n```\n", "line 1: a fence without a label"),
        ("- a\n  ~~~\n  x\n  ~~~\n", "line 2: a fence without a label"),
        ("```python\nx = 1\n```\n", "python without a source"),
        ("```sql\nselect 1\n```\n", "sql without a source"),
        ("```pyhton main.py#greet\n```\n", "label pyhton is not known"),
        ("```text\nx\n", "the fence has no end"),
        ("```console\n$ ls\n```\n", "nobody runs this block"),
        ("[x](nowhere.md)\n", "line 1: nowhere.md does not exist"),
        ("[x]: nowhere.md\n", "nowhere.md does not exist"),
        ('<img src="nowhere.png">\n', "nowhere.png does not exist"),
        ("# A b\n[x](#a-c)\n", "line 2: no heading for #a-c"),
        ("[x](lessons/01_one/README.md#run)\n", "no heading for"),
        ("[x](/etc/passwd)\n", "does not exist"),
    ],
)
def test_a_fault_in_markdown(course, text, wrong):
    write(course.root, {"NOTES.md": text})
    only(readme(course, check=True), "NOTES.md", wrong)


def test_what_only_looks_like_a_fault_in_markdown(course):
    text = "# `a_b`: c's [d](NOTES.md)!\n[x](#a_b-cs-d) `[x](none)` [y](https://x.org/a_(b))\n"
    write(course.root, {"NOTES.md": f"{text}```text\n[x](none)\n```\n````text\n```\n````\n"})
    assert readme(course, check=True) == []


# Output


def test_a_stale_output(course):
    path = one(course) / "main.py"
    edit(path, 'greet("world")', 'greet("you")')
    found = output(course, "01", check=True)
    assert "01_one/README.md" in found[0]
    assert "stale, first at `hello, you`" in found[0]
    assert "this part is not in the output" in found[1]
    only(output(course, "01", check=False), "this part is not in the output")
    edit(
        one(course) / "README.md",
        "$ python main.py\nhello, world\n",
        "$ python main.py\nhello, you\n",
    )
    assert output(course, "01", check=True) == []


def test_an_output_that_differs_only_where_it_is_masked_is_not_rewritten(course):
    path = one(course) / "README.md"
    before = path.read_text()
    assert "  ran True" in before
    assert output(course, "01", check=False) == []
    assert path.read_text() == before
    edit(path, "  ran True", "  ran Maybe")
    only(output(course, "01", check=True), "stale, first at")
    toml = one(course) / "lesson.toml"
    toml.write_text(f"{toml.read_text()}[[masks]]\npattern = 'True|Maybe'\nreplace = '<yes>'\n")
    assert output(course, "01", check=True) == []


def test_a_part_is_rewritten_between_its_first_and_its_last_line(course):
    edit(one(course) / "main.py", 'print(greet("world"))', 'print("a\\nb\\nc\\nd")')
    edit(
        one(course) / "README.md",
        "part\n$ python main.py\nhello, world",
        "part\n$ python main.py\nb\nx\nd",
    )
    assert output(course, "01", check=False) == []
    assert "part\n$ python main.py\nb\nc\nd\n```" in (one(course) / "README.md").read_text()


def test_the_output_of_a_command_that_fails(course):
    path = one(course) / "main.py"
    path.write_text(f"{path.read_text()}    raise SystemExit(3)\n")
    only(output(course, "01", check=False), "`python main.py` ended with 3")
    edit(one(course) / "README.md", "```console\n", "```console exit=3\n")
    assert output(course, "01", check=True) == []


# Generated code


def test_an_edited_schema(course):
    assert stale(one(course)) is None
    edit(one(course) / "schema.sql", "'A thing.'", "'Things.'")
    assert "make generate LESSON=" in stale(one(course))
    only(generated.check(course), "01_one/db", "edited after db/ was generated", "make generate")
    assert main(["generate", "01"], course.root) == 0
    assert generated.check(course) == []
    assert stale(one(course)) is None


def test_an_edited_query_and_a_fingerprint_that_hides_it(course):
    edit(one(course) / "queries.sql", "count(*)", "count(id)")
    record(one(course))
    only(generated.check(course), "01_one/db/queries.py", "not what sqlc makes")


@pytest.mark.parametrize("plugin", ["fake-sqlc-gen-python", "there-is-none"])
def test_a_hand_edited_db(course, monkeypatch, capsys, plugin):
    monkeypatch.setattr(generated, "PLUGIN", plugin)
    path = one(course) / "db/queries.py"
    path.write_text(f"{path.read_text()}# mine\n")
    found = generated.check(course)
    assert "01_one/db: edited by hand" in found[0]
    assert ("NOT REGENERATED" in capsys.readouterr().out) == (plugin == "there-is-none")


def test_generate_without_a_plugin_says_what_to_do(course, monkeypatch, capsys):
    monkeypatch.setattr(generated, "PLUGIN", "there-is-none")
    before = (one(course) / "db/queries.py").read_bytes()
    assert main(["generate", "01"], course.root) == 1
    told = capsys.readouterr().err
    assert "127.0.0.1:1/plugin.wasm" in told, "sqlc's own words"
    assert "or put a there-is-none 1.3.0 on PATH" in told
    assert (one(course) / "db/queries.py").read_bytes() == before


def test_generate_shows_sqlcs_error(course, capsys):
    edit(one(course) / "queries.sql", "count(*) from things", "count(*) from thinks")
    assert main(["generate", "01"], course.root) == 1
    assert 'relation "thinks" does not exist' in capsys.readouterr().err


def test_sql_that_was_patched_together_with_its_db_may_run(course):
    edit(one(course) / "queries.sql", "count(*)", "count(id)")
    edit(one(course) / "db/queries.py", "count(*)", "count(id)")
    assert stale(one(course)) is None


# Diffs


def test_a_stale_diff(course):
    edit(two(course) / "main.py", "again", "once more")
    only(diffs(course, check=True), "diffs/01_to_02.patch", "stale")
    write(course.root, {"diffs/02_to_03.patch": "x"})
    assert diffs(course, check=False) == []
    assert [path.name for path in (course.root / "diffs").iterdir()] == ["01_to_02.patch"]


def test_a_diff_makes_one_lesson_of_the_other(course):
    write(two(course), {"new.py": "x = 1\n"})
    (two(course) / "sqlc.yaml").unlink()
    assert diffs(course, check=False) == []
    patch = course.root / "diffs/01_to_02.patch"
    assert "diff --git a/new.py b/new.py" in patch.read_text()
    subprocess.run(["git", "apply", patch], cwd=one(course), check=True)
    assert changes.changes(one(course), two(course)) == {kind: [] for kind in changes.KINDS}


# Breaks and exercises


def test_a_break_that_breaks_nothing(course):
    edit(one(course) / "breaks/other.patch", "test_greets", "test_of_something_else")
    only(breaks(course, "01"), "breaks/other.patch", "test_of_something_else must fail", "passed")


def test_a_break_whose_test_errors(course):
    edit(one(course) / "breaks/other.patch", "test_greets", "test_errors")
    only(breaks(course, "01"), "test_errors must fail", "error", "no such thing")


def test_a_break_whose_test_does_not_exist(course):
    edit(one(course) / "breaks/other.patch", "test_greets", "test_nothing")
    only(breaks(course, "01"), "test_nothing must fail, and the outcome is error")


def test_a_break_that_does_not_apply(course):
    edit(one(course) / "main.py", "# Says it,", "# Greets.")
    only(breaks(course, "01"), "breaks/other.patch", "does not apply", "main.py")


def test_a_break_that_does_not_say_what_it_breaks(course):
    edit(one(course) / "breaks/other.patch", "What: ", "")
    only(breaks(course, "01"), "does not say what it breaks")


def test_a_break_that_forgets_the_generated_code(course):
    patch = one(course) / "breaks/other.patch"
    hunk = (
        "diff --git a/queries.sql b/queries.sql\n--- a/queries.sql\n+++ b/queries.sql\n"
        "@@ -5,2 +5,2 @@\n -- name: CountThings :one\n"
        "-select count(*) from things;\n+select count(id) from things;\n"
    )
    patch.write_text(patch.read_text() + hunk)
    only(breaks(course, "01"), "its db/ is not what sqlc makes of its SQL")


def test_a_break_of_the_schema_that_forgets_the_fingerprint(course):
    patch = one(course) / "breaks/other.patch"
    hunk = (
        "diff --git a/schema.sql b/schema.sql\n--- a/schema.sql\n+++ b/schema.sql\n"
        "@@ -1,2 +1,2 @@\n--- The tables.\n+-- All tables.\n \n"
    )
    patch.write_text(patch.read_text() + hunk)
    only(breaks(course, "01"), "it does not bring its db/fingerprint.txt")


def test_an_exercise_that_passes_unsolved(course):
    edit(one(course) / "exercises/1_loud/test_1_loud.py", "upper()", "GREETING")
    only(exercises(course, "01"), "test_1_loud.py", "unsolved, it must fail", "passed")


def test_an_exercise_that_errors_unsolved(course):
    edit(one(course) / "exercises/1_loud/test_1_loud.py", "import os,", "import nothing, os,")
    found = exercises(course, "01")
    assert "unsolved, it must fail, and the outcome is error" in found[0]


def test_a_solution_that_fails(course):
    edit(one(course) / "exercises/solutions/1_loud.patch", "upper()", "title()")
    only(exercises(course, "01"), "solutions/1_loud.patch", "must pass, and the outcome is failed")


def test_an_exercise_that_is_not_complete(course):
    (one(course) / "exercises/solutions/1_loud.patch").unlink()
    write(one(course), {"exercises/solutions/2_lost.patch": SOLUTION})
    found = exercises(course, "01")
    assert "2_lost.patch: a solution without an exercise" in found[0]
    assert "1_loud.patch: missing" in found[1]


# Copies


def test_a_copy_that_only_runs_inside_the_repository(course):
    edit(one(course) / "main.py", 'print(greet("world"))', 'open("../../pyproject.toml")')
    only(
        copies(course, "01"), "01_one/main.py", "outside the repository ends with 1", "No such file"
    )


def test_a_readers_copy(course, capsys):
    assert main(["work", "01"], course.root) == 0
    assert "LESSON=work/01_mine pytest" in capsys.readouterr().out
    assert (course.root / "work/01_mine/db/queries.py").exists()
    assert main(["work", "01"], course.root) == 1
    assert "NAME=second" in capsys.readouterr().err
    assert main(["work", "01", "second"], course.root) == 0
    assert (course.root / "work/01_second/main.py").exists()
    assert main(["generate", "work/01_mine"], course.root) == 0
    edit(course.root / "work/01_mine/main.py", '"hello"', '"good morning"')
    assert main(["diff", "work/01_mine"], course.root) == 0


# Carry


@pytest.fixture
def committed(course):
    for command in (
        ["init", "-q"],
        ["add", "-A"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "all"],
    ):
        subprocess.run(["git", *command], cwd=course.root, check=True)
    return course


def test_carry_merges(committed):
    edit(one(committed) / "main.py", "% 10", "% 60")
    write(one(committed), {"new.py": "x = 1\n"})
    (one(committed) / "sqlc.yaml").unlink()
    only(carry(committed, one(committed)), "02_two/sqlc.yaml", "01_one has no sqlc.yaml any more")
    merged = (two(committed) / "main.py").read_text()
    assert "% 60" in merged
    assert "# again" in merged
    assert (two(committed) / "new.py").read_text() == "x = 1\n"
    assert len(carry(committed, one(committed))) == 1, "a second time changes nothing"
    assert (two(committed) / "main.py").read_text() == merged


def test_carry_ends_where_another_chain_starts(committed):
    edit(two(committed) / "lesson.toml", "[changed]", "starts_the_chain = true\n[changed]")
    edit(one(committed) / "main.py", "% 10", "% 60")
    assert carry(committed, one(committed)) == []
    assert "% 10" in (two(committed) / "main.py").read_text()


def test_carry_conflicts(committed):
    edit(one(committed) / "main.py", '"hello"', '"good morning"')
    only(carry(committed, one(committed)), "02_two/main.py", "conflict")
    assert "<<<<<<< 02_two" in (two(committed) / "main.py").read_text()
    only(carry(committed, one(committed)), "02_two/main.py", "has conflict markers")


# All of it


def test_check_runs_everything_and_names_what_failed(course, monkeypatch, capsys):
    def crash(_: Course) -> list[str]:
        raise ValueError("the tool itself is broken")

    programs = ("ruff check", "ruff format", "types")  # of the real course, not of this one
    ours = [each for each in check.CHECKS if each.name not in programs]
    monkeypatch.setattr(check, "CHECKS", [check.Check("crash", crash, "mend it"), *ours])
    edit(two(course) / "main.py", "again", "once more")
    assert main(["check"], course.root) == 1
    told = capsys.readouterr().out
    assert "the tool itself is broken" in told
    assert "diffs/01_to_02.patch: stale: run `python -m tools diffs`" in told
    assert all(f"\n{each.name} " in told for each in ours)


def test_a_lesson_that_is_hardly_there(course, capsys):
    write(course.root, {"lessons/03_three/main.py": "print()\n"})
    assert main(["output", "--check", "03"], course.root) == 0
    assert main(["breaks", "03"], course.root) == 0
    assert main(["exercises", "03"], course.root) == 0
    assert main(["changes", "--check"], course.root) == 1
    assert "03_three/lesson.toml" in capsys.readouterr().err
