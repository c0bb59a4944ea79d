"""What the layers of POST /predict cost, for `scripts.benchmarks.profile`: `python -m tests.layers post FILE`."""

import json
import os
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import uvloop
from fastapi import FastAPI

from serving_common import logs
from serving_common.queue.client import JobQueue
from serving_common.queue.types import JobId
from serving_common.settings import load
from serving_testing.layers import measure
from src.configurations import ProxySettings
from src.proxy.app import create_app

BODY = b'{"data": [[5.1, 3.5, 1.4, 0.2]]}'


class ConstantQueue(JobQueue):
    """Accepts every job without a word to Redis."""

    async def enqueue(self, *arguments: Any) -> JobId:
        return JobId("a1b2c3")


class OneCommandQueue(JobQueue):
    """Sends one short command instead of the script that stores a job."""

    async def enqueue(self, *arguments: Any) -> JobId:
        await self._redis.set("layers", "a1b2c3")
        return JobId("a1b2c3")


async def main() -> dict[str, float]:
    from tests.bare_proxy import app as bare

    settings = load(ProxySettings)
    logs.configure("layers", settings)
    queues = {
        "all but the queue": ConstantQueue,
        "one command with redis-py": OneCommandQueue,
        "the script that stores a job, instead of it": JobQueue,
    }
    async with AsyncExitStack() as stack:
        apps: dict[str, FastAPI] = {}
        for name, queue in queues.items():
            apps[name] = create_app(settings)
            await stack.enter_async_context(apps[name].router.lifespan_context(apps[name]))
            apps[name].state.queue = queue(apps[name].state.queue._redis, settings.keys, max_length=10_000_000)
        apps["= a bare FastAPI endpoint with one pipeline"] = bare
        return await measure(apps, BODY, int(os.environ["ROUNDS"]))


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(uvloop.run(main())))
