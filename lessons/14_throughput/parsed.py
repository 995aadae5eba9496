"""Each generated statement is parsed once, and not for each call."""

import functools
from types import SimpleNamespace

import sqlalchemy

from db import queries


def parse_once() -> None:
    """Give the generated module a `text` with a memory.

    What it returns is never changed, so threads may share it: parameters are given to `execute`.
    """
    # Its own name for sqlalchemy: the rest of the program keeps the real one.
    queries.sqlalchemy = SimpleNamespace(
        **{**vars(sqlalchemy), "text": functools.cache(sqlalchemy.text)}
    )
