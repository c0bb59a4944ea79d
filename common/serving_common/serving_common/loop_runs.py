"""Model runs so short that they may hold the event loop: the way to a thread and back takes longer than they do.

    loop_runs = LoopRuns.measure(model.run, row, bound_us=200)        at warm-up, not on the loop
    if loop_runs.allows(len(batch)):
        return loop_runs.run(model.run, batch)                        measured again, each time

Measured is the CPU time of the thread that runs the model: on a busy machine, time on the clock tells how long others
had the core. It has outliers, too, from interrupts and cold caches: one run decides only if it is far off.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import structlog

from serving_common.onnx import FloatArray

MAX_ROWS = 64
TRIES = 50
OVERRUNS = 32
"""Runs over the bound in a row after which the model leaves the loop; one of FAR times the bound is enough."""
FAR = 20
OFF_LOOP_S = 10.0
"""Seconds that it stays off the loop, before it is tried there again: several times, for the first run is slow."""

Run = Callable[[FloatArray], FloatArray]
"""A model that computes in the calling thread alone."""

log = structlog.get_logger()


class LoopRuns:
    """How many rows a run on the loop may have, while such runs keep their bound."""

    def __init__(self, max_rows: int, bound_us: int) -> None:
        self.max_rows = max_rows
        self._bound_s = bound_us / 1e6
        self._overruns = 0
        self._off_until = 0.0

    @classmethod
    def measure(cls, run: Run, row: FloatArray, bound_us: int) -> LoopRuns:
        """As many rows as the model answers in half the bound, in the best of some tries. Blocks meanwhile.

        Args:
            run: the model.
            row: a valid batch of one row, shape (1, …).
            bound_us: CPU time in microseconds that a run may take on the loop; 0: none may.
        """
        bound_s = bound_us / 1e6
        max_rows = 0
        while max_rows < MAX_ROWS and bound_us:
            rows = 2 * max_rows or 1
            batch = np.repeat(row, rows, axis=0)
            for _ in range(TRIES):
                took_s = _cpu_s(run, batch)
                if took_s <= bound_s / 2 or took_s > FAR * bound_s:
                    break
            if took_s > bound_s / 2:
                break
            max_rows = rows
        return cls(max_rows, bound_us)

    def allows(self, rows: int) -> bool:
        """Whether a run of this size may hold the loop now."""
        return rows <= self.max_rows and (not self._off_until or time.monotonic() >= self._off_until)

    def run(self, run: Run, batch: FloatArray) -> FloatArray:
        """The output for this batch. A model that does not keep the bound any more leaves the loop for a while."""
        started = time.thread_time()
        try:
            return run(batch)
        finally:
            self._record(time.thread_time() - started)

    def _record(self, took_s: float) -> None:
        if took_s <= self._bound_s:
            self._overruns, self._off_until = 0, 0.0
            return
        self._overruns += 1
        if self._overruns >= OVERRUNS or took_s > FAR * self._bound_s:
            self._overruns = 0
            self._off_until = time.monotonic() + OFF_LOOP_S
            log.warning("model_left_event_loop", run_us=round(took_s * 1e6), bound_us=round(self._bound_s * 1e6))


def _cpu_s(run: Run, batch: FloatArray) -> float:
    started = time.thread_time()
    run(batch)
    return time.thread_time() - started
