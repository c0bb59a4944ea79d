"""The rate limit of jobs per client address, counted in Redis for all proxies together."""

import math
import time
from collections.abc import Awaitable, Callable

from fastapi import HTTPException, Request
from limits import parse
from limits.aio.storage import RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter
from redis.asyncio import Redis
from redis.exceptions import RedisError

from serving_common.redis import QueueUnavailable
from src.constants import UNAVAILABLE


def create_check(redis: Redis, rate: str) -> Callable[[Request], Awaitable[None]]:
    """A check of requests against a rate such as `100/minute`; it raises HTTPException 429 or QueueUnavailable."""
    limit = parse(rate)
    pool = redis.connection_pool
    storage = RedisStorage(
        "async+redis://", implementation="redispy", connection_pool=pool  # type: ignore[arg-type]  # redis-py's own
    )
    limiter = MovingWindowRateLimiter(storage)

    async def check(request: Request) -> None:
        client = request.client.host if request.client else "unknown"
        try:
            if await limiter.hit(limit, client):
                return
            reset_at = (await limiter.get_window_stats(limit, client)).reset_time
        except RedisError as exc:
            raise QueueUnavailable(UNAVAILABLE) from exc
        wait_s = max(1, math.ceil(reset_at - time.time()))
        raise HTTPException(429, f"More than {rate} requests", {"Retry-After": str(wait_s)})

    return check
