"""03: workers are killed with jobs in flight, the model server is killed and hangs, Redis is killed and fails over.

Half of the clients queue jobs, half fetch them. Only while Redis is down may they see 503. At the end every job whose
id was given out must be completed, its result stored once: Redis's append-only file has every write. More ids are
drawn at the end, 200,000 in the long profile; none may be given out twice.
"""

import asyncio
import random
import time

import httpx
from redis.asyncio import Redis

from scripts.chaos.failover import attach_redis, promote_redis, redis_pair
from scripts.chaos.faults import with_workers
from scripts.chaos.harness import ChaosRun, QueueClients, Violation
from scripts.devstack.faults import hanging, kill_and_wait, started_again, try_kill
from scripts.devstack.runs import require_redis
from scripts.devstack.stack import DevStack, ManagedProcess
from scripts.devstack.steps import FLOWERS
from serving_common.queue.client import JobQueue
from serving_common.queue.types import JobKeys

CLIENTS = 6
WORKERS = 4
PACE_S = 0.03  # of each client
STALL_S = 0.5
MODEL_HANGS_S = 2  # less than TF_SERVING_TIMEOUT_S, so that no job uses up a try
BODY = {"data": [FLOWERS["setosa"]]}
QUEUE = "queue:predict"


class JobClients(QueueClients):
    """Half of them queue jobs, half fetch recent ones."""

    async def send(self, number: int) -> tuple[str, Violation | None]:
        """Queue a job, or fetch one."""
        await asyncio.sleep(PACE_S)
        if number % 2 and self.ids:
            job_id = random.choice(self.ids[-100:])
            response = await self.run.request(self.client, "GET", f"/job/{job_id}", params={"wait": 1})
            return "GET /job", violation_of(response)
        response = await self.run.request(self.client, "POST", "/predict", json=BODY)
        if (violation := violation_of(response)) is None and isinstance(response, httpx.Response):
            self.ids.append(response.json()["job_id"])
            self.run.accepted += 1
        return "POST /predict", violation

    async def state(self, job_id: str, wait_s: float) -> str:
        response = await self.client.get(f"/job/{job_id}", params={"wait": wait_s})
        if response.status_code != 200:
            return f"status {response.status_code}"
        job = response.json()
        return "wrong" if job["status"] == "completed" and job["result"]["prediction"] != 0 else str(job["status"])


def violation_of(response: httpx.Response | Violation) -> Violation | None:
    """How a response is wrong; a 503 with Retry-After blames Redis."""
    if isinstance(response, Violation):
        return response
    if response.status_code == 200:
        return None
    is_redis = response.status_code == 503 and "Retry-After" in response.headers
    return Violation(f"status {response.status_code}: {response.text[:200]}", blame="redis" if is_redis else "")


async def inject(run: ChaosRun) -> None:
    """Kill busy workers, and in between the model server and Redis."""
    require_redis()
    run.unit, run.failure = "jobs", "anything but 200, or 503 with Retry-After while Redis is down"
    async with (
        redis_pair(run, with_workers(run.pattern, WORKERS)) as (pair, stack),
        httpx.AsyncClient(base_url=stack.urls["PORT_03_PROXY"], timeout=30, trust_env=False) as client,
        Redis(port=pair.primary, decode_responses=True) as store,
    ):
        jobs = JobClients(run, client)
        async with run.clients(CLIENTS, jobs.send):
            await asyncio.sleep(1)
            for _ in range(run.choose(quick=1, short=2, long=10)):
                for _ in range(3):
                    await kill_busy_worker(run, stack, store)
                model = stack.process("02-model_server")
                async with run.incident("kill -9", "model_server", is_outage=False):
                    await kill_and_wait(stack, model)
                    await jobs.newest_done()
                async with run.incident("hang", "model_server", is_outage=False) as incident:
                    async with hanging(model):
                        await asyncio.sleep(MODEL_HANGS_S)
                    incident.end_fault()
                    await jobs.newest_done()
                async with run.incident("kill -9", "redis"):
                    await kill_and_wait(stack, stack.process("03-redis"))
                    await run.recovered(since=time.monotonic())
                    await jobs.newest_done()
            await attach_redis(pair.primary, pair.replica)
            for _ in range(run.choose(quick=1, short=2, long=10)):
                await pair.fail_over(run, "redis", promote_redis, jobs.newest_done)
        await jobs.account("job:{}:result")
        async with Redis(port=pair.primary) as primary:
            lists = [QUEUE, *[key async for key in primary.scan_iter(f"{QUEUE}:processing:*")]]
            run.stuck = max(run.stuck, sum([await primary.llen(name) for name in lists]))
        await draw_ids(run, stack)


async def draw_ids(run: ChaosRun, stack: DevStack) -> None:
    """Queue many jobs where no worker claims them: drawn blindly, of 200,000 six-digit ids 1,200 would be repeated."""
    count = run.choose(quick=1_600, short=10_000, long=200_000)
    async with Redis(port=stack.ports["PORT_03_REDIS"]) as redis:
        queue = JobQueue(redis, JobKeys("queue:ids"), max_length=count)

        async def enqueue_some() -> list[str]:
            return [await queue.enqueue(b"1") for _ in range(count // 16)]

        drawn = [job_id for some in await asyncio.gather(*(enqueue_some() for _ in range(16))) for job_id in some]
    if len(set(drawn)) != len(drawn):
        run.fail(f"{len(drawn) - len(set(drawn))} ids were given out twice")
    run.remarks.append(f"{len(drawn):,} more ids, {len(drawn) - len(set(drawn))} of them given out twice.")


async def kill_busy_worker(run: ChaosRun, stack: DevStack, redis: Redis) -> None:
    """SIGKILL to a worker with jobs in flight; as before once these are completed and the worker is back."""
    async with run.incident("kill -9", "worker", is_outage=False) as incident:
        claimed: list[str] = []
        killed = None
        while killed is None:
            await asyncio.sleep(0.1)
            # Jobs are in flight for milliseconds only, unless the model server stalls.
            async with hanging(stack.process("02-model_server")):
                worker, claimed = await busy_worker(stack, redis)
                if claimed:
                    incident.started = time.monotonic()
                    killed = await try_kill(stack, worker)
        incident.note = f"{worker.definition.name} had {len(claimed)} jobs in flight"
        while set(await redis.mget([f"job:{job_id}:status" for job_id in claimed])) != {"completed"}:
            await asyncio.sleep(0.02)
        await started_again(worker, killed)


async def busy_worker(stack: DevStack, redis: Redis) -> tuple[ManagedProcess, list[str]]:
    """A worker and the ids of its jobs in flight; any worker and no ids if that takes too long."""
    workers = [stack.process(f"03-worker_{number}") for number in range(WORKERS)]
    deadline = time.monotonic() + STALL_S
    while time.monotonic() < deadline:
        await asyncio.sleep(0.02)
        # At random: a worker that keeps dying is started again later and later.
        for worker in random.sample(workers, WORKERS):
            if worker.running:
                lists = redis.scan_iter(f"{QUEUE}:processing:*-{worker.pid}-*")
                if claimed := [str(job_id) async for name in lists for job_id in await redis.lrange(name, 0, -1)]:
                    return worker, claimed
    return workers[0], []
