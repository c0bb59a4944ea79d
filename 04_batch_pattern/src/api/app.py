"""The FastAPI application, `python -m src.api.app`: registers rows and returns their predictions."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, closing
from typing import cast

from anyio import to_thread
from fastapi import FastAPI

from serving_common.cards import default_card
from serving_common.service import api_key_required, create_service, lazy_app, serve
from serving_common.settings import load
from serving_common.tasks import cancel_and_wait
from src.api import metrics
from src.api.health import Probe
from src.api.routers import create_router, health_router
from src.configurations import ApiSettings
from src.db.database import Database, open_database
from src.ml.metadata import read_card, read_metadata


def create_app(settings: ApiSettings) -> FastAPI:
    """The API, on the database that the settings name."""
    # Labels and model are missing here, and read when the API starts: the routes need only the inputs.
    card = settings.model_card or default_card()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.metadata = read_metadata(read_card(settings))
        with ExitStack() as stack:
            app.state.database = await to_thread.run_sync(stack.enter_context, open_database(settings))
            app.state.ping = stack.enter_context(closing(Probe(settings, Database.ping)))
            app.state.readiness = stack.enter_context(closing(Probe(settings, Database.check_writable)))
            watching = asyncio.create_task(metrics.watch(settings))
            yield
            await cancel_and_wait(watching)

    async def ready() -> str | None:
        return await cast(Probe, app.state.readiness).why_not()

    app = create_service(
        settings,
        title=f"{card.name}, registered now and predicted later",
        description="Stores rows, which the batch job predicts later.",
        lifespan=lifespan,
        ready=ready,
        invalid_input=400,
        invalid_detail="Invalid data format",
    )
    app.include_router(health_router)
    app.include_router(create_router(card), dependencies=api_key_required(settings))
    return app


def main() -> None:
    settings = load(ApiSettings)
    serve(create_app(settings), "api", settings)


__getattr__ = lazy_app(lambda: create_app(load(ApiSettings)))

if __name__ == "__main__":
    main()
