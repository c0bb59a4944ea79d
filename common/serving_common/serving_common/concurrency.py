"""Backpressure: a limit on concurrent requests."""

from types import TracebackType

from serving_common.errors import Overloaded


class ConcurrencyLimiter:
    """Limits concurrent requests, like a semaphore that rejects when full: queueing would make every request late."""

    def __init__(self, limit: int, detail: str) -> None:
        """
        Args:
            limit: most concurrent requests.
            detail: error text of a rejected request.
        """
        self._free = limit
        self._detail = detail

    def __enter__(self) -> None:
        """Raises Overloaded at the limit."""
        if not self._free:
            raise Overloaded(self._detail)
        self._free -= 1

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._free += 1
