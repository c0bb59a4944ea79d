"""07: model processes are killed with an image in flight, workers and Redis too, Redis fails over, bodies are garbage.

Every client posts a photograph at intervals and gets the fast answer, whatever happens behind it; only while Redis is
down may the id be null. At the end every id that was given out must have its better answer, stored once.
"""

import asyncio
import time

import httpx

from scripts.chaos.failover import attach_redis, promote_redis, redis_pair
from scripts.chaos.faults import with_workers
from scripts.chaos.harness import ChaosRun, QueueClients, Violation
from scripts.devstack.faults import children, kill_and_wait, kill_model_process
from scripts.devstack.patterns.sync_async import photograph_body
from scripts.devstack.runs import require_redis

CLIENTS = 4
PACE_S = 0.8  # of each client: one worker can keep up while the other starts again
BACKLOG = 10  # images, with which clients wait on a slower machine: the recovery is not that of a long queue
WORKERS = 2
BAD_BODIES = (
    *(b"", b"\xff\xfe\x00", b'{"image_data": ', b'{"image_data": 1}', b'{"image_data": ""}'),
    *(b'{"image_data": "no base64"}', b'{"image_data": "aGVsbG8="}'),
)


class PhotoClients(QueueClients):
    """All of them post the photograph."""

    async def send(self, _number: int) -> tuple[str, Violation | None]:
        """Post it."""
        await asyncio.sleep(PACE_S)
        if len(self.ids) >= BACKLOG:
            await self.run.request(self.client, "GET", f"/job/{self.ids[-BACKLOG]}", params={"wait": 30})
        posted = await self.run.request(self.client, "POST", "/predict", json=photograph_body())
        return "POST /predict", self._accept(posted)

    def _accept(self, response: httpx.Response | Violation) -> Violation | None:
        if isinstance(response, Violation):
            return response
        if response.status_code != 200 or not response.json()["result_sync"]:
            return Violation(f"status {response.status_code}: {response.text[:200]}")
        if (job_id := response.json()["job_id"]) is None:
            return Violation("no id", blame="redis")
        self.ids.append(job_id)
        self.run.accepted += 1
        return None

    async def state(self, job_id: str, wait_s: float) -> str:
        response = await self.client.get(f"/job/{job_id}", params={"wait": wait_s})
        if response.status_code != 200:
            return f"status {response.status_code}"
        entry = response.json()[job_id]
        return str(entry.get("error")) if "error" in entry else "completed" if entry["prediction"] else "pending"


async def inject(run: ChaosRun) -> None:
    """Kill a model process, a worker and Redis, and send garbage, again and again."""
    require_redis()
    run.unit, run.failure = "images", "anything but 200 with the fast answer; no id, while Redis is up"
    run.expected_label = "without id"
    run.grace_s = 1.5  # the circuit breaker's cool-down after a Redis failure, and a request
    rounds, images_at_least = run.choose(quick=(1, 0), short=(2, 0), long=(20, 2_000))
    async with (
        redis_pair(run, with_workers(run.pattern, WORKERS, NUM_WORKERS="1")) as (pair, stack),
        httpx.AsyncClient(base_url=stack.urls["PORT_07_PROXY"], timeout=40, trust_env=False) as client,
    ):
        photos = PhotoClients(run, client)
        async with run.clients(CLIENTS, photos.send):
            await photos.newest_done()
            for round_ in range(rounds):
                worker = stack.process(f"07-worker_{round_ % WORKERS}")
                async with run.incident("kill -9", "model process", is_outage=False) as incident:
                    killed = await kill_model_process(stack, worker)
                    incident.end_fault()
                    while set(children(worker.pid)) <= {killed}:
                        await asyncio.sleep(0.02)
                    await photos.newest_done()
                async with run.incident("kill -9", "worker", is_outage=False):
                    await kill_and_wait(stack, worker)
                    await photos.newest_done()
                async with run.incident("kill -9", "redis"):
                    await kill_and_wait(stack, stack.process("07-redis"))
                    await run.recovered(since=time.monotonic())
                    await photos.newest_done()
                async with run.incident("garbage", "proxy", is_outage=False) as incident:
                    await run.send_bad_bodies(client, "/predict", BAD_BODIES * 5, {400})
                    await run.recovered(since=incident.started)
            await attach_redis(pair.primary, pair.replica)
            for _ in range(run.choose(quick=1, short=2, long=10)):
                await pair.fail_over(run, "redis", promote_redis, photos.newest_done)
            while len(photos.ids) < images_at_least:
                await asyncio.sleep(1)
        await photos.account("result:{}")
