"""Work in this database that is committed together with its record: it is done exactly once."""

import time
from collections.abc import Callable
from typing import Any, cast

import psycopg
import sqlalchemy as sa
from psycopg.pq import TransactionStatus
from sqlalchemy.exc import DBAPIError

from connection import complain, pauses, sqlstate
from errors import final
from fence import Fence
from inputs import Json, check_function, to_json
from tasks import NonRetryableError, register

MAX_TRIES = 5
CONFLICTS = ("40001", "40P01")  # others were in the way: a serialization failure, a deadlock

Work = Callable[[sa.Connection], Json]


class EndedTransaction(NonRetryableError):
    """The function has committed its work, or rolled it back, without the record."""


class AbortedTransaction(Exception):
    """The function has gone on after an error of the database: nothing can be committed."""


def transactional(function: Callable[[sa.Connection, Any], Json]) -> Callable[..., Json]:
    """Register a task that works in this database, and there exactly once.

    The function takes a connection in a transaction, and one JSON value. When it has returned, its
    work and the task's success are committed together.
    """
    rule = "a transactional task is a def that takes a connection and one JSON value"
    register(check_function(function, rule, None, None), function, kind="transactional")
    return function


def commit(fence: Fence, work: Work, record: Callable[..., int], **values: Any) -> str | None:
    """Do the work and write with `record` what it returned, in one transaction. That, as JSON.

    None: `record` has changed nothing, so nothing of the work is left. What the work raises is
    raised, and then nothing is left of it either. But in both cases all of it may be there, if an
    earlier try has arrived, and only the answer to its COMMIT was lost: whoever called looks it up.
    """
    pause = pauses()
    for tries_left in reversed(range(MAX_TRIES)):
        ours = True  # what goes wrong is the engine's failure, not the function's
        try:
            with fence.begin() as connection:
                ours = False
                output = do(work, connection)
                ours = True
                # The last statement. It locks the task's row, and so for no longer than the COMMIT
                # takes: a cancel or a take-back waits for that, and never for the function.
                if not fence.write_on(connection, record, **values | {"output": output}):
                    connection.rollback()
                    return None
                ours = False  # COMMIT checks what the function has left to it
            return output
        except Exception as error:
            if not tries_left or not (ours or may_pass(error)):
                if ours and not may_pass(error):
                    fence.refuse(error)
                raise
            complain(error)
            time.sleep(next(pause))
    raise AssertionError("the last try returns or raises")


def do(work: Work, connection: sa.Connection) -> str:
    """Call the function: its output as JSON. Raises EndedTransaction, AbortedTransaction."""
    transaction = connection.get_transaction()
    try:
        output = work(connection)
    finally:
        if has_ended(connection, transaction):
            raise EndedTransaction(
                "the function has ended its transaction, so nobody knows what of its work is "
                "committed: it must leave that to the engine. begin_nested() can be undone"
            )
    if status(connection) != TransactionStatus.INTRANS:
        raise AbortedTransaction(
            "a statement was refused, and the function went on: nothing of its work can be "
            "committed. Try such a statement within connection.begin_nested()"
        )
    with final():
        return to_json(output)


def has_ended(connection: sa.Connection, transaction: object) -> bool:
    """By a call, or by an SQL statement. A broken line is not the function's doing."""
    if connection.get_transaction() is not transaction:
        return True
    return status(connection) == TransactionStatus.IDLE


def status(connection: sa.Connection) -> TransactionStatus | None:
    """What the driver knows; None if the line is broken."""
    if connection.invalidated:
        return None
    driver = cast("psycopg.Connection[Any]", connection.connection.dbapi_connection)
    return driver.info.transaction_status


def may_pass(error: Exception) -> bool:
    """The line broke, or others were in the way: the same work may succeed at once."""
    return isinstance(error, DBAPIError) and (
        error.connection_invalidated or sqlstate(error) in CONFLICTS
    )
