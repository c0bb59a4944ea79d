"""Helpers for asyncio tasks: waiting, backing off, cancelling."""

import asyncio
import random
from contextlib import suppress


def backoff_s(attempt: int, *, base_s: float = 0.05, cap_s: float = 2.0) -> float:
    """How long to wait before try number `attempt` (from 0): exponential, and random so that not all come at once."""
    return random.uniform(0.5, 1) * min(cap_s, base_s * 2.0 ** min(attempt, 16))  # noqa: S311 - no secret


async def cancel_and_wait(*tasks: asyncio.Task[None]) -> None:
    """Returns once these tasks, which talk to Redis, have ended; their errors are not raised."""
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        # Again and again: redis-py sends within asyncio.wait_for, which may swallow it on Python 3.11.
        _, left = await asyncio.wait(left, timeout=0.1)


async def sleep_or_stop(stopping: asyncio.Event, seconds: float) -> None:
    """Returns after so many seconds, or as soon as `stopping` is set."""
    with suppress(TimeoutError):
        await asyncio.wait_for(stopping.wait(), seconds)
