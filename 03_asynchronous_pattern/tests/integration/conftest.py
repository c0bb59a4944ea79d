from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from serving_common.queue.client import JobQueue
from serving_common.queue.types import JobKeys
from tests.integration.model import ScriptedModel, scripted_model


@pytest.fixture
async def model() -> AsyncIterator[ScriptedModel]:
    async with scripted_model() as model:
        yield model


@pytest.fixture
async def queue(redis: Redis) -> AsyncIterator[JobQueue]:
    queue = JobQueue(redis, JobKeys("queue:predict"))
    yield queue
    await queue.close()
