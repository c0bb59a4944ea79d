"""The consumer loop that all queue workers share: a pattern supplies only `process(jobs)`."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import ParamSpec, TypeVar

import structlog
from prometheus_client import Counter

from serving_common.errors import Unavailable
from serving_common.queue import metrics as queue_metrics
from serving_common.queue import spans
from serving_common.queue.client import JobQueue
from serving_common.queue.types import Job
from serving_common.queue.worker import Worker
from serving_common.redis import QueueUnavailable
from serving_common.tasks import backoff_s, cancel_and_wait, sleep_or_stop

P = ParamSpec("P")
T = TypeVar("T")
ProcessJobs = Callable[[Sequence[Job]], Awaitable[object]]

JOBS = Counter("jobs_processed", "Jobs that a worker has finished or requeued.", ["outcome"])
for _outcome in ("completed", "failed", "retried"):
    JOBS.labels(_outcome)  # a rate needs the 0 before the first one

log = structlog.get_logger()


@asynccontextmanager
async def run_consumers(
    worker: Worker,
    queue: JobQueue,
    process: ProcessJobs,
    *,
    concurrency: int,
    batch_size: int,
    grace_s: float,
    before_claim: Callable[[], Awaitable[object]],
    on_stop: Callable[[], object] = lambda: None,
) -> AsyncIterator[None]:
    """Run consumers and the worker's heartbeat beside the body; stop them in order when it ends.

    An error in one of these tasks, outside `process`, ends the whole process, because without the task the worker would
    only look healthy. It is restarted as a whole; meanwhile its jobs are requeued like those of any dead worker.

    Args:
        worker: kept alive by its heartbeat, and deregistered at the end, which requeues the jobs still in flight.
        queue: the queue that /metrics reports on.
        process: ends or requeues each of the claimed jobs. If it raises Unavailable, the jobs still in flight are
            requeued without using up a try; any other error counts as a failed inference.
        concurrency: number of consumers, each with one claim at a time.
        batch_size: jobs in one claim, at most.
        grace_s: seconds that the consumers have to finish their claims once they are told to stop.
        before_claim: awaited before each claim. While it raises Unavailable, jobs wait in the queue.
        on_stop: called once the consumers have been told to stop.
    """
    stopping = asyncio.Event()
    background = [asyncio.create_task(worker.heartbeat_loop()), asyncio.create_task(queue_metrics.watch(queue))]
    consumers = [
        asyncio.create_task(_consume(worker, process, batch_size, before_claim, stopping)) for _ in range(concurrency)
    ]
    for task in (*background, *consumers):
        task.add_done_callback(_exit_if_failed)
    try:
        yield
    finally:  # also when the port is taken: jobs claimed meanwhile must not wait for the reaper
        stopping.set()
        on_stop()
        _, late = await asyncio.wait(consumers, timeout=grace_s)
        await cancel_and_wait(*late, *background)  # before `deregister`, which a later heartbeat would undo
        try:
            await worker.deregister()
        except QueueUnavailable:
            log.warning("claims_left_behind")  # another worker's reaper requeues them


async def _consume(
    worker: Worker,
    process: ProcessJobs,
    batch_size: int,
    before_claim: Callable[[], Awaitable[object]],
    stopping: asyncio.Event,
) -> None:
    failures = 0
    while not stopping.is_set():
        try:
            await before_claim()
            if jobs := await worker.claim(batch_size):
                await _process(worker, process, jobs)
            failures = 0
        except Unavailable as exc:
            if not stopping.is_set():
                log.warning("dependency_unavailable", dependency=type(exc).__name__)
            await sleep_or_stop(stopping, backoff_s(failures))
            failures += 1


async def _process(worker: Worker, process: ProcessJobs, jobs: Sequence[Job]) -> None:
    try:
        with spans.batch(worker.queue, jobs):
            await process(jobs)
    except Unavailable:
        await retry_until_available(worker.requeue, [job for job in jobs if worker.holds(job)])
        raise
    except Exception:  # a job that meets a bug of ours must not end the worker
        log.exception("processing_crashed", jobs=[job.log_ids for job in jobs])
        in_flight = [job for job in jobs if worker.holds(job)]
        failed = await retry_until_available(worker.retry, in_flight, "Internal error")
        JOBS.labels("failed").inc(len(failed))


def _exit_if_failed(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        log.critical("worker_crashed", exc_info=error)
        os._exit(1)


async def retry_until_available(call: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """The call's result; retried while Redis is unavailable, so that finished work survives a restart of Redis."""
    failures = 0
    while True:
        try:
            return await call(*args, **kwargs)
        except QueueUnavailable:
            await asyncio.sleep(backoff_s(failures))
            failures += 1
