"""03: workers are killed with jobs in hand, the model server is killed and hangs, Redis is killed.

Half of the clients queue jobs, half ask for them. Only while Redis is away may they see 503. At the end, each job whose
id was given out must be completed, with its result stored once: Redis's append-only file has every write.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field

import httpx
from redis.asyncio import Redis

from scripts.chaos.faults import RUN_DIR, back, hanging, kill, process, times_written, with_whole_log, with_workers
from scripts.chaos.proof import Problem, Proof
from scripts.devstack.patterns import PATTERNS
from scripts.devstack.stack import DevStack, ManagedProcess, free_ports, private_stack

CLIENTS = 6
WORKERS = 4
PACE_S = 0.03  # of each client
STALL_S = 0.5
MODEL_HANGS_S = 2  # less than TF_SERVING_TIMEOUT_S: nobody's try is used up
ALL_DONE_WITHIN_S = 60
FLOWER = {"data": [[5.1, 3.5, 1.4, 0.2]]}
QUEUE = "queue:predict"


@dataclass
class Jobs:
    """The clients, and the ids that they were given."""

    proof: Proof
    client: httpx.AsyncClient
    ids: list[str] = field(default_factory=list)

    async def ask(self, number: int) -> tuple[str, Problem | None]:
        """Queue a job, or ask for one that is there."""
        await asyncio.sleep(PACE_S)
        try:
            if number % 2 and self.ids:
                return "GET /job", await self._look()
            return "POST /predict", await self._submit()
        except httpx.TimeoutException as exc:
            return "any", Problem(f"no answer in time: {exc}")
        except httpx.TransportError as exc:
            return "any", Problem(f"{type(exc).__name__}: {exc}")

    async def _submit(self) -> Problem | None:
        response = await self.client.post("/predict", json=FLOWER)
        if problem := judged(response):
            return problem
        self.ids.append(response.json()["job_id"])
        self.proof.accepted += 1
        return None

    async def _look(self) -> Problem | None:
        job_id = random.choice(self.ids[-100:])
        return judged(await self.client.get(f"/job/{job_id}", params={"wait": 1}))

    async def ended(self) -> Counter[str]:
        """The state of every job, once all have ended, or when it has taken too long; a wrong result is one as well."""
        deadline, states = time.monotonic() + ALL_DONE_WITHIN_S, Counter[str]()
        for job_id in self.ids:
            wait_s = max(0, min(30, deadline - time.monotonic()))
            response = await self.client.get(f"/job/{job_id}", params={"wait": wait_s})
            state = response.json().get("status") if response.status_code == 200 else f"status {response.status_code}"
            if state == "completed" and response.json()["result"]["prediction"] != 0:
                state = "wrong"
            states[str(state)] += 1
        return states


def judged(response: httpx.Response) -> Problem | None:
    """What is wrong with an answer: while Redis is away, 503 that says when to come back is not."""
    if response.status_code == 200:
        return None
    is_redis = response.status_code == 503 and "Retry-After" in response.headers
    return Problem(f"status {response.status_code}: {response.text[:200]}", blame="redis" if is_redis else "")


async def prove(proof: Proof) -> None:
    """Kills of busy workers, and in between the model server and Redis; in the long form again and again."""
    proof.unit, proof.failure = "jobs", "anything but 200, or 503 with Retry-After while Redis is away"
    proof.twice = 0
    table = PATTERNS | {"03": with_whole_log(with_workers(PATTERNS["03"], WORKERS))}
    ports = free_ports(["03"], table)
    async with (
        private_stack(["03"], RUN_DIR, table=table, ports=ports, environ={"HEARTBEAT_S": "1"}) as stack,
        httpx.AsyncClient(base_url=stack.urls["PORT_03_PROXY"], timeout=30, trust_env=False) as client,
    ):
        jobs = Jobs(proof, client)
        async with proof.clients(CLIENTS, jobs.ask):
            await asyncio.sleep(1)
            for _ in range(proof.rounds(short=2, long=10)):
                for _ in range(3):
                    await kill_busy_worker(proof, stack, ports["PORT_03_REDIS"])
                model = process(stack, "02-model_server")
                async with proof.incident("kill -9", "model_server", is_outage=False) as incident:
                    await back(model, kill(model))
                    await newest_done(jobs)
                async with proof.incident("hang", "model_server", is_outage=False) as incident:
                    async with hanging(model):
                        await asyncio.sleep(MODEL_HANGS_S)
                    incident.is_over()
                    await newest_done(jobs)
                redis = process(stack, "03-redis")
                async with proof.incident("kill -9", "redis") as incident:
                    await back(redis, kill(redis))
                    await proof.all_well(since=time.monotonic())
                    await newest_done(jobs)
        states = await jobs.ended()
        async with Redis(port=ports["PORT_03_REDIS"]) as store:
            lists = [QUEUE, *[key async for key in store.scan_iter(f"{QUEUE}:processing:*")]]
            left = sum([await store.llen(name) for name in lists])
    waiting = states.pop("pending", 0) + states.pop("processing", 0)
    proof.stuck += max(waiting, left)
    proof.lost = sum(states.values()) - states["completed"]
    stored = times_written(RUN_DIR / "03", "job:{}:result", jobs.ids)
    proof.twice = sum(times - 1 for times in stored.values())
    proof.remarks.append(f"{stored.total():,} results in Redis's append-only file, for {len(jobs.ids):,} jobs.")
    if len(stored) != states["completed"]:
        proof.error = f"{states['completed']} jobs are completed, but Redis's file has results of {len(stored)}"


async def kill_busy_worker(proof: Proof, stack: DevStack, redis_port: int) -> None:
    """SIGKILL to a worker that has jobs in hand; as before once these are completed and the worker is back."""
    async with (
        proof.incident("kill -9", "worker", is_outage=False) as incident,
        Redis(port=redis_port, decode_responses=True) as redis,
    ):
        held: list[str] = []
        while not held:
            await asyncio.sleep(0.1)
            # Jobs are in hand for milliseconds, unless the model server stalls for a moment.
            async with hanging(process(stack, "02-model_server")):
                worker, held = await busy_worker(stack, redis)
                if held:
                    incident.started = time.monotonic()
                    killed = kill(worker)
        incident.note = f"{worker.definition.name} had {len(held)} jobs in hand"
        while set(await redis.mget([f"job:{job_id}:status" for job_id in held])) != {"completed"}:
            await asyncio.sleep(0.02)
        await back(worker, killed)


async def busy_worker(stack: DevStack, redis: Redis) -> tuple[ManagedProcess, list[str]]:
    """A worker and the ids of the jobs that it has in hand; of any, and none, if that takes too long."""
    workers = [process(stack, f"03-worker_{number}") for number in range(WORKERS)]
    deadline = time.monotonic() + STALL_S
    while time.monotonic() < deadline:
        await asyncio.sleep(0.02)
        # Not always the first one: who dies again and again is started again later and later.
        for worker in random.sample(workers, WORKERS):
            if worker.running:
                lists = redis.scan_iter(f"{QUEUE}:processing:*-{worker.running.handle.pid}-*")
                if held := [str(job_id) async for name in lists for job_id in await redis.lrange(name, 0, -1)]:
                    return worker, held
    return workers[0], []


async def newest_done(jobs: Jobs) -> None:
    """Returns when a job that was queued after the fault is completed."""
    known = len(jobs.ids)
    while True:
        await asyncio.sleep(0.02)
        if len(jobs.ids) > known:
            answer = await jobs.client.get(f"/job/{jobs.ids[-1]}", params={"wait": 10})
            if answer.status_code == 200 and answer.json()["status"] == "completed":
                return
