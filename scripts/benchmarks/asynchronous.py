"""Pattern 03 measured beside its floors, in one run: `python -m scripts.benchmarks.asynchronous --model SAVED_MODEL`.

Needs a redis-server and pattern 02's model as a SavedModel's base path. Absolute figures drift with what else the
machine does; the ratios to the floors are what to read. The floors: a bare FastAPI endpoint that sends one Redis
pipeline, and a loop that does nothing but move ids with LMOVE and store results, 32 at a time.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import httpx
from redis.asyncio import Redis

from scripts.benchmarks.figures import Figure, add_output, of_load, report
from scripts.benchmarks.load import Load, measured
from serving_common.queue.client import JobQueue
from serving_common.queue.types import JobKeys
from serving_testing.processes import Process, free_port, running
from serving_testing.redis_server import RedisServer, redis_binary

ROOT = Path(__file__).parents[2]
PATTERN = ROOT / "03_asynchronous_pattern"
DATA = b"[[5.1,3.5,1.4,0.2]]"
BODY = '{"data": [[5.1, 3.5, 1.4, 0.2]]}'
RESULT = b'{"prediction":0,"class_name":"setosa","probabilities":[0.97,0.02,0.01]}'
BATCH = 32


class Bench:
    """Redis, model server, proxy, and what starts the workers."""

    def __init__(self, stack: ExitStack, model: Path, folder: Path) -> None:
        binary = redis_binary()
        if binary is None:
            sys.exit("no redis-server found")
        self.stack, self.folder = stack, folder
        self.redis = RedisServer(binary, folder)
        self.redis.start()
        stack.callback(self.redis.kill)
        model_port, rest_port = free_port(), free_port()
        flags = f"--port={model_port} --rest_api_port={rest_port} --model_name=iris --model_base_path={model}"
        self.start(
            f"model_server {flags}",
            {},
            ready=f"http://127.0.0.1:{rest_port}/v1/models/iris",
            cwd=ROOT / "02_synchronous_pattern",
        )
        self.env = {
            "REDIS_HOST": "127.0.0.1",
            "REDIS_PORT": str(self.redis.port),
            "TF_SERVING_HOST": "127.0.0.1",
            "TF_SERVING_GRPC_PORT": str(model_port),
            "MAX_QUEUE_LENGTH": "1000000",
            "LOG_FORMAT": "json",
            "PYTHONPATH": str(ROOT),
        }
        self.proxy = self.serve("src.proxy.app")
        self.bare = self.serve("scripts.benchmarks.asynchronous bare")

    def start(self, module: str, env: Mapping[str, str], ready: str | None = None, cwd: Path = PATTERN) -> Process:
        log = self.folder / f"{free_port()}.log"
        return self.stack.enter_context(running(module, cwd=cwd, env=env, log=log, ready=ready))

    def serve(self, module: str) -> str:
        """Base URL of an HTTP service."""
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        self.start(module, self.env | {"PORT": str(port)}, f"{url}/health")
        return url

    def start_workers(self, count: int, module: str = "src.worker.main") -> list[Process]:
        return [self.start(module, self.env | {"PORT": str(free_port())}) for _ in range(count)]

    def client(self) -> Redis:
        return Redis(port=self.redis.port)


def load(
    url: str, connections: int, seconds: float, body: str | None = None, *, rate: float | None = None, then: str = ""
) -> Load:
    """One run of the load generator, in which nothing may fail."""
    found = measured(url, connections, seconds, body, rate=rate, then=then)
    if found.failed:
        sys.exit(f"{found.failed} requests to {url} failed")
    return found


async def fill(redis: Redis, jobs: int) -> None:
    """An empty Redis with so many waiting jobs."""
    await redis.flushall()
    queue = JobQueue(redis, JobKeys("queue:predict"), max_length=jobs)

    async def some() -> None:
        for _ in range(jobs // 16):
            await queue.enqueue(DATA)

    await asyncio.gather(*(some() for _ in range(16)))


async def drained_per_second(bench: Bench, workers: int, jobs: int, module: str = "src.worker.main") -> float:
    """Jobs per second, from the first job taken to the last result stored."""
    async with bench.client() as redis:
        await fill(redis, jobs)
        processes = bench.start_workers(workers, module)
        queue = JobQueue(redis, JobKeys("queue:predict"))
        while (stats := await queue.stats()).normal == jobs:  # noqa: ASYNC110 - Redis has no event for it
            await asyncio.sleep(0.002)
        started, waiting = time.perf_counter(), stats.normal
        while (stats := await queue.stats()).normal or stats.processing:  # noqa: ASYNC110 - the same
            await asyncio.sleep(0.005)
        seconds = time.perf_counter() - started
    for process in processes:
        process.stop()
    return waiting / seconds


async def floor_per_second(bench: Bench, jobs: int) -> float:
    """The same jobs without guarantees: LMOVE, GET, SET, LREM in pipelines."""
    async with bench.client() as redis:
        await fill(redis, jobs)
        started = time.perf_counter()
        while True:
            async with redis.pipeline(transaction=False) as pipeline:
                for _ in range(BATCH):
                    pipeline.lmove("queue:predict", "floor", "RIGHT", "LEFT")
                ids = [job_id.decode() for job_id in await pipeline.execute() if job_id]
            if not ids:
                return jobs / (time.perf_counter() - started)
            await redis.mget([f"job:{job_id}:data" for job_id in ids])
            async with redis.pipeline() as pipeline:
                for job_id in ids:
                    pipeline.set(f"job:{job_id}:result", RESULT, ex=86_400)
                pipeline.delete("floor")
                await pipeline.execute()


async def measure(bench: Bench, seconds: float, jobs: int) -> list[Figure]:
    figures: list[Figure] = []

    def add(group: str, what: str, value: float, unit: str, measure: str = "figure", **bound: float) -> None:
        figures.append(Figure(group=group, what=what, measure=measure, value=value, unit=unit, **bound))

    runs: dict[str, list[Load]] = {bench.bare: [], bench.proxy: []}
    for _ in range(3):
        for url, each in runs.items():
            each.append(load(f"{url}/predict", 32, seconds, BODY))
    figures += of_load("Requests", "bare FastAPI + one pipeline, 32 connections", *runs[bench.bare])
    figures += of_load("Requests", "POST /predict, 32 connections", *runs[bench.proxy])
    ratio = statistics.median(
        ours.rate / bare.rate for ours, bare in zip(runs[bench.proxy], runs[bench.bare], strict=True)
    )
    add("Ratios", "POST /predict to bare FastAPI + one pipeline", ratio, "x", "ratio", at_least=0.5)

    floor = await floor_per_second(bench, jobs)
    add("Jobs", "moving ids without guarantees", floor, "/s", "rate")
    stub = await drained_per_second(bench, 1, jobs, "scripts.benchmarks.asynchronous stub")
    add("Jobs", "1 worker, constant instead of a model", stub, "/s", "rate", at_least=25_000)
    add("Ratios", "1 worker, constant instead of a model, to moving ids", stub / floor, "x", "ratio")
    one = await drained_per_second(bench, 1, jobs)
    add("Jobs", "1 worker, model server", one, "/s", "rate", at_least=8_000)
    two = await drained_per_second(bench, 2, jobs)
    add("Jobs", "2 workers, model server", two, "/s", "rate")
    add("Ratios", "2 workers to 1", two / one, "x", "ratio")

    workers = bench.start_workers(1)
    url = f"{bench.proxy}/predict"
    completed = load(url, 8, seconds * 2, BODY, rate=50, then="/job/{}?wait=30")
    figures += of_load("Requests", "POST to completed, 50/s", completed, p99_at_most=20)
    figures += of_load("Requests", "POST /predict, 100/s", load(url, 8, seconds * 2, BODY, rate=100), p99_at_most=20)
    async with httpx.AsyncClient(base_url=bench.proxy, trust_env=False, timeout=40) as client:
        job_id = (await client.post("/predict/test")).json()["job_id"]
        await client.get(f"/job/{job_id}?wait=30")
    get = load(f"{bench.proxy}/job/{job_id}", 4, seconds)
    figures += of_load("Requests", "GET /job, 4 connections", get, p99_at_most=10)
    for worker in workers:
        worker.stop()
    return figures


def serve_bare() -> None:
    """The floor of POST /predict: parse, one pipeline, answer."""
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel

    app = FastAPI()
    redis = Redis(port=int(os.environ["REDIS_PORT"]))

    class Body(BaseModel):
        data: list[list[float]]

    @app.get("/health")
    async def health() -> str:
        return "ok"

    @app.post("/predict")
    async def predict(body: Body) -> dict[str, str]:
        async with redis.pipeline() as pipeline:
            pipeline.set("bare:data", json.dumps(body.data), ex=60)
            pipeline.set("bare:status", "pending", ex=60)
            pipeline.lpush("bare", "a1b2c3")
            await pipeline.execute()
        return {"job_id": "a1b2c3"}

    uvicorn.run(app, port=int(os.environ["PORT"]), access_log=False, log_level="warning")


def serve_stub() -> None:
    """The whole worker, with a constant instead of the call to the model server."""
    from src.configurations import TfServingSettings, WorkerSettings
    from src.worker.main import create_app

    from serving_common.service import serve
    from serving_common.settings import load

    class Constant:
        async def connect(self) -> None:
            pass

        async def predict(self, rows: list[list[float]]) -> list[list[float]]:
            return [[0.97, 0.02, 0.01]] * len(rows)

    @asynccontextmanager
    async def constant(_: TfServingSettings) -> AsyncIterator[Constant]:
        yield Constant()

    settings = load(WorkerSettings)
    serve(create_app(settings, constant), "worker", settings)


def main() -> None:
    if sys.argv[1:] == ["bare"]:
        return serve_bare()
    if sys.argv[1:] == ["stub"]:
        return serve_stub()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models/artifacts/saved_model/iris")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--jobs", type=int, default=40_000)
    add_output(parser)
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bench = Bench(stack, options.model.resolve(), folder)
        figures = asyncio.run(measure(bench, options.seconds, options.jobs))
    report(figures, options.json)
    return None


if __name__ == "__main__":
    main()
