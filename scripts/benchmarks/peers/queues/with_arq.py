# /// script
# dependencies = ["arq==0.28.0", "redis==5.3.1", "grpcio==1.85.3", "tfserving-protos"]
#
# [tool.uv.sources]
# tfserving-protos = { path = "../../../../common/tfserving_protos" }
#
# [tool.peer]
# name = "arq"
# settings = """\
#   a job leaves the queue after it has ended, and starts again when its in-progress key has expired: job_timeout 5 \
#   s + 10 s, instead of 300 s + 10 s; max_jobs 2, of which each poll starts as many: poll_delay 1 ms instead of 500"""
# docs = "https://arq-docs.helpmanual.io/#retrying-jobs-and-cancellation"
# worker = ["-m", "arq", "with_arq.WorkerSettings"]
# redelivery_s = 30
# ///
"""Argument: how many jobs to submit."""

import asyncio
import sys
from typing import Any, ClassVar

import work
from arq import create_pool, func
from arq.connections import RedisSettings


async def predict(_context: dict[str, Any], job: int) -> None:
    await work.predict_async(job)


class WorkerSettings:
    redis_settings = RedisSettings.from_dsn(work.REDIS_URL)
    functions: ClassVar = [func(predict, keep_result=0)]
    max_jobs = 2
    job_timeout = 5
    poll_delay = 0.001


async def submit(jobs: int) -> None:
    pool = await create_pool(WorkerSettings.redis_settings)
    for job in range(jobs):
        await pool.enqueue_job("predict", job)


if __name__ == "__main__":
    asyncio.run(submit(int(sys.argv[1])))
