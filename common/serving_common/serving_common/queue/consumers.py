"""A queue's worker at work: its signs of life, the tasks that do the work, and an orderly end."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, ParamSpec, TypeVar

import structlog

from serving_common.queue import metrics as queue_metrics
from serving_common.queue.client import JobQueue
from serving_common.queue.worker import Worker
from serving_common.redis import QueueUnavailable
from serving_common.tasks import backoff_s, cancel_and_wait

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.get_logger()


@asynccontextmanager
async def run_consumers(
    worker: Worker,
    queue: JobQueue,
    consumers: Iterable[Coroutine[Any, Any, None]],
    stopping: asyncio.Event,
    *,
    grace_s: float,
    on_stop: Callable[[], None] = lambda: None,
) -> AsyncIterator[None]:
    """Runs the consumers beside the body, and when it ends, asks them to stop.

    A task that fails ends the whole process: without one of them a worker would look healthy. It is restarted whole,
    and meanwhile its jobs go back to the queue as those of any dead worker.

    Args:
        worker: whose heartbeat is kept up, and who leaves at the end: what is still in hand goes back to the queue.
        queue: of which /metrics tells.
        consumers: take jobs until `stopping` is set, and then finish what they have in hand.
        grace_s: they have so many seconds for it.
        on_stop: called when `stopping` has been set.
    """
    background = [asyncio.create_task(worker.heartbeat_loop()), asyncio.create_task(queue_metrics.watch(queue))]
    tasks = [asyncio.create_task(consumer) for consumer in consumers]
    for task in (*background, *tasks):
        task.add_done_callback(_die_with)
    try:
        yield
    finally:  # also when the port is taken: what has been claimed meanwhile must not wait for the reaper
        stopping.set()
        on_stop()
        _, late = await asyncio.wait(tasks, timeout=grace_s)
        await cancel_and_wait(*late, *background)  # a heartbeat after the farewell would be that of a ghost
        try:
            await worker.deregister()
        except QueueUnavailable:
            log.warning("claims_left_behind")  # another worker's reaper finds them


def _die_with(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        log.critical("worker_crashed", exc_info=error)
        os._exit(1)


async def retry_until_available(call: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """The call's result, once Redis has it: work that is done is not thrown away because Redis restarts."""
    failures = 0
    while True:
        try:
            return await call(*args, **kwargs)
        except QueueUnavailable:
            await asyncio.sleep(backoff_s(failures))
            failures += 1
