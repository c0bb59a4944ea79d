"""What a worker does with claimed jobs: call TensorFlow Serving, store the results, and retry failures."""

import time
from collections.abc import Sequence
from typing import Protocol

import orjson
import structlog

from serving_common.queue.consumers import JOBS, retry_until_available
from serving_common.queue.types import Job, JobId
from serving_common.queue.worker import Worker
from src.jobs import Rows, classify, in_batches, read_rows
from src.metrics import BATCH_JOBS, PROCESSING_TIME
from src.tf_serving import InferenceFailed, ModelCrashed

log = structlog.get_logger()


class IrisModel(Protocol):
    """`TfServing`, or a constant in a benchmark."""

    async def connect(self) -> None:
        """Raises ModelUnavailable."""

    async def why_unavailable(self, within_s: float) -> str | None:
        """Why the model cannot predict now, or None."""

    async def predict(self, rows: Rows) -> list[list[float]]:
        """The probabilities of the classes, shape (N, 3), for rows of shape (N, 4)."""


async def process(worker: Worker, model: IrisModel, jobs: Sequence[Job]) -> None:
    """End or requeue each of these jobs. Raises ModelUnavailable; jobs not handled by then are still claimed."""
    BATCH_JOBS.observe(len(jobs))
    readable = []
    for job in jobs:
        try:
            readable.append((job, read_rows(job)))
        except ValueError:
            await retry_until_available(worker.fail, job.id, "Invalid input")
            JOBS.labels("failed").inc()
    for batch in in_batches(readable):
        await _predict(worker, model, batch)


async def _predict(worker: Worker, model: IrisModel, batch: Sequence[tuple[Job, Rows]]) -> None:
    started = time.perf_counter()
    jobs = [job for job, _ in batch]
    try:
        probabilities = await model.predict([row for _, rows in batch for row in rows])
    except InferenceFailed as exc:
        error = str(exc)
        log.warning("prediction_failed", jobs=[job.id for job in jobs], error=error)
        failed = await retry_until_available(worker.retry, jobs, error)
        JOBS.labels("failed").inc(len(failed))
        JOBS.labels("retried").inc(len(jobs) - len(failed))
        return
    except ModelCrashed:
        log.warning("model_server_crashed", jobs=[job.id for job in jobs])
        failed = await retry_until_available(worker.quarantine, jobs)
        JOBS.labels("failed").inc(len(failed))
        raise

    results = []
    names = []
    start = 0
    for job, rows in batch:
        result = classify(probabilities[start : start + len(rows)])
        start += len(rows)
        names.append(result["class_name"])
        results.append((job.id, orjson.dumps(result)))
    ended = await retry_until_available(worker.complete, results)
    _report(jobs, names, ended, time.perf_counter() - started)


def _report(jobs: Sequence[Job], names: Sequence[str | list[str]], ended: set[JobId], seconds: float) -> None:
    """Logs only jobs whose result Redis has stored."""
    duration_ms = round(seconds * 1000, 2)
    for job, name in zip(jobs, names, strict=True):
        if job.id in ended:
            PROCESSING_TIME.observe(seconds)
            result = name if isinstance(name, str) else f"{len(name)} rows"
            log.info("prediction_completed", job_id=job.id, duration_ms=duration_ms, result=result)
    JOBS.labels("completed").inc(len(ended))
