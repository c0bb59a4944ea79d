"""One subscription to a Redis channel, shared by all that wait for one of its messages."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from itertools import chain
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from serving_common.redis import translate_redis_errors
from serving_common.tasks import cancel_and_wait

LISTEN_S = 2
"""So long after the last caller has come a process still listens for notices."""

log = structlog.get_logger()


class PubSubListener:
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
    def subscribe(self, name: str) -> Iterator[asyncio.Event]:
        """An event that is set when the name is published; to hear it, `ensure_listening`."""
        event = asyncio.Event()
        events = self._waiting.setdefault(name, [])
        events.append(event)
        try:
            yield event
        finally:
            events.remove(event)
            if not events:
                del self._waiting[name]

    def notify_all(self) -> None:
        """Set everybody's event."""
        for event in chain.from_iterable(self._waiting.values()):
            event.set()

    async def ensure_listening(self) -> None:
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
                await translate_redis_errors(messages.subscribe(self._channel))
                await translate_redis_errors(messages.get_message(timeout=1))  # confirms the subscription
                self._is_listening = True
                self._listener = asyncio.create_task(self._hear(messages, stack.pop_all()))
        finally:
            self._starting = None

    async def close(self) -> None:
        """Listen no longer; to be called before the client is closed."""
        if self._starting is not None:
            await cancel_and_wait(self._starting)
        if self._listener is not None:
            await cancel_and_wait(self._listener)

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
