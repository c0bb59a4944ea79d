"""Limits how many requests of one model run at a time, so that a slow model leaves threads for all others."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from .context import Context

    # Must not raise.
    Work = Callable[[], None]


class Admission:
    """Runs work in the calling thread. What exceeds its model's limit waits without a thread."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._running: dict[str, int] = {}
        self._waiting: dict[str, deque[Work]] = {}

    def submit(self, model: str, context: Context, work: Work) -> None:
        """Run `work` now, and then what has to wait for `model` meanwhile; or leave it to the thread that does."""
        if not self._try_start(model):
            context.watch()
            if not self._try_start(model, work):
                return
        next_: Work | None = work
        while next_ is not None:
            next_()
            next_ = self._finish(model)

    def _try_start(self, model: str, work: Work | None = None) -> bool:
        """Whether a run of `model` may start now. If not, `work` waits."""
        with self._lock:
            running = self._running.get(model, 0)
            if running < self._limit:
                self._running[model] = running + 1
                return True
            if work is not None:
                self._waiting.setdefault(model, deque()).append(work)
            return False

    def _finish(self, model: str) -> Work | None:
        """The work of `model` that has waited longest. None: there is none, and this thread is free."""
        with self._lock:
            if waiting := self._waiting.get(model):
                return waiting.popleft()
            self._waiting.pop(model, None)
            self._running[model] -= 1
            if not self._running[model]:
                # Models come and go, and requests may name models that never existed.
                del self._running[model]
            return None
