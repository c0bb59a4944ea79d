"""The worker: `python -m src.worker.main`. Its HTTP port has only metrics and health."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from fastapi import FastAPI, Response

from serving_common.queue.client import JobQueue
from serving_common.queue.consumers import run_consumers
from serving_common.queue.worker import Worker
from serving_common.redis import connect
from serving_common.service import create_service, serve
from serving_common.settings import load
from src import jobs
from src.configurations import WorkerSettings
from src.worker.consumer import process
from src.worker.processes import ModelProcesses


def create_app(settings: WorkerSettings) -> FastAPI:
    """A service whose lifespan runs the consumers; like every service, it finishes jobs in flight before it stops."""

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
            app.state.queue = JobQueue(redis, keys, ttl_s=settings.result_ttl_s)
            async with run_consumers(
                worker,
                app.state.queue,
                partial(process, redis, worker, processes, settings.result_ttl_s),
                # One more than processes: while they predict, it claims the next jobs, so that none waits for Redis.
                concurrency=settings.num_workers + 1,
                batch_size=settings.batch_size,
                grace_s=settings.shutdown_grace_s,
                before_claim=processes.ensure_alive,
                on_stop=processes.close,
            ):
                yield

    async def ready() -> str | None:
        if not app.state.worker.is_alive:
            return "Redis has no heartbeat of this worker"
        if not app.state.processes.is_up:
            return "no model process is up"
        app.state.warnings = await app.state.queue.missing_guarantees()
        return None

    app = create_service(
        settings, title="Worker", description="Predicts what is queued.", lifespan=lifespan, ready=ready
    )

    @app.get("/health")
    async def health(response: Response) -> dict[str, str]:
        """Whether Redis has this worker's heartbeat and at least one model process is up."""
        is_well = app.state.worker.is_alive and app.state.processes.is_up
        response.status_code = 200 if is_well else 503
        return {"status": "healthy" if is_well else "unhealthy"}

    return app


def main() -> None:
    settings = load(WorkerSettings)
    serve(create_app(settings), "worker", settings, any_port=True)


if __name__ == "__main__":
    main()
