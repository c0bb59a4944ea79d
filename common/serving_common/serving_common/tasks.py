"""Helpers for asyncio tasks: waiting, backing off, cancelling."""

import asyncio
import random
from contextlib import suppress


def backoff_s(attempt: int, *, base_s: float = 0.05, cap_s: float = 2.0) -> float:
    """Seconds to wait before retry number `attempt` (from 0): exponential, with jitter against simultaneous retries."""
    return random.uniform(0.5, 1) * min(cap_s, base_s * 2.0 ** min(attempt, 16))  # noqa: S311 - no secret


async def cancel_and_wait(*tasks: asyncio.Task[None]) -> None:
    """Cancel tasks that talk to Redis and return once they have ended; their errors are not raised."""
    running = set(tasks)
    while running:
        for task in running:
            task.cancel()
        # Repeated, because redis-py sends within asyncio.wait_for, which may swallow a cancellation on Python 3.11.
        _, running = await asyncio.wait(running, timeout=0.1)


async def sleep_or_stop(stopping: asyncio.Event, seconds: float) -> None:
    """Return after `seconds`, or as soon as `stopping` is set."""
    with suppress(TimeoutError):
        await asyncio.wait_for(stopping.wait(), seconds)
