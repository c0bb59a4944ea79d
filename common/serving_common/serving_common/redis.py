"""The connection to Redis: its settings, its retries, and the error while Redis is unavailable."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
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
"""Connections of one process. When all are in use, callers wait for one instead of failing."""
START_S = 2
"""Seconds that a start waits for Redis, at most."""

log = structlog.get_logger()


class QueueUnavailable(Unavailable):
    """Redis does not answer, or cannot run a command, for instance because it is out of memory."""


class RedisSettings(Settings):
    """How to reach the queue's Redis."""

    redis_host: str = Field("redis", description="Host of the queue's Redis.")
    redis_port: int = Field(6379, ge=1, le=65535, description="Port of the queue's Redis.")
    redis_password: SecretStr | None = Field(None, description="Password of the queue's Redis, if it has one.")


@asynccontextmanager
async def connect(settings: RedisSettings) -> AsyncIterator[Redis]:
    """A client that does not decode. Exponential backoff with jitter bridges short outages; longer ones raise errors.

    Raises StartupError if Redis rejects the password. A Redis that has not started yet is not an error.
    """
    password = settings.redis_password
    pool = BlockingConnectionPool(
        max_connections=MAX_CONNECTIONS,
        timeout=2,
        host=settings.redis_host,
        port=settings.redis_port,
        password=password.get_secret_value() if password else None,
        socket_connect_timeout=1,
        socket_timeout=5,  # longer than any blocking command
        # Not after a timeout: callers would wait 5 s three times for a Redis that hangs.
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
            log.warning("redis_failed", error=str(exc) or "no answer")
        yield redis


async def translate_redis_errors(call: Awaitable[T]) -> T:
    """The call's reply. Raises QueueUnavailable instead of RedisError."""
    try:
        return await call
    except RedisError as exc:
        log.warning("redis_failed", error=str(exc))
        raise QueueUnavailable("Service temporarily unavailable") from exc


@dataclass(frozen=True, slots=True)
class RedisInfo:
    """Memory and keys of Redis; `expired` counts keys since Redis started."""

    memory_bytes: int
    keys: int
    expired: int

    @classmethod
    async def read(cls, redis: Any) -> RedisInfo:
        """Raises QueueUnavailable."""
        info = await translate_redis_errors(redis.info())
        return cls(info["used_memory"], info.get("db0", {"keys": 0})["keys"], info["expired_keys"])
