"""Joins requests that wait at the same time into one run of the model."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from .context import NO_LIMIT, Context, deadline_exceeded
from .status import Code, StatusError, invalid

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tfserving_protos import messages

    from .signature import Signature
    from .tensors import Array


@dataclass(frozen=True, slots=True)
class BatchingOptions:
    """BatchingParameters with TensorFlow Serving's defaults. A batch is counted in rows."""

    max_batch_size: int = 1000
    timeout_s: float = 0.0
    max_enqueued_batches: int = 10
    threads: int = os.cpu_count() or 1
    allowed_sizes: tuple[int, ...] = ()

    @classmethod
    def from_message(cls, message: messages.BatchingParameters) -> BatchingOptions:
        """Values that are not set keep their defaults.

        Raises:
            StatusError: INVALID_ARGUMENT for values that cannot work.
        """
        values: dict[str, int | float | tuple[int, ...]] = {}
        for name, source, scale in (
            ("max_batch_size", "max_batch_size", 1),
            ("timeout_s", "batch_timeout_micros", 1e-6),
            ("max_enqueued_batches", "max_enqueued_batches", 1),
            ("threads", "num_batch_threads", 1),
        ):
            if message.HasField(source):
                values[name] = getattr(message, source).value * scale
        options = cls(**values, allowed_sizes=tuple(message.allowed_batch_sizes))  # type: ignore[arg-type]  # the table above has the right types
        if min(options.max_batch_size, options.max_enqueued_batches, options.threads) < 1:
            raise invalid("max_batch_size, max_enqueued_batches and num_batch_threads must be positive")
        if options.timeout_s < 0:
            raise invalid("batch_timeout_micros must not be negative")
        sizes = options.allowed_sizes
        if sizes and (sorted(set(sizes)) != list(sizes) or sizes[-1] != options.max_batch_size):
            raise invalid("allowed_batch_sizes must increase, and the last one must equal max_batch_size")
        return options


@dataclass(slots=True)
class _Task:
    inputs: Mapping[str, Array]
    rows: int
    context: Context
    arrived: float = field(default_factory=time.monotonic)
    result: Future[dict[str, Array]] = field(default_factory=Future)


# Only requests for the same outputs, with equal shapes beyond dimension 0, can be concatenated.
_Key = tuple["Signature", tuple[str, ...], tuple[tuple[str, tuple[int, ...]], ...]]


class Batcher:
    """Runs signatures in batches, on threads that all models share. Call `run` in place of Signature.run."""

    def __init__(self, options: BatchingOptions) -> None:
        self._options = options
        self._queues: dict[_Key, deque[_Task]] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [threading.Thread(target=self._work, name="batch", daemon=True) for _ in range(options.threads)]
        for thread in self._threads:
            thread.start()

    def run(
        self,
        signature: Signature,
        inputs: Mapping[str, Array],
        outputs: tuple[str, ...] = (),
        context: Context = NO_LIMIT,
    ) -> dict[str, Array]:
        """As Signature.run; waits for the batch that contains the rows, at most until the deadline.

        Raises:
            StatusError: also INVALID_ARGUMENT for inputs without a common batch dimension or larger than a batch,
                and UNAVAILABLE when the queue is full.
        """
        context.check()
        # Check first, so that a request of the wrong type does not fail the others in its batch.
        signature.check(inputs)
        rows = _row_count(inputs)
        limit = self._options.max_batch_size
        if rows > limit:
            raise invalid(f"Task size {rows} is larger than maximum input batch size {limit}")
        key = (signature, outputs, tuple(sorted((alias, array.shape[1:]) for alias, array in inputs.items())))
        task = _Task(inputs, rows, context)
        with self._changed:
            queue = self._queues.setdefault(key, deque())
            if sum(waiting.rows for waiting in queue) + rows > limit * self._options.max_enqueued_batches:
                raise StatusError(
                    Code.UNAVAILABLE, "The batch scheduling queue to which this task was submitted is full"
                )
            queue.append(task)
            self._changed.notify()
        try:
            return task.result.result(context.left_s())
        except TimeoutError:
            raise deadline_exceeded() from None

    def close(self) -> None:
        """Run the waiting requests, then end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            (signature, outputs, _), tasks = taken
            tasks = [task for task in tasks if _is_wanted(task)]
            if not tasks:
                continue
            try:
                results = self._run_batch(signature, outputs, tasks)
            except Exception as error:  # noqa: BLE001 raised in the threads of the waiting requests
                for task in tasks:
                    task.result.set_exception(error)
            else:
                for task, result in zip(tasks, results, strict=True):
                    task.result.set_result(result)
            del taken, signature, tasks

    def _take(self) -> tuple[_Key, list[_Task]] | None:
        """Wait for the next batch that is full or as old as the timeout; None when closed and empty."""
        with self._changed:
            while True:
                now = time.monotonic()
                wait_s = None
                for key, queue in self._queues.items():
                    left_s = queue[0].arrived + self._options.timeout_s - now
                    is_full = sum(task.rows for task in queue) >= self._options.max_batch_size
                    if is_full or left_s <= 0 or self._closed:
                        return key, self._pop(key, queue)
                    wait_s = left_s if wait_s is None else min(wait_s, left_s)
                if self._closed:
                    return None
                self._changed.wait(wait_s)

    def _pop(self, key: _Key, queue: deque[_Task]) -> list[_Task]:
        tasks = [queue.popleft()]
        rows = tasks[0].rows
        while queue and rows + queue[0].rows <= self._options.max_batch_size:
            tasks.append(queue.popleft())
            rows += tasks[-1].rows
        del self._queues[key]
        if queue:
            # The rest goes to the end, so that other models get their turn.
            self._queues[key] = queue
            self._changed.notify()
        return tasks

    def _run_batch(self, signature: Signature, outputs: tuple[str, ...], tasks: list[_Task]) -> list[dict[str, Array]]:
        rows = sum(task.rows for task in tasks)
        padded = next((size for size in self._options.allowed_sizes if size >= rows), rows)
        inputs = {}
        for alias in tasks[0].inputs:
            parts = [task.inputs[alias] for task in tasks]
            if padded > rows:
                parts.append(np.repeat(parts[0][:1], padded - rows, axis=0))
            inputs[alias] = np.concatenate(parts)
        ends = [task.context.ends for task in tasks]
        # As in TensorFlow Serving, the last deadline counts.
        values = signature.run(inputs, outputs, Context(None if None in ends else max(filter(None, ends))))
        for alias, array in values.items():
            if array.ndim == 0 or len(array) != padded:
                raise StatusError(
                    Code.FAILED_PRECONDITION,
                    f"Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the "
                    f"input tensors: {alias}",
                )
        stops = np.cumsum([task.rows for task in tasks])
        return [
            {alias: array[stop - task.rows : stop] for alias, array in values.items()}
            for task, stop in zip(tasks, stops.tolist(), strict=True)
        ]


def _is_wanted(task: _Task) -> bool:
    """Whether somebody still waits for its result. If not, it fails here."""
    try:
        task.context.check()
    except StatusError as error:
        task.result.set_exception(error)
        return False
    return True


def _row_count(inputs: Mapping[str, Array]) -> int:
    if any(array.ndim == 0 for array in inputs.values()):
        raise invalid("Batching Run() input tensors must have at least one dimension")
    sizes = {len(array) for array in inputs.values()}
    if len(sizes) != 1:
        raise invalid("Batching Run() input tensors must have equal 0th-dimension size")
    return sizes.pop()
