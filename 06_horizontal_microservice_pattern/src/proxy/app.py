"""The proxy: `python -m src.proxy.app`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from serving_common.service import api_key_required, create_service, lazy_app, serve
from serving_common.settings import load
from src.configurations import ProxySettings
from src.proxy.backends import RequestContext, open_backends
from src.proxy.fan_out import FanOut, fan_out, missing_services
from src.proxy.routers import create_routers

SERVICES_WITHIN_S = 0.7
"""Seconds for their health checks in /health/ready, which itself has 0.8 s."""


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

    async def ready() -> str | None:
        # It can do its work as long as one service answers.
        context = RequestContext("readiness", asyncio.get_running_loop().time())
        missing = await missing_services(app.state.backends, context, SERVICES_WITHIN_S)
        if len(missing) == len(settings.services):
            return f"no service answers: {'; '.join(missing)}"
        app.state.warnings = missing
        return None

    app = create_service(
        settings,
        title="Predictions of several services",
        description=f"Calls {', '.join(settings.services)} at once and combines their responses.",
        lifespan=lifespan,
        ready=ready,
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
