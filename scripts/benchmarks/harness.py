"""What every benchmark uses: the load it sends, and the measurements it collects.

A benchmark module, found by the pattern's name, has `async def measure(benchmark)` and, for the comparison of all
patterns, `ENDPOINTS`, and `VARIANT` where its processes for that comparison differ from `make up`. `check`, if it has
one, raises SkippedError for what is missing on this machine.
"""

import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from redis.asyncio import Redis

from scripts.devstack.runs import PatternRun
from scripts.devstack.stack import DevStack
from scripts.devstack.steps import FLOWERS
from scripts.devstack.table import ROOT
from serving_common.queue.client import JobQueue
from serving_common.queue.commands import Commands
from serving_common.queue.types import JobKeys
from serving_testing.load import Load, run_in_process

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

ARTIFACTS = ROOT / "models/artifacts"
ROW = FLOWERS["setosa"]
TYPICAL_CONNECTIONS = 16
FILL_AT_ONCE = 200
SAME_LOAD = "The same load"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One number, its unit, and the target that it has to meet."""

    group: str
    """Title of the table it belongs to."""
    what: str
    """Row, as "the proxy, 16 connections"."""
    measure: str
    """Column, as "p99"."""
    value: float
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None

    @property
    def is_missed(self) -> bool:
        """Whether there is a target that is not met."""
        is_low = self.at_least is not None and self.value < self.at_least
        return is_low or (self.at_most is not None and self.value > self.at_most)

    @property
    def text(self) -> str:
        """Value, to three significant digits, and unit; MISSED if the target is not met."""
        value = f"{self.value:,.0f}" if abs(self.value) >= 100 else f"{self.value:.3g}"
        return f"{value} {self.unit}".strip() + " MISSED" * self.is_missed

    @property
    def target(self) -> str:
        """As "at least 0.5"; empty without one."""
        bounds = (("at least", self.at_least), ("at most", self.at_most))
        return ", ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)


def plural(count: int, noun: str = "connection") -> str:
    """As "1 connection" or "16 connections"."""
    return f"{count} {noun}{'s' * (count > 1)}"


def rate_of(loads: Sequence[Load]) -> float:
    """Median over the rounds of the responses per second."""
    return statistics.median(load.rate for load in loads)


def latency_ms(loads: Sequence[Load], percent: float) -> float:
    """Median over the rounds of this percentile of the latencies."""
    return 1000 * statistics.median(load.percentile(percent) for load in loads)


def measurements_of(
    group: str, what: str, loads: Sequence[Load], p99_at_most: float | None = None
) -> list[Measurement]:
    """Rate and latencies; the number of failures, if there were any."""

    def row(measure: str, value: float, unit: str = "", at_most: float | None = None) -> Measurement:
        return Measurement(group=group, what=what, measure=measure, value=value, unit=unit, at_most=at_most)

    found = [row("rate", rate_of(loads), "/s"), row("p50", latency_ms(loads, 50), "ms")]
    found.append(row("p99", latency_ms(loads, 99), "ms", p99_at_most))
    failed = sum(load.failed for load in loads)
    return [*found, row("failed", failed, at_most=0)] if failed else found


@dataclass(frozen=True)
class Endpoint:
    """The request whose response a pattern's caller waits for."""

    what: str
    port: str
    path: str
    body: Callable[[], object]
    """The JSON body, made when it is needed: models may not be built yet."""
    connections: tuple[int, ...] = (1, 4, TYPICAL_CONNECTIONS, 64)
    group: str = SAME_LOAD
    then: str = ""
    """Path of a GET that follows each response, with its `job_id` in place of {}; both are timed as one request."""
    before: Callable[[str], Awaitable[None]] | None = None
    """Awaited with the base URL before each round."""

    def label(self, connections: int) -> str:
        """The row in the group's table."""
        return f"{self.what}, {plural(connections)}" if self.group == SAME_LOAD else self.what

    async def load(self, stack: DevStack, connections: int, seconds: float) -> Load:
        """One round of load."""
        return await send_load(stack.urls[self.port] + self.path, connections, seconds, self.body(), then=self.then)


async def send_load(
    url: str, connections: int, seconds: float, body: object = None, *, rate: float | None = None, then: str = ""
) -> Load:
    """One round of load from a process of its own."""
    text = None if body is None else json.dumps(body)
    arguments = {"url": url, "connections": connections, "seconds": seconds, "body": text, "rate": rate, "then": then}
    return await run_in_process("serving_testing.load", **arguments)


async def take_turns(rounds: int, cases: Mapping[K, Callable[[], Awaitable[V]]]) -> dict[K, list[V]]:
    """The results of each case, which take turns in every round."""
    results: dict[K, list[V]] = {key: [] for key in cases}
    for _ in range(rounds):
        for key, run in cases.items():
            results[key].append(await run())
    return results


async def drain(
    port: int, keys: JobKeys, data: bytes, jobs: int, start: Callable[[], Awaitable[object]], poll_s: float
) -> float:
    """Jobs per second out of a full queue, from the first claim to the last stored result; `start` starts workers."""
    async with Redis(port=port) as redis:
        await fill(redis, keys, data, jobs)
        queue = JobQueue(redis, keys)
        await start()
        while (stats := await queue.stats()).normal == jobs:  # noqa: ASYNC110 - Redis has no event for it
            await asyncio.sleep(0.002)
        started, waiting = time.perf_counter(), stats.normal + stats.processing
        while (stats := await queue.stats()).normal or stats.processing:  # noqa: ASYNC110 - the same
            await asyncio.sleep(poll_s)
        return waiting / (time.perf_counter() - started)


async def fill(redis: Redis, keys: JobKeys, data: bytes, jobs: int, context: str = "") -> list[str]:
    """Empty Redis and queue this many jobs; their ids. `context`: what each takes along from its request."""
    await redis.flushall()
    ids = [f"{number:06x}" for number in range(jobs)]
    async with redis.pipeline(transaction=False) as pipeline:
        commands = Commands(pipeline, keys, ttl_s=86_400)
        for number, job_id in enumerate(ids, start=1):
            await commands.run("enqueue", job_id, data, "normal", jobs + 1, "", context)
            if number % FILL_AT_ONCE == 0 or number == jobs:
                await pipeline.execute()
    return ids


@dataclass(kw_only=True)
class Benchmark(PatternRun):
    """One pattern's benchmark, and what it has measured so far: that is reported even if a later part fails."""

    run_dir = ROOT / ".run/bench"

    measurements: list[Measurement] = field(default_factory=list)

    def add(self, group: str, what: str, measure: str, value: float, unit: str = "", **target: float | None) -> None:
        """Keep a measurement; target is at_least or at_most."""
        made = Measurement(group=group, what=what, measure=measure, value=value, unit=unit, **target)
        self.measurements.append(made)

    def add_loads(self, group: str, what: str, loads: Sequence[Load], p99_at_most: float | None = None) -> None:
        """Keep rate and latencies of some rounds of load."""
        self.measurements += measurements_of(group, what, loads, p99_at_most)

    def add_ratio(self, what: str, value: float, **target: float | None) -> None:
        """Keep a ratio to a baseline."""
        self.add("Ratios", what, "ratio", value, "x", **target)
