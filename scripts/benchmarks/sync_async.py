"""Pattern 07 measured beside its floors, in one run: `python -m scripts.benchmarks 07`.

Needs a redis-server and models/artifacts/{mobilenet_v2,resnet50}.onnx; what their weights are makes no difference.
Absolute figures drift with what else the machine does; the ratios to the floors are what to read. The floors:

- of the fast answer: Base64, decoding, resizing, normalising and MobileNetV2 in one thread, without a server;
- of the better one: nothing but ResNet50 on a finished tensor, in as many processes as the worker has, as nice as they.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from PIL import Image
from redis.asyncio import Redis

from scripts.benchmarks.figures import Figure, add_output, of_load, report
from scripts.benchmarks.load import Load, measured
from serving_common.onnx import available_cpus
from serving_common.queue.client import JobQueue
from serving_common.queue.types import JobKeys
from serving_testing.processes import Process, free_port, running
from serving_testing.redis_server import RedisServer, redis_binary

ROOT = Path(__file__).parents[2]
PATTERN = ROOT / "07_sync_async_pattern"
ARTIFACTS = ROOT / "models/artifacts"
KEYS = JobKeys("queue:jobs", data="image:{}", result="result:{}", status="status:{}")
CONNECTIONS = (1, 4, 10, 32)
WORKERS = 2
PHOTO_BYTES = 115_000
FAST, BETTER, BOTH, RATIOS = "The fast answer", "The better answer", "10 requests per second", "Ratios"
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def photograph() -> bytes:
    """A JPEG of 640x480 and about 115 kB, cut from the one that the models build leaves."""
    image = Image.open(ARTIFACTS / "sample.jpg").resize((640, 480), Image.Resampling.LANCZOS)
    sizes = {}
    for quality in range(70, 98):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        sizes[quality] = buffer.getvalue()
    return min(sizes.values(), key=lambda data: abs(len(data) - PHOTO_BYTES))


def session(model: str) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(ARTIFACTS / model, options, providers=["CPUExecutionProvider"])


class FastFloor:
    """The fast answer's path and nothing around it, in one thread."""

    def __init__(self, encoded: str) -> None:
        self._encoded = encoded
        self._session = session("mobilenet_v2.onnx")

    def per_second(self, seconds: float) -> float:
        started = time.perf_counter()
        count = 0
        while time.perf_counter() < started + seconds:
            image = Image.open(io.BytesIO(base64.b64decode(self._encoded))).convert("RGB")
            pixels = np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC), np.float32) / 255
            tensor = np.ascontiguousarray(((pixels - MEAN) / STD).transpose(2, 0, 1)[np.newaxis])
            self._session.run(None, {"input": tensor})[0].argmax()
            count += 1
        return count / (time.perf_counter() - started)


def run_resnet(seconds: float, nice: int) -> None:
    """One process of the better answer's floor: prints how many images it has predicted per second."""
    os.nice(nice)
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


def resnet_per_second(seconds: float, nice: int) -> float:
    """Images per second of ResNet50 alone, in WORKERS processes at the same time."""
    command = [sys.executable, "-m", "scripts.benchmarks.sync_async", "resnet", str(seconds), str(nice)]
    processes = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(WORKERS)
    ]
    for process in processes:
        assert process.stdout is not None  # noqa: S101 - they are pipes
        process.stdout.readline()
    for process in processes:
        assert process.stdin is not None  # noqa: S101
        process.stdin.write("go\n")
        process.stdin.flush()
    return sum(float(process.communicate()[0]) for process in processes)


class Bench:
    """Redis, the proxy, and what starts workers."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        binary = redis_binary()
        if binary is None:
            sys.exit("no redis-server found")
        if missing := [name for name in ("mobilenet_v2", "resnet50") if not (ARTIFACTS / f"{name}.onnx").exists()]:
            sys.exit(f"models/artifacts has no {', '.join(missing)}: run `make models`")
        self.photo = photograph()
        self.body = json.dumps({"image_data": base64.b64encode(self.photo).decode()})
        self._stack, self._folder = stack, folder
        self.redis = RedisServer(binary, folder)
        self.redis.start()
        stack.callback(self.redis.kill)
        self._env = {
            "REDIS_HOST": "127.0.0.1",
            "REDIS_PORT": str(self.redis.port),
            "SYNC_MODEL_PATH": str(ARTIFACTS / "mobilenet_v2.onnx"),
            "ASYNC_MODEL_PATH": str(ARTIFACTS / "resnet50.onnx"),
            "LABELS_PATH": str(ARTIFACTS / "imagenet_labels.json"),
            "SAMPLE_IMAGE_PATH": str(ARTIFACTS / "sample.jpg"),
            "MAX_QUEUE_LENGTH": "1000000",
            "NUM_WORKERS": str(WORKERS),
            "LOG_FORMAT": "json",
        }
        self.proxy, _ = self.serve("src.proxy.app", {})

    def serve(self, module: str, env: Mapping[str, str], *, wait: bool = True) -> tuple[str, Process]:
        """Base URL of a service, and its process."""
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        env = {**self._env, "PORT": str(port), **env}
        log = self._folder / f"{port}.log"
        ready = f"{url}/health" if wait else None
        return url, self._stack.enter_context(running(module, cwd=PATTERN, env=env, log=log, ready=ready))

    def client(self) -> Redis:
        return Redis(port=self.redis.port)

    async def fill(self, jobs: int) -> int:
        """An empty Redis with so many waiting jobs; the bytes that one image takes in it."""
        async with self.client() as redis:
            await redis.flushall()
            queue = JobQueue(redis, KEYS, max_length=jobs + 1)
            data = base64.b64encode(self.photo)
            job_id = ""
            for _ in range(jobs):
                job_id = await queue.enqueue(data)
            size: int = await redis.memory_usage(f"image:{job_id}") or 0 if jobs else 0
            return size

    def load(self, connections: int, seconds: float, rate: float | None = None) -> Load:
        """POST /predict, as fast as so many connections can or at a rate, from a process of its own."""
        return measured(f"{self.proxy}/predict", connections, seconds, self.body, rate=rate)

    async def drained_per_second(self, jobs: int, nice: int) -> float:
        """Jobs per second of a worker, from the first job taken to the last result stored."""
        await self.fill(jobs)
        _, worker = self.serve("src.worker.main", {"WORKER_NICE": str(nice)}, wait=False)
        async with self.client() as redis:
            queue = JobQueue(redis, KEYS)
            while (stats := await queue.stats()).normal == jobs:  # noqa: ASYNC110 - Redis has no event for it
                await asyncio.sleep(0.005)
            started, waiting = time.perf_counter(), stats.normal + stats.processing
            while (stats := await queue.stats()).normal or stats.processing:  # noqa: ASYNC110 - the same
                await asyncio.sleep(0.1)  # a look costs as much as a part of a job
            seconds = time.perf_counter() - started
        worker.stop()
        return waiting / seconds

    async def paced(self, rate: float, seconds: float, nice: int | None) -> tuple[Load, float]:
        """POST /predict at so many per second, and the jobs done meanwhile, with more waiting all the time.

        nice: None is without a worker.
        """
        await self.fill(int(seconds * 50) if nice is not None else 0)
        worker = None
        if nice is not None:
            _, worker = self.serve("src.worker.main", {"WORKER_NICE": str(nice)})
        async with self.client() as redis:
            queue = JobQueue(redis, KEYS)
            before = await queue.stats()
            found = await asyncio.to_thread(self.load, 4, seconds, rate)
            after = await queue.stats()
        if worker is not None:
            worker.stop()
        done = before.normal + before.processing + len(found.latencies) - after.normal - after.processing
        return found, done


async def measure(bench: Bench, options: argparse.Namespace) -> list[Figure]:
    """The fast answer's figures, the better one's, and both at the same time."""
    figures: list[Figure] = []

    def add(group: str, what: str, measure: str, value: float, unit: str, **bound: float) -> None:
        figures.append(Figure(group=group, what=what, measure=measure, value=value, unit=unit, **bound))

    stored = await bench.fill(1)
    add("Storage", "a JPEG in Redis, in Base64", "file", len(bench.photo) / 1000, "kB")
    add("Storage", "a JPEG in Redis, in Base64", "stored", stored / 1000, "kB")

    cores = available_cpus()
    floor = FastFloor(base64.b64encode(bench.photo).decode())
    floor.per_second(0.3)
    floors: list[float] = []
    loads: dict[int, list[Load]] = {connections: [] for connections in CONNECTIONS}
    for _ in range(options.rounds):
        floors.append(floor.per_second(min(2.0, options.seconds)))
        for connections, each in loads.items():
            await bench.fill(0)
            each.append(await asyncio.to_thread(bench.load, connections, options.seconds))
    path = statistics.median(floors)
    add(FAST, "the path without a server, one thread", "rate", path, "/s")
    add(FAST, "the path without a server, one thread", "p50", 1000 / path, "ms")
    for connections, each in loads.items():
        what = f"POST /predict, {connections} connection{'s' * (connections > 1)}, no worker"
        figures += of_load(FAST, what, *each)
    latency = [load.percentile(50) * floor for load, floor in zip(loads[1], floors, strict=True)]
    add(RATIOS, "p50 at 1 connection to the path", "ratio", statistics.median(latency), "x", at_most=1.3)
    rate = [load.rate / cores / floor for load, floor in zip(loads[10], floors, strict=True)]
    add(
        RATIOS,
        f"rate at 10 connections to the path on {cores} cores",
        "ratio",
        statistics.median(rate),
        "x",
        at_least=0.65,
    )

    raws, works = [], []
    for _ in range(options.rounds):
        raws.append(await asyncio.to_thread(resnet_per_second, options.seconds, options.nice))
        works.append(await bench.drained_per_second(options.jobs, options.nice))
    add(BETTER, f"ResNet50 alone, {WORKERS} processes", "rate", statistics.median(raws), "images/s")
    add(BETTER, "the worker, from the queue to the result", "rate", statistics.median(works), "images/s")
    share = [work / raw for work, raw in zip(works, raws, strict=True)]
    add(RATIOS, "the worker to ResNet50 alone", "ratio", statistics.median(share), "x", at_least=0.85)

    for what, nice, seconds in (
        ("no worker", None, options.sustained / 3),
        ("a worker that is not nice, always busy", 0, options.sustained / 3),
        ("the worker always busy", options.nice, options.sustained),
    ):
        found, done = await bench.paced(10, seconds, nice)
        what = f"{what}, {seconds:.0f} s"
        figures += of_load(BOTH, what, found, p99_at_most=200 if nice == options.nice else None)
        if nice is not None:
            add(BOTH, what, "jobs", done / seconds, "/s")
    return figures


def main() -> None:
    if sys.argv[1:2] == ["resnet"]:
        run_resnet(float(sys.argv[2]), int(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5, help="of one run")
    parser.add_argument("--rounds", type=int, default=3, help="each figure is their median")
    parser.add_argument("--jobs", type=int, default=300, help="for the worker, in one run")
    parser.add_argument("--sustained", type=float, default=60, help="seconds of 10 requests per second")
    parser.add_argument("--nice", type=int, default=5, help="WORKER_NICE")
    add_output(parser)
    options = parser.parse_args()
    with ExitStack() as stack:
        bench = Bench(stack, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        figures = asyncio.run(measure(bench, options))
    report(figures, options.json)


if __name__ == "__main__":
    main()
