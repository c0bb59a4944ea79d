"""Metrics of the rows that wait, from the database: when no job runs, the API is the only process that can tell."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import closing

from prometheus_client import REGISTRY
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from serving_common.errors import Misconfigured, Unavailable
from src.api.health import Probe
from src.configurations import ApiSettings
from src.db import cruds
from src.db.database import Database

INTERVAL_S = 10


class BacklogCollector(Collector):
    """What the database said last. While it cannot be asked, the metrics are absent: neither 0 nor of the past."""

    backlog: cruds.Backlog | None = None

    def describe(self) -> list[Metric]:
        """Nothing: the registry would otherwise call `collect` to check for duplicate names."""
        return []

    def collect(self) -> Iterator[Metric]:
        if (backlog := self.backlog) is None:
            return
        yield GaugeMetricFamily("rows_waiting", f"Unpredicted rows, at most {cruds.BACKLOG_LIMIT}.", backlog.rows)
        age_s = max(0.0, time.time() - backlog.oldest_at.timestamp()) if backlog.oldest_at else 0.0
        yield GaugeMetricFamily("rows_oldest_waiting_age_seconds", "How long the oldest unpredicted row waits.", age_s)
        if backlog.last_run_at is not None:
            ended = backlog.last_run_at.timestamp()
            yield GaugeMetricFamily("batch_last_end_timestamp_seconds", "When a run of the job last ended.", ended)

    def measure(self, database: Database) -> None:
        """Ask the database. Raises Unavailable, Misconfigured."""
        with database.transaction() as db:
            self.backlog = cruds.backlog(db)


COLLECTOR = BacklogCollector()
REGISTRY.register(COLLECTOR)


async def watch(settings: ApiSettings, collector: BacklogCollector = COLLECTOR) -> None:
    """Keep the metrics current until cancelled."""
    with closing(Probe(settings, collector.measure)) as check:
        try:
            while True:
                try:
                    await check.run()
                except (Unavailable, Misconfigured):
                    collector.backlog = None
                await asyncio.sleep(INTERVAL_S)
        finally:
            collector.backlog = None
