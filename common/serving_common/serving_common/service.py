"""An HTTP service: FastAPI with request ids, logs, metrics, errors and limits, and a server that drains on shutdown."""

import asyncio
import errno
import gc
import hmac
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from types import FrameType
from typing import Annotated, Literal, NotRequired, cast

import structlog
import uvicorn
from fastapi import Depends, FastAPI, Response, Security
from fastapi.params import Depends as DependsParam
from fastapi.security import APIKeyHeader
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from typing_extensions import TypedDict  # pydantic takes the one from typing only since Python 3.12

from serving_common import logs, problems, tracing
from serving_common.direct import DirectMiddleware, direct_routes
from serving_common.errors import StartupError, Unauthorized
from serving_common.middleware import (
    BodyLimitMiddleware,
    LastResortErrorMiddleware,
    RequestContextMiddleware,
    RequestMetricsMiddleware,
    TracingMiddleware,
)
from serving_common.settings import HttpSettings

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]
ReadinessCheck = Callable[[], Awaitable[str | None]]
"""Returns None, or the reason why the service cannot do its work."""

READY_TIMEOUT_S = 0.8  # probes commonly wait 1 s
ABANDON_CHECK_S = 10

log = structlog.get_logger()


def create_service(
    settings: HttpSettings,
    *,
    title: str,
    description: str,
    lifespan: Lifespan,
    ready: ReadinessCheck | None = None,
    invalid_input: int = 422,
    invalid_detail: str = "Invalid input",
    body_too_large: str | None = None,
) -> FastAPI:
    """A FastAPI application to which a pattern adds its routers.

    Args:
        settings: limits of this service.
        title: shown in /docs.
        description: shown in /docs.
        lifespan: opens the service's resources before the first request and closes them after the last.
        ready: decides what /health/ready answers; without it the service is ready as soon as it serves.
        invalid_input: status of requests that violate the schema.
        invalid_detail: their `detail`.
        body_too_large: the `detail` of a 413, where users do not know the size of their request.
    """
    app = FastAPIOffline(  # /docs without a CDN
        static_url="/docs/static",
        title=title,
        description=description,
        version="1.1.0",
        lifespan=lifespan,
        redoc_url=None,
        # A program's global OpenTelemetry would turn on spans of FastAPI's own, beside those of TracingMiddleware.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
        middleware=[
            Middleware(RequestContextMiddleware),
            Middleware(RequestMetricsMiddleware),
            Middleware(LastResortErrorMiddleware),
            Middleware(BodyLimitMiddleware, settings.max_body_bytes, settings.max_inflight_body_bytes, body_too_large),
            Middleware(DirectMiddleware),
        ],
    )
    app.state.is_stopping = False
    app.state.on_stop = list[Callable[[], None]]()  # called at shutdown, to release waiting requests
    app.state.warnings = list[str]()  # of /health/ready: what weakens a promise of the service, though it works
    problems.install(app, invalid_input, invalid_detail)

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    _add_probes(app, ready)
    return app


class Alive(TypedDict):
    status: Literal["alive"]


class Ready(TypedDict):
    status: Literal["ready"]
    warnings: NotRequired[list[str]]


class NotReady(TypedDict):
    status: Literal["not ready"]
    reason: str


def _add_probes(app: FastAPI, ready: ReadinessCheck | None) -> None:
    """GET /health/live and /health/ready. Neither uses a thread, so that no amount of work delays them."""
    running: asyncio.Future[str | None] | None = None
    started = 0.0

    async def why_not_ready() -> str | None:
        if app.state.is_stopping:
            return "the service is stopping"
        if ready is None:
            return None
        nonlocal running, started
        # Probes share a check that still runs: a neighbour that hangs must not collect one thread per probe.
        now = asyncio.get_running_loop().time()
        if running is None or running.done() or now - started > ABANDON_CHECK_S:
            running, started = asyncio.ensure_future(ready()), now
        check = running
        if not (await asyncio.wait({check}, timeout=READY_TIMEOUT_S))[0]:
            return f"the check took longer than {READY_TIMEOUT_S:g} s"
        try:
            return check.result()
        except Exception as exc:
            log.exception("readiness_check_failed")
            return f"the check failed with {type(exc).__name__}"  # its text may hold a password

    @app.get("/health/live", tags=["health"])
    async def live() -> Alive:
        """Liveness: the process answers. Asks nobody else."""
        return {"status": "alive"}

    @app.get("/health/ready", tags=["health"], response_model=Ready, responses={503: {"model": NotReady}})
    async def is_ready() -> Ready | JSONResponse:
        """Readiness: whether the service can do its work, and if not, why."""
        if (reason := await why_not_ready()) is None:
            warnings: list[str] = app.state.warnings
            return {"status": "ready", "warnings": warnings} if warnings else {"status": "ready"}
        return JSONResponse(NotReady(status="not ready", reason=reason), 503)


def api_key_required(settings: HttpSettings) -> Sequence[DependsParam]:
    """Dependencies for `include_router`: the check of X-API-Key, or none if no key is set."""
    if settings.api_key is None:
        return []
    expected = settings.api_key.get_secret_value().encode()
    header = APIKeyHeader(name="X-API-Key", auto_error=False)

    async def check(given: Annotated[str | None, Security(header)]) -> None:
        # A comparison in constant time: the delay must not reveal how much of a guess is right.
        if not hmac.compare_digest((given or "").encode(), expected):
            raise Unauthorized("The X-API-Key header is missing or wrong")

    return [Depends(check)]


class _DrainingServer(uvicorn.Server):
    """After a signal: not ready at once, but open to requests for the drain delay; then only requests in flight."""

    def __init__(self, config: uvicorn.Config, drain_delay_s: float) -> None:
        super().__init__(config)
        self._drain_delay_s = drain_delay_s
        self._second_signal = asyncio.Event()  # ends the delay

    @property
    def _app(self) -> FastAPI:
        return cast(FastAPI, self.config.app)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            # A plain signal handler interrupts the loop anywhere, and does not wake it by itself.
            with suppress(RuntimeError):  # the loop does not run
                asyncio.get_running_loop().call_soon_threadsafe(self._second_signal.set)
        self._app.state.is_stopping = True  # here, not at the server's next tick: no later probe finds it ready
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # A balancer that works by connection would otherwise use the ones it has for as long as they stay open.
        self.server_state.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]
        with suppress(TimeoutError):
            await asyncio.wait_for(self._second_signal.wait(), self._drain_delay_s)
        # Not at the end of the lifespan, which comes only after the last response.
        for release in self._app.state.on_stop:
            release()
        await super().shutdown(sockets)


def serve(app: FastAPI, component: str, settings: HttpSettings, *, any_port: bool = False) -> None:
    """Run the app until SIGTERM or SIGINT, then drain: be not ready, finish the requests in flight, and return.

    The lifespan is entered before the port is bound, so that the first request finds a warm service.

    Args:
        app: made by `create_service`.
        component: the process's name in the logs.
        settings: address, port, drain delay, grace period.
        any_port: use a free port if PORT is unset and its default is taken.

    Raises:
        SystemExit: with code 1 and one line in the log, if the service cannot start.
    """
    logs.configure(component, settings)
    if tracing.configure(component):
        # Within the first, whose request id it needs; the stack is built at the first request.
        app.user_middleware.insert(1, Middleware(TracingMiddleware))
    direct_routes(app)  # an endpoint that cannot be served directly is found now, not by the first request
    server = _DrainingServer(
        uvicorn.Config(
            app,
            http="httptools",
            loop="uvloop" if sys.platform != "win32" else "asyncio",
            lifespan="off",  # entered below: uvicorn would print a traceback instead of one line
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=settings.keep_alive_s,
            timeout_graceful_shutdown=settings.shutdown_grace_s,
        ),
        settings.drain_delay_s,
    )

    async def run() -> None:
        async with app.router.lifespan_context(app):
            # These objects live as long as the process. Every full collection would scan them all and stall all
            # requests, for more than 100 ms on a slow machine.
            gc.collect()
            gc.freeze()
            listener = _listen(settings, any_port and "port" not in settings.model_fields_set)
            log.info("service_started", host=settings.host, port=listener.getsockname()[1])
            await server.serve([listener])

    # uvicorn handles signals only while it serves, and raises them again afterwards. These handlers keep a requested
    # stop from counting as a failure, and a signal during the lifespan's start from being lost.
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, server.handle_exit)
    try:
        with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
            runner.run(run())
    except StartupError as exc:
        log.critical("startup_failed", reason=str(exc))
        sys.exit(1)
    finally:
        tracing.shutdown()
    log.info("service_stopped")


def _listen(settings: HttpSettings, any_port: bool) -> socket.socket:
    """A listening socket or StartupError: uvicorn, binding by itself, would log a bare line and exit with code 3."""
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
    """A module's `__getattr__` that creates `app` on access (`uvicorn src.proxy.app:app`).

    Importing the module therefore reads no environment, and a test can create an app with its own settings.
    """

    def __getattr__(name: str) -> FastAPI:  # noqa: N807 - a module's
        if name != "app":
            raise AttributeError(name)
        return create()

    return __getattr__
