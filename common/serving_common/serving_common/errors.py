"""The errors that a service raises on purpose. Only `problems` decides what they become in HTTP.

ServingError
├── InvalidInput    the caller's mistake; `errors` names field and row
├── Unauthorized    the API key is missing or wrong
├── NotFound        nothing exists under that id
├── Conflict        the resource's state does not allow the request
├── TooLarge        the body is larger than this service accepts
├── Overloaded      backpressure: this service is at its limit, try again later
├── CallerGone      the caller has disconnected: nobody reads the response, but logs and metrics count it
├── Unavailable     a neighbour of this service does not answer, try again later
└── Misconfigured   a neighbour refuses until an operator changes its rights or configuration; a retry is of no use
StartupError        the service cannot start; the message is the one line that the operator sees
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import ClassVar, NotRequired, TypedDict


class ErrorKind(StrEnum):
    """The kind of failure, independent of the protocol that reports it."""

    INVALID_INPUT = "invalid-input"
    UNAUTHORIZED = "unauthorized"
    NOT_FOUND = "not-found"
    CONFLICT = "conflict"
    TOO_LARGE = "too-large"
    OVERLOADED = "overloaded"
    CALLER_GONE = "caller-gone"
    UNAVAILABLE = "unavailable"
    MISCONFIGURED = "misconfigured"


class FieldError(TypedDict):
    """One fault in the input: where, and why."""

    row: NotRequired[int]  # from 0; absent if the input has no rows
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


class CallerGone(ServingError):
    kind = ErrorKind.CALLER_GONE


class Unavailable(ServingError):
    kind = ErrorKind.UNAVAILABLE


class Misconfigured(ServingError):
    kind = ErrorKind.MISCONFIGURED


class StartupError(Exception):
    """The service cannot start, for a reason that an operator can fix: a missing file, an invalid setting."""
