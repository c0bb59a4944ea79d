"""What a worker does: take jobs, have them predicted, store the answers; and what becomes of a job when that fails."""

import asyncio
import time
from collections.abc import Sequence

import structlog
from redis.asyncio import Redis

from serving_common.queue.consumers import retry_until_available
from serving_common.queue.types import Job
from serving_common.queue.worker import Worker
from serving_common.redis import QueueUnavailable
from serving_common.tasks import backoff_s, sleep_or_stop
from src.configurations import WorkerSettings
from src.jobs import store
from src.ml.classifier import ImagePrediction
from src.worker.metrics import JOBS
from src.worker.processes import ModelProcesses, ProcessDied, ProcessUnavailable

log = structlog.get_logger()


class Consumer:
    """One of the tasks of a worker."""

    def __init__(
        self,
        redis: Redis,
        worker: Worker,
        processes: ModelProcesses,
        stopping: asyncio.Event,
        settings: WorkerSettings,
    ) -> None:
        self._redis = redis
        self._worker = worker
        self._processes = processes
        self._stopping = stopping
        self._settings = settings

    async def run(self) -> None:
        """Work until `stopping` is set and what is in hand is done."""
        failures = 0
        while not self._stopping.is_set():
            try:
                if jobs := await self._worker.claim(self._settings.batch_size):
                    await self._process(jobs)
                else:
                    await self._processes.ensure_alive()
                failures = 0
            except (QueueUnavailable, ProcessUnavailable) as exc:
                if not self._stopping.is_set():
                    log.warning("neighbour_unavailable", neighbour=type(exc).__name__)
                await sleep_or_stop(self._stopping, backoff_s(failures))
                failures += 1

    async def _process(self, jobs: Sequence[Job]) -> None:
        """Bring these jobs to an end, or back into the queue. Raises ProcessUnavailable once they are back."""
        for job in jobs:
            log.info("Processing job: %s", job.id, job_id=job.id)
        ids = [job.id for job in jobs]
        started = time.perf_counter()
        try:
            predictions = await self._processes.predict([job.data for job in jobs])
        except ProcessUnavailable:
            await retry_until_available(self._worker.requeue, jobs)
            raise
        except ProcessDied:
            log.warning("model_process_died", jobs=ids)
            JOBS.labels("suspected").inc(len(jobs))
            await retry_until_available(self._worker.quarantine, jobs)
        except Exception:  # whatever the model raises concerns these jobs, and must not end the worker
            log.exception("prediction_failed", jobs=ids)
            JOBS.labels("retried").inc(len(jobs))
            await retry_until_available(self._worker.retry, jobs, "Model inference failed")
        else:
            await self._store(jobs, predictions, started)

    async def _store(self, jobs: Sequence[Job], predictions: Sequence[ImagePrediction | None], started: float) -> None:
        known = []
        for job, prediction in zip(jobs, predictions, strict=True):
            if prediction is not None:
                known.append((job.id, prediction))
            else:
                JOBS.labels("failed").inc()
                await retry_until_available(self._worker.fail, job.id, "Not an image")
        ended = await retry_until_available(store, self._redis, self._worker, known, self._settings.result_ttl_s)
        JOBS.labels("completed").inc(len(ended))
        duration_ms = round((time.perf_counter() - started) * 1000, 2)
        for job_id, prediction in known:
            if job_id in ended:  # so that a line about a result is true: Redis has it
                log.info("Async prediction: %s", prediction.label, job_id=job_id, duration_ms=duration_ms)
