"""The proxy: `python -m src.proxy.app`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from serving_common.service import api_key_required, create_service, lazy_app, serve
from serving_common.settings import load
from src.configurations import ProxySettings
from src.proxy.backends import open_backends
from src.proxy.fan_out import FanOut, fan_out
from src.proxy.routers import create_routers


def create_app(settings: ProxySettings, fan_out: FanOut = fan_out) -> FastAPI:
    """The proxy in front of the services that these settings name.

    Args:
        settings: services, deadlines and limits.
        fan_out: how the services are called; the benchmark compares with one after the other.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_backends(settings) as backends:
            app.state.backends = backends
            yield

    app = create_service(
        settings,
        title="Predictions of several services",
        description=f"Calls {', '.join(settings.services)} at once and combines their responses.",
        lifespan=lifespan,
    )
    health_router, router = create_routers(list(settings.services), settings.card, fan_out)
    app.include_router(health_router)
    app.include_router(router, dependencies=api_key_required(settings))
    return app


def main() -> None:
    settings = load(ProxySettings)
    serve(create_app(settings), "proxy", settings)


__getattr__ = lazy_app(lambda: create_app(load(ProxySettings)))

if __name__ == "__main__":
    main()
