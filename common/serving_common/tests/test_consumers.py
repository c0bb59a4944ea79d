import asyncio

import pytest

from serving_common.queue.client import JobQueue
from serving_common.queue.consumers import run_consumers
from serving_common.queue.types import JobKeys
from serving_common.queue.worker import Worker
from serving_testing.fixtures import redis as redis
from serving_testing.fixtures import redis_server as redis_server

KEYS = JobKeys("queue:predict")


async def test_what_is_claimed_goes_back_also_when_the_service_cannot_be_served(redis):
    queue, worker, stopping = JobQueue(redis, KEYS), Worker(redis, KEYS, heartbeat_s=5), asyncio.Event()
    claimed = asyncio.Event()
    job_id = await queue.enqueue(b"[]")

    async def consume() -> None:
        assert [job.id for job in await worker.claim(1)] == [job_id]
        claimed.set()
        await asyncio.Event().wait()  # never done with it

    async def serve() -> None:
        async with run_consumers(worker, queue, [consume()], stopping, grace_s=0.1):
            await claimed.wait()
            raise OSError("the port is taken")

    with pytest.raises(OSError, match="taken"):
        await serve()

    assert stopping.is_set()
    assert await redis.lrange("queue:predict", 0, -1) == [job_id.encode()]
    assert await redis.llen("queue:predict:workers") == 0
