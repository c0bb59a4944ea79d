"""What a worker does: take jobs, ask TensorFlow Serving, store results; and whose fault it is when that fails."""

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol

import orjson
import structlog

from serving_common.queue.consumers import retry_until_available
from serving_common.queue.types import Job, JobId
from serving_common.queue.worker import Worker
from serving_common.redis import QueueUnavailable
from serving_common.tasks import backoff_s, sleep_or_stop
from src.jobs import Rows, classify, in_batches, read_rows
from src.metrics import BATCH_JOBS, JOBS, PROCESSING_TIME
from src.tf_serving import InferenceFailed, ModelCrashed, ModelUnavailable

log = structlog.get_logger()


class Model(Protocol):
    """What predicts: `TfServing`, or in a benchmark a constant."""

    async def connect(self) -> None:
        """Raises ModelUnavailable if there is nobody to ask."""

    async def predict(self, rows: Rows) -> list[list[float]]:
        """The probabilities of the classes, shape (N, 3), for rows of shape (N, 4)."""


class Consumer:
    """One of the tasks of a worker."""

    def __init__(self, worker: Worker, model: Model, stopping: asyncio.Event, batch_size: int) -> None:
        self._worker = worker
        self._model = model
        self._stopping = stopping
        self._batch_size = batch_size

    async def run(self) -> None:
        """Work until `stopping` is set and what is in hand is done."""
        failures = 0
        while not self._stopping.is_set():
            try:
                # Before it takes any: while the model is gone, the jobs wait in the queue and in nobody's hand.
                await self._model.connect()
                jobs = await self._worker.claim(self._batch_size)
                if jobs:
                    await self._process(jobs)
                failures = 0
            except (QueueUnavailable, ModelUnavailable) as exc:
                log.warning("neighbour_unavailable", neighbour=type(exc).__name__)
                await sleep_or_stop(self._stopping, backoff_s(failures))
                failures += 1

    async def _process(self, jobs: Sequence[Job]) -> None:
        try:
            await self.process(jobs)
        except ModelUnavailable:
            raise
        except Exception:  # a job that meets a bug of ours must not end the worker
            log.exception("processing_crashed", jobs=[job.id for job in jobs])
            failed = await retry_until_available(self._worker.retry, jobs, "Internal error")
            JOBS.labels("failed").inc(len(failed))

    async def process(self, jobs: Sequence[Job]) -> None:
        """Bring these jobs to an end, or back into the queue. Raises ModelUnavailable once they are back."""
        BATCH_JOBS.observe(len(jobs))
        readable = []
        for job in jobs:
            try:
                readable.append((job, read_rows(job)))
            except ValueError:
                await retry_until_available(self._worker.fail, job.id, "Invalid input")
                JOBS.labels("failed").inc()
        batches = list(in_batches(readable))
        for number, batch in enumerate(batches):
            try:
                await self._predict(batch)
            except ModelUnavailable:
                rest = [job for batch in batches[number + 1 :] for job, _ in batch]
                await retry_until_available(self._worker.requeue, rest)
                raise

    async def _predict(self, batch: Sequence[tuple[Job, Rows]]) -> None:
        started = time.perf_counter()
        jobs = [job for job, _ in batch]
        try:
            probabilities = await self._model.predict([row for _, rows in batch for row in rows])
        except InferenceFailed as exc:
            error = str(exc)
            log.warning("prediction_failed", jobs=[job.id for job in jobs], error=error)
            failed = await retry_until_available(self._worker.retry, jobs, error)
            JOBS.labels("failed").inc(len(failed))
            JOBS.labels("retried").inc(len(jobs) - len(failed))
            return
        except ModelCrashed:
            log.warning("model_server_crashed", jobs=[job.id for job in jobs])
            failed = await retry_until_available(self._worker.quarantine, jobs)
            JOBS.labels("failed").inc(len(failed))
            raise
        except ModelUnavailable:
            await retry_until_available(self._worker.requeue, jobs)
            raise

        results = []
        names = []
        start = 0
        for job, rows in batch:
            result = classify(probabilities[start : start + len(rows)])
            start += len(rows)
            names.append(result["class_name"])
            results.append((job.id, orjson.dumps(result)))
        ended = await retry_until_available(self._worker.complete, results)
        self._report(jobs, names, ended, time.perf_counter() - started)

    def _report(self, jobs: Sequence[Job], names: Sequence[str | list[str]], ended: set[JobId], seconds: float) -> None:
        """Only of what Redis has: a line that says completed is true."""
        duration_ms = round(seconds * 1000, 2)
        for job, name in zip(jobs, names, strict=True):
            if job.id in ended:
                PROCESSING_TIME.observe(seconds)
                result = name if isinstance(name, str) else f"{len(name)} rows"
                log.info("prediction_completed", job_id=job.id, duration_ms=duration_ms, result=result)
        JOBS.labels("completed").inc(len(ended))
