"""What a worker does with claimed jobs: predict, store the results; and what happens to a job when that fails."""

import time
from collections.abc import Sequence

import structlog
from redis.asyncio import Redis

from serving_common.errors import Unavailable
from serving_common.queue.consumers import JOBS, retry_until_available
from serving_common.queue.types import Job
from serving_common.queue.worker import Worker
from src.jobs import store
from src.worker.processes import ModelProcesses, ProcessDied

JOBS.labels("suspected")  # a rate needs the 0 before the first one

log = structlog.get_logger()


async def process(redis: Redis, worker: Worker, processes: ModelProcesses, ttl_s: int, jobs: Sequence[Job]) -> None:
    """End or requeue each of these jobs. Raises ProcessUnavailable, with the jobs still claimed."""
    for job in jobs:
        log.info("Processing job: %s", job.id, **job.log_ids)
    started = time.perf_counter()
    try:
        predictions = await processes.predict([job.data for job in jobs])
    except Unavailable:
        raise
    except ProcessDied:
        log.warning("model_process_died", jobs=[job.log_ids for job in jobs])
        JOBS.labels("suspected").inc(len(jobs))
        await retry_until_available(worker.quarantine, jobs)
        return
    except Exception:  # whatever the model raises concerns these jobs, and must not end the worker
        log.exception("prediction_failed", jobs=[job.log_ids for job in jobs])
        JOBS.labels("retried").inc(len(jobs))
        await retry_until_available(worker.retry, jobs, "Model inference failed")
        return

    predicted = []
    for job, prediction in zip(jobs, predictions, strict=True):
        if prediction is not None:
            predicted.append((job, prediction))
        else:
            JOBS.labels("failed").inc()
            await retry_until_available(worker.fail, job.id, "Not an image")
    results = [(job.id, prediction) for job, prediction in predicted]
    ended = await retry_until_available(store, redis, worker, results, ttl_s)
    JOBS.labels("completed").inc(len(ended))
    duration_ms = round((time.perf_counter() - started) * 1000, 2)
    for job, prediction in predicted:
        if job.id in ended:  # logged only once Redis has the result
            log.info("Async prediction: %s", prediction.label, **job.log_ids, duration_ms=duration_ms)
