"""The errors that a service means to raise. What they become in HTTP is decided in `problems`, nowhere else.

ServingError
├── InvalidInput    the caller's mistake; `errors` says in which field and row
├── Unauthorized    the API key is missing or wrong
├── NotFound        there is nothing under that id
├── Conflict        the request does not fit the state that the thing is in
├── TooLarge        the body is larger than this service accepts
├── Overloaded      try again later, this service has too much to do
└── Unavailable     try again later, something behind this service does not answer
StartupError        the service cannot start; the message is the one line that the operator sees
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import ClassVar, NotRequired, TypedDict


class ErrorKind(StrEnum):
    """What kind of failure it is, independent of the protocol that reports it."""

    INVALID_INPUT = "invalid-input"
    UNAUTHORIZED = "unauthorized"
    NOT_FOUND = "not-found"
    CONFLICT = "conflict"
    TOO_LARGE = "too-large"
    OVERLOADED = "overloaded"
    UNAVAILABLE = "unavailable"


class FieldError(TypedDict):
    """One thing that is wrong: where, and why."""

    row: NotRequired[int]  # counted from 0; absent where the input has no rows
    field: str
    reason: str


class ServingError(Exception):
    """An expected failure. `str(error)` is the `detail` that the caller reads."""

    kind: ClassVar[ErrorKind]

    def __init__(self, detail: str, errors: Sequence[FieldError] = ()) -> None:
        super().__init__(detail)
        self.errors = errors


class InvalidInput(ServingError):
    kind = ErrorKind.INVALID_INPUT


class Unauthorized(ServingError):
    kind = ErrorKind.UNAUTHORIZED


class NotFound(ServingError):
    kind = ErrorKind.NOT_FOUND


class Conflict(ServingError):
    kind = ErrorKind.CONFLICT


class TooLarge(ServingError):
    kind = ErrorKind.TOO_LARGE


class Overloaded(ServingError):
    kind = ErrorKind.OVERLOADED


class Unavailable(ServingError):
    kind = ErrorKind.UNAVAILABLE


class StartupError(Exception):
    """The service cannot start, for a reason that an operator can mend: a missing file, a bad setting."""
