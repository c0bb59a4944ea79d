"""A circuit breaker: leaves a service alone that has failed several times in a row, and notices when it is back."""

import time
from collections.abc import Callable


class Breaker:
    """Closed: every call passes. Open: none does. Half-open: one call tries, and its outcome decides."""

    def __init__(self, failures: int, open_s: float, now: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            failures: so many in a row open it.
            open_s: so long it stays open, in seconds.
            now: the clock.
        """
        self._max_failures = failures
        self._open_s = open_s
        self._now = now
        self._failures = 0
        self._next_try_at = 0.0

    def allows(self) -> bool:
        """Whether a call may be made now."""
        if self._failures < self._max_failures:
            return True
        if self._now() < self._next_try_at:
            return False
        # This call tries. Until its outcome is known, or lost, the others wait for the next turn.
        self._next_try_at = self._now() + self._open_s
        return True

    def succeeded(self) -> None:
        self._failures = 0

    def failed(self) -> None:
        self._failures += 1
        self._next_try_at = self._now() + self._open_s
