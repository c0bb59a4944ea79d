"""One specialised service: `python -m src.services.app`. Its settings decide which one."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from serving_common.service import api_key_required, create_service, lazy_app, serve
from serving_common.settings import load
from src.configurations import ServiceSettings
from src.ml.predictor import open_predictor
from src.services.routers import health_router, router


def create_app(settings: ServiceSettings) -> FastAPI:
    """The service that these settings describe."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_predictor(settings.model_filepath, settings.model_threads) as predictor:
            app.state.predictor = predictor
            yield

    app = create_service(
        settings,
        title=f"Iris {settings.service_name}",
        description=f"The probability that a flower is a {settings.service_name}.",
        lifespan=lifespan,
    )
    app.state.service_name = settings.service_name
    app.include_router(health_router)
    app.include_router(router, dependencies=api_key_required(settings))
    return app


def main() -> None:
    settings = load(ServiceSettings)
    serve(create_app(settings), f"service_{settings.service_name}", settings)


__getattr__ = lazy_app(lambda: create_app(load(ServiceSettings)))

if __name__ == "__main__":
    main()
