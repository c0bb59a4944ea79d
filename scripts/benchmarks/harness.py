"""What every benchmark uses: its processes, the load it sends, and the measurements it collects.

A benchmark module, found by the pattern's name, has `async def measure(benchmark)` and, for the comparison of all
patterns, `ENDPOINTS` (and `VARIANT`, the pattern's processes for that comparison, where they differ from `make up`).
"""

from __future__ import annotations

import asyncio
import json
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from scripts.benchmarks.load import Load, measured
from scripts.devstack.patterns import PATTERNS
from scripts.devstack.runs import PatternRun
from scripts.devstack.stack import private_stack
from scripts.devstack.table import ROOT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from scripts.devstack.stack import DevStack
    from scripts.devstack.table import Pattern

RUN_DIR = ROOT / ".run/bench"
ARTIFACTS = ROOT / "models/artifacts"
ROW = [5.1, 3.5, 1.4, 0.2]
TYPICAL_CONNECTIONS = 16
SAME_LOAD = "The same load"


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
        url = stack.urls[self.port] + self.path
        return await asyncio.to_thread(measured, url, connections, seconds, json.dumps(self.body()), then=self.then)


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
    def is_met(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.at_least is None and self.at_most is None:
            return None
        low = float("-inf") if self.at_least is None else self.at_least
        return low <= self.value <= (float("inf") if self.at_most is None else self.at_most)

    @property
    def text(self) -> str:
        """Value, to three significant digits, and unit; MISSED if the target is not met."""
        return f"{digits(self.value)} {self.unit}".strip() + (" MISSED" if self.is_met is False else "")

    @property
    def target(self) -> str:
        """As "at least 0.5"; empty without one."""
        bounds = (("at least", self.at_least), ("at most", self.at_most))
        return ", ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)


def digits(value: float) -> str:
    """A number to three significant digits, or without decimals from 100 up."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def plural(count: int, noun: str = "connection") -> str:
    """As "1 connection" or "16 connections"."""
    return f"{count} {noun}{'s' * (count > 1)}"


def measurements_of(
    group: str, what: str, loads: Sequence[Load], p99_at_most: float | None = None
) -> list[Measurement]:
    """Medians over the rounds: responses per second and latencies; the number of failures, if there were any."""

    def row(measure: str, value: float, unit: str = "", at_most: float | None = None) -> Measurement:
        return Measurement(group=group, what=what, measure=measure, value=value, unit=unit, at_most=at_most)

    found = [
        row("rate", statistics.median(load.rate for load in loads), "/s"),
        row("p50", 1000 * statistics.median(load.percentile(50) for load in loads), "ms"),
        row("p99", 1000 * statistics.median(load.percentile(99) for load in loads), "ms", p99_at_most),
    ]
    failed = sum(load.failed for load in loads)
    return [*found, row("failed", failed, at_most=0)] if failed else found


@dataclass(kw_only=True)
class Benchmark(PatternRun):
    """One pattern's benchmark, and what it has measured so far."""

    measurements: list[Measurement] = field(default_factory=list)

    def add(
        self,
        group: str,
        what: str,
        measure: str,
        value: float,
        unit: str = "",
        *,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> None:
        """Keep a measurement: it is reported even if a later part of the benchmark fails."""
        self.measurements.append(
            Measurement(
                group=group, what=what, measure=measure, value=value, unit=unit, at_least=at_least, at_most=at_most
            )
        )

    def add_loads(self, group: str, what: str, loads: Sequence[Load], p99_at_most: float | None = None) -> None:
        """Keep rate and latencies of some rounds of load."""
        self.measurements += measurements_of(group, what, loads, p99_at_most)

    def add_ratio(
        self, what: str, value: float, *, at_least: float | None = None, at_most: float | None = None
    ) -> None:
        """Keep a ratio to a baseline."""
        self.add("Ratios", what, "ratio", value, "x", at_least=at_least, at_most=at_most)

    async def load(
        self,
        url: str,
        connections: int,
        seconds: float,
        body: object = None,
        *,
        rate: float | None = None,
        then: str = "",
    ) -> Load:
        """One round of load from a process of its own. Raises RuntimeError if a request fails."""
        text = None if body is None else json.dumps(body)
        load = await asyncio.to_thread(measured, url, connections, seconds, text, rate=rate, then=then)
        if load.failed:
            raise RuntimeError(f"{load.failed} requests to {url} failed")
        return load

    def stack(self, pattern: Pattern, **environ: str) -> DevStack:
        """A variant of the pattern, with what it depends on, on free ports and with empty state."""
        table = PATTERNS | {pattern.number: pattern}
        return private_stack([pattern.number], RUN_DIR, table=table, environ=environ)
