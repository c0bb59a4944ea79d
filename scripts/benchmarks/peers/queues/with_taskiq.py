# /// script
# dependencies = ["taskiq==0.13.0", "taskiq-redis==1.2.4", "redis==8.1.0", "grpcio==1.85.3", "tfserving-protos"]
#
# [tool.uv.sources]
# tfserving-protos = { path = "../../../../common/tfserving_protos" }
#
# [tool.peer]
# name = "taskiq"
# settings = """\
#   RedisStreamBroker, acknowledged when the result is saved; idle_timeout 10 s instead of 10 min, but a worker claims \
#   abandoned jobs only after it has read new ones, so that they stay where they are while no other job arrives; one \
#   process, two tasks at a time"""
# docs = "https://taskiq-python.github.io/available-components/brokers.html#redis"
# worker = ["-m", "taskiq", "worker", "with_taskiq:broker", "--workers=1", "--max-async-tasks=2", "--log-level=WARNING"]
# redelivery_s = 30
# ///
"""Argument: how many jobs to submit."""

import asyncio
import sys

import work
from taskiq_redis import RedisStreamBroker

broker = RedisStreamBroker(work.REDIS_URL, idle_timeout=10_000, unacknowledged_lock_timeout=10)
predict = broker.task(task_name="predict")(work.predict_async)


async def submit(jobs: int) -> None:
    await broker.startup()  # makes the consumer group, which sees only later jobs
    for job in range(jobs):
        await predict.kiq(job)
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(submit(int(sys.argv[1])))
