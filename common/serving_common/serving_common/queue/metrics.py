"""Prometheus metrics of the queue and its Redis."""

import asyncio
from collections.abc import Iterator

from prometheus_client import REGISTRY
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from serving_common.queue.client import JobQueue
from serving_common.queue.types import QueueStats
from serving_common.redis import QueueUnavailable, RedisInfo

INTERVAL_S = 2


class QueueCollector(Collector):
    """Metrics of what Redis said last. What it cannot be asked is absent: neither 0 nor a value of the past."""

    stats: QueueStats | None = None
    info: RedisInfo | None = None

    def describe(self) -> list[Metric]:
        """Nothing: the registry would otherwise call `collect` to check for duplicate names."""
        return []

    def collect(self) -> Iterator[Metric]:
        if (stats := self.stats) is not None:
            length = GaugeMetricFamily("queue_length", "Jobs that wait.", labels=["priority"])
            length.add_metric(["normal"], stats.normal)
            length.add_metric(["high"], stats.high)
            yield length
            yield GaugeMetricFamily(
                "queue_oldest_job_age_seconds", "How long the oldest waiting job has waited.", stats.oldest_age_s
            )
            yield GaugeMetricFamily(
                "jobs_in_hand", "Jobs in flight: claimed by a worker and not finished.", stats.processing
            )
            # For KEDA: one number of one moment, so that no job changes its place between two readings.
            unfinished = stats.normal + stats.high + stats.processing
            yield GaugeMetricFamily("jobs_unfinished", "Jobs that wait or are in flight.", unfinished)
            yield GaugeMetricFamily(
                "jobs_dead", "Dead letters: jobs that failed for good and are kept for inspection.", stats.dead_letters
            )
        if (info := self.info) is not None:
            yield GaugeMetricFamily("redis_memory_usage_bytes", "Memory that Redis uses.", info.memory_bytes)
            yield GaugeMetricFamily("redis_key_count", "Keys in Redis.", info.keys)
            yield CounterMetricFamily("redis_expired_keys", "Keys that have expired since Redis started.", info.expired)


COLLECTOR = QueueCollector()
REGISTRY.register(COLLECTOR)


async def watch(queue: JobQueue) -> None:
    """Keep the metrics current until cancelled."""
    try:
        while True:
            try:
                async with asyncio.timeout(INTERVAL_S):  # a Redis that hangs is also one that cannot be asked
                    COLLECTOR.stats, COLLECTOR.info = await queue.stats(), await queue.redis_info()
            except (QueueUnavailable, TimeoutError):
                COLLECTOR.stats = COLLECTOR.info = None
            await asyncio.sleep(INTERVAL_S)
    finally:
        COLLECTOR.stats = COLLECTOR.info = None
