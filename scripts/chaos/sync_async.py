"""07: model processes are killed with an image in hand, workers are killed, Redis is killed, bodies are garbage.

Every client posts a photograph now and then and gets the fast answer, whatever happens behind it; only while Redis is
away may the id be null. At the end, each id that was given out must have its better answer, stored once.
"""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

import httpx

from scripts.chaos.faults import RUN_DIR, back, children, kill, process, times_written, with_whole_log, with_workers
from scripts.chaos.proof import Problem, Proof
from scripts.devstack.patterns import PATTERNS
from scripts.devstack.stack import DevStack, free_ports, private_stack
from scripts.devstack.table import ROOT

CLIENTS = 4
PACE_S = 0.8  # of each client: one worker can keep up while the other starts again
STOPPED_FOR_S = 1
ALL_DONE_WITHIN_S = 60
WORKERS = 2
BAD_BODIES = (
    b"",
    b"\xff\xfe\x00",
    b'{"image_data": ',
    b'{"image_data": 1}',
    b'{"image_data": ""}',
    b'{"image_data": "no base64"}',
    b'{"image_data": "aGVsbG8="}',
)


@dataclass
class Images:
    """The clients, and the ids that they were given."""

    proof: Proof
    client: httpx.AsyncClient
    body: dict[str, str]
    ids: list[str] = field(default_factory=list)

    async def ask(self, _number: int) -> tuple[str, Problem | None]:
        """Post the photograph."""
        await asyncio.sleep(PACE_S)
        try:
            response = await self.client.post("/predict", json=self.body)
        except httpx.TimeoutException as exc:
            return "POST /predict", Problem(f"no answer in time: {exc}")
        except httpx.TransportError as exc:
            return "POST /predict", Problem(f"{type(exc).__name__}: {exc}")
        if response.status_code != 200 or not response.json()["result_sync"]:
            return "POST /predict", Problem(f"status {response.status_code}: {response.text[:200]}")
        if (job_id := response.json()["job_id"]) is None:
            return "POST /predict", Problem("no id", blame="redis")
        self.ids.append(job_id)
        self.proof.accepted += 1
        return "POST /predict", None

    async def look(self, job_id: str, wait_s: float) -> str:
        """`completed`, `pending` or what else the answer says."""
        response = await self.client.get(f"/job/{job_id}", params={"wait": wait_s})
        if response.status_code != 200:
            return f"status {response.status_code}"
        entry = response.json()[job_id]
        return str(entry.get("error")) if "error" in entry else "completed" if entry["prediction"] else "pending"

    async def newest_done(self) -> None:
        """Returns when an image that was posted after the fault has its better answer."""
        known = len(self.ids)
        while len(self.ids) == known:
            await asyncio.sleep(0.02)
        while await self.look(self.ids[known], 10) != "completed":
            await asyncio.sleep(0.02)


async def prove(proof: Proof) -> None:
    """A model process, a worker, Redis, garbage; in the long form again and again."""
    proof.unit, proof.failure = "images", "anything but 200 with the fast answer; no id, while Redis is there"
    proof.forgiven, proof.twice = "without id", 0
    table = PATTERNS | {"07": with_whole_log(with_workers(PATTERNS["07"], WORKERS, NUM_WORKERS="1"))}
    photograph = ROOT / "models/artifacts/sample.jpg"
    async with (
        private_stack(
            ["07"], RUN_DIR, table=table, ports=free_ports(["07"], table), environ={"HEARTBEAT_S": "1"}
        ) as stack,
        httpx.AsyncClient(base_url=stack.urls["PORT_07_PROXY"], timeout=40, trust_env=False) as client,
    ):
        images = Images(proof, client, {"image_data": base64.b64encode(photograph.read_bytes()).decode()})
        # A Redis that has been away is left alone for a second.
        proof.grace_s = 1.5
        async with proof.clients(CLIENTS, images.ask):
            await images.newest_done()
            for round_ in range(proof.rounds(short=2, long=10)):
                await kill_busy_process(proof, images, stack, round_ % WORKERS)
                worker = process(stack, f"07-worker_{round_ % WORKERS}")
                async with proof.incident("kill -9", "worker", is_outage=False):
                    await back(worker, kill(worker))
                    await images.newest_done()
                redis = process(stack, "07-redis")
                async with proof.incident("kill -9", "redis"):
                    await back(redis, kill(redis))
                    await proof.all_well(since=time.monotonic())
                    await images.newest_done()
                async with proof.incident("garbage", "proxy", is_outage=False) as incident:
                    for body in BAD_BODIES * 5:
                        answer = await client.post("/predict", content=body)
                        if answer.status_code != 400:
                            proof.fail(f"{body!r} was answered with {answer.status_code}")
                    await proof.all_well(since=incident.started)
        deadline = time.monotonic() + ALL_DONE_WITHIN_S
        states = Counter([await images.look(id_, max(0, min(30, deadline - time.monotonic()))) for id_ in images.ids])
    proof.stuck += states.pop("pending", 0)
    proof.lost = sum(states.values()) - states["completed"]
    stored = times_written(RUN_DIR / "07", "result:{}", images.ids)
    proof.twice = sum(times - 1 for times in stored.values())
    proof.remarks.append(f"{stored.total():,} results in Redis's append-only file, for {len(images.ids):,} images.")
    if len(stored) != states["completed"]:
        proof.error = f"{states['completed']} images are done, but Redis's file has results of {len(stored)}"


async def kill_busy_process(proof: Proof, images: Images, stack: DevStack, number: int) -> None:
    """SIGKILL to a model process that has an image in hand; as before once another has taken its place."""
    worker = process(stack, f"07-worker_{number}")
    if worker.running is None:
        raise RuntimeError(f"{worker.label} does not run")
    (model,) = children(worker.running.handle.pid)
    async with proof.incident("kill -9", "model process", is_outage=False) as incident:
        # It has an image in hand for milliseconds only: stopped, it gets one that it does not finish.
        os.kill(model, signal.SIGSTOP)
        await asyncio.sleep(STOPPED_FOR_S)
        incident.is_over()
        with suppress(ProcessLookupError):
            os.kill(model, signal.SIGKILL)
        while children(worker.running.handle.pid) in ([], [model]):
            await asyncio.sleep(0.02)
        await images.newest_done()
