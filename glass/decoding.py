"""What the plugin test_decoding prints of a commit, a line for each row.

BEGIN 745
table s.tasks: UPDATE: old-key: id[bigint]:1 new-tuple: id[bigint]:2 status[text]:'it''s queued'
COMMIT 745 (at 2026-03-01 12:00:00.123+00)
"""

import re
from collections.abc import Iterable, Iterator

from glass.history import Commit, Row, Written

# A part that follows, or a column. Found one after the other, so that what stands in a value counts
# for nothing.
FIELD = re.compile(
    r"""(old-key|new-tuple):|
    (\w+|"[^"]*(?:""[^"]*)*")\[[^\]]*(?:\[\])?\]:('[^']*(?:''[^']*)*'|\S+)""",
    re.VERBOSE,
)


def commits(lines: Iterable[str], schema: str) -> Iterator[Commit]:
    """What was done to the tables of the schema; what was done to others is left out."""
    written: list[Written] = []
    for line in lines:
        if line.startswith("BEGIN"):
            written = []
        elif ended := re.match(r"COMMIT (\d+) \(at (.*)\)", line):
            if written:
                yield Commit(int(ended[1]), ended[2], written)
        else:
            written += rows(line, schema)


def rows(line: str, schema: str) -> Iterator[Written]:
    """Names of schemas have no quotes: they are made by shared.database.schema_name."""
    found = re.match(r"table (.*?): (INSERT|UPDATE|DELETE|TRUNCATE): ", line)
    if not found:
        return
    tables = [
        table.strip('"')
        for owner, _, table in (name.partition(".") for name in found[1].split(", "))
        if owner == schema
    ]
    if found[2] == "TRUNCATE":
        yield from (Written("truncate", table, {}) for table in tables)
    elif tables:
        old, new = columns(line[found.end() :])
        verb = found[2].lower()
        if old and new:  # it has another key now
            yield Written("delete", tables[0], old)
            verb = "insert"
        yield Written(verb, tables[0], new)


def columns(text: str) -> tuple[Row, Row]:
    """Those of the old key, if it has changed, and those of the row."""
    old, row = Row(), Row()
    into = row
    for part, column, value in FIELD.findall(text):
        if part:
            into = old if part == "old-key" else row
        elif value[0] == "'":
            into[name(column)] = value[1:-1].replace("''", "'")
        elif value != "unchanged-toast-datum":
            into[name(column)] = None if value == "null" else value
    return old, row


def name(text: str) -> str:
    return text[1:-1].replace('""', '"') if text.startswith('"') else text
