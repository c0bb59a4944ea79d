"""The rate limit of jobs per client, counted in Redis for all proxies together."""

import math
import time
from collections.abc import Awaitable, Callable
from hashlib import sha256

from fastapi import HTTPException, Request
from limits import parse
from limits.aio.storage import RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from redis.asyncio import Redis
from redis.exceptions import RedisError

from serving_common.redis import QueueUnavailable
from src.constants import UNAVAILABLE


def create_check(
    redis: Redis, rate: str, header: str | None = None, hops: int = 1
) -> Callable[[Request], Awaitable[None]]:
    """A check of requests against a rate such as `100/minute`; it raises HTTPException 429 or QueueUnavailable.

    Args:
        redis: counts for all proxies.
        rate: requests per client.
        header: see `client_of`.
        hops: see `client_of`.
    """
    limit = parse(rate)
    pool = redis.connection_pool
    storage = RedisStorage(
        "async+redis://", implementation="redispy", connection_pool=pool  # type: ignore[arg-type]  # redis-py's own
    )
    # Its windows are expiry times of Redis. A moving window would compare the clocks of the proxies' hosts.
    limiter = SlidingWindowCounterRateLimiter(storage)

    async def check(request: Request) -> None:
        client = client_of(request, header, hops)
        try:
            if await limiter.hit(limit, client):
                return
            reset_at = (await limiter.get_window_stats(limit, client)).reset_time
        except RedisError as exc:
            raise QueueUnavailable(UNAVAILABLE) from exc
        wait_s = max(1, math.ceil(reset_at - time.time()))
        raise HTTPException(429, f"More than {rate} requests", {"Retry-After": str(wait_s)})

    return check


def client_of(request: Request, header: str | None, hops: int) -> str:
    """Who is counted: the value of the header, or the address of the connection if it has no value there.

    A client can send any header. The gateway must overwrite the one that is used here, or append to it, as gateways do
    with X-Forwarded-For: of that list only the last `hops` entries are theirs, and the first of these is the client.
    """
    address = request.client.host if request.client else "unknown"
    values = request.headers.getlist(header) if header else []
    if header and header.lower() == "x-forwarded-for":
        entries = [entry.strip() for value in values for entry in value.split(",")]
        values = entries[-hops:][:1] if len(entries) >= hops else []
    # Hashed: a key of Redis must be neither as long as a header may be nor an API key in plain text.
    return sha256(values[-1].encode()).hexdigest() if values and values[-1] else address
