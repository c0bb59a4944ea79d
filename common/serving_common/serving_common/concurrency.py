"""How many requests are worked on at once."""

from types import TracebackType

from serving_common.errors import Overloaded


class ConcurrencyLimiter:
    """A context manager with room for so many; who finds none is refused, for waiting would make everybody late."""

    def __init__(self, count: int, detail: str) -> None:
        """
        Args:
            count: so many at once.
            detail: what those read who are refused.
        """
        self._free = count
        self._detail = detail

    def __enter__(self) -> None:
        """Raises Overloaded if no place is free."""
        if not self._free:
            raise Overloaded(self._detail)
        self._free -= 1

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._free += 1
