"""03's proxy and workers, beside two baselines: a bare FastAPI endpoint with one Redis pipeline, and moving ids.

Moving ids is a loop of LMOVE, GET, SET and DEL in pipelines of 32: the queue's work without its guarantees.
"""

import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import httpx
from redis.asyncio import Redis

from scripts.benchmarks.harness import ROW, TYPICAL_CONNECTIONS, Benchmark, Endpoint, drain, fill, send_load, take_turns
from scripts.devstack.patterns import PATTERNS
from scripts.devstack.runs import require_redis
from scripts.devstack.stack import DevStack
from scripts.devstack.table import web_process
from serving_common.queue.types import JobKeys

BODY = {"data": [ROW]}
DATA = b"[[5.1,3.5,1.4,0.2]]"
KEYS = JobKeys("queue:predict")
RESULT = b'{"prediction":0,"class_name":"setosa","probabilities":[0.97,0.02,0.01]}'
BATCH = 32
MODEL_WORKER = "src.worker.main"
CONSTANT_WORKER = "tests.constant_worker"  # the whole worker, with a constant instead of the call to the model server


async def empty_queue(proxy: str) -> None:
    """Return when a job that is queued now has completed: the ones before it have, then."""
    async with httpx.AsyncClient(base_url=proxy, trust_env=False, timeout=60) as client:
        job = (await client.post("/predict", json=BODY)).json()
        while job.get("status") != "completed":
            job = (await client.get(f"/job/{job['job_id']}", params={"wait": 30})).json()


check = require_redis
ENDPOINTS = [
    Endpoint("03 job id", "PORT_03_PROXY", "/predict", lambda: BODY),
    Endpoint(
        "03 job id and result",
        "PORT_03_PROXY",
        "/predict",
        lambda: BODY,
        connections=(1, TYPICAL_CONNECTIONS),
        then="/job/{}?wait=30",
        before=empty_queue,
    ),
]


async def measure(benchmark: Benchmark) -> None:
    """The proxy under load; workers that drain a full queue; latency from POST to completed."""
    seconds, jobs = benchmark.choose(quick=(0.2, 640), short=(1.5, 10_000), long=(5.0, 40_000))
    redis_env = {"REDIS_PORT": "{PORT_03_REDIS}"}
    bare = web_process("bare", "tests.bare_proxy", "PORT_03_BARE", 1, env=redis_env, depends_on=("03-redis",))
    pattern = PATTERNS["03"].without("worker").with_processes(bare)
    async with benchmark.stack(pattern, environ={"MAX_QUEUE_LENGTH": "1000000"}) as stack:
        await measure_proxy(benchmark, stack, seconds)
        await measure_workers(benchmark, stack, jobs)
        await measure_latency(benchmark, stack, seconds)


async def measure_proxy(benchmark: Benchmark, stack: DevStack, seconds: float) -> None:
    """POST /predict as fast as it goes, in turns with the baseline."""
    names = {"bare FastAPI + one pipeline": "PORT_03_BARE", "POST /predict": "PORT_03_PROXY"}
    cases = {what: partial(send_load, f"{stack.urls[port]}/predict", 32, seconds, BODY) for what, port in names.items()}
    bare, ours = (await take_turns(3, cases)).values()
    for what, loads in zip(names, (bare, ours), strict=True):
        benchmark.add_loads("Requests", f"{what}, 32 connections", loads)
    ratios = [load.rate / baseline.rate for load, baseline in zip(ours, bare, strict=True)]
    benchmark.add_ratio("POST /predict to bare FastAPI + one pipeline", statistics.median(ratios), at_least=0.5)


async def measure_workers(benchmark: Benchmark, stack: DevStack, jobs: int) -> None:
    """Jobs per second out of a full queue, beside moving ids."""

    async def add(what: str, count: int, module: str, at_least: float | None = None) -> float:
        async with workers(stack, count, module) as start:
            rate = await drain(stack.ports["PORT_03_REDIS"], KEYS, DATA, jobs, start, poll_s=0.005)
        benchmark.add("Jobs", what, "rate", rate, "/s", at_least=at_least)
        return rate

    baseline = await move_ids(stack, jobs)
    benchmark.add("Jobs", "moving ids without guarantees", "rate", baseline, "/s")
    constant = await add("1 worker, constant instead of a model", 1, CONSTANT_WORKER, 25_000)
    benchmark.add_ratio("1 worker, constant instead of a model, to moving ids", constant / baseline)
    one = await add("1 worker, model server", 1, MODEL_WORKER, 8_000)
    two = await add("2 workers, model server", 2, MODEL_WORKER)
    benchmark.add_ratio("2 workers to 1", two / one)


async def measure_latency(benchmark: Benchmark, stack: DevStack, seconds: float) -> None:
    """Latencies at moderate rates, with one worker."""
    proxy = stack.urls["PORT_03_PROXY"]
    async with workers(stack, 1, MODEL_WORKER) as start:
        await start()
        await empty_queue(proxy)
        completed = await send_load(f"{proxy}/predict", 8, seconds * 2, BODY, rate=50, then="/job/{}?wait=30")
        benchmark.add_loads("Requests", "POST to completed, 50/s", [completed], p99_at_most=20)
        queued = await send_load(f"{proxy}/predict", 8, seconds * 2, BODY, rate=100)
        benchmark.add_loads("Requests", "POST /predict, 100/s", [queued], p99_at_most=20)
        async with httpx.AsyncClient(base_url=proxy, trust_env=False, timeout=40) as client:
            job_id = (await client.post("/predict/test")).json()["job_id"]
            await client.get(f"/job/{job_id}?wait=30")
        get = await send_load(f"{proxy}/job/{job_id}", 4, seconds)
        benchmark.add_loads("Requests", "GET /job, 4 connections", [get], p99_at_most=10)


@asynccontextmanager
async def workers(stack: DevStack, count: int, module: str) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """What starts workers, without waiting until they are ready; they are stopped at the end."""
    env = PATTERNS["03"].process("worker").env
    ports = [f"PORT_03_WORKER_{number}" for number in range(count)]

    async def start() -> None:
        for port in ports:
            await stack.start("03", replace(web_process(port, module, port, 1, env=env), ready=None))

    yield start
    for port in ports:
        await stack.stop(stack.process(f"03-{port}"))


async def move_ids(stack: DevStack, jobs: int) -> float:
    """Jobs per second of the baseline: LMOVE, GET, SET and DEL in pipelines."""
    async with Redis(port=stack.ports["PORT_03_REDIS"]) as redis:
        await fill(redis, KEYS, DATA, jobs)
        started = time.perf_counter()
        while True:
            async with redis.pipeline(transaction=False) as pipeline:
                for _ in range(BATCH):
                    pipeline.lmove("queue:predict", "moved", "RIGHT", "LEFT")
                ids = [job_id.decode() for job_id in await pipeline.execute() if job_id]
            if not ids:
                return jobs / (time.perf_counter() - started)
            await redis.mget([f"job:{job_id}:data" for job_id in ids])
            async with redis.pipeline() as pipeline:
                for job_id in ids:
                    pipeline.set(f"job:{job_id}:result", RESULT, ex=86_400)
                pipeline.delete("moved")
                await pipeline.execute()
