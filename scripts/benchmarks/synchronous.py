"""02's portable model server over gRPC and REST, beside a bare grpc.aio server that answers a constant.

The cases take turns in every round: on a shared machine the ratio to the bare server, and the CPU time of a call, say
more than calls per second.
"""

from __future__ import annotations

import asyncio
import os
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from scripts.benchmarks.harness import ROW, Endpoint, plural
from scripts.benchmarks.load import Load, load_of
from scripts.devstack.machine import resident_mb
from scripts.devstack.patterns import PATTERNS
from scripts.devstack.table import HOST, ProcessDefinition

if TYPE_CHECKING:
    from scripts.benchmarks.harness import Benchmark
    from scripts.devstack.stack import DevStack

ENDPOINTS = [Endpoint("02 prediction (REST)", "PORT_02_REST", "/v1/models/iris:predict", lambda: {"instances": [ROW]})]
BARE = ProcessDefinition(
    name="bare",
    argv=("python", "{root}/scripts/benchmarks/apps/bare_grpc.py", "{PORT_02_BARE}"),
    ports={"PORT_02_BARE": 1},
    depends_on=("02-model_server",),  # so that it does not slow down the start that is measured
    ready=f"tcp://{HOST}:{{PORT_02_BARE}}",
)
# The pattern's targets, by concurrency and rows: of one kind of call, or of both.
TARGETS: dict[tuple[int, int], dict[tuple[str, str], dict[str, float]]] = {
    (16, 1): {("", "calls"): {"at_least": 2500}},
    (64, 1): {("", "calls"): {"at_least": 2500}, ("gRPC", "p99"): {"at_most": 20}, ("REST", "p99"): {"at_most": 30}},
    (16, 100): {("gRPC", "rows"): {"at_least": 100_000}},
    (64, 100): {("gRPC", "rows"): {"at_least": 100_000}},
}


class Case(NamedTuple):
    """One row of the table."""

    kind: str
    concurrency: int
    rows: int


async def measure(benchmark: Benchmark) -> None:
    """Calls of one and of 100 rows; start and memory of the server."""
    rounds, seconds = benchmark.choose(quick=(1, 0.1), short=(3, 0.5), long=(3, 2.0))
    cases = [Case(kind, n, rows) for rows in (1, 100) for n in (1, 16, 64) for kind in ("gRPC", "bare", "REST")]
    loads: dict[Case, list[tuple[Load, float]]] = {case: [] for case in cases}
    async with benchmark.stack(PATTERNS["02"].with_processes(BARE)) as stack:
        for _ in range(rounds):
            for case, each in loads.items():
                each.append(await load(benchmark, stack, case, seconds))
        for case, each in loads.items():
            add_case(benchmark, case, each)
        rates = {case: statistics.median(load.rate for load, _ in each) for case, each in loads.items()}
        for case in (case for case in cases if case.kind == "gRPC"):
            what = f"gRPC to bare grpc.aio, {case.concurrency} concurrent, {plural(case.rows, 'row')}"
            benchmark.add_ratio(what, rates[case] / rates[case._replace(kind="bare")], at_least=0.6)
        server = stack.process("02-model_server")
        benchmark.add("Process", "start to AVAILABLE", "figure", server.ready_after_s, "s", at_most=10)
        benchmark.add("Process", "memory", "figure", resident_mb(server.pid) or 0, "MB")


async def load(benchmark: Benchmark, stack: DevStack, case: Case, seconds: float) -> tuple[Load, float]:
    """One round of a case, and the CPU time of the server, in seconds."""
    server = stack.process("02-bare" if case.kind == "bare" else "02-model_server")
    before = cpu_seconds(server.pid)
    if case.kind == "REST":
        url = f"{stack.urls['PORT_02_REST']}/v1/models/iris:predict"
        found = await benchmark.load(url, case.concurrency, seconds, {"instances": [ROW] * case.rows})
    else:
        target = f"{HOST}:{stack.ports['PORT_02_BARE' if case.kind == 'bare' else 'PORT_02_GRPC']}"
        arguments = (target, str(case.concurrency), str(case.rows), str(seconds))
        found = await asyncio.to_thread(load_of, "scripts.benchmarks.grpc_load", *arguments)
    return found, cpu_seconds(server.pid) - before


def add_case(benchmark: Benchmark, case: Case, rounds: list[tuple[Load, float]]) -> None:
    """Medians over the rounds."""
    what = f"{case.kind}, {case.concurrency} concurrent, {plural(case.rows, 'row')}"
    targets = {} if case.kind == "bare" else TARGETS.get((case.concurrency, case.rows), {})
    rate = statistics.median(load.rate for load, _ in rounds)
    for measure_, value, unit in (
        ("calls", rate, "/s"),
        ("rows", rate * case.rows, "/s"),
        ("p50", 1000 * statistics.median(load.percentile(50) for load, _ in rounds), "ms"),
        ("p99", 1000 * statistics.median(load.percentile(99) for load, _ in rounds), "ms"),
        ("server CPU", 1e6 * statistics.median(cpu / len(load.latencies) for load, cpu in rounds), "µs/call"),
    ):
        target = targets.get((case.kind, measure_)) or targets.get(("", measure_)) or {}
        benchmark.add("Calls", what, measure_, value, unit, **target)


def cpu_seconds(pid: int) -> float:
    """User and system time that a process has used (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
