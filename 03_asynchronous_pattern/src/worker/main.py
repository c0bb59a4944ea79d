"""The worker: `python -m src.worker.main`. Its HTTP port has only metrics and health."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import cast

from fastapi import FastAPI, Response

from serving_common.errors import StartupError
from serving_common.queue.client import JobQueue
from serving_common.queue.consumers import run_consumers
from serving_common.queue.worker import Worker
from serving_common.redis import connect
from serving_common.service import create_service, serve
from serving_common.settings import load
from src.configurations import TfServingSettings, WorkerSettings
from src.constants import HEALTH_WITHIN_S
from src.jobs import rows_adapter
from src.tf_serving import CardMismatch, ModelUnavailable, open_tf_serving
from src.worker.consumer import Model, process

OpenModel = Callable[[TfServingSettings], AbstractAsyncContextManager[Model]]


def create_app(settings: WorkerSettings, open_model: OpenModel = open_tf_serving) -> FastAPI:
    """A service that runs the consumers in its lifespan, so that a stop finishes the jobs in flight."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            redis = await stack.enter_async_context(connect(settings))
            model = await stack.enter_async_context(open_model(settings))
            await _check(model)
            worker = Worker(
                redis,
                settings.keys,
                ttl_s=settings.result_ttl_s,
                heartbeat_s=settings.heartbeat_s,
                max_retries=settings.max_retries,
                overdue_s=settings.overdue_s,
            )
            app.state.worker, app.state.model = worker, model
            app.state.queue = JobQueue(redis, settings.keys)
            async with run_consumers(
                worker,
                app.state.queue,
                partial(process, worker, model, settings.card, rows_adapter(settings.card)),
                concurrency=settings.concurrency,
                batch_size=settings.batch_size,
                grace_s=settings.shutdown_grace_s,
                before_claim=model.connect,  # while the model is unavailable, jobs wait in the queue, not in flight
            ):
                yield

    async def ready() -> str | None:
        if not app.state.worker.is_alive:
            return "Redis has no heartbeat of this worker"
        if reason := await app.state.model.why_unavailable(HEALTH_WITHIN_S):
            return cast(str, reason)
        app.state.warnings = await app.state.queue.missing_guarantees()
        return None

    app = create_service(settings, title="Worker", description="Predicts queued jobs.", lifespan=lifespan, ready=ready)

    @app.get("/health")
    async def health(response: Response) -> dict[str, str]:
        """Whether Redis has this worker's heartbeat, and the model is the card's."""
        mismatch = await app.state.model.why_mismatch(HEALTH_WITHIN_S)
        is_healthy = app.state.worker.is_alive and not mismatch
        response.status_code = 200 if is_healthy else 503
        status = {"status": "healthy" if is_healthy else "unhealthy"}
        return status | ({"reason": mismatch} if mismatch else {})

    return app


async def _check(model: Model) -> None:
    """Raises StartupError if the model server has another model than the card's; without a server, jobs wait."""
    try:
        await model.connect()
    except CardMismatch as exc:
        raise StartupError(str(exc)) from exc
    except ModelUnavailable:
        pass


def main() -> None:
    settings = load(WorkerSettings)
    serve(create_app(settings), "worker", settings, any_port=True)


if __name__ == "__main__":
    main()
