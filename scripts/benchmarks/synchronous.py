"""02's portable model server over gRPC and REST, beside a bare grpc.aio server that answers a constant.

TensorFlow Serving's protocol and the Open Inference Protocol (V2), on ONNX Runtime and on TensorFlow. The cases take
turns in every round: on a shared machine the ratio to another case, and the CPU time of a call, say more than calls per
second.
"""

import shutil
import statistics
import subprocess
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from scripts.benchmarks.harness import ROW, Benchmark, Endpoint, latency_ms, plural, rate_of, send_load, take_turns
from scripts.devstack.machine import resident_mb
from scripts.devstack.patterns import PATTERNS
from scripts.devstack.stack import DevStack
from scripts.devstack.table import HOST, ProcessDefinition
from serving_testing.load import Load, run_in_process
from serving_testing.processes import cpu_seconds

PATH = "/v1/models/iris:predict"
V2_PATH = "/v2/models/iris/infer"
ENDPOINTS = [Endpoint("02 prediction (REST)", "PORT_02_REST", PATH, lambda: {"instances": [ROW]})]
IMAGE = "synchronous-pattern-portable"
_SERVER = PATTERNS["02"].process("model_server")
# Each depends on the one before, so that it does not slow down the start that is measured.
TENSORFLOW = replace(
    _SERVER,
    name="tensorflow",
    argv=(
        *(word.replace("PORT_02_", "PORT_02_TENSORFLOW_") for word in _SERVER.argv),
        "--runtime=tensorflow",
    ),
    ports={"PORT_02_TENSORFLOW_GRPC": 1, "PORT_02_TENSORFLOW_REST": 1},
    depends_on=("02-model_server",),
    ready=f"http://{HOST}:{{PORT_02_TENSORFLOW_REST}}/v1/models/iris",
    metrics=None,
)
BARE = ProcessDefinition(
    name="bare",
    argv=("python", "-m", "tests.bare_server", "{PORT_02_BARE}"),
    ports={"PORT_02_BARE": 1},
    depends_on=("02-tensorflow",),
    ready=f"tcp://{HOST}:{{PORT_02_BARE}}",
)
# By kind of call: the process, the port, whether it is V2. Without another word, a kind is V1 on ONNX Runtime.
KINDS = {
    "bare": ("bare", "PORT_02_BARE", False),
    "gRPC": ("model_server", "PORT_02_GRPC", False),
    "gRPC V2": ("model_server", "PORT_02_GRPC", True),
    "gRPC, TensorFlow": ("tensorflow", "PORT_02_TENSORFLOW_GRPC", False),
    "gRPC V2, TensorFlow": ("tensorflow", "PORT_02_TENSORFLOW_GRPC", True),
    "REST": ("model_server", "PORT_02_REST", False),
    "REST, TensorFlow": ("tensorflow", "PORT_02_TENSORFLOW_REST", False),
    "REST V2": ("model_server", "PORT_02_REST", True),
    "REST V2, TensorFlow": ("tensorflow", "PORT_02_TENSORFLOW_REST", True),
}
# What a kind is compared with, and the least ratio of their calls per second.
RATIOS = {
    ("gRPC", "bare"): 0.9,
    ("gRPC V2", "gRPC"): 0.9,
    **{(kind, f"{kind}, TensorFlow"): 1.0 for kind in ("gRPC", "gRPC V2", "REST", "REST V2")},
}
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
    """Calls of one and of 100 rows over each protocol; start and memory of the servers."""
    # Two runs of the same server differ by up to 6 %: many short rounds are worth more than a few long ones.
    rounds, seconds = benchmark.choose(quick=(1, 0.1), short=(3, 0.5), long=(7, 1.0))
    cases = [Case(kind, n, rows) for rows in (1, 100) for n in (1, 16, 64) for kind in KINDS]
    async with benchmark.stack(benchmark.pattern.with_processes(TENSORFLOW, BARE)) as stack:
        results = await take_turns(rounds, {case: partial(load, stack, case, seconds) for case in cases})
        servers = {name: stack.process(f"02-{name}") for name in ("model_server", "tensorflow", "bare")}
        memory = {name: resident_mb(process.pid) or 0 for name, process in servers.items()}
        start_s = {name: process.ready_after_s for name, process in servers.items()}
    loads = {case: [each for each, _ in found] for case, found in results.items()}
    for case, found in results.items():
        add_case(benchmark, case, loads[case], statistics.median(cpu_us for _, cpu_us in found))
    for (kind, other), at_least in RATIOS.items():
        for case in cases:
            if case.kind == kind:
                what = f"{kind} to {'bare grpc.aio' if other == 'bare' else other}"
                what = f"{what}, {case.concurrency} concurrent, {plural(case.rows, 'row')}"
                # Of two that were measured in the same round: the machine's speed drifts between rounds.
                pairs = zip(loads[case], loads[case._replace(kind=other)], strict=True)
                ratio = statistics.median(ours.rate / theirs.rate for ours, theirs in pairs)
                benchmark.add_ratio(what, ratio, at_least=at_least)
    benchmark.add("Process", "start to AVAILABLE", "figure", start_s["model_server"], "s", at_most=1)
    benchmark.add("Process", "memory", "figure", memory["model_server"], "MB", at_most=120)
    benchmark.add("Process", "start to AVAILABLE, TensorFlow", "figure", start_s["tensorflow"], "s", at_most=10)
    benchmark.add("Process", "memory, TensorFlow", "figure", memory["tensorflow"], "MB")
    benchmark.add("Process", "start, bare", "figure", start_s["bare"], "s")
    benchmark.add("Process", "memory, bare", "figure", memory["bare"], "MB")
    if (size := image_mb()) is None:
        benchmark.skip(f"size of the image: Docker has no {IMAGE} (SERVING_RUNTIME=portable docker compose build)")
    else:
        benchmark.add("Process", "image", "figure", size, "MB", at_most=350)


async def load(stack: DevStack, case: Case, seconds: float) -> tuple[Load, float]:
    """One round of a case, and the server's CPU time for each call, in µs."""
    name, port, is_v2 = KINDS[case.kind]
    server = stack.process(f"02-{name}")
    rows, before = [ROW] * case.rows, cpu_seconds(server.pid)
    if case.kind.startswith("REST"):
        tensor = {"name": "input", "datatype": "FP32", "shape": [case.rows, len(ROW)], "data": rows}
        path, body = (V2_PATH, {"inputs": [tensor]}) if is_v2 else (PATH, {"instances": rows})
        found = await send_load(f"http://{HOST}:{stack.ports[port]}{path}", case.concurrency, seconds, body)
    else:
        arguments = {"concurrency": case.concurrency, "rows": rows, "seconds": seconds, "is_v2": is_v2}
        target = f"{HOST}:{stack.ports[port]}"
        found = await run_in_process("scripts.benchmarks.grpc_load", target=target, **arguments)
    return found, 1e6 * (cpu_seconds(server.pid) - before) / len(found.latencies)


def add_case(benchmark: Benchmark, case: Case, loads: list[Load], cpu_us: float) -> None:
    """Medians over the rounds."""
    what = f"{case.kind}, {case.concurrency} concurrent, {plural(case.rows, 'row')}"
    targets = TARGETS.get((case.concurrency, case.rows), {}) if case.kind in ("gRPC", "REST") else {}
    for name, value, unit in (
        ("calls", rate_of(loads), "/s"),
        ("rows", rate_of(loads) * case.rows, "/s"),
        ("p50", latency_ms(loads, 50), "ms"),
        ("p99", latency_ms(loads, 99), "ms"),
        ("server CPU", cpu_us, "µs/call"),
    ):
        target = targets.get((case.kind, name)) or targets.get(("", name)) or {}
        benchmark.add("Calls", what, name, value, unit, **target)


def image_mb() -> float | None:
    """Size of the newest image of the portable server, by any prefix and tag; None without one, or without Docker."""
    if not shutil.which("docker"):
        return None
    references = [f"--filter=reference={prefix}{IMAGE}" for prefix in ("", "*/", "*/*/")]
    images = _docker("image", "ls", "--quiet", *references).split()
    size = _docker("image", "inspect", "--format={{.Size}}", images[0]) if images else ""
    return int(size) / 1e6 if size else None


def _docker(*arguments: str) -> str:
    """What Docker prints; nothing if it fails."""
    return subprocess.run(("docker", *arguments), capture_output=True, text=True, check=False).stdout
