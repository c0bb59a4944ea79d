"""An HTTP service: FastAPI with ids, logs, metrics, errors and limits in place, and a server that stops gracefully."""

import asyncio
import errno
import gc
import hmac
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Annotated, cast

import structlog
import uvicorn
from fastapi import Depends, FastAPI, Response, Security
from fastapi.params import Depends as DependsParam
from fastapi.security import APIKeyHeader
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.middleware import Middleware

from serving_common import logs, problems
from serving_common.errors import StartupError, Unauthorized
from serving_common.middleware import (
    BodyLimitMiddleware,
    LastResortErrorMiddleware,
    RequestContextMiddleware,
    RequestMetricsMiddleware,
)
from serving_common.settings import HttpSettings

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]

log = structlog.get_logger()


def create_service(
    settings: HttpSettings,
    *,
    title: str,
    description: str,
    lifespan: Lifespan,
    invalid_input: int = 422,
    invalid_detail: str = "Invalid input",
) -> FastAPI:
    """A FastAPI application to which a pattern adds its routers.

    Args:
        settings: limits of this service.
        title: shown in /docs.
        description: shown in /docs.
        lifespan: opens what the service needs before the first request, closes it after the last.
        invalid_input: status for requests that do not fit the schema.
        invalid_detail: `detail` for such requests.
    """
    app = FastAPI(
        title=title,
        description=description,
        version="1.0.0",
        lifespan=lifespan,
        redoc_url=None,
        middleware=[
            Middleware(RequestContextMiddleware),
            Middleware(RequestMetricsMiddleware),
            Middleware(LastResortErrorMiddleware),
            Middleware(BodyLimitMiddleware, settings.max_body_bytes, settings.max_inflight_body_bytes),
        ],
    )
    app.state.on_stop = list[Callable[[], None]]()  # called when requests that only wait should be answered
    problems.install(app, invalid_input, invalid_detail)

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return app


def api_key_required(settings: HttpSettings) -> Sequence[DependsParam]:
    """Dependencies for `include_router`: the check of X-API-Key, or nothing where no key is set."""
    if settings.api_key is None:
        return []
    expected = settings.api_key.get_secret_value().encode()
    header = APIKeyHeader(name="X-API-Key", auto_error=False)

    async def check(given: Annotated[str | None, Security(header)]) -> None:
        # Compared in constant time, so that the answer's delay does not tell how much of a guess was right.
        if not hmac.compare_digest((given or "").encode(), expected):
            raise Unauthorized("The X-API-Key header is missing or wrong")

    return [Depends(check)]


class _Server(uvicorn.Server):
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Here and not when the lifespan ends: that is only after the last answer.
        for let_go in cast(FastAPI, self.config.app).state.on_stop:
            let_go()
        await super().shutdown(sockets)


def serve(app: FastAPI, component: str, settings: HttpSettings, *, any_port: bool = False) -> None:
    """Run the app until SIGTERM or SIGINT, then finish the requests in hand and return.

    What the lifespan opens is ready before the port is bound, so that the first request already finds a warm service.

    Args:
        app: made by `create_service`.
        component: the process's name in the logs.
        settings: address, port, grace.
        any_port: whether another port will do if PORT is not set and its default is taken.

    Raises:
        SystemExit: with code 1 and one line in the log, if the service cannot start.
    """
    logs.configure(component, settings)
    server = _Server(
        uvicorn.Config(
            app,
            http="httptools",
            loop="uvloop" if sys.platform != "win32" else "asyncio",
            lifespan="off",  # entered below: uvicorn would print a traceback and not our one line
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=settings.shutdown_grace_s,
        )
    )

    async def run() -> None:
        async with app.router.lifespan_context(app):
            # What stands now stands to the end. Each full collection would look through all of it, and all requests
            # would wait: for more than 100 ms on a slow machine.
            gc.collect()
            gc.freeze()
            listener = _listen(settings, any_port and "port" not in settings.model_fields_set)
            log.info("service_started", host=settings.host, port=listener.getsockname()[1])
            await server.serve([listener])

    # uvicorn takes signals once it serves, and raises them again when it is done: a stop that was asked for is no
    # failure. One that comes while the lifespan still loads a model must not be lost.
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, server.handle_exit)
    try:
        with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
            runner.run(run())
    except StartupError as exc:
        log.critical("startup_failed", reason=str(exc))
        sys.exit(1)
    log.info("service_stopped")


def _listen(settings: HttpSettings, any_port: bool) -> socket.socket:
    """Raises StartupError where uvicorn, left to bind by itself, would log a bare message and exit with code 3."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        try:
            return socket.create_server((settings.host, settings.port), family=family)
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE or not any_port:
                raise
            return socket.create_server((settings.host, 0), family=family)
    except OSError as exc:
        raise StartupError(f"cannot listen on {settings.host} port {settings.port}: {exc.strerror or exc}") from exc


def lazy_app(create: Callable[[], FastAPI]) -> Callable[[str], FastAPI]:
    """A module's `__getattr__` that makes `app` when it is first asked for (`uvicorn src.proxy.app:app`).

    So importing the module reads no environment, and a test can make an app with settings of its own.
    """

    def __getattr__(name: str) -> FastAPI:  # noqa: N807 - it becomes a module's
        if name != "app":
            raise AttributeError(name)
        return create()

    return __getattr__
