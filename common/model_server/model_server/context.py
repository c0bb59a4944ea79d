"""How long one request may take, and whether anybody still waits for its response."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from .status import Code, StatusError

if TYPE_CHECKING:
    from collections.abc import Iterable

    Headers = Iterable[tuple[str | bytes, str | bytes]]


class Context:
    """The deadline and the cancellation of one request. Work that is over must not be started."""

    __slots__ = ("ends", "headers", "is_cancelled")

    def __init__(self, ends: float | None = None, headers: Headers = ()) -> None:
        """
        Args:
            ends: the deadline on time.monotonic's clock; None: no deadline.
            headers: of the request, in HTTP or as gRPC's metadata.
        """
        self.ends = ends
        self.headers = headers
        self.is_cancelled = False

    def cancel(self) -> None:
        """The client has gone."""
        self.is_cancelled = True

    def watch(self) -> None:
        """Called when the request takes long: from now on, `cancel` must be called when the client goes.

        It may be called more than once, and by any thread.
        """

    def left_s(self) -> float | None:
        """Seconds until the deadline, at least 0; None without one."""
        return None if self.ends is None else max(0.0, self.ends - time.monotonic())

    def left_ms(self) -> int | None:
        """The same in TensorFlow's unit and never 0, which TensorFlow takes for no deadline."""
        return None if self.ends is None else max(1, round((self.ends - time.monotonic()) * 1000))

    def is_over(self) -> bool:
        """Whether nobody waits for the response."""
        return self.is_cancelled or (self.ends is not None and time.monotonic() >= self.ends)

    def check(self) -> None:
        """Raises CANCELLED or DEADLINE_EXCEEDED if nobody waits for the response."""
        if self.is_cancelled:
            raise StatusError(Code.CANCELLED, "The client has gone")
        if self.is_over():
            raise deadline_exceeded()


def deadline_exceeded() -> StatusError:
    """In the words of TensorFlow's session."""
    return StatusError(Code.DEADLINE_EXCEEDED, "Timed out waiting for notification")


# For work that is not part of a request.
NO_LIMIT = Context()
