"""The callers' side of the queue: enqueue, get, wait, cancel, list, and handle dead letters."""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import suppress
from hashlib import sha256
from typing import Any

from redis.asyncio import Redis

from serving_common.errors import Conflict, InvalidInput, Overloaded
from serving_common.queue import spans
from serving_common.queue.commands import Commands
from serving_common.queue.listener import PubSubListener
from serving_common.queue.types import JobId, JobKeys, JobNotFound, JobState, JobStatus, ListedJob, Priority, QueueStats
from serving_common.redis import QueueUnavailable, RedisInfo, missing_guarantees, translate_redis_errors


class JobQueue:
    """Every method that talks to Redis raises QueueUnavailable if Redis does not answer."""

    def __init__(self, redis: Redis, keys: JobKeys, *, ttl_s: int = 86_400, max_length: int = 10_000) -> None:
        """
        Args:
            redis: a client that does not decode.
            keys: the pattern's key names.
            ttl_s: seconds a job can be fetched, counted from its creation and again from its end.
            max_length: limit of waiting jobs (backpressure); `enqueue` rejects more.
        """
        self._redis: Any = redis  # its annotations mix decoded and undecoded replies
        self._keys = keys
        self._max_length = max_length
        self._ended_jobs = PubSubListener(redis, f"{keys.queue}:ended")
        self._is_stopping = False
        self._commands = Commands(redis, keys, ttl_s)

    async def enqueue(
        self, data: bytes, priority: Priority = Priority.NORMAL, idempotency_key: str | None = None
    ) -> JobId:
        """The job's id, once Redis has stored the job; a known idempotency key returns the id of its first job.

        If the connection breaks during the call, the job may exist although the caller has no id: retry.

        Raises:
            Overloaded: the queue is full.
            InvalidInput: the idempotency key belongs to a different request.
        """
        hashed_key = sha256(idempotency_key.encode()).hexdigest() if idempotency_key is not None else ""
        with spans.sending(self._keys.queue) as span:
            while True:
                candidate = secrets.token_hex(3)
                outcome, job_id = await self._commands.run(
                    "enqueue", candidate, data, priority, self._max_length, hashed_key, spans.context()
                )
                if outcome == b"queued":
                    span.set({"messaging.message.id": job_id.decode()})
                    return JobId(job_id.decode())
                if outcome == b"full":
                    raise Overloaded(f"The queue is full: {self._max_length} jobs are waiting")
                if outcome == b"conflict":
                    reason = "was used before for a different request"
                    raise InvalidInput("Invalid input", [{"field": "Idempotency-Key", "reason": reason}])

    async def get(self, job_id: JobId) -> JobState:
        """Raises JobNotFound."""
        keys = [self._keys.status.replace("{}", job_id), self._keys.result.replace("{}", job_id)]
        status, result = await translate_redis_errors(self._redis.mget(keys))
        if status is None:
            # Jobs and results stored with plain Redis commands, as the specifications show, have no status.
            if result is None and not await translate_redis_errors(
                self._redis.exists(self._keys.data.replace("{}", job_id))
            ):
                raise JobNotFound("Job not found")
            status = b"pending" if result is None else b"completed"
        error = None
        if status == b"failed":
            found = await translate_redis_errors(self._redis.hget(f"{self._keys.queue}:meta:{job_id}", "error"))
            error = found.decode() if found else None
        return JobState(job_id, JobStatus(status.decode()), result, error)

    async def wait(self, job_id: JobId, seconds: float) -> JobState:
        """The job's state once it has ended, or after `seconds`. Raises JobNotFound."""
        deadline = time.monotonic() + seconds
        with self._ended_jobs.subscribe(job_id) as ended:
            while True:
                if seconds > 0:
                    await self._ended_jobs.ensure_listening()
                ended.clear()
                state = await self.get(job_id)
                remaining_s = deadline - time.monotonic()
                if state.status.is_final or remaining_s <= 0 or self._is_stopping:
                    return state
                # Messages are lost while Redis is unavailable, so get the state every second in any case.
                with suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), min(remaining_s, 1))

    def stop_waiting(self) -> None:
        """Make every `wait` return the current state at once, so that waiting callers do not delay a shutdown."""
        self._is_stopping = True
        self._ended_jobs.notify_all()

    async def close(self) -> None:
        """Stop listening for ended jobs; to be called before the client is closed."""
        await self._ended_jobs.close()

    async def cancel(self, job_id: JobId) -> None:
        """Cancel a job. One that is being processed is not interrupted, but its result is discarded.

        Raises:
            JobNotFound: the job does not exist.
            Conflict: the job has ended.
        """
        status = await self._commands.run("cancel", job_id)
        if status is None:
            raise JobNotFound("Job not found")
        if JobStatus(status.decode()).is_final:
            raise Conflict(f"The job is already {status.decode()}")

    async def page(
        self, limit: int, cursor: int | None = None, status: JobStatus | None = None
    ) -> tuple[list[ListedJob], int | None]:
        """Up to `limit` jobs, newest first, and the cursor of the next page, or None on the last page.

        Filtered by status, a page may be short or empty although more follow.
        """
        scan = limit if status is None else max(limit, 10_000)
        below = "+inf" if cursor is None else f"({cursor}"
        found = await translate_redis_errors(
            self._redis.zrevrangebyscore(f"{self._keys.queue}:jobs", below, "-inf", 0, scan, withscores=True)
        )
        if not found:
            return [], None
        statuses = await translate_redis_errors(
            self._redis.mget([self._keys.status.replace("{}", job_id.decode()) for job_id, _ in found])
        )
        entries: list[ListedJob] = []
        last = None
        for (job_id, created), value in zip(found, statuses, strict=True):
            if len(entries) == limit:
                return entries, last
            last = int(created)
            if value is not None and (status is None or value.decode() == status):
                entries.append(ListedJob(JobId(job_id.decode()), JobStatus(value.decode()), created / 1e6))
        return entries, last if len(found) == scan else None

    async def stats(self) -> QueueStats:
        """Jobs by where they are, and the age of the oldest waiting job."""
        normal, high, processing, dead_letters, workers, oldest_us = await self._commands.run("stats")
        return QueueStats(normal, high, processing, dead_letters, workers, oldest_us / 1e6)

    async def why_unavailable(self, within_s: float) -> str | None:
        """Why Redis cannot accept jobs now, or None. A Redis that takes longer does not answer."""
        try:
            async with asyncio.timeout(within_s):
                await self.stats()  # it writes, which a replica refuses
        except TimeoutError:
            return f"Redis does not answer within {within_s:g} s"
        except QueueUnavailable as exc:
            return f"Redis: {exc.__cause__}"
        return None

    async def redis_info(self) -> RedisInfo | None:
        """Memory and keys of Redis, or None if its user may not ask for them."""
        return await RedisInfo.read(self._redis)

    async def missing_guarantees(self) -> list[str]:
        """What the promise that no accepted job is lost lacks, one sentence each."""
        return await missing_guarantees(self._redis)

    async def dead_letters(self) -> list[JobId]:
        """The jobs that failed for good, newest first. Removes expired ones from the list."""
        found = await translate_redis_errors(self._redis.lrange(f"{self._keys.queue}:dead", 0, -1))
        ids = [JobId(job_id.decode()) for job_id in found]
        keys = [self._keys.status.replace("{}", job_id) for job_id in ids]
        statuses = await translate_redis_errors(self._redis.mget(keys)) if keys else []
        expired = {job_id for job_id, status in zip(ids, statuses, strict=True) if status is None}
        for job_id in expired:
            await self.discard(job_id)
        return [job_id for job_id in ids if job_id not in expired]

    async def data(self, job_id: JobId) -> bytes | None:
        """The enqueued data, or None once it has expired."""
        data: bytes | None = await translate_redis_errors(self._redis.get(self._keys.data.replace("{}", job_id)))
        return data

    async def redrive(self, job_id: JobId) -> bool:
        """Requeue a dead letter with all its retries. False: it has not failed, or its data has expired."""
        return bool(await self._commands.run("redrive", job_id))

    async def discard(self, job_id: JobId) -> bool:
        """Delete a dead letter. False: it is not in the list."""
        return bool(await self._commands.run("discard", job_id))
