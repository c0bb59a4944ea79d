"""Prometheus gauges of the queue and its Redis."""

import asyncio

from prometheus_client import Gauge

from serving_common.queue.client import JobQueue
from serving_common.redis import QueueUnavailable

INTERVAL_S = 2

QUEUE_LENGTH = Gauge("queue_length", "Jobs that wait.", ["priority"])
OLDEST_AGE = Gauge("queue_oldest_job_age_seconds", "How long the oldest waiting job has waited.")
IN_FLIGHT = Gauge("jobs_in_hand", "Jobs in flight: claimed by a worker and not finished.")
DEAD_LETTERS = Gauge("jobs_dead", "Dead letters: jobs that failed for good and are kept for inspection.")
MEMORY = Gauge("redis_memory_usage_bytes", "Memory that Redis uses.")
KEYS = Gauge("redis_key_count", "Keys in Redis.")
EXPIRED = Gauge("redis_expired_keys", "Keys that have expired since Redis started.")


async def watch(queue: JobQueue) -> None:
    """Keep the gauges current until cancelled. While Redis is unavailable they keep their last values."""
    while True:
        try:
            stats = await queue.stats()
            info = await queue.redis_info()
        except QueueUnavailable:
            pass
        else:
            QUEUE_LENGTH.labels("normal").set(stats.normal)
            QUEUE_LENGTH.labels("high").set(stats.high)
            OLDEST_AGE.set(stats.oldest_age_s)
            IN_FLIGHT.set(stats.processing)
            DEAD_LETTERS.set(stats.dead_letters)
            MEMORY.set(info.memory_bytes)
            KEYS.set(info.keys)
            EXPIRED.set(info.expired)
        await asyncio.sleep(INTERVAL_S)
