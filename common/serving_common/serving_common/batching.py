"""Micro-batching: requests that arrive while the model is busy share its next run."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import numpy as np

from serving_common.errors import Overloaded
from serving_common.onnx import FloatArray


class MicroBatcher:
    """Runs a blocking model on its own thread, so that the event loop stays free.

    One run at a time. A lone request runs at once; there is no timer. Requests that arrive during a run share the next
    one, so that under load they share the cost of the run and of the two thread switches.

    Use as an async context manager.
    """

    def __init__(
        self, run: Callable[[FloatArray], FloatArray], *, max_rows: int = 1024, max_waiting: int = 1024
    ) -> None:
        """
        Args:
            run: maps a batch of shape (N, …) to one of shape (N, …), row by row.
            max_rows: most rows of one run (a larger request runs alone).
            max_waiting: bound of the queue; requests beyond it are rejected.
        """
        self._run = run
        self._max_rows = max_rows
        self._max_waiting = max_waiting
        self._waiting: list[tuple[FloatArray, asyncio.Future[FloatArray]]] = []
        self._runner: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._runner is not None:
            await self._runner
        self._thread.shutdown()

    async def predict(self, batch: FloatArray) -> FloatArray:
        """The model's output for this batch, shape (N, …).

        Raises:
            Overloaded: too many requests are waiting.
        """
        if len(self._waiting) >= self._max_waiting:
            raise Overloaded("The model has too many requests waiting")
        output: asyncio.Future[FloatArray] = asyncio.get_running_loop().create_future()
        self._waiting.append((batch, output))
        if self._runner is None:
            self._runner = asyncio.create_task(self._run_batches())
        return await output

    async def _run_batches(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batches, outputs = self._next_batch()
            # A future that is already done was cancelled by its caller.
            try:
                result = await loop.run_in_executor(self._thread, self._run, np.concatenate(batches))
            except Exception as exc:  # noqa: BLE001 - the callers get it
                for output in outputs:
                    if not output.done():
                        output.set_exception(exc)
                continue
            start = 0
            for batch, output in zip(batches, outputs, strict=True):
                if not output.done():
                    output.set_result(result[start : start + len(batch)])
                start += len(batch)
        self._runner = None

    def _next_batch(self) -> tuple[list[FloatArray], list[asyncio.Future[FloatArray]]]:
        count = rows = 0
        for batch, _ in self._waiting:
            if count and rows + len(batch) > self._max_rows:
                break
            count, rows = count + 1, rows + len(batch)
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return [batch for batch, _ in taken], [output for _, output in taken]
