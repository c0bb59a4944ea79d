"""Redis: where it is, how it is reached, and what happens while it is not."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import structlog
from pydantic import Field, SecretStr
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import AuthenticationError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

from serving_common.errors import StartupError, Unavailable
from serving_common.settings import Settings

T = TypeVar("T")

MAX_CONNECTIONS = 64
"""Of one process. Who comes when all are in use waits for one instead of being turned away."""
START_S = 2
"""A start waits for Redis no longer than this."""
LISTEN_S = 2
"""So long after the last caller has come a process still listens for notices."""

log = structlog.get_logger()


class QueueUnavailable(Unavailable):
    """Redis does not answer, or cannot do what it was asked, for instance for want of memory."""


class RedisSettings(Settings):
    """Where the queue's Redis is."""

    redis_host: str = Field("redis", description="Host of the queue's Redis.")
    redis_port: int = Field(6379, ge=1, le=65535, description="Its port.")
    redis_password: SecretStr | None = Field(None, description="Its password, if it wants one.")


@asynccontextmanager
async def connect(settings: RedisSettings) -> AsyncIterator[Redis]:
    """A client that does not decode. Short outages are bridged with exponential backoff and jitter, longer reported.

    Raises StartupError if Redis refuses the password. That Redis is not there yet is no error.
    """
    password = settings.redis_password
    pool = BlockingConnectionPool(
        max_connections=MAX_CONNECTIONS,
        timeout=2,
        host=settings.redis_host,
        port=settings.redis_port,
        password=password.get_secret_value() if password else None,
        socket_connect_timeout=1,
        socket_timeout=5,  # longer than any blocking command waits
        # Not after a timeout: a Redis that is silent for 5 s would be waited for three times.
        retry=Retry(
            ExponentialWithJitterBackoff(cap=0.2, base=0.02), retries=2, supported_errors=(RedisConnectionError,)
        ),
    )
    async with Redis.from_pool(pool) as redis:
        try:
            async with asyncio.timeout(START_S):
                await redis.ping()
        except AuthenticationError as exc:
            raise StartupError(f"Redis refuses REDIS_PASSWORD: {exc}") from exc
        except (RedisError, TimeoutError) as exc:
            log.warning("redis_failed", error=str(exc) or "it is silent")
        yield redis


async def or_unavailable(call: Awaitable[T]) -> T:
    """The call's reply. Raises QueueUnavailable."""
    try:
        return await call
    except RedisError as exc:
        log.warning("redis_failed", error=str(exc))
        raise QueueUnavailable("Service temporarily unavailable") from exc


def backoff_s(attempt: int, *, base_s: float = 0.05, cap_s: float = 2.0) -> float:
    """How long to wait before try number `attempt` (from 0): exponential, and random so that not all come at once."""
    return random.uniform(0.5, 1) * min(cap_s, base_s * 2.0 ** min(attempt, 16))  # noqa: S311 - no secret


async def cancel(*tasks: asyncio.Task[None]) -> None:
    """Returns once these tasks, which talk to Redis, have ended; their errors are not raised."""
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        # Again and again: redis-py sends within asyncio.wait_for, which may swallow it on Python 3.11.
        _, left = await asyncio.wait(left, timeout=0.1)


@dataclass(frozen=True, slots=True)
class RedisInfo:
    """How Redis itself is; `expired` counts keys since its start."""

    memory_bytes: int
    keys: int
    expired: int

    @classmethod
    async def ask(cls, redis: Any) -> RedisInfo:
        """Raises QueueUnavailable."""
        info = await or_unavailable(redis.info())
        return cls(info["used_memory"], info.get("db0", {"keys": 0})["keys"], info["expired_keys"])


class Notices:
    """Names that are published on a channel, heard on one connection however many wait for one of them."""

    def __init__(self, redis: Redis, channel: str) -> None:
        self._redis: Any = redis
        self._channel = channel
        self._waiting: dict[str, list[asyncio.Event]] = {}
        self._starting: asyncio.Task[None] | None = None
        self._listener: asyncio.Task[None] | None = None
        self._is_listening = False
        self._listen_until = 0.0

    @contextmanager
    def of(self, name: str) -> Iterator[asyncio.Event]:
        """An event that is set when the name is published; to hear it, `listen`."""
        event = asyncio.Event()
        events = self._waiting.setdefault(name, [])
        events.append(event)
        try:
            yield event
        finally:
            events.remove(event)
            if not events:
                del self._waiting[name]

    def wake(self) -> None:
        """Set everybody's event."""
        for event in chain.from_iterable(self._waiting.values()):
            event.set()

    async def listen(self) -> None:
        """Returns once what is published would be heard. Raises QueueUnavailable."""
        self._listen_until = time.monotonic() + LISTEN_S
        if self._is_listening:
            return
        # One start for all who come meanwhile, and one failure: else each would begin to wait after the other.
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
        await asyncio.shield(self._starting)

    async def _start(self) -> None:
        try:
            async with AsyncExitStack() as stack:
                messages = await stack.enter_async_context(self._redis.pubsub())
                await or_unavailable(messages.subscribe(self._channel))
                await or_unavailable(messages.get_message(timeout=1))  # confirms the subscription
                self._is_listening = True
                self._listener = asyncio.create_task(self._hear(messages, stack.pop_all()))
        finally:
            self._starting = None

    async def close(self) -> None:
        """Listen no longer; to be called before the client is closed."""
        if self._starting is not None:
            await cancel(self._starting)
        if self._listener is not None:
            await cancel(self._listener)

    async def _hear(self, messages: Any, stack: AsyncExitStack) -> None:
        async with stack:
            try:
                while self._waiting or time.monotonic() < self._listen_until:
                    message = await messages.get_message(ignore_subscribe_messages=True, timeout=1)
                    for name in message["data"].decode().split() if message else ():
                        for event in self._waiting.get(name, ()):
                            event.set()
            except RedisError as exc:
                log.warning("redis_failed", error=str(exc))
            finally:
                self._is_listening = False
