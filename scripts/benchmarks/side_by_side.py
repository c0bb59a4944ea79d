"""All patterns on one machine under the same load, taking turns: what a caller of each waits for, and what it costs.

The patterns answer different things: 02 and 06 a prediction, 03 a job's id, 04 that the row is registered, 07 the fast
model's label of a photograph. That is the choice that a reader has.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module

from scripts.benchmarks.harness import SAME_LOAD, Benchmark, Endpoint, Measurement, measurements_of, rate_of
from scripts.devstack.machine import resident_mb
from scripts.devstack.patterns import PATTERNS
from scripts.devstack.runs import PatternRun, SkippedError
from scripts.devstack.stack import private_stack
from serving_testing.load import Load

PERCENTILES = (*range(1, 100), 99.5, 99.9)
# Only the pattern itself shall be measured: no full queue, and no batch that begins in the middle.
ENVIRON = {"MAX_QUEUE_LENGTH": "10000000", "JOB_WAIT_SECONDS": "3600"}


@dataclass(kw_only=True)
class SideBySide(PatternRun):
    """Rounds of load by endpoint and number of connections, and the memory of each process after them."""

    loads: dict[tuple[Endpoint, int], list[Load]] = field(default_factory=dict)
    memory_mb: dict[str, float] = field(default_factory=dict)

    @property
    def measurements(self) -> Iterator[Measurement]:
        """Rate and latencies of every endpoint, and the memory."""
        for (endpoint, connections), loads in self.loads.items():
            yield from measurements_of(endpoint.group, endpoint.label(connections), loads)
        for process, megabytes in self.memory_mb.items():
            group = "Resident memory of each process, after the load"
            yield Measurement(group=group, what=process, measure="memory", value=megabytes, unit="MB")

    def percentiles_ms(self, connections: int) -> dict[str, list[float]]:
        """Latencies at PERCENTILES by endpoint, of all rounds together."""
        found = {}
        for (endpoint, count), loads in self.loads.items():
            merged = Load(sorted(latency for load in loads for latency in load.latencies), 0, 1)
            if count == connections and endpoint.group == SAME_LOAD and merged.latencies:
                found[endpoint.what] = [round(1000 * merged.percentile(percent), 3) for percent in PERCENTILES]
        return found

    def rates(self) -> dict[str, list[tuple[int, float]]]:
        """Responses per second by endpoint, with the number of connections."""
        found: dict[str, list[tuple[int, float]]] = {}
        for (endpoint, count), loads in self.loads.items():
            if endpoint.group == SAME_LOAD:
                found.setdefault(endpoint.what, []).append((count, rate_of(loads)))
        return found


async def measure(run: SideBySide, modules: Mapping[str, str]) -> None:
    """Start the patterns of these benchmark modules, by number, and let their endpoints take turns."""
    rounds, seconds = run.choose(quick=(1, 0.2), short=(3, 1.0), long=(5, 4.0))
    table, endpoints = {}, []
    for number, name in modules.items():
        module = import_module(name)
        try:
            getattr(module, "check", lambda: None)()
        except SkippedError as exc:
            run.skip(f"{PATTERNS[number].title}: {exc}")
            continue
        table[number] = getattr(module, "VARIANT", PATTERNS[number])
        endpoints += module.ENDPOINTS
    endpoints.sort(key=lambda endpoint: (endpoint.group != SAME_LOAD, bool(endpoint.then)))
    rounds_of: dict[tuple[Endpoint, int], list[Load]] = {(each, n): [] for each in endpoints for n in each.connections}
    async with private_stack(table, Benchmark.run_dir, table=PATTERNS | table, environ=ENVIRON) as stack:
        for round_ in range(rounds):
            run.say(f"round {round_ + 1} of {rounds}")
            for endpoint in endpoints:
                if endpoint.before:
                    await endpoint.before(stack.urls[endpoint.port])
                for connections in endpoint.connections:
                    rounds_of[endpoint, connections].append(await endpoint.load(stack, connections, seconds))
            run.loads = rounds_of
        found = {each.label: resident_mb(each.pid) for each in stack.processes if each.running}
        run.memory_mb = {label: megabytes for label, megabytes in found.items() if megabytes}
