"""The proxy: `python -m src.proxy.app`."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from fastapi import FastAPI

from serving_common.errors import StartupError
from serving_common.queue import metrics as queue_metrics
from serving_common.queue.client import JobQueue
from serving_common.redis import QueueUnavailable, connect
from serving_common.service import api_key_required, create_service, lazy_app, serve
from serving_common.settings import load
from serving_common.tasks import cancel_and_wait
from src.configurations import ProxySettings
from src.jobs import Jobs
from src.ml.classifier import Classifier
from src.ml.weights import weights_of
from src.proxy.page import PageFiles, page_router, page_settings
from src.proxy.predictor import SyncPredictor, too_large
from src.proxy.routers import health_router, router

REDIS_WITHIN_S = 0.5
"""Seconds after which /health/ready reports that Redis does not answer."""


def create_app(settings: ProxySettings) -> FastAPI:
    """The proxy, with the fast model and a client of the queue."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            card = settings.sync_card
            classifier = await asyncio.to_thread(Classifier.load, card, threads=settings.model_threads)
            app.state.sample_file = _read_sample(settings.sample_image_path)
            app.state.sample = base64.b64encode(app.state.sample_file).decode()
            app.state.weights = {
                "sync": weights_of(card.model_file),
                "async": weights_of(settings.async_card.model_file),
            }
            app.state.label_sample = "Persian cat" if settings.sync_model_card is None else classifier.labels[0]
            app.state.page = page_settings(settings, app.state.weights)
            redis = await stack.enter_async_context(connect(settings))
            app.state.jobs = Jobs(
                redis, settings.queue_name, ttl_s=settings.result_ttl_s, max_length=settings.max_queue_length
            )
            stack.push_async_callback(app.state.jobs.queue.close)
            app.state.on_stop.append(app.state.jobs.queue.stop_waiting)
            app.state.predictor = await stack.enter_async_context(SyncPredictor(classifier, app.state.jobs, settings))
            # The proxy reports the queue, too: workers are what is scaled by it, and may be none.
            watching = asyncio.create_task(queue_metrics.watch(app.state.jobs.queue))
            stack.push_async_callback(cancel_and_wait, watching)
            yield

    async def ready() -> None:
        # The fast answer needs no Redis.
        queue: JobQueue = app.state.jobs.queue
        try:
            async with asyncio.timeout(REDIS_WITHIN_S):
                if (reason := await queue.why_unavailable(REDIS_WITHIN_S)) is None:
                    app.state.warnings = await queue.missing_guarantees()
                    return
        except (QueueUnavailable, TimeoutError):
            reason = f"Redis does not answer within {REDIS_WITHIN_S:g} s"
        app.state.warnings = [f"degraded, no jobs for the better model: {reason}"]

    app = create_service(
        settings,
        title="Image classification: fast now, better later",
        description="POST /predict answers at once, with a fast model; GET /job/{job_id} has a better model's answer.",
        lifespan=lifespan,
        ready=ready,
        invalid_input=400,
        body_too_large=too_large(settings),
    )
    app.include_router(health_router)
    app.include_router(router, dependencies=api_key_required(settings))
    app.include_router(page_router)
    app.mount("/static", PageFiles())
    return app


def _read_sample(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise StartupError(f"there is no image at {path} (build it with: python -m models.build)") from exc


def main() -> None:
    settings = load(ProxySettings)
    serve(create_app(settings), "proxy", settings)


__getattr__ = lazy_app(lambda: create_app(load(ProxySettings)))

if __name__ == "__main__":
    main()
