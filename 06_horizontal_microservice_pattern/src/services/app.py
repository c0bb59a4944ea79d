"""One specialised service: `python -m src.services.app`. Its settings decide which one."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from serving_common.service import api_key_required, create_service, lazy_app, serve
from serving_common.settings import load
from src.configurations import ServiceSettings
from src.ml.predictor import open_predictor
from src.services.routers import create_router, health_router


def create_app(settings: ServiceSettings) -> FastAPI:
    """The service that these settings describe."""
    card = settings.card

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_predictor(card, settings.model_threads, settings.model_loop_us) as predictor:
            app.state.predictor = predictor
            yield

    app = create_service(
        settings,
        title=settings.name,
        description=f"The model {card.name}, a {card.task} of {card.described_row()}.",
        lifespan=lifespan,
    )
    app.include_router(health_router)
    app.include_router(create_router(card, settings.name), dependencies=api_key_required(settings))
    return app


def main() -> None:
    settings = load(ServiceSettings)
    serve(create_app(settings), f"service_{settings.name}", settings)


__getattr__ = lazy_app(lambda: create_app(load(ServiceSettings)))

if __name__ == "__main__":
    main()
