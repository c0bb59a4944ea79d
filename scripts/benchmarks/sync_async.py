"""07's fast and better answers, each beside a baseline: the same work without a server.

- of the fast answer: Base64, decoding, resizing, normalising and MobileNetV2 in one thread;
- of the better one: nothing but ResNet50 on a finished tensor, in as many processes as the worker has, equally nice.

With models in float32 and in int8. What a worker spends on an image besides ResNet50 is decoding, which is measured by
itself, and transport: claims, the way to a process and back, results.
"""

import asyncio
import base64
import io
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import onnxruntime as ort
from PIL import Image
from redis.asyncio import Redis

from scripts.benchmarks.harness import ARTIFACTS, Benchmark, Endpoint, drain, fill, plural, send_load, take_turns
from scripts.devstack.patterns import PATTERNS
from scripts.devstack.patterns.sync_async import photograph_body, request_body
from scripts.devstack.runs import require_redis
from scripts.devstack.stack import DevStack, ManagedProcess
from scripts.devstack.table import ROOT, web_process
from serving_common.onnx import available_cpus
from serving_common.queue.client import JobQueue
from serving_common.queue.types import JobKeys
from serving_testing.load import Load

KEYS = JobKeys("queue:jobs", data="image:{}", result="result:{}", status="status:{}")
CONNECTIONS = (1, 4, 10, 32)
WORKERS = 2
NICE = 5
PHOTO_BYTES = 115_000
FAST, BETTER, BOTH = "The fast answer", "The better answer", "10 requests per second"
# By precision, what follows the models' names.
PRECISIONS = {"float32": "", "int8": "_int8"}
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


check = require_redis
VARIANT = PATTERNS["07"].without("worker")  # its better answers would slow down all that is measured after them
_PROXY = VARIANT.process("proxy")
INT8_PROXY = web_process(
    *("proxy_int8", "src.proxy.app", "PORT_07_INT8", 1),
    env={**_PROXY.env, "MODEL_PRECISION": "int8"},
    depends_on=("07-proxy",),
)
ENDPOINTS = [Endpoint("07 fast answer", "PORT_07_PROXY", "/predict", photograph_body)]


async def measure(benchmark: Benchmark) -> None:
    """The fast answer, the better one, and both at the same time."""
    env = {"MAX_QUEUE_LENGTH": "1000000", "NUM_WORKERS": str(WORKERS)}
    pattern = VARIANT.with_processes(INT8_PROXY)
    pattern = replace(pattern, artifacts=(*pattern.artifacts, "mobilenet_v2_int8", "resnet50_int8"))
    async with benchmark.stack(pattern, environ=env) as stack:
        system = PhotoSystem(stack, photograph())
        stored = await system.fill(1)
        benchmark.add("Storage", "a JPEG in Redis, in Base64", "file", len(system.photo) / 1000, "kB")
        benchmark.add("Storage", "a JPEG in Redis, in Base64", "stored", stored / 1000, "kB")
        await measure_fast(benchmark, system)
        await measure_better(benchmark, system)
        await measure_both(benchmark, system)


async def measure_fast(benchmark: Benchmark, system: "PhotoSystem") -> None:
    """POST /predict without a worker, in turns with its baseline."""
    rounds, seconds = benchmark.choose(quick=(1, 0.3), short=(3, 1.0), long=(3, 5.0))
    paths: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    cases = [*(("float32", connections) for connections in CONNECTIONS), ("int8", 1)]
    loads: dict[tuple[str, int], list[Load]] = {case: [] for case in cases}
    for _ in range(rounds):
        for precision, rates in paths.items():
            rates.append(await asyncio.to_thread(fast_per_second, system.photo, min(2.0, seconds), precision))
        for (precision, connections), each in loads.items():
            await system.fill(0)
            each.append(await system.load(connections, seconds, precision=precision))
    for precision, rates in paths.items():
        what = named("the path without a server, one thread", precision)
        benchmark.add(FAST, what, "rate", statistics.median(rates), "/s")
        benchmark.add(FAST, what, "p50", 1000 / statistics.median(rates), "ms")
    for (precision, connections), each in loads.items():
        benchmark.add_loads(FAST, named(f"POST /predict, {plural(connections)}, no worker", precision), each)
    cores = available_cpus()
    for what, precision, at_most in (
        ("p50 at 1 connection to the path", "float32", 1.3),
        ("p50 at 1 connection, int8, to the path in float32", "int8", 1.0),
    ):
        pairs = zip(loads[precision, 1], paths["float32"], strict=True)
        ratio = statistics.median(load.percentile(50) * path for load, path in pairs)
        benchmark.add_ratio(what, ratio, at_most=at_most)
    ratios = [load.rate / cores / path for load, path in zip(loads["float32", 10], paths["float32"], strict=True)]
    what = f"rate at 10 connections to the path on {cores} cores"
    benchmark.add_ratio(what, statistics.median(ratios), at_least=0.65)


async def measure_better(benchmark: Benchmark, system: "PhotoSystem") -> None:
    """A worker with a full queue, in turns with its baseline, and where the time of one image goes."""
    rounds, seconds, jobs = benchmark.choose(quick=(1, 0.5, 20), short=(3, 1.0, 200), long=(3, 5.0, 300))
    cases = {("decoding", ""): partial(asyncio.to_thread, alone_per_second, "", seconds)}
    for precision, suffix in PRECISIONS.items():
        cases["alone", precision] = partial(asyncio.to_thread, alone_per_second, f"resnet50{suffix}.onnx", seconds)
        cases["worker", precision] = partial(system.drain, jobs, precision)
    rates = await take_turns(rounds, cases)
    for precision in PRECISIONS:
        decoding, alone, worker = rates["decoding", ""], rates["alone", precision], rates["worker", precision]
        what = named(f"ResNet50 alone, {WORKERS} processes", precision)
        benchmark.add(BETTER, what, "rate", statistics.median(alone), "images/s")
        what = named("the worker, from the queue to the result", precision)
        benchmark.add(BETTER, what, "rate", statistics.median(worker), "images/s")
        whole, inference, decode = (1000 * WORKERS / statistics.median(each) for each in (worker, alone, decoding))
        parts = {"inference": inference, "decoding": decode, "transport": whole - inference - decode}
        for part, spent_ms in parts.items():
            benchmark.add(BETTER, what, part, spent_ms, "ms")
        ratio = statistics.median(ours / theirs for ours, theirs in zip(worker, alone, strict=True))
        benchmark.add_ratio(named("the worker to ResNet50 alone", precision), ratio, at_least=0.85)


async def measure_both(benchmark: Benchmark, system: "PhotoSystem") -> None:
    """10 requests per second, while a worker always has images waiting."""
    sustained = benchmark.choose(quick=1.0, short=15.0, long=60.0)
    for what, nice, seconds in (
        ("no worker", None, sustained / 3),
        ("a worker that is not nice, always busy", 0, sustained / 3),
        ("the worker always busy", NICE, sustained),
    ):
        found, done = await system.load_at_rate(10, seconds, nice)
        what = f"{what}, {seconds:.0f} s"
        benchmark.add_loads(BOTH, what, [found], p99_at_most=200 if nice == NICE else None)
        if nice is not None:
            benchmark.add(BOTH, what, "jobs", done / seconds, "/s")


class PhotoSystem:
    """Redis and the proxy, and workers that start when a measurement needs them."""

    def __init__(self, stack: DevStack, photo: bytes) -> None:
        self.photo, self._stack = photo, stack

    def _redis(self) -> Redis:
        return Redis(port=self._stack.ports["PORT_07_REDIS"])

    async def _start_worker(self, nice: int, precision: str = "float32", *, wait: bool) -> ManagedProcess:
        worker = PATTERNS["07"].process("worker")
        worker = replace(worker, env={**worker.env, "WORKER_NICE": str(nice), "MODEL_PRECISION": precision})
        return await self._stack.start("07", worker if wait else replace(worker, ready=None))

    async def fill(self, jobs: int) -> int:
        """Empty Redis and queue this many images; the bytes that one of them takes."""
        async with self._redis() as redis:
            ids = await fill(redis, KEYS, base64.b64encode(self.photo), jobs)
            return int(await redis.memory_usage(f"image:{ids[-1]}") or 0) if ids else 0

    async def load(
        self, connections: int, seconds: float, rate: float | None = None, precision: str = "float32"
    ) -> Load:
        """POST /predict, as fast as this many connections can, or at a rate."""
        port = "PORT_07_INT8" if precision == "int8" else "PORT_07_PROXY"
        url = f"{self._stack.urls[port]}/predict"
        return await send_load(url, connections, seconds, request_body(self.photo), rate=rate)

    async def drain(self, jobs: int, precision: str) -> float:
        """Jobs per second of a worker with a full queue."""
        port, data = self._stack.ports["PORT_07_REDIS"], base64.b64encode(self.photo)
        start = partial(self._start_worker, NICE, precision, wait=False)
        rate = await drain(port, KEYS, data, jobs, start, poll_s=0.1)  # polling takes time from the jobs
        await self._stack.stop(self._stack.process("07-worker"))
        return rate

    async def load_at_rate(self, rate: float, seconds: float, nice: int | None) -> tuple[Load, float]:
        """POST /predict at this rate, and the jobs done meanwhile, with more always waiting; nice=None: no worker."""
        await self.fill(int(seconds * 50) if nice is not None else 0)
        worker = None if nice is None else await self._start_worker(nice, wait=True)
        async with self._redis() as redis:
            queue = JobQueue(redis, KEYS)
            before = await queue.stats()
            found = await self.load(4, seconds, rate)
            after = await queue.stats()
        if worker is not None:
            await self._stack.stop(worker)
        done = before.normal + before.processing + len(found.latencies) - after.normal - after.processing
        return found, done


def photograph() -> bytes:
    """A JPEG of 640x480 and about 115 kB, cut from the one that the models build leaves."""
    image = Image.open(ARTIFACTS / "sample.jpg").resize((640, 480), Image.Resampling.LANCZOS)
    candidates = []
    for quality in range(70, 98):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        candidates.append(buffer.getvalue())
    return min(candidates, key=lambda data: abs(len(data) - PHOTO_BYTES))


def session(model: str) -> Any:
    """The model on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(ARTIFACTS / model, options, providers=["CPUExecutionProvider"])


def named(what: str, precision: str) -> str:
    """The row of a precision."""
    return what if precision == "float32" else f"{what}, {precision}"


def decoded(photo: bytes) -> Any:
    """A photograph in Base64 as the models take it."""
    image = Image.open(io.BytesIO(base64.b64decode(photo))).convert("RGB")
    pixels = np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC), np.float32) / 255
    return np.ascontiguousarray(((pixels - MEAN) / STD).transpose(2, 0, 1)[np.newaxis])


def per_second(seconds: float, run: Callable[[], object]) -> float:
    """Calls per second."""
    run()
    started, count = time.perf_counter(), 0
    while time.perf_counter() < started + seconds:
        run()
        count += 1
    return count / (time.perf_counter() - started)


def fast_per_second(photo: bytes, seconds: float, precision: str) -> float:
    """Images per second of the fast answer's path and nothing around it, in one thread."""
    encoded_photo, mobilenet = base64.b64encode(photo), session(f"mobilenet_v2{PRECISIONS[precision]}.onnx")
    return per_second(seconds, lambda: mobilenet.run(None, {"input": decoded(encoded_photo)})[0].argmax())


def alone_per_second(model: str, seconds: float) -> float:
    """Images per second of this model alone, or without one of decoding, in WORKERS processes at the same time."""
    command = [sys.executable, "-m", "scripts.benchmarks.sync_async", model, str(seconds)]
    pipe = subprocess.PIPE
    processes: list[Any] = [
        subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) for _ in range(WORKERS)
    ]
    for process in processes:
        process.stdout.readline()  # it is ready
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    return sum(float(process.communicate()[0]) for process in processes)


def run_alone(model: str, seconds: float) -> None:
    """One process of the better answer's baselines: prints its images per second."""
    os.nice(NICE)
    photo = base64.b64encode(photograph())
    run: Callable[[], object] = partial(decoded, photo)
    if model:
        run = partial(session(model).run, None, {"input": decoded(photo)})
    run()
    print("ready", flush=True)
    sys.stdin.readline()
    print(per_second(seconds, run))


if __name__ == "__main__":
    run_alone(sys.argv[1], float(sys.argv[2]))
