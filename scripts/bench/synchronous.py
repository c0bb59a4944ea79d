"""Benchmark of pattern 02's portable model server: python -m scripts.bench.synchronous

Load clients run in a process of their own. Each figure is the median of interleaved rounds, in which a bare grpc.aio
server that parses the same request and answers a constant takes its turn: on a shared machine the ratio to it says
more than the absolute figures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.bench.figures import Figure, add_output, report

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]
PATTERN = ROOT / "02_synchronous_pattern"
ROW = [5.1, 3.5, 1.4, 0.2]
PREDICT = "/tensorflow.serving.PredictionService/Predict"


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


async def measure(call: Callable[[int], Awaitable[object]], concurrency: int, seconds: float) -> dict[str, float]:
    """Closed loop: each of `concurrency` workers sends its next request when it has its answer."""
    latencies: list[float] = []
    started = time.perf_counter()

    async def worker(number: int) -> None:
        while (begun := time.perf_counter()) < started + seconds:
            await call(number)
            latencies.append(time.perf_counter() - begun)

    await asyncio.gather(*(worker(number) for number in range(concurrency)))
    elapsed = time.perf_counter() - started
    latencies.sort()
    return {
        "rps": len(latencies) / elapsed,
        "p50_ms": latencies[len(latencies) // 2] * 1e3,
        "p99_ms": latencies[int(len(latencies) * 0.99)] * 1e3,
    }


async def grpc_load(port: int, concurrency: int, rows: int, seconds: float) -> dict[str, float]:
    """Load over a few channels, with requests serialized once."""
    import grpc

    payload = request_message(rows).SerializeToString()
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) for _ in range(min(4, concurrency))]
    calls: list[Any] = [channel.unary_unary(PREDICT) for channel in channels]
    try:
        await asyncio.gather(*(call(payload) for call in calls))
        return await measure(lambda number: calls[number % len(calls)](payload), concurrency, seconds)
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))


async def rest_load(port: int, concurrency: int, rows: int, seconds: float) -> dict[str, float]:
    """Load over one keep-alive connection for each worker."""
    body = json.dumps({"instances": [ROW] * rows}).encode()
    head = f"POST /v1/models/iris:predict HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(body)}\r\n\r\n"
    payload = head.encode() + body
    streams = [await asyncio.open_connection("127.0.0.1", port) for _ in range(concurrency)]

    async def call(number: int) -> None:
        reader, writer = streams[number]
        writer.write(payload)
        header = await reader.readuntil(b"\r\n\r\n")
        if not header.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(header.decode())
        await reader.readexactly(int(header.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))

    try:
        return await measure(call, concurrency, seconds)
    finally:
        for _, writer in streams:
            writer.close()


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


def load(kind: str, port: int, concurrency: int, rows: int, seconds: float) -> dict[str, float]:
    """One round of load, from a process of its own."""
    arguments = [kind, str(port), str(concurrency), str(rows), str(seconds)]
    done = subprocess.run(
        [sys.executable, "-m", "scripts.bench.synchronous", *arguments],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    result: dict[str, float] = json.loads(done.stdout)
    return result


def resident_mb(pid: int) -> float:
    """Memory of a process, in MB (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def rounds(cases: list[tuple[str, int, int, int]], count: int, seconds: float) -> Iterator[dict[str, Any]]:
    """The median of `count` rounds for each case of (label, port, concurrency, rows), interleaved."""
    found: list[list[dict[str, float]]] = [[] for _ in cases]
    for _ in range(count):
        for results, (label, port, concurrency, rows) in zip(found, cases, strict=True):
            kind = "rest" if label == "REST" else "grpc"
            results.append(load(kind, port, concurrency, rows, seconds))
    for results, (label, _, concurrency, rows) in zip(found, cases, strict=True):
        middle = {key: statistics.median(result[key] for result in results) for key in results[0]}
        yield {"label": label, "concurrency": concurrency, "rows": rows, **middle}


def main() -> None:
    """Print a table; with arguments of a worker, be that worker."""
    if sys.argv[1:2] == ["bare"]:
        asyncio.run(bare_server(int(sys.argv[2])))
    elif sys.argv[1:2] in (["grpc"], ["rest"]):
        kind, port, concurrency, rows, seconds = sys.argv[1:]
        run = grpc_load if kind == "grpc" else rest_load
        print(json.dumps(asyncio.run(run(int(port), int(concurrency), int(rows), float(seconds)))))
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
            "src.model_server",
            *flags,
            f"--model_base_path={ROOT}/models/artifacts/saved_model/iris",
        ],
        cwd=PATTERN,
        stderr=subprocess.DEVNULL,
    )
    bare = subprocess.Popen([sys.executable, "-m", "scripts.bench.synchronous", "bare", str(bare_port)], cwd=ROOT)
    try:
        wait_for(rest_port)
        with urllib.request.urlopen(f"http://127.0.0.1:{rest_port}/v1/models/iris", timeout=10) as response:
            response.read()
        start_s = time.monotonic() - started
        wait_for(bare_port)
        shapes = [(concurrency, rows) for rows in (1, 100) for concurrency in (1, 16, 64)]
        cases = [
            (label, where, *shape)
            for shape in shapes
            for label, where in (("gRPC", port), ("bare", bare_port), ("REST", rest_port))
        ]
        results = list(rounds(cases, options.rounds, options.seconds))
        memory = resident_mb(server.pid)
    finally:
        for process in (server, bare):
            process.terminate()
            process.wait(30)
    report(list(figures(results, start_s, memory)), options.json)


def figures(results: list[dict[str, Any]], start_s: float, memory_mb: float) -> Iterator[Figure]:
    """A row for each case, and the ratios of ours to bare grpc.aio."""
    rates = {(each["label"], each["concurrency"], each["rows"]): each["rps"] for each in results}
    for each in results:
        what = f"{each['label']}, {each['concurrency']} concurrent, {each['rows']} row{'s' * (each['rows'] > 1)}"
        for measure, value, unit in (
            ("calls", each["rps"], "/s"),
            ("rows", each["rps"] * each["rows"], "/s"),
            ("p50", each["p50_ms"], "ms"),
            ("p99", each["p99_ms"], "ms"),
        ):
            yield Figure(group="Calls", what=what, measure=measure, value=value, unit=unit)
    for (label, concurrency, rows), rate in rates.items():
        if label == "gRPC":
            what = f"gRPC to bare grpc.aio, {concurrency} concurrent, {rows} row{'s' * (rows > 1)}"
            ratio = rate / rates["bare", concurrency, rows]
            yield Figure(group="Ratios", what=what, measure="ratio", value=ratio, unit="x")
    yield Figure(group="Process", what="start to AVAILABLE", measure="figure", value=start_s, unit="s", at_most=30)
    yield Figure(group="Process", what="memory", measure="figure", value=memory_mb, unit="MB")


if __name__ == "__main__":
    main()
