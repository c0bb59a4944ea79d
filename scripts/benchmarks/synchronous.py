"""Benchmark of pattern 02's portable model server: python -m scripts.benchmarks.synchronous

Load clients run in a process of their own, and stand on grpc's core and asyncio's protocols: a usual Python client
takes longer for a call than the server, and with both on the same two cores would be what is measured. Each figure is
the median of interleaved rounds, in which a bare grpc.aio server that parses the same request and answers a constant
takes its turn: on a shared machine the ratio to it, and the CPU time of a call, say more than calls per second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import uvloop

from scripts.benchmarks.figures import Figure, add_output, report
from scripts.benchmarks.load import Load, run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).resolve().parents[2]
PATTERN = ROOT / "02_synchronous_pattern"
ROW = [5.1, 3.5, 1.4, 0.2]
PREDICT = "/tensorflow.serving.PredictionService/Predict"
# For a model as small as this one, oneDNN's kernels cost more than they gain: see the pattern's README.
SMALL_MODEL = {"TF_ENABLE_ONEDNN_OPTS": "0"}

# What the pattern promises, by concurrency and rows: of one kind of call, or of both.
TARGETS: dict[tuple[int, int], dict[tuple[str, str], dict[str, float]]] = {
    (16, 1): {("", "calls"): {"at_least": 2500}},
    (64, 1): {("", "calls"): {"at_least": 2500}, ("gRPC", "p99"): {"at_most": 20}, ("REST", "p99"): {"at_most": 30}},
    (16, 100): {("gRPC", "rows"): {"at_least": 100_000}},
    (64, 100): {("gRPC", "rows"): {"at_least": 100_000}},
}


class Server(NamedTuple):
    """A process under test, and where it listens."""

    pid: int
    port: int
    rest_port: int


class Case(NamedTuple):
    """One line of the table."""

    label: str
    server: Server
    concurrency: int
    rows: int


# ---- in the processes of clients and of the bare server ----


def request_message(rows: int) -> Any:
    """A PredictRequest of `rows` rows in typed fields."""
    from tfserving_protos import messages

    request = messages.PredictRequest(model_spec=messages.ModelSpec(name="iris"))
    tensor = request.inputs["input"]
    tensor.dtype = messages.DT_FLOAT
    for size in (rows, len(ROW)):
        tensor.tensor_shape.dim.add().size = size
    tensor.float_val.extend(ROW * rows)
    return request


async def bare_server(port: int) -> None:
    """Parses a PredictRequest and answers a constant."""
    import grpc

    from tfserving_protos import messages, services

    answer = messages.PredictResponse(model_spec=messages.ModelSpec(name="iris"))
    answer.outputs["output"].float_val.extend([0.2, 0.3, 0.5])

    async def predict(_request: object, _context: object) -> messages.PredictResponse:
        return answer

    server = grpc.aio.server()
    behaviors = dict.fromkeys(services.METHODS[services.PREDICTION_SERVICE], predict)
    server.add_generic_rpc_handlers((services.generic_handler(services.PREDICTION_SERVICE, behaviors),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


def grpc_load(port: int, concurrency: int, rows: int, seconds: float) -> Load:
    """Closed loop over one connection: so many calls are always under way, their requests serialized once."""
    from grpc._cython import cygrpc  # type: ignore[attr-defined]

    payload = request_message(rows).SerializeToString()
    channel = cygrpc.Channel(f"127.0.0.1:{port}".encode(), (), None)

    def send() -> None:
        operations = (
            cygrpc.SendInitialMetadataOperation(None, 0),
            cygrpc.SendMessageOperation(payload, 0),
            cygrpc.SendCloseFromClientOperation(0),
            cygrpc.ReceiveInitialMetadataOperation(0),
            cygrpc.ReceiveMessageOperation(0),
            cygrpc.ReceiveStatusOnClientOperation(0),
        )
        tagged = ((operations, time.perf_counter()),)
        channel.integrated_call(0, PREDICT.encode(), None, None, None, None, tagged, None, None)

    def receive() -> float:
        """Latency of the next call that ends, in seconds."""
        event = channel.next_call_event()
        status = event.batch_operations[-1]
        if status.code() != 0:
            raise RuntimeError(status.details())
        return time.perf_counter() - float(event.tag)

    def receive_all() -> list[float]:
        return [receive() for _ in range(concurrency)]

    for _ in range(concurrency):
        send()
    receive_all()  # the first calls wait for the connection
    latencies = []
    started = time.perf_counter()
    for _ in range(concurrency):
        send()
    while time.perf_counter() < started + seconds:
        latencies.append(receive())
        send()
    latencies += receive_all()
    elapsed = time.perf_counter() - started
    channel.close(cygrpc.StatusCode.cancelled, "done")
    return Load(sorted(latencies), 0, elapsed)


def rest_load(port: int, concurrency: int, rows: int, seconds: float) -> Load:
    """Closed loop over one keep-alive connection for each request under way."""
    body = json.dumps({"instances": [ROW] * rows}).encode()
    found: Load = uvloop.run(run(f"http://127.0.0.1:{port}/v1/models/iris:predict", concurrency, seconds, body))
    if found.failed:
        raise RuntimeError(f"{found.failed} requests failed")
    return found


# ---- in the benchmark's own process ----


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [probe.getsockname()[1] for probe in probes]


def wait_for(port: int) -> None:
    """Return once something listens on `port`."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError(f"nothing listens on port {port}")


def load(kind: str, server: Server, concurrency: int, rows: int, seconds: float) -> dict[str, float]:
    """One round of load, from a process of its own."""
    port = server.rest_port if kind == "rest" else server.port
    before = cpu_seconds(server.pid)
    arguments = [kind, str(port), str(concurrency), str(rows), str(seconds)]
    done = subprocess.run(
        [sys.executable, "-m", "scripts.benchmarks.synchronous", *arguments],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    result: dict[str, float] = json.loads(done.stdout)
    result["cpu_us"] = (cpu_seconds(server.pid) - before) / result.pop("calls") * 1e6
    return result


def cpu_seconds(pid: int) -> float:
    """User and system time that a process has used (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    """Memory of a process, in MB (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def rounds(cases: list[Case], count: int, seconds: float) -> Iterator[tuple[Case, dict[str, float]]]:
    """The median of `count` rounds of each case, interleaved."""
    found: list[list[dict[str, float]]] = [[] for _ in cases]
    for _ in range(count):
        for results, case in zip(found, cases, strict=True):
            kind = "rest" if case.label == "REST" else "grpc"
            results.append(load(kind, case.server, case.concurrency, case.rows, seconds))
    for results, case in zip(found, cases, strict=True):
        yield case, {key: statistics.median(result[key] for result in results) for key in results[0]}


def main() -> None:
    """Print a table; with arguments of a worker, be that worker."""
    if sys.argv[1:2] == ["bare"]:
        asyncio.run(bare_server(int(sys.argv[2])))
    elif sys.argv[1:2] in (["grpc"], ["rest"]):
        kind, port, concurrency, rows, seconds = sys.argv[1:]
        make_load = grpc_load if kind == "grpc" else rest_load
        found = make_load(int(port), int(concurrency), int(rows), float(seconds))
        milliseconds = {f"p{percent}_ms": found.percentile(percent) * 1e3 for percent in (50, 99)}
        print(json.dumps({"rps": found.rate, "calls": len(found.latencies), **milliseconds}))
    else:
        benchmark()


def benchmark() -> None:
    """Start both servers, run all cases, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each round and case")
    add_output(parser)
    options = parser.parse_args()
    port, rest_port, bare_port = free_ports(3)
    flags = [f"--port={port}", f"--rest_api_port={rest_port}", "--model_name=iris"]
    started = time.monotonic()
    server = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "model_server",
            *flags,
            f"--model_base_path={ROOT}/models/artifacts/saved_model/iris",
        ],
        cwd=PATTERN,
        env=os.environ | SMALL_MODEL,
        stderr=subprocess.DEVNULL,
    )
    bare = subprocess.Popen([sys.executable, "-m", "scripts.benchmarks.synchronous", "bare", str(bare_port)], cwd=ROOT)
    try:
        wait_for(rest_port)
        with urllib.request.urlopen(f"http://127.0.0.1:{rest_port}/v1/models/iris", timeout=10) as response:
            response.read()
        start_s = time.monotonic() - started
        wait_for(bare_port)
        ours, reference = Server(server.pid, port, rest_port), Server(bare.pid, bare_port, 0)
        shapes = [(concurrency, rows) for rows in (1, 100) for concurrency in (1, 16, 64)]
        cases = [
            Case(label, where, *shape)
            for shape in shapes
            for label, where in (("gRPC", ours), ("bare", reference), ("REST", ours))
        ]
        results = dict(rounds(cases, options.rounds, options.seconds))
        memory = resident_mb(server.pid)
    finally:
        for process in (server, bare):
            process.terminate()
            process.wait(30)
    report(list(figures(results, start_s, memory)), options.json)


def figures(results: Mapping[Case, Mapping[str, float]], start_s: float, memory_mb: float) -> Iterator[Figure]:
    """A row for each case, and the ratios of ours to bare grpc.aio."""
    rates = {(case.label, case.concurrency, case.rows): result["rps"] for case, result in results.items()}
    for case, result in results.items():
        what = f"{case.label}, {case.concurrency} concurrent, {case.rows} row{'s' * (case.rows > 1)}"
        bounds = {} if case.label == "bare" else TARGETS.get((case.concurrency, case.rows), {})
        for measure, value, unit in (
            ("calls", result["rps"], "/s"),
            ("rows", result["rps"] * case.rows, "/s"),
            ("p50", result["p50_ms"], "ms"),
            ("p99", result["p99_ms"], "ms"),
            ("server CPU", result["cpu_us"], "µs/call"),
        ):
            bound = bounds.get((case.label, measure)) or bounds.get(("", measure)) or {}
            yield Figure(group="Calls", what=what, measure=measure, value=value, unit=unit, **bound)
    for (label, concurrency, rows), rate in rates.items():
        if label == "gRPC":
            what = f"gRPC to bare grpc.aio, {concurrency} concurrent, {rows} row{'s' * (rows > 1)}"
            ratio = rate / rates["bare", concurrency, rows]
            yield Figure(group="Ratios", what=what, measure="ratio", value=ratio, unit="x", at_least=0.6)
    yield Figure(group="Process", what="start to AVAILABLE", measure="figure", value=start_s, unit="s", at_most=10)
    yield Figure(group="Process", what="memory", measure="figure", value=memory_mb, unit="MB")


if __name__ == "__main__":
    main()
