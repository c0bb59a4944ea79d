"""The workers' side of the queue: claim, complete, retry, and the heartbeat that keeps claims alive."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections.abc import Iterable, Sequence
from itertools import chain, count
from typing import Any

import structlog
from redis.asyncio import Redis

from serving_common.queue.commands import Commands
from serving_common.queue.types import POISON, Job, JobId, JobKeys, JobStatus
from serving_common.redis import QueueUnavailable, translate_redis_errors
from serving_common.tasks import backoff_s

NORMAL_SHARE = 4
"""One place in so many of a claim goes to normal jobs that have waited too long behind high ones."""


log = structlog.get_logger()


class Worker:
    """The side of those who do the work. One per process; any number of its tasks may claim.

    `heartbeat_loop()` must run beside them, and `deregister()` comes last. Every method raises QueueUnavailable.
    """

    def __init__(
        self,
        redis: Redis,
        keys: JobKeys,
        *,
        ttl_s: int = 86_400,
        heartbeat_s: int = 10,
        max_retries: int = 3,
        max_deaths: int = 3,
        overdue_s: float = 10,
        delete_data: bool = False,
    ) -> None:
        """
        Args:
            redis: a client that does not decode.
            keys: the pattern's names.
            ttl_s: how long a job can be fetched after its end.
            heartbeat_s: a worker that has been silent for so long is dead.
            max_retries: an inference that failed is tried again so often.
            max_deaths: a job that was in hand so often when its worker died is poison.
            overdue_s: a normal job that has waited so long gets some of the places before high ones.
            delete_data: whether the data goes when the job ends.
        """
        self.id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._redis: Any = redis  # its annotations mix decoded and undecoded replies
        self._queue = keys.queue
        self._commands = Commands(redis, keys, ttl_s)
        self._heartbeat_s = heartbeat_s
        self._max_attempts = max_retries + 1
        self._max_deaths = max_deaths
        self._overdue_s = overdue_s
        self._delete_data = str(int(delete_data))
        self._claims = count()
        self._held: set[JobId] = set()
        self._peeks: dict[str, asyncio.Future[Any]] = {}
        self._last_beat = -float("inf")

    @property
    def is_alive(self) -> bool:
        """Whether Redis still holds this worker's heartbeat."""
        return time.monotonic() - self._last_beat < self._heartbeat_s

    async def claim(self, limit: int, wait_s: float = 1) -> list[Job]:
        """The next jobs, at most `limit`: what is there at once, else what comes first within `wait_s`, else none."""
        return await self._take(limit) or (await self._job_comes(wait_s) and await self._take(limit)) or []

    async def _take(self, limit: int) -> list[Job]:
        reserved = limit // NORMAL_SHARE or int(next(self._claims) % NORMAL_SHARE == 0)
        taken = await self._commands.run("claim", self.id, self._heartbeat_s, limit, reserved, self._overdue_s)
        jobs = [Job(JobId(job_id.decode()), data) for job_id, data in zip(taken[::2], taken[1::2], strict=True)]
        self._held.update(job.id for job in jobs)
        return jobs

    async def _job_comes(self, seconds: float) -> bool:
        # BLMOVE from a list's end to the same end takes nothing, it only waits until there is something: on both lists
        # at once, for all tasks together, and it can be broken off.
        for name in (self._queue, f"{self._queue}:high"):
            if name not in self._peeks or self._peeks[name].done():
                self._peeks[name] = asyncio.ensure_future(self._redis.blmove(name, name, seconds, "RIGHT", "RIGHT"))
        done, _ = await asyncio.wait(self._peeks.values(), return_when=asyncio.FIRST_COMPLETED)
        return any(await translate_redis_errors(asyncio.gather(*done)))

    async def complete(self, results: Sequence[tuple[JobId, bytes]]) -> set[JobId]:
        """Store results and drop the claims, in this order and in one step. Which jobs this has ended."""
        return await self._finish(JobStatus.COMPLETED, results)

    async def fail(self, job_id: JobId, error: str) -> None:
        """End a job that no retry can help."""
        await self._finish(JobStatus.FAILED, [(job_id, error.encode())])

    async def _finish(self, outcome: JobStatus, bodies: Sequence[tuple[JobId, bytes]]) -> set[JobId]:
        pairs: Iterable[str | bytes] = chain.from_iterable(bodies)
        ended = await self._commands.run("finish", self.id, outcome, self._delete_data, *pairs)
        self._held.difference_update(job_id for job_id, _ in bodies)
        return {JobId(job_id.decode()) for job_id in ended}

    async def requeue(self, jobs: Sequence[Job]) -> None:
        """Back to the front, in order: nothing was wrong with these jobs."""
        await self._requeue(jobs, "")

    async def retry(self, jobs: Sequence[Job], error: str) -> set[JobId]:
        """An inference failed. A job alone has used up a try and goes to the back, so that it holds up nobody.

        Of several it is not known whose fault it was: they go to the front, each to be run alone.

        Returns: the job whose last try it was, which has failed, or nothing.
        """
        if len(jobs) == 1:
            return await self._requeue(jobs, "attempts", self._max_attempts, error, to_the_back=True)
        return await self._requeue(jobs, "attempts")

    async def quarantine(self, jobs: Sequence[Job]) -> set[JobId]:
        """The model server died of these jobs, or near them, as if this worker had: they go first, one at a time.

        Returns: those that have failed, since it was once too often.
        """
        return await self._requeue(jobs, "deaths", self._max_deaths, POISON)

    async def _requeue(
        self, jobs: Sequence[Job], field: str, limit: int = 0, error: str = "", *, to_the_back: bool = False
    ) -> set[JobId]:
        ids = [job.id for job in jobs]
        failed = await self._commands.run("requeue", self.id, field, limit, error, str(int(to_the_back)), *ids)
        self._held.difference_update(ids)
        return {JobId(job_id.decode()) for job_id in failed}

    async def heartbeat_loop(self) -> None:
        """Beat, and bring back the jobs of workers that do not, until cancelled."""
        missing_heartbeats: set[str] = set()
        orphaned_claims: set[JobId] = set()
        failures = 0
        while True:
            try:
                await self._commands.run("beat", self.id, self._heartbeat_s)
                self._last_beat = time.monotonic()
                missing_heartbeats = await self._reap(missing_heartbeats)
                orphaned_claims = await self._requeue_orphans(orphaned_claims)
                failures = 0
                await asyncio.sleep(self._heartbeat_s / 3)
            except QueueUnavailable:
                # When Redis comes back without any heartbeat, nobody is dead yet: give them one more round.
                missing_heartbeats = set()
                await asyncio.sleep(backoff_s(failures, cap_s=self._heartbeat_s / 6))
                failures += 1

    async def _reap(self, suspected: set[str]) -> set[str]:
        """The workers without a heartbeat; those that were suspected already are buried."""
        names = await translate_redis_errors(self._redis.lrange(f"{self._queue}:workers", 0, -1))
        workers = [name.decode() for name in names]
        beats = await translate_redis_errors(self._redis.mget([f"{self._queue}:heartbeat:{name}" for name in workers]))
        missing_heartbeats = {name for name, beat in zip(workers, beats, strict=True) if beat is None}
        for name in missing_heartbeats & suspected:
            if returned := await self._commands.run("deregister", name, self._max_deaths, POISON):
                log.warning("jobs_returned", worker=name, jobs=returned)
        return missing_heartbeats

    async def _requeue_orphans(self, suspected: set[JobId]) -> set[JobId]:
        """The claims that Redis holds for this worker and no task has in hand; those suspected already are given back.

        Such a claim is left when the connection broke between the script and its reply.
        """
        held = await translate_redis_errors(self._redis.lrange(f"{self._queue}:processing:{self.id}", 0, -1))
        orphaned_claims = {JobId(job_id.decode()) for job_id in held} - self._held
        if lost := [Job(job_id, b"") for job_id in orphaned_claims & suspected]:
            log.warning("claims_recovered", jobs=len(lost))
            await self.requeue(lost)
        return orphaned_claims

    async def deregister(self) -> None:
        """Give back everything that is still claimed, and say goodbye. Nothing may be claiming any more."""
        for peek in self._peeks.values():
            peek.cancel()
        await asyncio.gather(*self._peeks.values(), return_exceptions=True)
        await self._commands.run("deregister", self.id, 0, "")
        self._last_beat = -float("inf")
