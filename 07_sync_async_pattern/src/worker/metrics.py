"""What the worker tells Prometheus beside what every service tells."""

import asyncio

from prometheus_client import Counter, Gauge, Histogram

from serving_common.queue import JobQueue, QueueUnavailable

INTERVAL_S = 2

JOBS = Counter("jobs_processed", "Jobs that came out of the worker's hands.", ["outcome"])
INFERENCE_TIME = Histogram(
    "async_inference_seconds",
    "Decoding, preprocessing and the better model for one batch, with the way to the process and back.",
    buckets=(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
)
REPLACED = Counter("model_processes_replaced", "Processes that died, and others started in their place.")
QUEUE_LENGTH = Gauge("queue_length", "Jobs that wait.")
OLDEST_AGE = Gauge("queue_oldest_job_age_seconds", "How long the first waiting job has waited.")
IN_HAND = Gauge("jobs_in_hand", "Jobs that workers have taken and not finished.")
DEAD = Gauge("jobs_dead", "Jobs that failed for good.")


async def watch(queue: JobQueue) -> None:
    """Keep the gauges current until cancelled. While Redis is away they keep their last values."""
    while True:
        try:
            stats = await queue.stats()
        except QueueUnavailable:
            pass
        else:
            QUEUE_LENGTH.set(stats.normal + stats.high)
            OLDEST_AGE.set(stats.oldest_age_s)
            IN_HAND.set(stats.processing)
            DEAD.set(stats.dead)
        await asyncio.sleep(INTERVAL_S)
