"""The worker: `python -m src.worker.main`. Its HTTP port has only /metrics and /health."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager

import structlog
from fastapi import FastAPI, Response

from serving_common.queue import JobQueue, QueueUnavailable, Worker, connect
from serving_common.service import create_service, serve
from serving_common.settings import load
from src import jobs
from src.configurations import WorkerSettings
from src.worker import metrics
from src.worker.consumer import Consumer
from src.worker.processes import ModelProcesses

log = structlog.get_logger()


def create_app(settings: WorkerSettings) -> FastAPI:
    """A service whose lifespan does the work: it ends, as every service does, by finishing what it has in hand."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            redis = await stack.enter_async_context(connect(settings))
            processes = await stack.enter_async_context(ModelProcesses(settings))
            keys = jobs.keys(settings.queue_name)
            worker = Worker(
                redis,
                keys,
                ttl_s=settings.result_ttl_s,
                heartbeat_s=settings.heartbeat_s,
                max_retries=settings.max_retries,
                delete_data=True,
            )
            app.state.worker, app.state.processes = worker, processes
            stopping = asyncio.Event()
            background = [
                asyncio.create_task(worker.keep_alive()),
                asyncio.create_task(metrics.watch(JobQueue(redis, keys, ttl_s=settings.result_ttl_s))),
            ]
            # One more than processes: while they predict it fetches the next job, and no process waits for Redis.
            tasks = [
                asyncio.create_task(Consumer(redis, worker, processes, stopping, settings).run())
                for _ in range(settings.num_workers + 1)
            ]
            for task in (*background, *tasks):
                task.add_done_callback(_die_with)
            yield
            stopping.set()
            processes.close()
            _, late = await asyncio.wait(tasks, timeout=settings.shutdown_grace_s)
            await _cancel(late)
            try:
                await worker.leave()
            except QueueUnavailable:
                log.warning("claims_left_behind")  # another worker's reaper finds them
            await _cancel(background)

    app = create_service(settings, title="Worker", description="Predicts what is queued.", lifespan=lifespan)

    @app.get("/health")
    async def health(response: Response) -> dict[str, str]:
        """Whether Redis has this worker's heartbeat, and there is a process with a model."""
        is_well = app.state.worker.is_alive and app.state.processes.is_up
        response.status_code = 200 if is_well else 503
        return {"status": "healthy" if is_well else "unhealthy"}

    return app


def _die_with(task: asyncio.Task[None]) -> None:
    """A worker without one of its tasks would look healthy: rather be restarted whole, and reaped meanwhile."""
    if not task.cancelled() and (error := task.exception()):
        log.critical("worker_crashed", exc_info=error)
        os._exit(1)


async def _cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def main() -> None:
    settings = load(WorkerSettings)
    serve(create_app(settings), "worker", settings)


if __name__ == "__main__":
    main()
