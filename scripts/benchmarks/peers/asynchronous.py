"""03 beside Celery, RQ, arq, taskiq and dramatiq: the same jobs, and a worker that is killed in the middle."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import httpx
from redis.asyncio import Redis

from scripts.benchmarks.asynchronous import BODY, KEYS
from scripts.benchmarks.peers.peer import Peer, PeerRun, kill_tree, run_to_end, tables
from scripts.devstack.load import ResultWrites
from scripts.devstack.patterns import PATTERNS
from scripts.devstack.patterns.asynchronous import WORK
from scripts.devstack.runs import require_redis
from scripts.devstack.stack import DevStack
from scripts.devstack.table import HOST, ProcessDefinition, redis_process
from serving_common.queue.client import JobQueue

OURS, ONE_BY_ONE = "03", "03 with BATCH_SIZE=1"
REDELIVERY_S = 25  # 03's HEARTBEAT_S is 10
CLIENTS = 16
POLL_S = 0.005
GIVE_UP_AFTER_S = 240
RATE, LOST, TWICE, LAST = "jobs/s", "lost", "done twice", "kill to last job"

INTRODUCTION = f"""\
Each job is one Iris row. All jobs are submitted first, to a Redis of its own with an append-only file; then one worker,
which handles two jobs at once, calls the same model server over gRPC for each and stores the result. 03 does so twice:
with up to 32 jobs in a call, its default, and with BATCH_SIZE=1, as the others. The rate is that from the start of the
first job to the result of the last. The second run kills the worker and all its processes with SIGKILL when half of the
jobs are done, and starts another after 0.5 s. Each result is counted where it is stored, not by the library: a job is
lost if it has none {GIVE_UP_AFTER_S} s after the last other one, and done twice if it was stored again. 03's jobs are
submitted over HTTP by {CLIENTS} clients, those of the others by one loop of the library's own client.
"""


@dataclass
class Ours:
    """03's proxy and Redis."""

    stack: DevStack
    redis: Redis
    ids: list[str] = field(default_factory=list)

    async def submit(self, jobs: int) -> None:
        """Submit over HTTP."""
        await self.redis.flushall()
        await self.redis.config_set("auto-aof-rewrite-percentage", 0)  # the file is what is counted
        # Since now: of 16 million ids, some were drawn in an earlier run as well.
        self.writes = ResultWrites(self.stack.run_dir / "03", WORK.stored, since_now=True)
        waiting = iter(range(jobs))
        url = self.stack.urls[WORK.port]
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as client, asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(self._post(client, waiting))

    async def _post(self, client: httpx.AsyncClient, waiting: Iterable[int]) -> None:
        for _ in waiting:
            response = (await client.post(WORK.path, json=BODY)).raise_for_status()
            self.ids.append(response.json()["job_id"])

    async def done(self) -> int:
        """Those that neither wait nor are being processed."""
        stats = await JobQueue(self.redis, KEYS).stats()
        return len(self.ids) - stats.normal - stats.processing

    async def times(self) -> Iterable[int]:
        """From the append-only file."""
        times = await asyncio.to_thread(self.writes.update)
        return [times[job_id] for job_id in self.ids if times[job_id]]


@dataclass
class Theirs:
    """A peer's client, and the Redis of its queue."""

    stack: DevStack
    results: Redis
    client: ProcessDefinition

    async def submit(self, jobs: int) -> None:
        """Submit with the library's client."""
        await run_to_end(self.stack, "03", replace(self.client, argv=(*self.client.argv, str(jobs))))

    async def done(self) -> int:
        """How many jobs have a counter."""
        return int(await self.results.hlen("times"))

    async def times(self) -> Iterable[int]:
        """What the jobs themselves have counted."""
        return map(int, await self.results.hvals("times"))


async def measure(run: PeerRun) -> None:
    """Each contestant twice: undisturbed, and with a kill."""
    require_redis()
    [jobs] = run.sizes
    pattern = PATTERNS["03"].without("worker")
    async with run.stack(pattern, environ={"MAX_QUEUE_LENGTH": str(10 * jobs)}) as stack:
        queues = Queues(run, stack, jobs)
        for name, batch_size in ((OURS, "32"), (ONE_BY_ONE, "1")):
            await run.attempt(queues.group, name, jobs, partial(queues.measure_ours, name, batch_size))
        for peer in run.peers("queues"):
            await run.attempt(queues.group, peer.name, jobs, partial(queues.measure_peer, peer))


class Queues:
    """The contestants with so many jobs."""

    def __init__(self, run: PeerRun, stack: DevStack, jobs: int) -> None:
        self._run, self._stack, self._jobs = run, stack, jobs
        self.group = f"Queues: {jobs:,} jobs"

    async def measure_ours(self, name: str, batch_size: str) -> None:
        """03 with so many jobs in a call."""
        worker = PATTERNS["03"].process("worker")
        worker = replace(worker, ready=None, env={**worker.env, "NUM_WORKERS": "2", "BATCH_SIZE": batch_size})
        async with Redis(port=self._stack.ports["PORT_03_REDIS"]) as redis:
            await self._measure(name, self._jobs, Ours(self._stack, redis), worker)
            await self._measure(name, self._jobs, Ours(self._stack, redis), worker, REDELIVERY_S)

    async def measure_peer(self, peer: Peer) -> None:
        """A peer, each time with a Redis of its own."""
        python = await peer.install(self._run)
        jobs = min(self._jobs, peer.at_most)
        name = peer.name if jobs == self._jobs else f"{peer.name} ({jobs:,} jobs)"
        for redelivery_s in (None, peer.redelivery_s):
            async with self._opened(peer, python, f"{peer.script.stem}_{'kill' if redelivery_s else 'run'}") as opened:
                await self._measure(name, jobs, *opened, redelivery_s)

    @asynccontextmanager
    async def _opened(self, peer: Peer, python: str, name: str) -> AsyncIterator[tuple[Theirs, ProcessDefinition]]:
        port = f"PORT_{name.upper()}"
        server = redis_process(port, 1, name=f"{name}_redis", folder=f"{{state}}/{name}")
        redis = await self._stack.start("03", server)
        url = f"redis://{HOST}:{self._stack.ports[port]}"
        env = {"REDIS_URL": f"{url}/0", "RESULTS_URL": f"{url}/1", "MODEL_ADDRESS": f"{HOST}:{{PORT_02_GRPC}}"}
        client = peer.process(python, f"{name}_client", peer.script.name, restart=False, **env)
        worker = peer.process(python, f"{name}_worker", *peer.worker, restart=True, **env)
        try:
            async with Redis.from_url(env["RESULTS_URL"]) as results:
                yield Theirs(self._stack, results, client), worker
        finally:
            await self._stack.stop(redis)

    async def _measure(
        self,
        name: str,
        jobs: int,
        queue: Ours | Theirs,
        definition: ProcessDefinition,
        redelivery_s: float | None = None,
    ) -> None:
        """Submit, start the worker, kill it in the middle if there is a time for redelivery, and count."""
        started = time.perf_counter()
        await queue.submit(jobs)
        submitted_s = time.perf_counter() - started
        worker = await self._stack.start("03", definition)
        try:
            progress = await follow(queue, jobs, lambda: kill_tree(worker.pid), redelivery_s)
        finally:
            await self._stack.stop(worker)
        if not progress.done:
            raise RuntimeError(
                f"no job was done within {GIVE_UP_AFTER_S} s: {(list(worker.tail) or ['no output'])[-1]}"
            )
        times = list(await queue.times())
        lost, twice = jobs - len(times), sum(times) - len(times)
        if redelivery_s is None:
            figures = {"submitted": (jobs / submitted_s, "/s"), RATE: (progress.rate, "/s")}
            figures |= {"lost without a kill": (lost, "")} if lost else {}
        else:
            figures = {"done at the kill": (progress.done_at_kill, ""), LOST: (lost, ""), TWICE: (twice, "")}
            figures |= {} if lost else {LAST: (max(0.0, progress.last_at - progress.killed_at), "s")}
        self._run.add_at(self.group, name, self._jobs, figures)


@dataclass
class Followed:
    """Of the jobs of one run; times are those of time.perf_counter."""

    begun_at: float
    last_at: float
    done: int = 0
    killed_at: float = 0
    done_at_kill: int = 0

    @property
    def rate(self) -> float:
        """Jobs per second, from the first job's start to the last one's result."""
        return self.done / (self.last_at - self.begun_at)


async def follow(queue: Ours | Theirs, jobs: int, kill: Callable[[], None], redelivery_s: float | None) -> Followed:
    """Return when all jobs are done, and none of them can come back, or when nothing has happened for long."""
    progress = Followed(time.perf_counter(), time.perf_counter())
    while True:
        done, now = await queue.done(), time.perf_counter()
        if not done:
            progress.begun_at = now
        if done > progress.done:
            progress.done, progress.last_at = done, now
        if redelivery_s and not progress.killed_at and done >= jobs / 2:
            kill()
            progress.killed_at, progress.done_at_kill = time.perf_counter(), done
        may_come_back = redelivery_s is not None and now < progress.killed_at + redelivery_s
        if (done >= jobs and not may_come_back) or now - progress.last_at > GIVE_UP_AFTER_S:
            return progress
        await asyncio.sleep(POLL_S)


def verdict(run: PeerRun) -> list[str]:
    """When to leave 03 for another queue, from the figures."""
    lines = []
    for found in tables(run).values():
        killed = {name: figures for name, figures in found.items() if LOST in figures}
        lost = _listed(killed, LOST, "{:,.0f}")
        lines.append(f"- Lost by the kill: {lost}." if lost else "- No queue lost a job by the kill.")
        if twice := _listed(killed, TWICE, "{:,.0f}"):
            lines.append(f"- Done twice after the kill: {twice}.")
        if last := _listed(killed, LAST, "{:.3g} s"):
            lines.append(f"- From the kill to the last job: {last}.")
        lines += [line for ours in (OURS, ONE_BY_ONE) if (line := _of_rate(found, ours))]
    return lines


def _of_rate(found: Mapping[str, Mapping[str, float]], ours: str) -> str:
    rates = {name: figures[RATE] for name, figures in found.items() if RATE in figures}
    rate = rates.get(ours)
    ratios = {name: each / rate for name, each in rates.items() if rate and name not in (OURS, ONE_BY_ONE)}
    if not ratios:
        return ""
    safe = {name: {RATE: ratio} for name, ratio in ratios.items() if ratio > 1 and found[name].get(LOST) == 0}
    if safe:
        return f"- Faster than {ours} ({rate:,.0f} jobs/s) and without a loss: {_listed(safe, RATE, '{:.3g} x')}."
    best = max(ratios, key=lambda name: ratios[name])
    nearest = f"{best}, the fastest, does {ratios[best]:.3g} x its jobs/s"
    return f"- None is faster than {ours} ({rate:,.0f} jobs/s) and without a loss; {nearest}."


def _listed(found: Mapping[str, Mapping[str, float]], measure: str, form: str) -> str:
    """As "RQ 12, arq 3": what is not 0, in descending order."""
    values = {name: figures[measure] for name, figures in found.items() if figures.get(measure)}
    return ", ".join(f"{name} {form.format(values[name])}" for name in sorted(values, key=lambda name: -values[name]))
