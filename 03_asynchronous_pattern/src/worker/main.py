"""The worker: `python -m src.worker.main`. Its HTTP port has only /metrics and /health."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

import structlog
from fastapi import FastAPI, Response

from serving_common.queue import JobQueue, QueueUnavailable, Worker, connect
from serving_common.redis import cancel
from serving_common.service import create_service, serve
from serving_common.settings import load
from src import metrics
from src.configurations import TfServingSettings, WorkerSettings
from src.tf_serving import open_tf_serving
from src.worker.consumer import Consumer, Model

OpenModel = Callable[[TfServingSettings], AbstractAsyncContextManager[Model]]

log = structlog.get_logger()


def create_app(settings: WorkerSettings, open_model: OpenModel = open_tf_serving) -> FastAPI:
    """A service whose lifespan does the work: it ends, as every service does, by finishing what it has in hand."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            redis = await stack.enter_async_context(connect(settings))
            model = await stack.enter_async_context(open_model(settings))
            worker = Worker(
                redis,
                settings.keys,
                ttl_s=settings.result_ttl_s,
                heartbeat_s=settings.heartbeat_s,
                max_retries=settings.max_retries,
                overdue_s=settings.overdue_s,
            )
            app.state.worker = worker
            stopping = asyncio.Event()
            background = [
                asyncio.create_task(worker.keep_alive()),
                asyncio.create_task(metrics.watch(JobQueue(redis, settings.keys))),
            ]
            tasks = [
                asyncio.create_task(Consumer(worker, model, stopping, settings.batch_size).run())
                for _ in range(settings.num_workers)
            ]
            for task in (*background, *tasks):
                task.add_done_callback(_die_with)
            yield
            stopping.set()
            _, late = await asyncio.wait(tasks, timeout=settings.shutdown_grace_s)
            await cancel(*late, *background)  # a heartbeat after the farewell would be that of a ghost
            try:
                await worker.leave()
            except QueueUnavailable:
                log.warning("claims_left_behind")  # another worker's reaper finds them

    app = create_service(settings, title="Worker", description="Predicts what is queued.", lifespan=lifespan)

    @app.get("/health")
    async def health(response: Response) -> dict[str, str]:
        """Whether Redis has this worker's heartbeat."""
        is_alive = app.state.worker.is_alive
        response.status_code = 200 if is_alive else 503
        return {"status": "healthy" if is_alive else "unhealthy"}

    return app


def _die_with(task: asyncio.Task[None]) -> None:
    """A worker without one of its tasks would look healthy: rather be restarted whole, and reaped meanwhile."""
    if not task.cancelled() and (error := task.exception()):
        log.critical("worker_crashed", exc_info=error)
        os._exit(1)


def main() -> None:
    settings = load(WorkerSettings)
    serve(create_app(settings), "worker", settings)


if __name__ == "__main__":
    main()
