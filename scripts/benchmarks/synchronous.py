"""02's portable model server over gRPC and REST, beside a bare grpc.aio server that answers a constant.

The cases take turns in every round: on a shared machine the ratio to the bare server, and the CPU time of a call, say
more than calls per second.
"""

import os
import statistics
from functools import partial
from pathlib import Path
from typing import NamedTuple

from scripts.benchmarks.harness import ROW, Benchmark, Endpoint, latency_ms, plural, rate_of, send_load, take_turns
from scripts.devstack.machine import resident_mb
from scripts.devstack.stack import DevStack
from scripts.devstack.table import HOST, ProcessDefinition
from serving_testing.load import Load, run_in_process

PATH = "/v1/models/iris:predict"
ENDPOINTS = [Endpoint("02 prediction (REST)", "PORT_02_REST", PATH, lambda: {"instances": [ROW]})]
BARE = ProcessDefinition(
    name="bare",
    argv=("python", "-m", "tests.bare_server", "{PORT_02_BARE}"),
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
    async with benchmark.stack(benchmark.pattern.with_processes(BARE)) as stack:
        results = await take_turns(rounds, {case: partial(load, stack, case, seconds) for case in cases})
        memory = resident_mb(stack.process("02-model_server").pid) or 0
        start_s = stack.process("02-model_server").ready_after_s
    loads = {case: [each for each, _ in found] for case, found in results.items()}
    for case, found in results.items():
        add_case(benchmark, case, loads[case], statistics.median(cpu_us for _, cpu_us in found))
    for case in cases:
        if case.kind == "gRPC":
            what = f"gRPC to bare grpc.aio, {case.concurrency} concurrent, {plural(case.rows, 'row')}"
            ratio = rate_of(loads[case]) / rate_of(loads[case._replace(kind="bare")])
            benchmark.add_ratio(what, ratio, at_least=0.6)
    benchmark.add("Process", "start to AVAILABLE", "figure", start_s, "s", at_most=10)
    benchmark.add("Process", "memory", "figure", memory, "MB")


async def load(stack: DevStack, case: Case, seconds: float) -> tuple[Load, float]:
    """One round of a case, and the server's CPU time for each call, in µs."""
    server = stack.process("02-bare" if case.kind == "bare" else "02-model_server")
    rows, before = [ROW] * case.rows, cpu_seconds(server.pid)
    if case.kind == "REST":
        found = await send_load(stack.urls["PORT_02_REST"] + PATH, case.concurrency, seconds, {"instances": rows})
    else:
        target = f"{HOST}:{stack.ports['PORT_02_BARE' if case.kind == 'bare' else 'PORT_02_GRPC']}"
        arguments = {"target": target, "concurrency": case.concurrency, "rows": rows, "seconds": seconds}
        found = await run_in_process("scripts.benchmarks.grpc_load", **arguments)
    return found, 1e6 * (cpu_seconds(server.pid) - before) / len(found.latencies)


def add_case(benchmark: Benchmark, case: Case, loads: list[Load], cpu_us: float) -> None:
    """Medians over the rounds."""
    what = f"{case.kind}, {case.concurrency} concurrent, {plural(case.rows, 'row')}"
    targets = {} if case.kind == "bare" else TARGETS.get((case.concurrency, case.rows), {})
    for name, value, unit in (
        ("calls", rate_of(loads), "/s"),
        ("rows", rate_of(loads) * case.rows, "/s"),
        ("p50", latency_ms(loads, 50), "ms"),
        ("p99", latency_ms(loads, 99), "ms"),
        ("server CPU", cpu_us, "µs/call"),
    ):
        target = targets.get((case.kind, name)) or targets.get(("", name)) or {}
        benchmark.add("Calls", what, name, value, unit, **target)


def cpu_seconds(pid: int) -> float:
    """User and system time that a process has used (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
