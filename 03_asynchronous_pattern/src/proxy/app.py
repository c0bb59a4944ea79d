"""The proxy: `python -m src.proxy.app`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import FastAPI

from serving_common.queue import metrics as queue_metrics
from serving_common.queue.client import JobQueue
from serving_common.redis import connect
from serving_common.service import api_key_required, create_service, lazy_app, serve
from serving_common.settings import load
from serving_common.tasks import cancel_and_wait
from src.configurations import ProxySettings
from src.constants import HEALTH_WITHIN_S
from src.proxy.rate_limit import create_check
from src.proxy.routers import create_router, health_router, router
from src.tf_serving import open_tf_serving


def create_app(settings: ProxySettings) -> FastAPI:
    """The proxy for the queue that these settings name."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            redis = await stack.enter_async_context(connect(settings))
            app.state.model = await stack.enter_async_context(open_tf_serving(settings))
            app.state.queue = JobQueue(
                redis, settings.keys, ttl_s=settings.result_ttl_s, max_length=settings.max_queue_length
            )
            stack.push_async_callback(app.state.queue.close)
            app.state.on_stop.append(app.state.queue.stop_waiting)
            app.state.check_rate = (
                create_check(redis, settings.rate_limit, settings.rate_limit_header, settings.rate_limit_hops)
                if settings.rate_limit
                else None
            )
            watching = asyncio.create_task(queue_metrics.watch(app.state.queue))
            yield
            await cancel_and_wait(watching)

    async def ready() -> str | None:
        queue: JobQueue = app.state.queue
        if reason := await queue.why_unavailable(HEALTH_WITHIN_S):
            return reason
        app.state.warnings = await queue.missing_guarantees()
        return None

    app = create_service(
        settings,
        title=f"{settings.card.name}, answered later",
        description="POST /predict answers with a job's id at once; GET /job/{job_id} has the prediction.",
        lifespan=lifespan,
        ready=ready,
    )
    app.include_router(health_router)
    for each in (create_router(settings.card), router):
        app.include_router(each, dependencies=api_key_required(settings))
    return app


def main() -> None:
    settings = load(ProxySettings)
    serve(create_app(settings), "proxy", settings)


__getattr__ = lazy_app(lambda: create_app(load(ProxySettings)))

if __name__ == "__main__":
    main()
