"""Errors of steps: as the log keeps them, and as the function sees them."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from inputs import BadInput, Json, describe, storable, type_name
from tasks import NonRetryableError


class FinalBadInput(BadInput, NonRetryableError):
    """Refused by a context: what the function asks for is a mistake, and will be in every run."""


@contextmanager
def final() -> Iterator[None]:
    """What is refused in here is refused for good."""
    try:
        yield
    except BadInput as error:
        raise FinalBadInput(str(error)) from None


class StepInStep(NonRetryableError):
    """A step's function has called `step`."""


class StepError(Exception):
    """A step has failed. The error is the same in the run that did the step and in every later one.

    step: its name. type: of what it raised. traceback: where it raised it, for people.
    """

    def __init__(self, step: str, error: dict[str, Any]) -> None:
        super().__init__(f"{step}: {error['error']}")
        self.step = step
        self.type: str = error["type"]
        self.traceback: str = error["traceback"]


class FinalStepError(StepError, NonRetryableError):
    """A step has failed, and has said that trying again is of no use."""


class AtMostOnceError(FinalStepError):
    """What is done at most once has failed, or was begun, and nobody knows what came of it.

    It may have been done in either case. type: "Unknown" if nobody knows.
    """


class SignalError(FinalStepError):
    """Instead of a payload, somebody has sent a failure."""


class WaitTimeout(FinalStepError):
    """What was waited for has not come in time. It goes on all the same."""


def error_entry(error: BaseException) -> dict[str, Any]:
    """What the log keeps of an error."""
    lines = "".join(traceback.format_tb(error.__traceback__)[-3:])
    return {
        "type": type_name(error),
        "error": describe(error),
        "traceback": storable(lines[-2000:], 2000),
        "final": issubclass(type(error), NonRetryableError),
    }


def begun(attempt: int) -> dict[str, Any]:
    """What the log keeps of what was begun: the answer, should nobody come to tell a better one."""
    return {
        "type": "Unknown",
        "error": f"begun in attempt {attempt}, and nobody knows whether it was done: find out. "
        "If it was not, and was the last thing that the task asked for, `retry` does it again",
        "traceback": "",
        "final": True,
    }


ERROR_KEYS = "type, error and traceback are text, final is true or false"


def is_error_entry(entry: Json) -> bool:
    """Is it what error_entry returns?"""
    match entry:
        case {"type": str(), "error": str(), "traceback": str(), "final": bool()}:
            return True
        case _:
            return False
