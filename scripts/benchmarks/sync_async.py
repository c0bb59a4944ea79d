"""07's fast and better answers, each beside a baseline: the same work without a server.

- of the fast answer: Base64, decoding, resizing, normalising and MobileNetV2 in one thread;
- of the better one: nothing but ResNet50 on a finished tensor, in as many processes as the worker has, equally nice.
"""

import asyncio
import base64
import io
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import onnxruntime as ort
from PIL import Image
from redis.asyncio import Redis

from scripts.benchmarks.harness import ARTIFACTS, Benchmark, Endpoint, drain, fill, plural, send_load, take_turns
from scripts.devstack.patterns import PATTERNS
from scripts.devstack.runs import require_redis
from scripts.devstack.stack import DevStack, ManagedProcess
from scripts.devstack.table import ROOT
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
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def encoded(photo: bytes) -> dict[str, str]:
    """The body of POST /predict."""
    return {"image_data": base64.b64encode(photo).decode()}


check = require_redis
VARIANT = PATTERNS["07"].without("worker")  # its better answers would slow down all that is measured after them
ENDPOINTS = [
    Endpoint("07 fast answer", "PORT_07_PROXY", "/predict", lambda: encoded((ARTIFACTS / "sample.jpg").read_bytes()))
]


async def measure(benchmark: Benchmark) -> None:
    """The fast answer, the better one, and both at the same time."""
    env = {"MAX_QUEUE_LENGTH": "1000000", "NUM_WORKERS": str(WORKERS)}
    async with benchmark.stack(VARIANT, environ=env) as stack:
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
    baselines: list[float] = []
    loads: dict[int, list[Load]] = {connections: [] for connections in CONNECTIONS}
    for _ in range(rounds):
        baselines.append(await asyncio.to_thread(fast_per_second, system.photo, min(2.0, seconds)))
        for connections, each in loads.items():
            await system.fill(0)
            each.append(await system.load(connections, seconds))
    rate = statistics.median(baselines)
    benchmark.add(FAST, "the path without a server, one thread", "rate", rate, "/s")
    benchmark.add(FAST, "the path without a server, one thread", "p50", 1000 / rate, "ms")
    for connections, each in loads.items():
        benchmark.add_loads(FAST, f"POST /predict, {plural(connections)}, no worker", each)
    cores = available_cpus()
    latencies = [load.percentile(50) * base for load, base in zip(loads[1], baselines, strict=True)]
    benchmark.add_ratio("p50 at 1 connection to the path", statistics.median(latencies), at_most=1.3)
    rates = [load.rate / cores / base for load, base in zip(loads[10], baselines, strict=True)]
    what = f"rate at 10 connections to the path on {cores} cores"
    benchmark.add_ratio(what, statistics.median(rates), at_least=0.65)


async def measure_better(benchmark: Benchmark, system: "PhotoSystem") -> None:
    """A worker with a full queue, in turns with its baseline."""
    rounds, seconds, jobs = benchmark.choose(quick=(1, 0.5, 20), short=(3, 1.0, 200), long=(3, 5.0, 300))
    baseline = partial(asyncio.to_thread, resnet_per_second, seconds)
    cases = {"baseline": baseline, "worker": partial(system.drain, jobs)}
    baselines, workers = (await take_turns(rounds, cases)).values()
    benchmark.add(BETTER, f"ResNet50 alone, {WORKERS} processes", "rate", statistics.median(baselines), "images/s")
    benchmark.add(BETTER, "the worker, from the queue to the result", "rate", statistics.median(workers), "images/s")
    ratios = [worker / baseline for worker, baseline in zip(workers, baselines, strict=True)]
    benchmark.add_ratio("the worker to ResNet50 alone", statistics.median(ratios), at_least=0.85)


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

    async def _start_worker(self, nice: int, *, wait: bool) -> ManagedProcess:
        worker = PATTERNS["07"].process("worker")
        worker = replace(worker, env={**worker.env, "WORKER_NICE": str(nice)})
        return await self._stack.start("07", worker if wait else replace(worker, ready=None))

    async def fill(self, jobs: int) -> int:
        """Empty Redis and queue this many images; the bytes that one of them takes."""
        async with self._redis() as redis:
            ids = await fill(redis, KEYS, base64.b64encode(self.photo), jobs)
            return int(await redis.memory_usage(f"image:{ids[-1]}") or 0) if ids else 0

    async def load(self, connections: int, seconds: float, rate: float | None = None) -> Load:
        """POST /predict, as fast as this many connections can, or at a rate."""
        url = f"{self._stack.urls['PORT_07_PROXY']}/predict"
        return await send_load(url, connections, seconds, encoded(self.photo), rate=rate)

    async def drain(self, jobs: int) -> float:
        """Jobs per second of a worker with a full queue."""
        port, data = self._stack.ports["PORT_07_REDIS"], base64.b64encode(self.photo)
        start = partial(self._start_worker, NICE, wait=False)
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


def fast_per_second(photo: bytes, seconds: float) -> float:
    """Images per second of the fast answer's path and nothing around it, in one thread."""
    encoded_photo, mobilenet = base64.b64encode(photo), session("mobilenet_v2.onnx")
    mobilenet.run(None, {"input": np.zeros((1, 3, 224, 224), np.float32)})  # warm-up
    started = time.perf_counter()
    count = 0
    while time.perf_counter() < started + seconds:
        image = Image.open(io.BytesIO(base64.b64decode(encoded_photo))).convert("RGB")
        pixels = np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC), np.float32) / 255
        tensor = np.ascontiguousarray(((pixels - MEAN) / STD).transpose(2, 0, 1)[np.newaxis])
        mobilenet.run(None, {"input": tensor})[0].argmax()
        count += 1
    return count / (time.perf_counter() - started)


def resnet_per_second(seconds: float) -> float:
    """Images per second of ResNet50 alone, in WORKERS processes at the same time."""
    command = [sys.executable, "-m", "scripts.benchmarks.sync_async", str(seconds)]
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


def run_resnet(seconds: float) -> None:
    """One process of the better answer's baseline: prints its images per second."""
    os.nice(NICE)
    resnet = session("resnet50.onnx")
    tensor = np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)
    resnet.run(None, {"input": tensor})
    print("ready", flush=True)
    sys.stdin.readline()
    started = time.perf_counter()
    count = 0
    while time.perf_counter() < started + seconds:
        resnet.run(None, {"input": tensor})
        count += 1
    print(count / (time.perf_counter() - started))


if __name__ == "__main__":
    run_resnet(float(sys.argv[1]))
