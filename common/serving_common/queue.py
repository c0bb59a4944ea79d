"""A queue of jobs on plain Redis lists that loses nothing: `JobQueue` for those who ask, `Worker` for those who do.

    enqueue          claim                complete
    ───────▶ pending ─────▶ processing ──────────▶ completed
                ▲               │  │ too many failures, or killed its worker too often
                └───────────────┘  └────▶ failed ──replay──▶ pending
           retried, given back, or     cancel, from pending or processing ──▶ cancelled
           its worker has died

`completed`, `failed` and `cancelled` are final: whoever comes second changes nothing. Each arrow is one Lua script, so
a crash falls between arrows and never within one:

| a crash after …      | leaves                                       | and then                                       |
|----------------------|----------------------------------------------|------------------------------------------------|
| the id is drawn      | nothing                                      | the caller has no id and asks again            |
| enqueue              | a pending job                                | it runs, whether or not the caller got its id  |
| claim                | the id in its worker's list                  | the reaper puts it back at the front, in order |
| the model's answer   | the same                                     | it runs again, which is harmless               |
| complete, fail       | result, status, no claim                     | nothing is left to do                          |

So a job runs at least once and ends once. Keys (`{queue}` as in `queue:predict`; data, result and status are named by
each pattern's `JobKeys`). Lists have no TTL, everything else has:

| key                           | type   | holds                                                                |
|-------------------------------|--------|----------------------------------------------------------------------|
| `{queue}`                     | list   | waiting ids of normal priority; pushed left, taken right             |
| `{queue}:high`                | list   | waiting ids of high priority                                         |
| `{queue}:processing:{worker}` | list   | ids that this worker has taken and not finished, the newest first    |
| `{queue}:workers`             | list   | workers that may have such a list                                    |
| `{queue}:dead`                | list   | ids that failed for good, the newest first; the last 10,000          |
| `{queue}:heartbeat:{worker}`  | string | there as long as the worker lives                                    |
| `{queue}:jobs`                | zset   | id by time of creation in µs: for the listing and for ages           |
| `{queue}:once:{key}`          | string | `id digest` of the job that was enqueued under an idempotency key    |
| `{queue}:meta:{id}`           | hash   | priority, attempts, deaths, alone, error: only what is not usual     |
| `{queue}:ended:{id}`          | –      | channel on which the end of a job is announced                       |
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import socket
import time
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from itertools import chain, count
from typing import Any, NewType, TypeVar

import structlog
from pydantic import Field, SecretStr
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import RedisError

from serving_common.errors import Conflict, InvalidInput, NotFound, Overloaded, Unavailable
from serving_common.settings import Settings

T = TypeVar("T")
JobId = NewType("JobId", str)

POISON = "The job was in hand each time when its worker, or the model server, died"
NORMAL_SHARE = 4
"""One place in so many of a claim goes to normal jobs that have waited too long behind high ones."""

log = structlog.get_logger()


class QueueUnavailable(Unavailable):
    """Redis does not answer, or cannot do what it was asked, for instance for want of memory."""


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


@dataclass(frozen=True, slots=True)
class RedisInfo:
    """How Redis itself is; `expired` counts keys since its start."""

    memory_bytes: int
    keys: int
    expired: int


class RedisSettings(Settings):
    """Where the queue's Redis is."""

    redis_host: str = Field("redis", description="Host of the queue's Redis.")
    redis_port: int = Field(6379, ge=1, le=65535, description="Its port.")
    redis_password: SecretStr | None = Field(None, description="Its password, if it wants one.")


def connect(settings: RedisSettings) -> Redis:
    """A client for the queue. Short outages are bridged with exponential backoff and jitter, longer ones reported."""
    password = settings.redis_password
    return Redis(
        host=settings.redis_host,
        port=settings.redis_port,
        password=password.get_secret_value() if password else None,
        socket_connect_timeout=1,
        socket_timeout=5,  # longer than any blocking command waits
        retry=Retry(ExponentialWithJitterBackoff(cap=0.2, base=0.02), retries=2),
    )


def backoff_s(attempt: int, *, base_s: float = 0.05, cap_s: float = 2.0) -> float:
    """How long to wait before try number `attempt` (from 0): exponential, and random so that not all come at once."""
    return random.uniform(0.5, 1) * min(cap_s, base_s * 2.0 ** min(attempt, 16))  # noqa: S311 - no secret


async def _or_unavailable(call: Awaitable[T]) -> T:
    try:
        return await call
    except RedisError as exc:
        log.warning("redis_failed", error=str(exc))
        raise QueueUnavailable("Service temporarily unavailable") from exc


# Every script begins with this. Keys are made here and not passed as KEYS, because which jobs a claim meets is known
# only inside; so the queue wants one Redis, not a cluster.
PRELUDE = """
local Q, DATA, RESULT, STATUS, TTL = KEYS[1], ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local call, FIRST = redis.call, 5
local FINAL = {completed = true, failed = true, cancelled = true}
local HIGH, JOBS, DEAD, WORKERS = Q .. ':high', Q .. ':jobs', Q .. ':dead', Q .. ':workers'

local function key(pattern, id)
  local at = pattern:find('{}', 1, true)
  return pattern:sub(1, at - 1) .. id .. pattern:sub(at + 2)
end
local function meta(id) return Q .. ':meta:' .. id end
local function processing(worker) return Q .. ':processing:' .. worker end
local function status(id) return call('GET', key(STATUS, id)) end
local function set_status(id, value) call('SET', key(STATUS, id), value, 'EX', TTL) end
local function list(id) return call('HGET', meta(id), 'priority') == 'high' and HIGH or Q end
local function now()
  local t = call('TIME')
  return t[1] * 1000000 + t[2]
end

-- Ends a job, unless it has ended. The claim is dropped by the caller, after this: what fails here leaves it in place.
local function finish(id, outcome, body, delete_data)
  if FINAL[status(id) or ''] then return false end
  if outcome == 'completed' then
    call('SET', key(RESULT, id), body, 'EX', TTL)
  elseif outcome == 'failed' then
    call('HSET', meta(id), 'error', body)
    call('LPUSH', DEAD, id)
    call('LTRIM', DEAD, 0, 9999)
  end
  call('EXPIRE', key(DATA, id), delete_data == '1' and outcome == 'completed' and 0 or TTL)
  call('EXPIRE', meta(id), TTL)
  set_status(id, outcome)
  call('PUBLISH', Q .. ':ended:' .. id, outcome)
  return true
end

local function beat(worker, seconds)
  call('SET', Q .. ':heartbeat:' .. worker, '1', 'EX', seconds)
  if not call('LPOS', WORKERS, worker) then call('LPUSH', WORKERS, worker) end
end

-- Takes a job back from a worker, counting what has befallen it under `field`; one that has reached the limit fails.
local function give_back(worker, id, field, limit, error, to_the_back)
  local held = call('LPOS', processing(worker), id)
  if held and not FINAL[status(id) or ''] then
    if field ~= '' then
      call('HSET', meta(id), 'alone', '1')
      call('EXPIRE', meta(id), TTL)
    end
    if limit > 0 and call('HINCRBY', meta(id), field, 1) >= limit then
      finish(id, 'failed', error)
    else
      set_status(id, 'pending')
      call(to_the_back and 'LPUSH' or 'RPUSH', list(id), id)
    end
  end
  if held then call('LREM', processing(worker), 1, id) end
end
"""

ENQUEUE = """
local id, data, priority, max_length, once = unpack(ARGV, FIRST)
local digest = redis.sha1hex(priority .. data)
if once ~= '' then
  local known = call('GET', Q .. ':once:' .. once)
  if known then
    local first, same = known:match('^(%S+) (%S+)$')
    return {same == digest and 'queued' or 'conflict', first}
  end
end
if call('LLEN', Q) + call('LLEN', HIGH) >= tonumber(max_length) then return {'full', ''} end
if not call('SET', key(STATUS, id), 'pending', 'NX', 'EX', TTL) then return {'taken', ''} end
call('SET', key(DATA, id), data, 'EX', TTL)
if priority == 'high' then
  call('HSET', meta(id), 'priority', priority)
  call('EXPIRE', meta(id), TTL)
end
local created = now()
call('ZADD', JOBS, string.format('%.0f', created), id)
call('ZREMRANGEBYSCORE', JOBS, '-inf', string.format('%.0f', created - TTL * 1000000))
call('EXPIRE', JOBS, TTL)
if once ~= '' then call('SET', Q .. ':once:' .. once, id .. ' ' .. digest, 'EX', TTL) end
call('LPUSH', priority == 'high' and HIGH or Q, id)
return {'queued', id}
"""

CLAIM = """
local worker, heartbeat_s, limit, reserved, overdue_s = unpack(ARGV, FIRST)
beat(worker, heartbeat_s)
local mine, taken, closed = processing(worker), {}, false

-- A job that was in hand when something broke runs alone, so that it cannot take others with it again.
local function take(from, places)
  while places > 0 and not closed do
    local id = call('LINDEX', from, -1)
    if not id then return end
    local alone = call('HGET', meta(id), 'alone')
    if alone and #taken > 0 then closed = true return end
    call('LMOVE', from, mine, 'RIGHT', 'LEFT')
    local data, was = call('GET', key(DATA, id)), status(id)
    if data and (not was or was == 'pending') then
      set_status(id, 'processing')
      taken[#taken + 1] = id
      taken[#taken + 1] = data
      places = places - 1
      closed = alone
    else -- cancelled, expired, or there twice
      call('LREM', mine, 1, id)
    end
  end
end

limit, reserved = tonumber(limit), tonumber(reserved)
local oldest = reserved > 0 and call('LINDEX', Q, -1)
local created = oldest and call('ZSCORE', JOBS, oldest)
if created and now() - created > overdue_s * 1000000 then take(Q, reserved) end
take(HIGH, limit - #taken / 2)
take(Q, limit - #taken / 2)
return taken
"""

FINISH = """
local worker, outcome, delete_data = unpack(ARGV, FIRST)
local ended = {}
for i = FIRST + 3, #ARGV, 2 do
  if finish(ARGV[i], outcome, ARGV[i + 1], delete_data) then ended[#ended + 1] = ARGV[i] end
  call('LREM', processing(worker), 1, ARGV[i])
end
return ended
"""

GIVE_BACK = """
local worker, field, limit, error, to_the_back = unpack(ARGV, FIRST)
for i = #ARGV, FIRST + 5, -1 do give_back(worker, ARGV[i], field, tonumber(limit), error, to_the_back == '1') end
"""

BEAT = "beat(ARGV[FIRST], ARGV[FIRST + 1])"

# Of a dead worker (limit > 0), or of one that leaves: its list begins with the newest, and the last pushed is in front.
LEAVE = """
local worker, limit, error = unpack(ARGV, FIRST)
limit = tonumber(limit)
if limit > 0 and call('EXISTS', Q .. ':heartbeat:' .. worker) == 1 then return 0 end
local held = call('LRANGE', processing(worker), 0, -1)
for _, id in ipairs(held) do give_back(worker, id, limit > 0 and 'deaths' or '', limit, error) end
call('LREM', WORKERS, 0, worker)
call('DEL', Q .. ':heartbeat:' .. worker)
return #held
"""

CANCEL = """
local id = ARGV[FIRST]
local was = status(id)
if was and finish(id, 'cancelled') then call('LREM', list(id), 1, id) end
return was
"""

REPLAY = """
local id = ARGV[FIRST]
if status(id) ~= 'failed' or call('EXISTS', key(DATA, id)) == 0 then return 0 end
call('HDEL', meta(id), 'attempts', 'deaths', 'error')
call('EXPIRE', key(DATA, id), TTL)
set_status(id, 'pending')
call('LPUSH', list(id), id)
return call('LREM', DEAD, 0, id)
"""

PURGE = """
local id = ARGV[FIRST]
local known = call('LREM', DEAD, 0, id)
if status(id) == 'failed' then
  call('DEL', key(STATUS, id), key(DATA, id), meta(id))
  call('ZREM', JOBS, id)
end
return known
"""

STATS = """
local held, oldest = 0, now()
for _, worker in ipairs(call('LRANGE', WORKERS, 0, -1)) do held = held + call('LLEN', processing(worker)) end
for _, from in ipairs({Q, HIGH}) do
  local id = call('LINDEX', from, -1)
  oldest = math.min(oldest, id and tonumber(call('ZSCORE', JOBS, id)) or oldest)
end
return {call('LLEN', Q), call('LLEN', HIGH), held, call('LLEN', DEAD), call('LLEN', WORKERS), now() - oldest}
"""


class _Scripts:
    """The scripts of one queue, each a method call away: arguments in, Redis's reply out."""

    def __init__(self, redis: Redis, keys: JobKeys, ttl_s: int) -> None:
        self._redis: Any = redis  # its annotations mix decoded and undecoded replies
        self._keys = [keys.queue]
        self._common = [keys.data, keys.result, keys.status, ttl_s]
        self._scripts: dict[str, Any] = {}

    async def run(self, body: str, *arguments: str | bytes | float) -> Any:
        """Raises QueueUnavailable."""
        script = self._scripts.get(body)
        if script is None:
            script = self._scripts[body] = self._redis.register_script(PRELUDE + body)
        return await _or_unavailable(script(self._keys, [*self._common, *arguments]))


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
        self._scripts = _Scripts(redis, keys, ttl_s)

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
            outcome, job_id = await self._scripts.run(ENQUEUE, candidate, data, priority, self._max_length, once)
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
        status, result = await _or_unavailable(self._redis.mget(keys))
        if status is None:
            raise JobNotFound("Job not found")
        error = None
        if status == b"failed":
            found = await _or_unavailable(self._redis.hget(f"{self._keys.queue}:meta:{job_id}", "error"))
            error = found.decode() if found else None
        return JobState(job_id, JobStatus(status.decode()), result, error)

    async def wait(self, job_id: JobId, seconds: float) -> JobState:
        """The job's state as soon as it has ended, or after so many seconds. Raises JobNotFound."""
        deadline = time.monotonic() + seconds
        state = await self.get(job_id)
        if state.status.is_final or seconds <= 0:
            return state
        async with self._redis.pubsub() as notices:
            await _or_unavailable(notices.subscribe(f"{self._keys.queue}:ended:{job_id}"))
            # The first message confirms the subscription: what ended before it is seen by the look after it.
            # Notices are lost while Redis is away, so there is a look every second in any case.
            while (left := deadline - time.monotonic()) > 0:
                await _or_unavailable(notices.get_message(timeout=min(left, 1)))
                state = await self.get(job_id)
                if state.status.is_final:
                    break
        return state

    async def cancel(self, job_id: JobId) -> None:
        """A job that is being processed is not interrupted, but its result is thrown away.

        Raises:
            JobNotFound: there is no such job.
            Conflict: it has ended.
        """
        was = await self._scripts.run(CANCEL, job_id)
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
        found = await _or_unavailable(
            self._redis.zrange(
                f"{self._keys.queue}:jobs", below, "-inf", desc=True, byscore=True, offset=0, num=scan, withscores=True
            )
        )
        if not found:
            return [], None
        statuses = await _or_unavailable(
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
        normal, high, processing, dead, workers, oldest_us = await self._scripts.run(STATS)
        return QueueStats(normal, high, processing, dead, workers, oldest_us / 1e6)

    async def redis_info(self) -> RedisInfo:
        """How Redis is."""
        info = await _or_unavailable(self._redis.info())
        return RedisInfo(info["used_memory"], info.get("db0", {"keys": 0})["keys"], info["expired_keys"])

    async def dead(self) -> list[JobId]:
        """The jobs that failed for good, the newest first."""
        ids = await _or_unavailable(self._redis.lrange(f"{self._keys.queue}:dead", 0, -1))
        return [JobId(job_id.decode()) for job_id in ids]

    async def data(self, job_id: JobId) -> bytes | None:
        """What was enqueued, if it has not expired."""
        data: bytes | None = await _or_unavailable(self._redis.get(self._keys.data.replace("{}", job_id)))
        return data

    async def replay(self, job_id: JobId) -> bool:
        """Queue a failed job again, with all its tries. False: it has not failed, or its data has expired."""
        return bool(await self._scripts.run(REPLAY, job_id))

    async def purge(self, job_id: JobId) -> bool:
        """Forget a failed job. False: it is not in the list."""
        return bool(await self._scripts.run(PURGE, job_id))


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
        self._scripts = _Scripts(redis, keys, ttl_s)
        self._heartbeat_s = heartbeat_s
        self._max_attempts = max_retries + 1
        self._max_deaths = max_deaths
        self._overdue_s = overdue_s
        self._delete_data = str(int(delete_data))
        self._claims = count()
        self._held: set[JobId] = set()
        self._peeks: dict[str, asyncio.Task[Any]] = {}
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
        taken = await self._scripts.run(CLAIM, self.id, self._heartbeat_s, limit, reserved, self._overdue_s)
        jobs = [Job(JobId(job_id.decode()), data) for job_id, data in zip(taken[::2], taken[1::2], strict=True)]
        self._held.update(job.id for job in jobs)
        return jobs

    async def _job_comes(self, seconds: float) -> bool:
        # BLMOVE from a list's end to the same end takes nothing: it only blocks until there is something. So it can
        # wait on both lists at once, be shared by all tasks, and be broken off; the claim itself is the script's.
        for name in (self._queue, f"{self._queue}:high"):
            if name not in self._peeks or self._peeks[name].done():
                self._peeks[name] = asyncio.create_task(self._peek(name, seconds))
        done, _ = await asyncio.wait(self._peeks.values(), return_when=asyncio.FIRST_COMPLETED)
        return any(await _or_unavailable(asyncio.gather(*done)))

    async def _peek(self, name: str, seconds: float) -> Any:
        return await self._redis.blmove(name, name, seconds, "RIGHT", "RIGHT")

    async def complete(self, results: Sequence[tuple[JobId, bytes]]) -> set[JobId]:
        """Store results and drop the claims, in this order and in one step. Which jobs this has ended."""
        return await self._finish(JobStatus.COMPLETED, results)

    async def fail(self, job_id: JobId, error: str) -> None:
        """End a job that no retry can help."""
        await self._finish(JobStatus.FAILED, [(job_id, error.encode())])

    async def _finish(self, outcome: JobStatus, bodies: Sequence[tuple[JobId, bytes]]) -> set[JobId]:
        pairs: Iterable[str | bytes] = chain.from_iterable(bodies)
        ended = await self._scripts.run(FINISH, self.id, outcome, self._delete_data, *pairs)
        self._held.difference_update(job_id for job_id, _ in bodies)
        return {JobId(job_id.decode()) for job_id in ended}

    async def give_back(self, jobs: Sequence[Job]) -> None:
        """Back to the front, in order: nothing was wrong with these jobs."""
        await self._give_back(jobs, "")

    async def retry(self, jobs: Sequence[Job], error: str) -> None:
        """An inference failed. A job alone has used up a try and goes to the back, so that it holds up nobody.

        Of several it is not known whose fault it was: they go to the front, each to be run alone.
        """
        if len(jobs) == 1:
            await self._give_back(jobs, "attempts", self._max_attempts, error, to_the_back=True)
        else:
            await self._give_back(jobs, "attempts")

    async def suspect(self, jobs: Sequence[Job]) -> None:
        """The model server died of these jobs, or near them: as if this worker had died."""
        await self._give_back(jobs, "deaths", self._max_deaths, POISON)

    async def _give_back(
        self, jobs: Sequence[Job], field: str, limit: int = 0, error: str = "", *, to_the_back: bool = False
    ) -> None:
        ids = [job.id for job in jobs]
        await self._scripts.run(GIVE_BACK, self.id, field, limit, error, str(int(to_the_back)), *ids)
        self._held.difference_update(ids)

    async def keep_alive(self) -> None:
        """Beat, and bring back the jobs of workers that do not, until cancelled."""
        silent: set[str] = set()
        unheld: set[JobId] = set()
        failures = 0
        while True:
            try:
                await self._scripts.run(BEAT, self.id, self._heartbeat_s)
                self._last_beat = time.monotonic()
                silent = await self._reap(silent)
                unheld = await self._recover(unheld)
                failures = 0
                await asyncio.sleep(self._heartbeat_s / 3)
            except QueueUnavailable:
                # When Redis comes back without any heartbeat, nobody is dead yet: give them one more round.
                silent = set()
                await asyncio.sleep(backoff_s(failures, cap_s=self._heartbeat_s / 3))
                failures += 1

    async def _reap(self, suspected: set[str]) -> set[str]:
        """The workers without a heartbeat; those that were suspected already are buried."""
        names = await _or_unavailable(self._redis.lrange(f"{self._queue}:workers", 0, -1))
        workers = [name.decode() for name in names]
        beats = await _or_unavailable(self._redis.mget([f"{self._queue}:heartbeat:{name}" for name in workers]))
        silent = {name for name, beat in zip(workers, beats, strict=True) if beat is None}
        for name in silent & suspected:
            if returned := await self._scripts.run(LEAVE, name, self._max_deaths, POISON):
                log.warning("jobs_returned", worker=name, jobs=returned)
        return silent

    async def _recover(self, suspected: set[JobId]) -> set[JobId]:
        """The claims that Redis holds for this worker and no task has in hand; those suspected already are given back.

        Such a claim is left when the connection broke between the script and its reply.
        """
        held = await _or_unavailable(self._redis.lrange(f"{self._queue}:processing:{self.id}", 0, -1))
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
        await self._scripts.run(LEAVE, self.id, 0, "")
        self._last_beat = -float("inf")
