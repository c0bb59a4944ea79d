"""A queue of jobs on plain Redis lists that loses nothing: `JobQueue` for those who ask, `Worker` for those who do.

    enqueue          claim                complete
    ───────▶ pending ─────▶ processing ──────────▶ completed
                ▲               │  │ too many failures, or killed its worker too often
                └───────────────┘  └────▶ failed ──replay──▶ pending
           retried, given back, or     cancel, from pending or processing ──▶ cancelled
           its worker has died

`completed`, `failed` and `cancelled` are final: whoever comes second changes nothing. Each arrow is one call of
queue.lua, so a crash falls between arrows and never within one:

| a crash after …      | leaves                                       | and then                                       |
|----------------------|----------------------------------------------|------------------------------------------------|
| the id is drawn      | nothing                                      | the caller has no id and asks again            |
| enqueue              | a pending job                                | it runs, whether or not the caller got its id  |
| claim                | the id in its worker's list                  | the reaper puts it before all others, in order |
| the model's answer   | the same                                     | it runs again, which is harmless               |
| complete, fail       | result, status, no claim                     | nothing is left to do                          |

So a job runs at least once and ends once. Keys (`{queue}` as in `queue:predict`; data, result and status are named by
each pattern's `JobKeys`). Lists have no TTL, everything else has:

| key                           | type   | holds                                                                |
|-------------------------------|--------|----------------------------------------------------------------------|
| `{queue}`                     | list   | waiting ids of normal priority; pushed left, taken right             |
| `{queue}:high`                | list   | waiting ids of high priority                                         |
| `{queue}:suspects`            | list   | waiting ids that were in hand when a worker or the model server died |
| `{queue}:suspect`             | string | the one of these that was last taken: no two are in hand at once     |
| `{queue}:processing:{worker}` | list   | ids that this worker has taken and not finished, the newest first    |
| `{queue}:workers`             | list   | workers that may have such a list                                    |
| `{queue}:dead`                | list   | ids that failed for good, the newest first; the last 10,000          |
| `{queue}:heartbeat:{worker}`  | string | there as long as the worker lives                                    |
| `{queue}:jobs`                | zset   | id by time of creation in µs: for the listing and for ages           |
| `{queue}:once:{key}`          | string | `id digest` of the job that was enqueued under an idempotency key    |
| `{queue}:meta:{id}`           | hash   | priority, attempts, deaths, alone, error: only what is not usual     |
| `{queue}:ended`               | –      | channel on which ids are announced whose jobs have ended             |
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from itertools import chain, count
from pathlib import Path
from typing import Any, NewType

import structlog
from redis.asyncio import Redis

from serving_common.errors import Conflict, InvalidInput, NotFound, Overloaded
from serving_common.redis import Notices, RedisInfo, or_unavailable
from serving_common.redis import QueueUnavailable as QueueUnavailable
from serving_common.redis import RedisSettings as RedisSettings
from serving_common.redis import backoff_s as backoff_s
from serving_common.redis import connect as connect

JobId = NewType("JobId", str)

POISON = "The job was in hand each time when its worker, or the model server, died"
NORMAL_SHARE = 4
"""One place in so many of a claim goes to normal jobs that have waited too long behind high ones."""

log = structlog.get_logger()


class JobNotFound(NotFound):
    """There is no such job, or it has expired."""


class JobStatus(StrEnum):
    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self not in (JobStatus.PENDING, JobStatus.PROCESSING)


class Priority(StrEnum):
    NORMAL = "normal"
    HIGH = "high"


@dataclass(frozen=True, slots=True)
class JobKeys:
    """How a pattern names its keys; `{}` stands for the id."""

    queue: str
    data: str = "job:{}:data"
    result: str = "job:{}:result"
    status: str = "job:{}:status"


@dataclass(frozen=True, slots=True)
class Job:
    """A job in a worker's hand."""

    id: JobId
    data: bytes


@dataclass(frozen=True, slots=True)
class JobState:
    """What is known of a job; `result` once it is completed, `error` once it has failed."""

    id: JobId
    status: JobStatus
    result: bytes | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class JobEntry:
    """A job in the listing; `created` in seconds since 1970."""

    id: JobId
    status: JobStatus
    created: float


@dataclass(frozen=True, slots=True)
class QueueStats:
    """Numbers of jobs by where they are, and how long the oldest waiting one has waited, in seconds."""

    normal: int
    high: int
    processing: int
    dead: int
    workers: int
    oldest_age_s: float


class _Commands:
    """The commands of queue.lua on one queue: arguments in, Redis's reply out."""

    def __init__(self, redis: Redis, keys: JobKeys, ttl_s: int) -> None:
        self._script: Any = redis.register_script(Path(__file__).with_suffix(".lua").read_text())
        self._keys = [keys.queue]
        self._common = [keys.data, keys.result, keys.status, ttl_s]

    async def run(self, command: str, *arguments: str | bytes | float) -> Any:
        """Raises QueueUnavailable."""
        return await or_unavailable(self._script(self._keys, [command, *self._common, *arguments]))


class JobQueue:
    """The side of those who have work: enqueue, look, wait, cancel, and mend what failed.

    Every method raises QueueUnavailable if Redis does not answer.
    """

    def __init__(self, redis: Redis, keys: JobKeys, *, ttl_s: int = 86_400, max_length: int = 10_000) -> None:
        """
        Args:
            redis: a client that does not decode.
            keys: the pattern's names.
            ttl_s: how long a job can be fetched, counted from its creation and again from its end.
            max_length: more jobs than this do not wait: they are refused.
        """
        self._redis: Any = redis  # its annotations mix decoded and undecoded replies
        self._keys = keys
        self._max_length = max_length
        self._ends = Notices(redis, f"{keys.queue}:ended")
        self._is_stopping = False
        self._commands = _Commands(redis, keys, ttl_s)

    async def enqueue(
        self, data: bytes, priority: Priority = Priority.NORMAL, idempotency_key: str | None = None
    ) -> JobId:
        """The job's id, once Redis has stored the job; the same id as before for a key that was used before.

        A connection that breaks during the call may leave a job behind that nobody asks for: callers try again.

        Raises:
            Overloaded: the queue is full.
            InvalidInput: the idempotency key was used for another job.
        """
        once = sha256(idempotency_key.encode()).hexdigest() if idempotency_key is not None else ""
        while True:
            candidate = secrets.token_hex(3)
            outcome, job_id = await self._commands.run("enqueue", candidate, data, priority, self._max_length, once)
            if outcome == b"queued":
                return JobId(job_id.decode())
            if outcome == b"full":
                raise Overloaded(f"The queue is full: {self._max_length} jobs are waiting")
            if outcome == b"conflict":
                reason = "was used before for a different request"
                raise InvalidInput("Invalid input", [{"field": "Idempotency-Key", "reason": reason}])

    async def get(self, job_id: JobId) -> JobState:
        """Raises JobNotFound."""
        keys = [self._keys.status.replace("{}", job_id), self._keys.result.replace("{}", job_id)]
        status, result = await or_unavailable(self._redis.mget(keys))
        if status is None:
            # Jobs and results that were put there with plain Redis commands, as the specifications show, have none.
            if result is None and not await or_unavailable(self._redis.exists(self._keys.data.replace("{}", job_id))):
                raise JobNotFound("Job not found")
            status = b"pending" if result is None else b"completed"
        error = None
        if status == b"failed":
            found = await or_unavailable(self._redis.hget(f"{self._keys.queue}:meta:{job_id}", "error"))
            error = found.decode() if found else None
        return JobState(job_id, JobStatus(status.decode()), result, error)

    async def wait(self, job_id: JobId, seconds: float) -> JobState:
        """The job's state as soon as it has ended, or after so many seconds. Raises JobNotFound."""
        deadline = time.monotonic() + seconds
        with self._ends.of(job_id) as ended:
            while True:
                if seconds > 0:
                    await self._ends.listen()
                ended.clear()
                state = await self.get(job_id)
                left = deadline - time.monotonic()
                if state.status.is_final or left <= 0 or self._is_stopping:
                    return state
                # Notices are lost while Redis is away, so there is a look every second in any case.
                with suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), min(left, 1))

    def stop_waiting(self) -> None:
        """Whoever waits is answered now, with the state as it is: a service that stops does not hold them up."""
        self._is_stopping = True
        self._ends.wake()

    async def close(self) -> None:
        """Stop listening for the ends of jobs; to be called before the client is closed."""
        await self._ends.close()

    async def cancel(self, job_id: JobId) -> None:
        """A job that is being processed is not interrupted, but its result is thrown away.

        Raises:
            JobNotFound: there is no such job.
            Conflict: it has ended.
        """
        was = await self._commands.run("cancel", job_id)
        if was is None:
            raise JobNotFound("Job not found")
        if JobStatus(was.decode()).is_final:
            raise Conflict(f"The job is already {was.decode()}")

    async def page(
        self, limit: int, cursor: int | None = None, status: JobStatus | None = None
    ) -> tuple[list[JobEntry], int | None]:
        """Up to `limit` jobs, the newest first, and the cursor of the next page, if there may be one.

        With a status to filter for, a page may be short, or empty, though there are more.
        """
        scan = limit if status is None else max(limit, 10_000)
        below = "+inf" if cursor is None else f"({cursor}"
        found = await or_unavailable(
            self._redis.zrevrangebyscore(f"{self._keys.queue}:jobs", below, "-inf", 0, scan, withscores=True)
        )
        if not found:
            return [], None
        statuses = await or_unavailable(
            self._redis.mget([self._keys.status.replace("{}", job_id.decode()) for job_id, _ in found])
        )
        entries: list[JobEntry] = []
        last = None
        for (job_id, created), value in zip(found, statuses, strict=True):
            if len(entries) == limit:
                return entries, last
            last = int(created)
            if value is not None and (status is None or value.decode() == status):
                entries.append(JobEntry(JobId(job_id.decode()), JobStatus(value.decode()), created / 1e6))
        return entries, last if len(found) == scan else None

    async def stats(self) -> QueueStats:
        """Where the jobs are."""
        normal, high, processing, dead, workers, oldest_us = await self._commands.run("stats")
        return QueueStats(normal, high, processing, dead, workers, oldest_us / 1e6)

    async def redis_info(self) -> RedisInfo:
        """How Redis is."""
        return await RedisInfo.ask(self._redis)

    async def dead(self) -> list[JobId]:
        """The jobs that failed for good, the newest first. Those that have expired leave the list."""
        found = await or_unavailable(self._redis.lrange(f"{self._keys.queue}:dead", 0, -1))
        ids = [JobId(job_id.decode()) for job_id in found]
        keys = [self._keys.status.replace("{}", job_id) for job_id in ids]
        statuses = await or_unavailable(self._redis.mget(keys)) if keys else []
        expired = {job_id for job_id, status in zip(ids, statuses, strict=True) if status is None}
        for job_id in expired:
            await self.purge(job_id)
        return [job_id for job_id in ids if job_id not in expired]

    async def data(self, job_id: JobId) -> bytes | None:
        """What was enqueued, if it has not expired."""
        data: bytes | None = await or_unavailable(self._redis.get(self._keys.data.replace("{}", job_id)))
        return data

    async def replay(self, job_id: JobId) -> bool:
        """Queue a failed job again, with all its tries. False: it has not failed, or its data has expired."""
        return bool(await self._commands.run("replay", job_id))

    async def purge(self, job_id: JobId) -> bool:
        """Forget a failed job. False: it is not in the list."""
        return bool(await self._commands.run("purge", job_id))


class Worker:
    """The side of those who do the work. One per process; any number of its tasks may claim.

    `keep_alive()` must run beside them, and `leave()` comes last. Every method raises QueueUnavailable.
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
        self._commands = _Commands(redis, keys, ttl_s)
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
        return any(await or_unavailable(asyncio.gather(*done)))

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

    async def give_back(self, jobs: Sequence[Job]) -> None:
        """Back to the front, in order: nothing was wrong with these jobs."""
        await self._give_back(jobs, "")

    async def retry(self, jobs: Sequence[Job], error: str) -> set[JobId]:
        """An inference failed. A job alone has used up a try and goes to the back, so that it holds up nobody.

        Of several it is not known whose fault it was: they go to the front, each to be run alone.

        Returns: the job whose last try it was, which has failed, or nothing.
        """
        if len(jobs) == 1:
            return await self._give_back(jobs, "attempts", self._max_attempts, error, to_the_back=True)
        return await self._give_back(jobs, "attempts")

    async def suspect(self, jobs: Sequence[Job]) -> set[JobId]:
        """The model server died of these jobs, or near them, as if this worker had: they go first, one at a time.

        Returns: those that have failed, since it was once too often.
        """
        return await self._give_back(jobs, "deaths", self._max_deaths, POISON)

    async def _give_back(
        self, jobs: Sequence[Job], field: str, limit: int = 0, error: str = "", *, to_the_back: bool = False
    ) -> set[JobId]:
        ids = [job.id for job in jobs]
        failed = await self._commands.run("give_back", self.id, field, limit, error, str(int(to_the_back)), *ids)
        self._held.difference_update(ids)
        return {JobId(job_id.decode()) for job_id in failed}

    async def keep_alive(self) -> None:
        """Beat, and bring back the jobs of workers that do not, until cancelled."""
        silent: set[str] = set()
        unheld: set[JobId] = set()
        failures = 0
        while True:
            try:
                await self._commands.run("beat", self.id, self._heartbeat_s)
                self._last_beat = time.monotonic()
                silent = await self._reap(silent)
                unheld = await self._recover(unheld)
                failures = 0
                await asyncio.sleep(self._heartbeat_s / 3)
            except QueueUnavailable:
                # When Redis comes back without any heartbeat, nobody is dead yet: give them one more round.
                silent = set()
                await asyncio.sleep(backoff_s(failures, cap_s=self._heartbeat_s / 6))
                failures += 1

    async def _reap(self, suspected: set[str]) -> set[str]:
        """The workers without a heartbeat; those that were suspected already are buried."""
        names = await or_unavailable(self._redis.lrange(f"{self._queue}:workers", 0, -1))
        workers = [name.decode() for name in names]
        beats = await or_unavailable(self._redis.mget([f"{self._queue}:heartbeat:{name}" for name in workers]))
        silent = {name for name, beat in zip(workers, beats, strict=True) if beat is None}
        for name in silent & suspected:
            if returned := await self._commands.run("leave", name, self._max_deaths, POISON):
                log.warning("jobs_returned", worker=name, jobs=returned)
        return silent

    async def _recover(self, suspected: set[JobId]) -> set[JobId]:
        """The claims that Redis holds for this worker and no task has in hand; those suspected already are given back.

        Such a claim is left when the connection broke between the script and its reply.
        """
        held = await or_unavailable(self._redis.lrange(f"{self._queue}:processing:{self.id}", 0, -1))
        unheld = {JobId(job_id.decode()) for job_id in held} - self._held
        if lost := [Job(job_id, b"") for job_id in unheld & suspected]:
            log.warning("claims_recovered", jobs=len(lost))
            await self.give_back(lost)
        return unheld

    async def leave(self) -> None:
        """Give back everything that is still claimed, and say goodbye. Nothing may be claiming any more."""
        for peek in self._peeks.values():
            peek.cancel()
        await asyncio.gather(*self._peeks.values(), return_exceptions=True)
        await self._commands.run("leave", self.id, 0, "")
        self._last_beat = -float("inf")
