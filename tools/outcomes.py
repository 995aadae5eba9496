"""The outcome of tests in words: which of them hold, and why the others fail."""

import ast
import re
from collections.abc import Mapping
from pathlib import Path

from shared.generated import selector
from tools.patches import Case
from tools.signatures import query_name
from tools.stages import Change
from tools.told import tell
from tools.tree import Course

NOT_YET = {
    "added": "there is no {symbol} in {file} yet",
    "changed": "{symbol} in {file} is as it was",
    "removed": "{symbol} is still in {file}",
}


def holds(case: Case | None) -> bool:
    return case is not None and case.ended in ("passed", "skipped")


def show(
    course: Course, copy: Path, ended: Mapping[str, Case | None], missing: dict[Change, str]
) -> None:
    """Which tests hold; of the others why they fail, where, and how to run each alone."""
    for test, case in ended.items():
        others = f" ({case.others})" if case and case.others else ""
        print(f"  {'holds' if holds(case) else 'FAILS'}  {sentence(test)}{others}")
        if holds(case):
            continue
        for line in [docstring(course, test), why(case, missing)]:
            if line:
                tell(line, " " * 9)
        if case and case.line:
            tell(f"in line {case.line} of tests/{test.partition('::')[0]}; alone:", " " * 9)
        print(f"         LESSON={selector(copy)} .venv/bin/pytest tests/{test}")


def sentence(test: str) -> str:
    words = test.partition("::test_")[2].replace("_", " ")
    return words[:1].upper() + words[1:]


def docstring(course: Course, test: str) -> str:
    """The first line of the test's own."""
    file, _, name = test.partition("::")
    for node in ast.parse((course.root / "tests" / file).read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return (ast.get_docstring(node) or "").partition("\n")[0]
    return ""


def why(case: Case | None, missing: dict[Change, str]) -> str:
    """The error, in words: mostly it is a name that is not there yet."""
    if case is None:
        return "the test did not run"
    if "crashed while running" in case.message or "Timeout" in case.message:
        return "it took too long, and was ended: something waits for what never comes"
    line = case.why if case.why.partition(":")[0].isidentifier() else case.message.split("\n")[0]
    if line.endswith("did not match."):  # pytest.raises(..., match=...): what was expected follows
        line = " ".join(part.strip() for part in case.message.split("\n")[:3])
    for (file, symbol), kind in missing.items():
        name = symbol.rpartition(".")[2]
        if re.search(rf"\b({name}|{query_name(name)})\b", f"{line} {case.message}"):
            return f"{NOT_YET[kind].format(symbol=symbol, file=file)} ({line})"
    return line
