"""07: model processes are killed with an image in flight, workers and Redis are killed, bodies are garbage.

Every client posts a photograph at intervals and gets the fast answer, whatever happens behind it; only while Redis is
down may the id be null. At the end every id that was given out must have its better answer, stored once.
"""

import asyncio
import base64
import os
import signal
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

import httpx

from scripts.chaos.faults import children, kill_and_wait, times_written, with_workers
from scripts.chaos.harness import ChaosRun, Violation
from scripts.devstack.runs import require_redis
from scripts.devstack.stack import DevStack
from scripts.devstack.table import ROOT

CLIENTS = 4
PACE_S = 0.5  # of each client: one worker can keep up while the other starts again
STOPPED_FOR_S = 1
ALL_DONE_WITHIN_S = 60
WORKERS = 2
BAD_BODIES = (
    *(b"", b"\xff\xfe\x00", b'{"image_data": ', b'{"image_data": 1}', b'{"image_data": ""}'),
    *(b'{"image_data": "no base64"}', b'{"image_data": "aGVsbG8="}'),
)


@dataclass
class PhotoClients:
    """The clients, and the ids that they were given."""

    run: ChaosRun
    client: httpx.AsyncClient
    body: dict[str, str]
    ids: list[str] = field(default_factory=list)

    async def send(self, _number: int) -> tuple[str, Violation | None]:
        """Post the photograph."""
        await asyncio.sleep(PACE_S)
        return "POST /predict", await self._post()

    async def _post(self) -> Violation | None:
        response = await self.run.request(self.client, "POST", "/predict", json=self.body)
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
        """`completed`, `pending`, or the error."""
        response = await self.client.get(f"/job/{job_id}", params={"wait": wait_s})
        if response.status_code != 200:
            return f"status {response.status_code}"
        entry = response.json()[job_id]
        return str(entry.get("error")) if "error" in entry else "completed" if entry["prediction"] else "pending"

    async def final_states(self) -> Counter[str]:
        """The state of every image, once all have ended, or at the deadline."""
        deadline = time.monotonic() + ALL_DONE_WITHIN_S
        return Counter([await self.state(job_id, max(0, min(30, deadline - time.monotonic()))) for job_id in self.ids])

    async def newest_done(self) -> None:
        """Return when an image that was posted after the fault has its better answer."""
        known = len(self.ids)
        while len(self.ids) == known:
            await asyncio.sleep(0.02)
        while await self.state(self.ids[known], 10) != "completed":
            await asyncio.sleep(0.02)


async def inject(run: ChaosRun) -> None:
    """Kill a model process, a worker and Redis, and send garbage, again and again."""
    require_redis()
    run.unit, run.failure = "images", "anything but 200 with the fast answer; no id, while Redis is up"
    run.expected_label = "without id"
    run.grace_s = 1.5  # the circuit breaker's cool-down after a Redis failure, and a request
    rounds, images_at_least = run.choose(quick=(1, 0), short=(2, 0), long=(20, 2_000))
    pattern = with_workers(run.pattern, WORKERS, NUM_WORKERS="1")
    async with (
        run.stack(pattern, environ={"HEARTBEAT_S": "1"}) as stack,
        httpx.AsyncClient(base_url=stack.urls["PORT_07_PROXY"], timeout=40, trust_env=False) as client,
    ):
        photo = (ROOT / "models/artifacts/sample.jpg").read_bytes()
        photos = PhotoClients(run, client, {"image_data": base64.b64encode(photo).decode()})
        async with run.clients(CLIENTS, photos.send):
            await photos.newest_done()
            for round_ in range(rounds):
                await kill_busy_model(run, photos, stack, round_ % WORKERS)
                async with run.incident("kill -9", "worker", is_outage=False):
                    await kill_and_wait(stack.process(f"07-worker_{round_ % WORKERS}"))
                    await photos.newest_done()
                async with run.incident("kill -9", "redis"):
                    await kill_and_wait(stack.process("07-redis"))
                    await run.recovered(since=time.monotonic())
                    await photos.newest_done()
                async with run.incident("garbage", "proxy", is_outage=False) as incident:
                    await run.send_bad_bodies(client, "/predict", BAD_BODIES * 5, {400})
                    await run.recovered(since=incident.started)
            while len(photos.ids) < images_at_least:
                await asyncio.sleep(1)
        states = await photos.final_states()
    run.account(states, times_written(run.run_dir / "07", "result:{}", photos.ids), len(photos.ids))


async def kill_busy_model(run: ChaosRun, photos: PhotoClients, stack: DevStack, number: int) -> None:
    """SIGKILL to a model process with an image in flight; as before once another has replaced it."""
    worker = stack.process(f"07-worker_{number}")
    (model,) = children(worker.pid)
    async with run.incident("kill -9", "model process", is_outage=False) as incident:
        # An image is in flight for milliseconds only: a stopped process gets one that it does not finish.
        os.kill(model, signal.SIGSTOP)
        await asyncio.sleep(STOPPED_FOR_S)
        incident.end_fault()
        with suppress(ProcessLookupError):
            os.kill(model, signal.SIGKILL)
        while children(worker.pid) in ([], [model]):
            await asyncio.sleep(0.02)
        await photos.newest_done()
