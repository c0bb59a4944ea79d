"""What happens around every request: its id, its size limit, its metrics, its log line, its last-resort error."""

import asyncio
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import structlog
from prometheus_client import Counter, Histogram, disable_created_metrics
from starlette.exceptions import HTTPException

from serving_common.problems import problem

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each that nothing here reads
REQUESTS = Counter("request_count", "Requests answered.", ["method", "route", "status"])
ERRORS = Counter("request_errors", "Requests answered with a 5xx status.", ["route", "status"])
DURATION = Histogram(
    "request_duration_seconds",
    "From the request's arrival to the end of its answer.",
    ["route"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
)
METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
# Probes and scrapes come every few seconds; their lines would bury the others.
QUIET_ROUTES = frozenset({"/health", "/metrics"})
# What a caller sends is logged and forwarded, so it may be no longer and no stranger than an id.
REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")

log = structlog.get_logger()


class ServiceMiddleware:
    """ASGI middleware. Leaves `request_id` and `arrived` (loop time at which the body was complete) in the state."""

    def __init__(self, app: ASGIApp, max_body_bytes: int, max_inflight_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._max_bodies_bytes = max_inflight_body_bytes
        self._bodies_bytes = 0  # of all requests in hand

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        started = time.perf_counter()
        request_id, declared_bytes = _read_headers(scope["headers"])
        loop = asyncio.get_running_loop()
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        state["arrived"] = loop.time()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        received_bytes = 0
        status = 0

        async def limited_receive() -> Message:
            nonlocal received_bytes
            message = await receive()
            chunk_bytes = len(message.get("body", b""))
            received_bytes += chunk_bytes
            self._bodies_bytes += chunk_bytes
            if received_bytes > self._max_body_bytes:
                raise HTTPException(413, self._too_large)
            if self._bodies_bytes > max(self._max_bodies_bytes, received_bytes):  # never the only one
                raise HTTPException(429, "Too many large requests are being worked on")
            state["arrived"] = loop.time()
            return message

        async def labelled_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            if declared_bytes > self._max_body_bytes:
                await problem(413, self._too_large, request_id)(scope, receive, labelled_send)
            else:
                await self._app(scope, limited_receive, labelled_send)
        except Exception:
            log.exception("request_failed", method=scope["method"], path=scope["path"])
            if status:
                raise  # The answer has begun: only a broken connection can still tell the caller.
            await problem(500, "Internal server error", request_id)(scope, receive, labelled_send)
        finally:
            self._bodies_bytes -= received_bytes
            duration = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "unmatched")
            method = scope["method"] if scope["method"] in METHODS else "other"
            REQUESTS.labels(method, route, status).inc()
            DURATION.labels(route).observe(duration)
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

    @property
    def _too_large(self) -> str:
        return f"The request body is larger than {self._max_body_bytes} bytes"


def _read_headers(headers: list[tuple[bytes, bytes]]) -> tuple[str, int]:
    """The caller's request id, or a new one, and the declared length of the body, or 0."""
    request_id, length = None, 0
    for name, value in headers:
        if name == b"x-request-id" and REQUEST_ID.fullmatch(value):
            request_id = value.decode()
        elif name == b"content-length" and value.isdigit():
            length = int(value)
    return request_id or uuid.uuid4().hex, length
