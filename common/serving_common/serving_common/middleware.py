"""ASGI middleware around every request, one concern per class.

`create_service` nests them in this order, outermost first. What one leaves for the others is in the scope's state, so
that a request costs one `send` wrapper and one `receive` wrapper, not one per class:

RequestContextMiddleware     `request_id`, for logs and X-Request-ID; `status` of the response, 0 until it begins
TracingMiddleware            the request's span; only in the stack if traces are on
RequestMetricsMiddleware     metrics and the access log
LastResortErrorMiddleware    unexpected exceptions become a logged 500
BodyLimitMiddleware          413 and 429 for bodies; `arrived`, the loop time at which the body was complete
"""

import asyncio
import os
import time
from functools import cache

import structlog
from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving_common import tracing
from serving_common.problems import problem

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series per metric that nothing here reads
REQUESTS = Counter("request_count", "Requests answered.", ["method", "route", "status"])
ERRORS = Counter("request_errors", "Requests answered with a 5xx status.", ["route", "status"])
DURATION = Histogram(
    "request_duration_seconds",
    "From the request's arrival to the end of its answer.",
    ["route"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
)
IN_FLIGHT = Gauge("requests_in_flight", "Requests without a complete answer; probes and scrapes do not count.")
METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
HEALTH_ROUTES = frozenset({"/health", "/health/live", "/health/ready"})
# Probes and scrapes come every few seconds; at info level their lines would bury the others.
QUIET_ROUTES = HEALTH_ROUTES | {"/metrics"}

log = structlog.get_logger()


class RequestContextMiddleware:
    """Gives each request an id: the caller's X-Request-ID if it is valid, else a new one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = _header(scope, b"x-request-id")
        request_id = given.decode() if tracing.REQUEST_ID.fullmatch(given) else os.urandom(16).hex()
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        state["status"] = 0
        structlog.contextvars.bind_contextvars(request_id=request_id)
        tracing.request_id.set(request_id)
        method = scope["method"]
        # Load balancers probe with HEAD, for which FastAPI's routes have no answer. The server leaves out the body.
        if method == "HEAD" and scope["path"] in HEALTH_ROUTES:
            scope["method"] = "GET"

        async def send_with_request_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                scope["method"] = method
                state["status"] = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        await self._app(scope, receive, send_with_request_id)


class TracingMiddleware:
    """Continues the caller's trace, or begins one, and binds its id to the log lines of the request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in QUIET_ROUTES:
            await self._app(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in METHODS else "_OTHER"
        name = "HTTP" if method == "_OTHER" else method
        with tracing.begin(scope["headers"], name) as span:
            structlog.contextvars.bind_contextvars(trace_id=span.trace_id)
            if not span.is_recording:
                await self._app(scope, receive, send)
                return
            span.set(_request_attributes(scope, method))
            try:
                await self._app(scope, receive, send)
            finally:
                status = scope["state"]["status"]
                answered = {"http.response.status_code": status}
                if route := getattr(scope.get("route"), "path", None):
                    span.rename(f"{name} {route}")
                    answered["http.route"] = route
                span.set(answered)
                if status >= 500:
                    span.fail("", str(status))


def _request_attributes(scope: Scope, method: str) -> tracing.Attributes:
    """What the semantic conventions for HTTP servers know when a request arrives."""
    attributes: dict[str, str | int] = {
        "http.request.method": method,
        "url.path": scope["path"],
        "url.scheme": scope.get("scheme", "http"),
        "network.protocol.version": scope["http_version"],
    }
    if server := scope.get("server"):
        attributes["server.address"], attributes["server.port"] = server
    if client := scope.get("client"):
        attributes["client.address"] = client[0]
    if query := scope.get("query_string"):
        attributes["url.query"] = query.decode("latin-1")
    return attributes


class RequestMetricsMiddleware:
    """Counts, times and logs each request once its response has ended."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        counts = scope["path"] not in QUIET_ROUTES
        IN_FLIGHT.inc(counts)
        try:
            await self._app(scope, receive, send)
        finally:
            IN_FLIGHT.dec(counts)
            duration = time.perf_counter() - started
            status = scope["state"]["status"]
            # The route's template and known methods only: a label per path would let callers create endless series.
            route = getattr(scope.get("route"), "path", "unmatched")
            method = scope["method"] if scope["method"] in METHODS else "other"
            requests, durations = _series(method, route, status)
            requests.inc()
            durations.observe(duration)
            if status >= 500:
                ERRORS.labels(route, status).inc()
            write = log.debug if route in QUIET_ROUTES else log.info
            write(
                "request_completed",
                method=method,
                path=scope["path"],
                status=status,
                duration_ms=round(duration * 1000, 2),
            )


@cache
def _series(method: str, route: str, status: int) -> tuple[Counter, Histogram]:
    """Looked up once: finding them by their labels takes longer than counting does."""
    return REQUESTS.labels(method, route, status), DURATION.labels(route)


class LastResortErrorMiddleware:
    """Logs an unexpected exception with its traceback and tells the caller no more than the request id."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        except Exception as exc:
            log.exception("request_failed", method=scope["method"], path=scope["path"])
            tracing.current().record(exc)
            if scope["state"]["status"]:
                raise  # The response has begun: only a broken connection can still tell the caller.
            await problem(500, "Internal server error", scope["state"]["request_id"])(scope, receive, send)


class BodyLimitMiddleware:
    """Limits one body, and the bodies of all requests in flight together."""

    def __init__(
        self, app: ASGIApp, max_body_bytes: int, max_inflight_body_bytes: int, too_large: str | None = None
    ) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._max_inflight_body_bytes = max_inflight_body_bytes
        self._inflight_body_bytes = 0
        self._too_large = too_large or f"The request body is larger than {max_body_bytes} bytes"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        loop = asyncio.get_running_loop()
        state = scope["state"]
        state["arrived"] = loop.time()
        declared_bytes = _header(scope, b"content-length")
        if declared_bytes.isdigit() and int(declared_bytes) > self._max_body_bytes:
            await problem(413, self._too_large, state["request_id"])(scope, receive, send)
            return
        received_bytes = 0

        async def limited_receive() -> Message:
            nonlocal received_bytes
            message = await receive()
            chunk_bytes = len(message.get("body", b""))
            received_bytes += chunk_bytes
            self._inflight_body_bytes += chunk_bytes
            if received_bytes > self._max_body_bytes:
                raise HTTPException(413, self._too_large)
            # A request that is alone may exceed the common limit: nothing would ever make room for it.
            if self._inflight_body_bytes > max(self._max_inflight_body_bytes, received_bytes):
                raise HTTPException(429, "Too many large requests are being worked on")
            state["arrived"] = loop.time()
            return message

        try:
            await self._app(scope, limited_receive, send)
        finally:
            self._inflight_body_bytes -= received_bytes


def _header(scope: Scope, wanted: bytes) -> bytes:
    """The last value of a header, or nothing."""
    found = b""
    for name, value in scope["headers"]:
        if name == wanted:
            found = value
    return found
