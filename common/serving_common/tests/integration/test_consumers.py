"""The consumer loop against a real Redis."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest
import structlog

from serving_common.errors import Unavailable
from serving_common.queue.client import JobQueue
from serving_common.queue.consumers import run_consumers
from serving_common.queue.types import Job, JobKeys, JobStatus
from serving_common.queue.worker import Worker
from serving_testing.fixtures import redis as redis
from serving_testing.fixtures import redis_server as redis_server

KEYS = JobKeys("queue:predict")
RunConsumers = Callable[..., AbstractAsyncContextManager[None]]


@pytest.fixture
async def queue(redis):
    queue = JobQueue(redis, KEYS)
    yield queue
    await queue.close()


@pytest.fixture
def worker(redis):
    return Worker(redis, KEYS, heartbeat_s=5, max_retries=1)


@pytest.fixture
def consumers(queue, worker) -> RunConsumers:
    async def ready() -> None:
        pass

    def run(process) -> AbstractAsyncContextManager[None]:
        return run_consumers(worker, queue, process, concurrency=1, batch_size=32, grace_s=0.1, before_claim=ready)

    return run


async def ended(queue, job_id) -> JobStatus:
    status: JobStatus = (await queue.wait(job_id, 20)).status
    return status


async def test_claimed_jobs_are_requeued_when_the_service_fails_to_start(redis, queue, consumers):
    claimed = asyncio.Event()
    job_id = await queue.enqueue(b"[]")

    async def process(jobs) -> None:
        assert [job.id for job in jobs] == [job_id]
        claimed.set()
        await asyncio.Event().wait()  # never finishes

    async def serve() -> None:
        async with consumers(process):
            await claimed.wait()
            raise OSError("the port is taken")

    with pytest.raises(OSError, match="taken"):
        await serve()

    assert await redis.lrange("queue:predict", 0, -1) == [job_id.encode()]
    assert await redis.llen("queue:predict:workers") == 0


async def test_unavailable_requeues_only_jobs_still_in_flight_and_uses_up_no_try(redis, queue, worker, consumers):
    ids = [await queue.enqueue(data) for data in (b"1", b"2", b"3")]
    claims = []

    async def process(jobs) -> None:
        claims.append([job.data for job in jobs])
        await worker.complete([(jobs[0].id, b"r")])
        if len(claims) < 3:
            raise Unavailable("the model server")
        await worker.complete([(job.id, b"r") for job in jobs])

    with structlog.testing.capture_logs() as logs:
        async with consumers(process):
            assert [await ended(queue, job_id) for job_id in ids] == [JobStatus.COMPLETED] * 3

    assert claims == [[b"1", b"2", b"3"], [b"2", b"3"], [b"3"]]
    assert [line["dependency"] for line in logs if line["event"] == "dependency_unavailable"] == ["Unavailable"] * 2
    assert not await redis.exists(*(f"queue:predict:meta:{job_id}" for job_id in ids))


async def test_a_later_claim_of_the_same_job_is_not_requeued(queue, worker, consumers):
    job_id = await queue.enqueue(b"1")
    later: list[Job] = []

    async def process(jobs) -> None:
        if later:
            return
        await worker.quarantine(jobs)
        later.extend(await worker.claim(1))  # as by another task of this worker
        raise Unavailable("the model server")

    with structlog.testing.capture_logs() as logs:
        async with consumers(process):
            async with asyncio.timeout(20):
                while not logs:  # noqa: ASYNC110 - a log has no event
                    await asyncio.sleep(0.02)
            assert [job.id for job in later] == [job_id]
            assert worker.holds(later[0])
            assert (await queue.stats()).processing == 1


async def test_a_crash_in_process_retries_the_job_and_keeps_the_consumer(queue, worker, consumers):
    bad, good = [await queue.enqueue(data) for data in (b"bad", b"good")]

    async def process(jobs) -> None:
        for job in jobs:
            if job.data == b"bad":
                raise RuntimeError("a bug")
            await worker.complete([(job.id, b"r")])

    async with consumers(process):
        assert await ended(queue, bad) is JobStatus.FAILED
        assert await ended(queue, good) is JobStatus.COMPLETED

    assert (await queue.get(bad)).error == "Internal error"
    assert await queue.dead_letters() == [bad]
