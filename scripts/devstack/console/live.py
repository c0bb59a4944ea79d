"""What every process does at this moment, from its own health and /metrics. Nothing else is kept, or counted again."""

from __future__ import annotations

import asyncio
import re
import time
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from scripts.devstack.stack import DevStack, ManagedProcess

EVERY_S = 1.0
WINDOW = 11  # readings: percentiles are of the last ten seconds
TIMEOUT_S = 0.8
# Histograms of what a process does, the first that its page has: their unit, and the seconds in a unit of theirs.
DURATIONS = {
    "async_inference_seconds": ("batches/s", 1.0),
    "processing_time_seconds": ("jobs/s", 1.0),
    "request_duration_seconds": ("requests/s", 1.0),
    ":tensorflow:serving:request_latency": ("requests/s", 1e-6),
}
WAITING = ("queue_length", "rows_waiting")
OLDEST = ("queue_oldest_job_age_seconds", "rows_oldest_waiting_age_seconds")
IN_FLIGHT = ("requests_in_flight", "jobs_in_hand")
WANTED = (*DURATIONS, *WAITING, *OLDEST, *IN_FLIGHT)
NOT_WORK = re.compile(r"/health.*|/metrics|unmatched")  # routes


@dataclass
class Reading:
    """One page of metrics."""

    at: float = field(default_factory=time.monotonic)
    unit: str = "requests/s"
    count: float = 0
    """Requests or jobs so far."""
    seconds: float = 0
    """What they took, together."""
    buckets: dict[float, float] = field(default_factory=lambda: defaultdict(float))
    """How many took at most so many seconds."""
    gauges: dict[str, float] = field(default_factory=lambda: defaultdict(float))


def read(page: str) -> Reading:
    """The metrics that the console shows, of the page of one process."""
    # Only what is wanted is parsed: a page has many more lines, and the supervisor's loop should not be held by them.
    lines = [line for line in page.splitlines() if line.startswith(WANTED)]
    name = next((name for name in DURATIONS if any(line.startswith(f"{name}_") for line in lines)), "")
    reading = Reading()
    reading.unit, scale = DURATIONS.get(name, ("requests/s", 1.0))
    for family in text_string_to_metric_families("\n".join(lines) + "\n"):
        for sample in family.samples:
            if NOT_WORK.fullmatch(sample.labels.get("route", "")):
                continue
            if sample.name == f"{name}_count":
                reading.count += sample.value
            elif sample.name == f"{name}_sum":
                reading.seconds += sample.value * scale
            elif sample.name == f"{name}_bucket":
                reading.buckets[float(sample.labels["le"]) * scale] += sample.value
            elif sample.name in (*WAITING, *OLDEST, *IN_FLIGHT):
                reading.gauges[sample.name] += sample.value
    return reading


def quantile(share: float, new: Mapping[float, float], old: Mapping[float, float]) -> float | None:
    """Seconds within which this share of what was counted between two readings was done, as Prometheus estimates it."""
    counts = sorted((bound, count - old.get(bound, 0)) for bound, count in new.items())
    if not counts or counts[-1][1] <= 0:
        return None
    wanted, lower, below = share * counts[-1][1], 0.0, 0.0
    for bound, count in counts:
        if count >= wanted:
            return lower if bound == float("inf") else lower + (bound - lower) * (wanted - below) / (count - below)
        lower, below = bound, count
    return None


class Live:
    """The present state of a stack's processes, looked at once a second while anybody watches."""

    def __init__(self, stack: DevStack) -> None:
        self._stack = stack
        self._client = httpx.AsyncClient(trust_env=False, timeout=TIMEOUT_S)
        self._history: dict[str, deque[Reading]] = defaultdict(lambda: deque(maxlen=WINDOW))
        self._watchers = 0
        self._task: asyncio.Task[None] | None = None
        self._next: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    async def close(self) -> None:
        """End all watching."""
        if self._task:
            self._task.cancel()
        self._next.cancel()
        await self._client.aclose()

    async def watch(self) -> AsyncGenerator[dict[str, Any]]:
        """The state of every process by its id, each second, until this is closed."""
        self._watchers += 1
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look_again_and_again())
        try:
            while True:
                upcoming = self._next
                await asyncio.wait({upcoming})
                if upcoming.cancelled():
                    return
                yield upcoming.result()
        finally:
            self._watchers -= 1

    async def _look_again_and_again(self) -> None:
        while self._watchers:
            due = time.monotonic() + EVERY_S
            processes = list(self._stack.processes)
            states = await asyncio.gather(*map(self._state, processes))
            done, self._next = self._next, asyncio.get_running_loop().create_future()
            done.set_result({managed.id: state for managed, state in zip(processes, states, strict=True)})
            await asyncio.sleep(due - time.monotonic())

    async def reading(self, managed: ManagedProcess) -> Reading | None:
        """Its metrics now; None where it has none, or does not answer."""
        if managed.definition.metrics is None:
            return None
        try:
            page = await self._client.get(managed.definition.metrics.format_map(self._stack.ports))
            return read(page.text) if page.status_code == 200 else None
        except (httpx.HTTPError, ValueError):
            return None

    async def _state(self, managed: ManagedProcess) -> dict[str, Any]:
        history = self._history[managed.id]
        if not managed.is_serving:
            history.clear()  # it counts from 0 when it is back
            return {"state": "gone" if managed.stopped.is_set() else "restarting"}
        reading, is_ready = await asyncio.gather(self.reading(managed), managed.is_ready())
        if not is_ready or (reading is None and managed.definition.metrics):
            return {"state": "gone", "why": "does not answer"} if managed.running else {"state": "restarting"}
        if reading is None:
            return {"state": "ready"}
        if history and history[-1].count > reading.count:
            history.clear()
        before, first = (history[-1], history[0]) if history else (reading, reading)
        history.append(reading)
        rate = (reading.count - before.count) / (reading.at - before.at) if reading is not before else None
        in_flight = sum(reading.gauges.get(name, 0) for name in IN_FLIGHT)
        quantiles = {
            f"p{share}_ms": None if seconds is None else 1000 * seconds
            for share in (50, 99)
            for seconds in [quantile(share / 100, reading.buckets, first.buckets)]
        }
        waiting = {
            what: next((reading.gauges[name] for name in names if name in reading.gauges), None)
            for what, names in (("waiting", WAITING), ("oldest_s", OLDEST))
        }
        state = "busy" if rate or in_flight else "ready"
        return {"state": state, "rate": rate, "unit": reading.unit, **quantiles, **waiting}
