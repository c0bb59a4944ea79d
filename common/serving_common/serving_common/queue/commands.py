"""Runs the commands of commands.lua."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from serving_common.queue.types import JobKeys
from serving_common.redis import translate_redis_errors


class Commands:
    """The commands of commands.lua on one queue: arguments in, Redis's reply out."""

    def __init__(self, redis: Redis, keys: JobKeys, ttl_s: int) -> None:
        self._script: Any = redis.register_script(Path(__file__).with_suffix(".lua").read_text())
        self._keys = [keys.queue]
        self._common = [keys.data, keys.result, keys.status, ttl_s]

    async def run(self, command: str, *arguments: str | bytes | float) -> Any:
        """Raises QueueUnavailable."""
        return await translate_redis_errors(self._script(self._keys, [command, *self._common, *arguments]))
