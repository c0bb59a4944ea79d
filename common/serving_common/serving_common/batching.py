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
    """Runs a blocking model on a thread of its own, so that the event loop stays free.

    One run at a time. A lone request is run at once; there is no timer. Requests that come in during a run are taken
    together by the next, so that under load the cost of a run, and of the way to the thread and back, is shared.

    Use as an async context manager.
    """

    def __init__(
        self, run: Callable[[FloatArray], FloatArray], *, max_rows: int = 1024, max_waiting: int = 1024
    ) -> None:
        """
        Args:
            run: takes a batch of shape (N, …), returns one of shape (N, …), row by row.
            max_rows: one run takes requests until it has so many rows (one larger request is run alone).
            max_waiting: requests beyond so many waiting ones are refused.
        """
        self._run = run
        self._max_rows = max_rows
        self._max_waiting = max_waiting
        self._waiting: list[tuple[FloatArray, asyncio.Future[FloatArray]]] = []
        self._worker: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._worker is not None:
            await self._worker
        self._thread.shutdown()

    async def predict(self, batch: FloatArray) -> FloatArray:
        """The model's answer to this batch alone, shape (N, …).

        Raises:
            Overloaded: too many requests are waiting.
        """
        if len(self._waiting) >= self._max_waiting:
            raise Overloaded("The model has too many requests waiting")
        answer: asyncio.Future[FloatArray] = asyncio.get_running_loop().create_future()
        self._waiting.append((batch, answer))
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        return await answer

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batches, answers = self._take()
            # A future that is done by now belongs to a caller that has gone.
            try:
                result = await loop.run_in_executor(self._thread, self._run, np.concatenate(batches))
            except Exception as exc:  # noqa: BLE001 - whatever it was, the callers get it
                for answer in answers:
                    if not answer.done():
                        answer.set_exception(exc)
                continue
            start = 0
            for batch, answer in zip(batches, answers, strict=True):
                if not answer.done():
                    answer.set_result(result[start : start + len(batch)])
                start += len(batch)
        self._worker = None

    def _take(self) -> tuple[list[FloatArray], list[asyncio.Future[FloatArray]]]:
        count = rows = 0
        for batch, _ in self._waiting:
            if count and rows + len(batch) > self._max_rows:
                break
            count, rows = count + 1, rows + len(batch)
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return [batch for batch, _ in taken], [answer for _, answer in taken]
