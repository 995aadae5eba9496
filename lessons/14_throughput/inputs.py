"""What is refused at the door, and what can be stored: JSON in, JSON out, errors as text."""

import json
import re
from contextlib import suppress
from datetime import timedelta
from inspect import (
    Signature,
    isasyncgenfunction,
    iscoroutinefunction,
    isgeneratorfunction,
    signature,
)
from itertools import accumulate
from types import CodeType, FunctionType
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

Json = Any  # what json.loads can return
MAX_JSON_BYTES = 1_000_000
MAX_DEPTH = 200  # Postgres and Python can do more, but not on every stack
MAX_ERROR_CHARACTERS = 10_000
MAX_INT = 2**31 - 1
MAX_DURATION = timedelta(days=3650)


class BadInput(ValueError):
    """Refused at the door: nothing was written. The message says what to change."""


def check_queue(queue: object) -> None:
    """BadInput for a name that cannot be stored, or that could be mistaken for another."""
    if not (isinstance(queue, str) and re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", queue)):
        raise BadInput(f"a queue is named with 1 to 100 letters, digits, _ . -, not {queue!r}")


def check_number(what: str, number: int, least: int, most: int) -> None:
    if type(number) is not int or not least <= number <= most:
        raise BadInput(f"{what} is a whole number from {least:,} to {most:,}, not {number!r}")


def check_duration(what: str, duration: object, least: timedelta = timedelta(0)) -> None:
    """BadInput for what is not a duration, or leads to a year that Python cannot read."""
    if not (isinstance(duration, timedelta) and least <= duration <= MAX_DURATION):
        raise BadInput(
            f"{what} is a timedelta from {least or 0} to {MAX_DURATION.days:,} days, "
            f"not {duration!r:.50}"
        )


def check_name(name: object) -> None:
    """BadInput for a worker's name that could not be stored, or read in a line of the log."""
    if not (isinstance(name, str) and name.isprintable() and 1 <= len(name) <= 100):
        raise BadInput(f"a worker is named with 1 to 100 printable characters, not {name!r:.50}")


def check_key(key: object) -> None:
    """BadInput for an empty key, or one that an index entry cannot hold."""
    if key is not None and not (isinstance(key, str) and re.fullmatch(r"[ -~]{1,200}", key)):
        raise BadInput(
            f"an idempotency key is 1 to 200 printable ASCII characters, not {key!r:.50}"
        )


def check_function(function: object, rule: str, /, *args: Any, **kwargs: Any) -> str:
    """The function's name. BadInput unless it takes these arguments and is done when it returns.

    rule: how such a function is written.
    """
    name, parameters = look_once_at(function, rule)
    if parameters:
        try:
            parameters.bind(*args, **kwargs)
        except TypeError as error:
            raise BadInput(f"{name}{parameters!s:.100}: {error}: {rule}") from None
    return name


Look = tuple[str, Signature | None]

# A step looks at its function each time. That takes longer than all else that it checks.
# Weakly: what nobody else holds is forgotten, with all that its closure holds. (But not a function
# that one of its own defaults leads to.)
_looked_at: WeakKeyDictionary[FunctionType, tuple[CodeType, str, Look]] = WeakKeyDictionary()


def look_once_at(function: object, rule: str) -> Look:
    if type(function) is not FunctionType:  # a callable object may look different each time
        return look_at(function, rule)
    code, name, look = _looked_at.get(function, (None, "", ("", None)))
    # A shell that loads a module again gives its functions new code.
    if code is not function.__code__ or name != function.__name__:
        look = look_at(function, rule)
        _looked_at[function] = (function.__code__, function.__name__, look)
    return look


def look_at(function: object, rule: str) -> Look:
    """Its name, and the parameters if it tells. BadInput if it is not done when it returns."""
    name = getattr(function, "__name__", None)
    if not callable(function) or not isinstance(name, str):
        raise BadInput(f"{function!r:.50} is no function with a name: {rule}")
    to_json(name)
    if iscoroutinefunction(function) or isasyncgenfunction(function):
        raise BadInput(f"{name} is async, and nobody would await it: {rule}")
    if isgeneratorfunction(function):
        raise BadInput(f"{name} is a generator, and nobody would run it: {rule}")
    try:
        return name, signature(function, follow_wrapped=False)
    except (TypeError, ValueError):  # some built-in functions do not tell
        return name, None


def to_json(value: Json) -> str:
    """`value` as JSON text that Postgres can store and that reads back as an equal value.

    Raises BadInput for what would fail later, or come back as something else.
    """
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False, default=not_json)
        size = len(text.encode())
        unchanged = json.loads(text) == value
    except (TypeError, ValueError, RecursionError) as error:  # a set; NaN, half a surrogate; depth
        raise BadInput(f"not JSON: {error}") from None
    except Exception as error:  # a class of yours
        raise BadInput(f"not JSON: {describe(error)}") from None
    if size > MAX_JSON_BYTES:
        raise BadInput(
            f"{size:,} bytes of JSON, and {MAX_JSON_BYTES:,} is the most: "
            "keep large data elsewhere and pass its address"
        )
    if "\\u0000" in text.replace("\\\\", ""):
        raise BadInput("a string holds the character NUL, which Postgres cannot store")
    if text.count("[") + text.count("{") > MAX_DEPTH and depth(text) > MAX_DEPTH:
        raise BadInput(f"lists and dicts are nested more than {MAX_DEPTH} deep")
    if not unchanged:
        raise BadInput("JSON would change it: use lists, not tuples, and strings as keys of a dict")
    return text


def as_text(value: Json) -> str:
    """As to_json, without the checks: for what has passed them."""
    return json.dumps(value, ensure_ascii=False)


def canonical(value: Json) -> str:
    """The same text for the same JSON, whatever the order of a dict's keys.

    As text, because in Python 1 == 1.0 == True. In ASCII, because some characters look alike.
    """
    return json.dumps(value, sort_keys=True)


HINTS = {
    "coroutine": "an async function was called, and not awaited; asyncio.run(...) does both",
    "async_generator": "only an async function can run it; asyncio.run(...) calls one",
    "Pending": "what ctx.spawn returns; ctx.result(...) waits for what the child returns",
    "Context": "it is for this run alone; return what its steps have returned",
    "generator": "nothing of it has run yet; list(...) does that",
}


def not_json(value: object) -> NoReturn:
    """json.dumps calls it with what it cannot write."""
    kind = type(value).__name__
    hint = f": {HINTS[kind]}" if kind in HINTS else ""
    raise TypeError(f"a value of type {kind}{hint}")


def depth(text: str) -> int:
    """How deep the lists and dicts in this JSON are nested."""
    brackets = re.sub(r'"(\\.|[^"\\])*"|[^][}{"]+', "", text)
    return max(accumulate(1 if bracket in "[{" else -1 for bracket in brackets), default=0)


def describe(error: BaseException) -> str:
    """`error` as text that can be stored, whatever it holds: NUL, half a surrogate, megabytes."""
    message = ", and its message cannot be read"
    with suppress(BaseException):  # even one that ends the process
        message = f": {error}"
    return storable(f"{type_name(error)}{message}", MAX_ERROR_CHARACTERS)


def type_name(error: BaseException) -> str:
    name = "an error"
    with suppress(BaseException):
        name = type(error).__name__
    return storable(name, 200)


def storable(text: str, characters: int) -> str:
    text = text.encode(errors="backslashreplace").decode().replace("\0", "\\x00")
    return text[:characters]
