"""Redis: where it is, how it is reached, and what happens while it is not."""

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
"""Of one process. Who comes when all are in use waits for one instead of being turned away."""
START_S = 2
"""A start waits for Redis no longer than this."""

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


async def translate_redis_errors(call: Awaitable[T]) -> T:
    """The call's reply. Raises QueueUnavailable."""
    try:
        return await call
    except RedisError as exc:
        log.warning("redis_failed", error=str(exc))
        raise QueueUnavailable("Service temporarily unavailable") from exc


@dataclass(frozen=True, slots=True)
class RedisInfo:
    """How Redis itself is; `expired` counts keys since its start."""

    memory_bytes: int
    keys: int
    expired: int

    @classmethod
    async def ask(cls, redis: Any) -> RedisInfo:
        """Raises QueueUnavailable."""
        info = await translate_redis_errors(redis.info())
        return cls(info["used_memory"], info.get("db0", {"keys": 0})["keys"], info["expired_keys"])
