"""Micro-batching: requests that arrive while the model is busy share its next run."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import numpy as np

from serving_common.errors import Overloaded, Unavailable
from serving_common.loop_runs import LoopRuns
from serving_common.onnx import FloatArray, RunOptions, run_options

WATCH_S = 0.05
"""Seconds between two looks, during a run, at whether somebody still waits for its output."""


class Run(Protocol):
    """A model: a batch of shape (N, …) in, one of shape (N, …) out, row by row. `options.terminate` ends a run."""

    def __call__(self, batch: FloatArray, options: RunOptions | None = None, /) -> FloatArray: ...


@dataclass(slots=True, eq=False)
class _Request:
    batch: FloatArray
    output: asyncio.Future[FloatArray]
    is_wanted: Callable[[], bool]


class MicroBatcher:
    """Runs a blocking model on its own thread, so that the event loop stays free.

    One run at a time. A lone request runs at once; there is no timer. Requests that arrive during a run share the next
    one, so that under load they share the cost of the run and of the two thread switches.

    A model that `allow_loop_runs` has measured to be fast enough answers small requests on the loop, while its thread
    has nothing to do.

    A run ends early once nobody waits for its output.

    Use as an async context manager.
    """

    def __init__(self, run: Run, *, max_rows: int = 1024, max_waiting: int = 1024) -> None:
        """
        Args:
            run: the model.
            max_rows: most rows of one run (a larger request runs alone).
            max_waiting: bound of the queue; requests beyond it are rejected.
        """
        self._run = run
        self._max_rows = max_rows
        self._max_waiting = max_waiting
        self._waiting: list[_Request] = []
        self._runner: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._loop_runs = LoopRuns(0, 0)
        self._running: tuple[list[_Request], RunOptions] | None = None
        self._is_watched = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._runner is not None:
            await self._runner
        self._thread.shutdown()

    async def allow_loop_runs(self, row: FloatArray, bound_us: int) -> int:
        """Most rows of a run that may hold the event loop from now on: what `LoopRuns.measure` finds on the thread."""
        loop = asyncio.get_running_loop()
        self._loop_runs = await loop.run_in_executor(self._thread, LoopRuns.measure, self._run, row, bound_us)
        return self._loop_runs.max_rows

    async def predict(self, batch: FloatArray, is_wanted: Callable[[], bool] = lambda: True) -> FloatArray:
        """The model's output for this batch, shape (N, …).

        Args:
            batch: shape (N, …).
            is_wanted: called before the model runs, and now and then while it does. If it is false, or this call was
                cancelled, the model does not run, or ends.

        Raises:
            Overloaded: too many requests are waiting.
            Unavailable: the output is not wanted any more.
        """
        if self._runner is None and self._loop_runs.allows(len(batch)):
            if not is_wanted():
                raise _unwanted()
            return self._loop_runs.run(self._run, batch)
        if len(self._waiting) >= self._max_waiting:
            raise Overloaded("The model has too many requests waiting")
        output: asyncio.Future[FloatArray] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Request(batch, output, is_wanted))
        if self._runner is None:
            self._runner = asyncio.create_task(self._run_batches())
        return await output

    async def _run_batches(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            requests = self._next_requests()
            if not requests:
                continue
            options = run_options()
            self._running = requests, options
            if not self._is_watched:
                self._is_watched = True
                loop.call_later(WATCH_S, self._watch)
            try:
                batch = np.concatenate([request.batch for request in requests])
                result = await loop.run_in_executor(self._thread, self._run, batch, options)
            except Exception as exc:  # noqa: BLE001 - the callers get it
                for request in requests:
                    if not request.output.done():  # else its caller has cancelled it
                        request.output.set_exception(_unwanted() if options.terminate else exc)
                continue
            finally:
                self._running = None
            start = 0
            for request in requests:
                if not request.output.done():
                    request.output.set_result(result[start : start + len(request.batch)])
                start += len(request.batch)
        self._runner = None

    def _watch(self) -> None:
        """Ends a run that nobody waits for; looks again later, not once for each run, while there are any."""
        self._is_watched = self._running is not None
        if self._running is not None:
            asyncio.get_running_loop().call_later(WATCH_S, self._watch)
            requests, options = self._running
            options.terminate = all(request.output.done() or not request.is_wanted() for request in requests)

    def _next_requests(self) -> list[_Request]:
        """Removes the requests of the next run from those that wait, and whatever nobody waits for any more."""
        taken: list[_Request] = []
        count = rows = 0
        for request in self._waiting:
            if taken and rows + len(request.batch) > self._max_rows:
                break
            count += 1
            if request.output.done():
                continue
            if request.is_wanted():
                taken.append(request)
                rows += len(request.batch)
            else:
                request.output.set_exception(_unwanted())
        del self._waiting[:count]
        return taken


def _unwanted() -> Unavailable:
    return Unavailable("The caller had gone, or its deadline passed, before the model had answered")
