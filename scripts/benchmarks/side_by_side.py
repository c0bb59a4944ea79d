"""All patterns on one machine under the same load, taking turns: what a caller of each waits for, and what it costs.

The patterns answer different things: 02 and 06 a prediction, 03 a job's id, 04 that the row is registered, 07 the fast
model's label of a photograph. That is what there is to choose between.
"""

from __future__ import annotations

import asyncio
import base64
import json
import statistics
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import httpx

from scripts.benchmarks.figures import Figure, of_load
from scripts.benchmarks.load import Load, measured
from scripts.devstack.machine import resident_mb
from scripts.devstack.patterns import PATTERNS, Pattern
from scripts.devstack.stack import ROOT, free_ports, private_stack

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

CONNECTIONS = (1, 4, 16, 64)
TYPICAL = 16
PERCENTILES = (*range(1, 100), 99.5, 99.9)
RUN_DIR = ROOT / ".run/bench"
ROW = [5.1, 3.5, 1.4, 0.2]
SERVICES = ("setosa", "versicolor", "virginica")
# So that it is the pattern that is measured: no full queue, and no batch that begins in the middle.
ENVIRON = {"MAX_QUEUE_LENGTH": "10000000", "JOB_WAIT_SECONDS": "3600"}


@dataclass(frozen=True)
class Entrance:
    """The request that a pattern's caller waits for."""

    number: str
    what: str
    port: str
    path: str
    body: object

    def json(self) -> str:
        """The request's body."""
        if self.body is not None:
            return json.dumps(self.body)
        return json.dumps(
            {"image_data": base64.b64encode((ROOT / "models/artifacts/sample.jpg").read_bytes()).decode()}
        )


ENTRANCES = (
    Entrance("02", "02 prediction (REST)", "PORT_02_REST", "/v1/models/iris:predict", {"instances": [ROW]}),
    Entrance("03", "03 job id", "PORT_03_PROXY", "/predict", {"data": [ROW]}),
    Entrance("04", "04 registration", "PORT_04_API", "/data", {"values": ROW}),
    Entrance("06", "06 prediction", "PORT_06_PROXY", "/predict/label", {"data": [ROW]}),
    Entrance("07", "07 fast answer", "PORT_07_PROXY", "/predict", None),  # the body is a photograph
)
TO_RESULT = "03 job id and result"


@dataclass(frozen=True)
class SideBySide:
    """Rounds of load, by entrance and connections; of 06, by services behind a proxy, 0 for one service alone."""

    loads: Mapping[tuple[str, int], list[Load]]
    scaled: Mapping[int, list[Load]]
    memory_mb: Mapping[str, float]

    def figures(self) -> Iterator[Figure]:
        for (what, connections), loads in self.loads.items():
            yield from of_load("The same load", f"{what}, {connections} connection{'s' * (connections > 1)}", *loads)
        for services, loads in self.scaled.items():
            what = f"06, a proxy before {services} of them" if services else "06, a service alone"
            yield from of_load(f"What fanning out costs, {TYPICAL} connections", what, *loads)
        for process, megabytes in self.memory_mb.items():
            group = "Resident memory of each process, after the load"
            yield Figure(group=group, what=process, measure="memory", value=megabytes, unit="MB")

    def percentiles_ms(self, connections: int) -> dict[str, list[float]]:
        """Latencies at PERCENTILES by entrance, of all rounds together."""
        found = {}
        for (what, count), loads in self.loads.items():
            together = Load(sorted(latency for load in loads for latency in load.latencies), 0, 1)
            if count == connections and together.latencies:
                found[what] = [round(1000 * together.percentile(percent), 3) for percent in PERCENTILES]
        return found

    def rates(self) -> dict[str, list[tuple[int, float]]]:
        """Answers per second by entrance, with the number of connections."""
        found: dict[str, list[tuple[int, float]]] = {}
        for (what, count), loads in self.loads.items():
            found.setdefault(what, []).append((count, statistics.median(load.rate for load in loads)))
        return found


def pattern_with_proxies() -> Pattern:
    """06 with proxies before one, two and three services."""
    *services, proxy = PATTERNS["06"].processes
    proxies = []
    for count in range(1, len(SERVICES) + 1):
        port = f"PORT_06_PROXY_{count}"
        listed = ",".join(f"{name}=http://127.0.0.1:{{PORT_06_SERVICE_{name.upper()}}}" for name in SERVICES[:count])
        env = dict(proxy.env) | {"PORT": f"{{{port}}}", "SERVICES": listed}
        ready = f"http://127.0.0.1:{{{port}}}/health"
        proxies.append(replace(proxy, name=f"proxy_{count}", ports={port: 1}, env=env, ready=ready))
    return replace(PATTERNS["06"], processes=(*services, proxy, *proxies))


def pattern_without_worker() -> Pattern:
    """07 without the one whose better answers would take the processor from all that is measured after it."""
    return replace(PATTERNS["07"], processes=tuple(each for each in PATTERNS["07"].processes if each.name != "worker"))


async def measure(numbers: Sequence[str], rounds: int, seconds: float) -> SideBySide:
    """Start these patterns, let their entrances take turns, and stop them. Raises StackError."""
    table = PATTERNS | {"06": pattern_with_proxies(), "07": pattern_without_worker()}
    entrances = [entrance for entrance in ENTRANCES if entrance.number in numbers]
    loads: dict[tuple[str, int], list[Load]] = {(each.what, n): [] for n in CONNECTIONS for each in entrances}
    scaled: dict[int, list[Load]] = {n: [] for n in range(len(SERVICES) + 1)} if "06" in numbers else {}
    async with private_stack(numbers, RUN_DIR, table=table, ports=free_ports(numbers, table), environ=ENVIRON) as stack:
        for number in range(rounds):
            print(f"side by side: round {number + 1} of {rounds}", file=sys.stderr)
            for entrance in entrances:
                for count in CONNECTIONS:
                    url = stack.urls[entrance.port] + entrance.path
                    loads[entrance.what, count].append(
                        await asyncio.to_thread(measured, url, count, seconds, entrance.json())
                    )
            for services in scaled:
                url = stack.urls[f"PORT_06_PROXY_{services}" if services else "PORT_06_SERVICE_SETOSA"] + "/predict"
                scaled[services].append(
                    await asyncio.to_thread(measured, url, TYPICAL, seconds, json.dumps({"data": [ROW]}))
                )
            if "03" in numbers:
                await queue_is_empty(stack.urls["PORT_03_PROXY"])
                for count in (1, TYPICAL):
                    url, body = stack.urls["PORT_03_PROXY"] + "/predict", json.dumps({"data": [ROW]})
                    to_result = await asyncio.to_thread(measured, url, count, seconds, body, then="/job/{}?wait=30")
                    loads.setdefault((TO_RESULT, count), []).append(to_result)
        running = [(each.label, each.running.handle.pid) for each in stack.processes if each.running]
        memory_mb = {label: megabytes for label, pid in running if (megabytes := resident_mb(pid))}
    return SideBySide(loads, scaled, memory_mb)


async def queue_is_empty(proxy: str) -> None:
    """Returns when a job that is queued now is done: those before it are, then."""
    async with httpx.AsyncClient(base_url=proxy, trust_env=False, timeout=60) as client:
        job = (await client.post("/predict", json={"data": [ROW]})).json()
        while job.get("status") != "completed":
            job = (await client.get(f"/job/{job['job_id']}", params={"wait": 30})).json()
