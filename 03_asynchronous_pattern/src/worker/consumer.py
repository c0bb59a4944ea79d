"""What a worker does with claimed jobs: call TensorFlow Serving, store the results, and retry failures."""

import time
from collections.abc import Sequence
from typing import Protocol

import orjson
import structlog
from pydantic import TypeAdapter

from serving_common import tracing
from serving_common.cards import Card
from serving_common.queue.consumers import JOBS, retry_until_available
from serving_common.queue.types import Job, JobId
from serving_common.queue.worker import Worker
from src.jobs import Answers, Rows, fault_of, in_batches, read_rows, result_of
from src.metrics import BATCH_JOBS, PROCESSING_TIME
from src.tf_serving import InferenceFailed, ModelCrashed, ModelUnavailable

log = structlog.get_logger()

PROBE_WITHIN_S = 1


class Model(Protocol):
    """`TfServing`, or a constant in a benchmark."""

    async def connect(self) -> None:
        """Raises ModelUnavailable."""

    async def why_unavailable(self, within_s: float) -> str | None:
        """Why the model cannot predict now, or None."""

    async def why_mismatch(self, within_s: float) -> str | None:
        """How the model differs from the card, or None."""

    async def predict(self, rows: Rows) -> Answers:
        """The model's numbers for rows of the card's inputs, shape (N, card.width)."""


async def process(worker: Worker, model: Model, card: Card, adapter: TypeAdapter[Rows], jobs: Sequence[Job]) -> None:
    """End or requeue each of these jobs. Raises ModelUnavailable; jobs not handled by then are still claimed."""
    BATCH_JOBS.observe(len(jobs))
    readable = []
    for job in jobs:
        try:
            readable.append((job, read_rows(job, adapter)))
        except ValueError:
            await retry_until_available(worker.fail, job.id, "Invalid input")
            JOBS.labels("failed").inc()
    for batch in in_batches(readable):
        await _predict(worker, model, card, batch)


async def _predict(worker: Worker, model: Model, card: Card, batch: Sequence[tuple[Job, Rows]]) -> None:
    started = time.perf_counter()
    jobs = [job for job, _ in batch]
    # A connection may look healthy for a moment after the server's death. A job that is suspected already must not be
    # blamed for the same death again, so the server has to answer something else first.
    if jobs[0].is_suspect and (reason := await model.why_unavailable(PROBE_WITHIN_S)):
        raise ModelUnavailable(reason)
    # For the model server's log: a batch of several requests has no id of its own.
    ids = {job.request_id for job in jobs}
    tracing.request_id.set(ids.pop() if len(ids) == 1 else "")
    try:
        answers = await model.predict([row for _, rows in batch for row in rows])
    except InferenceFailed as exc:
        error = str(exc)
        log.warning("prediction_failed", jobs=[job.log_ids for job in jobs], error=error)
        failed = await retry_until_available(worker.retry, jobs, error)
        JOBS.labels("failed").inc(len(failed))
        JOBS.labels("retried").inc(len(jobs) - len(failed))
        return
    except ModelCrashed:
        log.warning("model_server_crashed", jobs=[job.log_ids for job in jobs])
        failed = await retry_until_available(worker.quarantine, jobs)
        JOBS.labels("failed").inc(len(failed))
        raise

    results = []
    outcomes: list[tuple[Job, object]] = []
    start = 0
    for job, rows in batch:
        own = answers[start : start + len(rows)]
        start += len(rows)
        if fault := fault_of(own):
            log.warning("prediction_failed", jobs=[job.log_ids], error=fault)
            await retry_until_available(worker.fail, job.id, fault)  # a retry would give the same answer
            JOBS.labels("failed").inc()
            continue
        result = result_of(card, own)
        outcomes.append((job, result.get("class_name", result.get("value"))))
        results.append((job.id, orjson.dumps(result)))
    ended = await retry_until_available(worker.complete, results)
    _report(outcomes, ended, time.perf_counter() - started)


def _report(outcomes: Sequence[tuple[Job, object]], ended: set[JobId], seconds: float) -> None:
    """Logs only jobs whose result Redis has stored."""
    duration_ms = round(seconds * 1000, 2)
    for job, outcome in outcomes:
        if job.id in ended:
            PROCESSING_TIME.observe(seconds)
            result = f"{len(outcome)} rows" if isinstance(outcome, list) else outcome
            log.info("prediction_completed", **job.log_ids, duration_ms=duration_ms, result=result)
    JOBS.labels("completed").inc(len(ended))
