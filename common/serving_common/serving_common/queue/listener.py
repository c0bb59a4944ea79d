"""One subscription to a Redis channel, shared by all callers that wait for one of its messages."""

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
"""Seconds that the connection stays open after the last subscriber arrived."""

log = structlog.get_logger()


class PubSubListener:
    """Sets events when their names are published, on one connection for any number of subscribers."""

    def __init__(self, redis: Redis, channel: str) -> None:
        self._redis: Any = redis  # its annotations mix decoded and undecoded replies
        self._channel = channel
        self._subscribers: dict[str, list[asyncio.Event]] = {}
        self._starting: asyncio.Task[None] | None = None
        self._listening: asyncio.Task[None] | None = None
        self._is_listening = False
        self._listen_until = 0.0

    @contextmanager
    def subscribe(self, name: str) -> Iterator[asyncio.Event]:
        """An event that is set when the name is published, from the next `ensure_listening` on."""
        event = asyncio.Event()
        events = self._subscribers.setdefault(name, [])
        events.append(event)
        try:
            yield event
        finally:
            events.remove(event)
            if not events:
                del self._subscribers[name]

    def notify_all(self) -> None:
        """Set every subscriber's event."""
        for event in chain.from_iterable(self._subscribers.values()):
            event.set()

    async def ensure_listening(self) -> None:
        """Return once published names are received. Raises QueueUnavailable."""
        self._listen_until = time.monotonic() + LISTEN_S
        if self._is_listening:
            return
        # Concurrent callers share one start and its failure; one after the other, each would wait for a timeout.
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
                self._listening = asyncio.create_task(self._listen(messages, stack.pop_all()))
        finally:
            self._starting = None

    async def close(self) -> None:
        """Stop listening; to be called before the client is closed."""
        if self._starting is not None:  # first, because it creates the other task
            await cancel_and_wait(self._starting)
        if self._listening is not None:
            await cancel_and_wait(self._listening)

    async def _listen(self, messages: Any, stack: AsyncExitStack) -> None:
        async with stack:
            try:
                while self._subscribers or time.monotonic() < self._listen_until:
                    # A demoted server lets its subscribers wait without an error, for messages that may not come. Only
                    # connections that `connect` has made know of it.
                    if getattr(messages.connection, "is_outdated", False):
                        break
                    message = await messages.get_message(ignore_subscribe_messages=True, timeout=1)
                    for name in message["data"].decode().split() if message else ():
                        for event in self._subscribers.get(name, ()):
                            event.set()
            except RedisError as exc:
                log.warning("redis_failed", error=str(exc))
            finally:
                self._is_listening = False
