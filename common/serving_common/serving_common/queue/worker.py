"""The workers' side of the queue: claim, complete, retry, requeue, and the heartbeat that keeps claims valid."""

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

from serving_common.queue import spans
from serving_common.queue.commands import Commands
from serving_common.queue.types import POISON, Job, JobId, JobKeys, JobStatus
from serving_common.redis import QueueUnavailable, translate_redis_errors
from serving_common.tasks import backoff_s

NORMAL_SHARE = 4
"""One in this many places of a claim goes to overdue normal jobs before high ones."""

log = structlog.get_logger()


class Worker:
    """One per process; any number of its tasks may claim. `heartbeat_loop()` runs beside them, `deregister()` is last.

    Every method raises QueueUnavailable if Redis does not answer.
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
            keys: the pattern's key names.
            ttl_s: seconds a job can be fetched after its end.
            heartbeat_s: seconds without a heartbeat after which a worker counts as dead.
            max_retries: retries of a failed inference.
            max_deaths: a job fails when it was in flight at this many deaths of its worker or the model server.
            overdue_s: seconds after which a waiting normal job gets some of the places before high ones.
            delete_data: whether the data is deleted when the job completes.
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
        self._claim_numbers = count()
        self._in_flight: dict[JobId, Job] = {}
        self._peeks: dict[str, asyncio.Future[Any]] = {}
        self._last_heartbeat = -float("inf")

    @property
    def queue(self) -> str:
        """The name of the list that jobs come from."""
        return self._queue

    @property
    def is_alive(self) -> bool:
        """Whether Redis still holds this worker's heartbeat."""
        return time.monotonic() - self._last_heartbeat < self._heartbeat_s

    def holds(self, job: Job) -> bool:
        """Whether this claim has not been ended or requeued yet; a later claim of the same job does not count."""
        return self._in_flight.get(job.id) is job

    async def claim(self, limit: int, wait_s: float = 1) -> list[Job]:
        """Up to `limit` jobs: those waiting now, else those that come first within `wait_s`, else none."""
        return await self._take(limit) or (await self._wait_for_job(wait_s) and await self._take(limit)) or []

    async def _take(self, limit: int) -> list[Job]:
        reserved = limit // NORMAL_SHARE or int(next(self._claim_numbers) % NORMAL_SHARE == 0)
        arguments = (self.id, self._heartbeat_s, limit, reserved, self._overdue_s)
        taken: list[Any] = []
        what = 1
        while what == 1 and not taken:  # each call removes a limited number of expired jobs
            what, taken = await self._commands.run("claim", *arguments)
        jobs = [
            spans.claimed_job(self._queue, job_id.decode(), data, context, waited_us, is_suspect=what == 2)
            for job_id, data, context, waited_us in zip(*(taken[part::4] for part in range(4)), strict=True)
        ]
        self._in_flight.update((job.id, job) for job in jobs)
        return jobs

    async def _wait_for_job(self, seconds: float) -> bool:
        # BLMOVE from a list's end to the same end moves nothing; it only blocks until there is a job. One such peek
        # per list serves all tasks, and can be cancelled without losing a job.
        for name in (self._queue, f"{self._queue}:high"):
            if name not in self._peeks or self._peeks[name].done():
                self._peeks[name] = asyncio.ensure_future(self._redis.blmove(name, name, seconds, "RIGHT", "RIGHT"))
        done, _ = await asyncio.wait(self._peeks.values(), return_when=asyncio.FIRST_COMPLETED)
        return any(await translate_redis_errors(asyncio.gather(*done)))

    async def complete(self, results: Sequence[tuple[JobId, bytes]]) -> set[JobId]:
        """Store results and drop the claims, in this order and in one step. Returns the jobs that this has ended."""
        return await self._finish(JobStatus.COMPLETED, results)

    async def fail(self, job_id: JobId, error: str) -> None:
        """End a job that no retry can help; it becomes a dead letter."""
        await self._finish(JobStatus.FAILED, [(job_id, error.encode())])

    async def _finish(self, outcome: JobStatus, bodies: Sequence[tuple[JobId, bytes]]) -> set[JobId]:
        pairs: Iterable[str | bytes] = chain.from_iterable(bodies)
        with spans.settling(self._queue):
            ended = await self._commands.run("finish", self.id, outcome, self._delete_data, *pairs)
        self._release((job_id for job_id, _ in bodies), bodies[0][1].decode() if outcome is JobStatus.FAILED else "")
        return {JobId(job_id.decode()) for job_id in ended}

    async def requeue(self, jobs: Sequence[Job]) -> None:
        """Return jobs that have not failed to the front of the queue, in order."""
        await self._requeue(jobs, "")

    async def retry(self, jobs: Sequence[Job], error: str) -> set[JobId]:
        """Requeue jobs whose inference failed.

        A single job has used up a try and goes to the back, so that it holds up no other. Of several, any
        may have caused the failure: they go to the front, each to be run alone.

        Returns: the job, if that was its last try and it has failed; otherwise nothing.
        """
        if len(jobs) == 1:
            return await self._requeue(jobs, "attempts", self._max_attempts, error, to_the_back=True)
        return await self._requeue(jobs, "attempts")

    async def quarantine(self, jobs: Sequence[Job]) -> set[JobId]:
        """Requeue jobs that were in flight when the model server died: they run before all others, one at a time.

        Returns: the jobs that have failed because this was one death too many.
        """
        return await self._requeue(jobs, "deaths", self._max_deaths, POISON)

    async def _requeue(
        self, jobs: Sequence[Job], field: str, limit: int = 0, error: str = "", *, to_the_back: bool = False
    ) -> set[JobId]:
        ids = [job.id for job in jobs]
        failed = await self._commands.run("requeue", self.id, field, limit, error, str(int(to_the_back)), *ids)
        self._release(ids, error or "requeued")
        return {JobId(job_id.decode()) for job_id in failed}

    def _release(self, ids: Iterable[JobId], error: str = "") -> None:
        for job_id in ids:
            if job := self._in_flight.pop(job_id, None):
                if error:
                    job.span.fail(error)
                job.span.end()

    async def heartbeat_loop(self) -> None:
        """Send heartbeats and requeue the jobs of workers that send none, until cancelled."""
        missing_heartbeats: set[str] = set()
        orphaned_claims: set[JobId] = set()
        failures = 0
        while True:
            try:
                await self._commands.run("heartbeat", self.id, self._heartbeat_s)
                self._last_heartbeat = time.monotonic()
                missing_heartbeats = await self._reap(missing_heartbeats)
                orphaned_claims = await self._requeue_orphans(orphaned_claims)
                failures = 0
                await asyncio.sleep(self._heartbeat_s / 3)
            except QueueUnavailable:
                # When Redis comes back, all heartbeats may have expired: give every worker another round.
                missing_heartbeats = set()
                await asyncio.sleep(backoff_s(failures, cap_s=self._heartbeat_s / 6))
                failures += 1

    async def _reap(self, missing_before: set[str]) -> set[str]:
        """The workers without a heartbeat; deregisters those that had none last time either."""
        names = await translate_redis_errors(self._redis.lrange(f"{self._queue}:workers", 0, -1))
        workers = [name.decode() for name in names]
        beats = await translate_redis_errors(self._redis.mget([f"{self._queue}:heartbeat:{name}" for name in workers]))
        missing_heartbeats = {name for name, beat in zip(workers, beats, strict=True) if beat is None}
        for name in missing_heartbeats & missing_before:
            if requeued := await self._commands.run("deregister", name, self._max_deaths, POISON):
                log.warning("jobs_requeued", worker=name, jobs=requeued)
        return missing_heartbeats

    async def _requeue_orphans(self, orphaned_before: set[JobId]) -> set[JobId]:
        """The claims that Redis has for this worker but no task knows of; requeues those found last time as well.

        The connection broke between the script and its reply.
        """
        claimed = await translate_redis_errors(self._redis.lrange(f"{self._queue}:processing:{self.id}", 0, -1))
        orphaned_claims = {JobId(job_id.decode()) for job_id in claimed} - self._in_flight.keys()
        if orphans := [Job(job_id, b"") for job_id in orphaned_claims & orphaned_before]:
            log.warning("orphaned_claims_requeued", jobs=len(orphans))
            await self.requeue(orphans)
        return orphaned_claims

    async def deregister(self) -> None:
        """Requeue everything that is still claimed and delete the heartbeat. No task may claim any more."""
        for peek in self._peeks.values():
            peek.cancel()
        await asyncio.gather(*self._peeks.values(), return_exceptions=True)
        await self._commands.run("deregister", self.id, 0, "")
        self._release(list(self._in_flight), "requeued")
        self._last_heartbeat = -float("inf")
