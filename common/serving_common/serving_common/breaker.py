"""A circuit breaker: stops calls to a neighbour that keeps failing, and detects its recovery."""

import time
from collections.abc import Callable


class CircuitBreaker:
    """Closed: every call passes. Open (cool-down): none. Half-open: one trial call passes; its outcome decides."""

    def __init__(self, failure_threshold: int, open_s: float, now: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            failure_threshold: consecutive failures that open it.
            open_s: seconds it stays open before a trial call.
            now: the clock, in seconds.
        """
        self._failure_threshold = failure_threshold
        self._open_s = open_s
        self._now = now
        self._failures = 0
        self._next_trial_at = 0.0

    def allows(self) -> bool:
        """Whether a call may be made now. The caller reports its outcome."""
        if self._failures < self._failure_threshold:
            return True
        if self._now() < self._next_trial_at:
            return False
        # This call is the trial. If its outcome never comes, for instance because it was cancelled, another call
        # becomes the trial after the next `open_s`.
        self._next_trial_at = self._now() + self._open_s
        return True

    def record_success(self) -> None:
        """Close the breaker."""
        self._failures = 0

    def record_failure(self) -> None:
        """Count a failure; at the threshold the breaker opens."""
        self._failures += 1
        self._next_trial_at = self._now() + self._open_s
