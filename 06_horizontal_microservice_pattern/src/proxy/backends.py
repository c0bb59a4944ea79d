"""How a service is called: HTTP client, connection pool, deadline, circuit breaker. No other module does HTTP."""

import asyncio
import ssl
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, partial
from typing import Annotated, Generic, NotRequired, TypeVar
from weakref import WeakSet

import aiohttp
import httpx
import structlog
from aiohttp.tracing import Trace
from httpx_aiohttp import AiohttpTransport
from prometheus_client import Counter
from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic takes the one from typing only since Python 3.12

from serving_common import tracing
from serving_common.breaker import CircuitBreaker
from serving_common.callers import TIMEOUT_HEADER
from serving_common.concurrency import ConcurrencyLimiter
from serving_common.errors import FieldError
from serving_common.tracing import CLIENT, Span
from src.configurations import ProxySettings

T = TypeVar("T", bound=Mapping[str, object])

# Less than the 2 s after which gunicorn closes an idle connection (uvicorn: 5 s): a request that is sent while the
# service closes its connection has to be sent again.
KEEP_ALIVE_S = 1.5
# Less than aiohttp's default of 10 s: a recreated container may have another address.
DNS_S = 2
# Bound of a response, compressed or not; a prediction takes 50 bytes a row. `BackendRequest.max_bytes` adds to it.
MAX_RESPONSE_BYTES = 64 * 1024
# Bounds of what is passed on from the body of an error.
MAX_ERRORS, MAX_TEXT = 10, 500
# Decompressed between two looks at the clock.
STEP_BYTES = 64 * 1024

FAILURES = Counter("service_failures", "Calls to a service without a usable answer.", ["service"])
REFUSALS = Counter("service_refusals", "Calls that a service answered with a 4xx status.", ["service", "status"])

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Failure:
    """A service did not respond, or not usably. The caller of the proxy reads `reason`."""

    reason: str
    refusal: int | None = None
    """Its status, if the service refused the request with a 4xx: that says nothing against the service's health."""
    errors: tuple[FieldError, ...] = ()
    """Rows and fields that the service objects to."""


class UnusableResponse(Exception):
    """There is no response, or none that can be read; the text is the reason."""


@dataclass(frozen=True, slots=True)
class BackendRequest(Generic[T]):
    """A request that is sent to every service, and the parser of the responses."""

    method: str
    path: str
    parse: Callable[[bytes], T]  # raises ValueError, with a short text, if this is not a response to the request
    body: bytes | None = None
    max_bytes: int = MAX_RESPONSE_BYTES  # of the response


@dataclass(frozen=True, slots=True)
class RequestContext:
    """What the proxy's calls take from the request that causes them."""

    request_id: str  # forwarded, so that one id joins the logs of all services
    arrived: float  # loop time from which the services' deadlines count


class Backend:
    """One service. Its failures are returned as a `Failure`, never raised."""

    def __init__(
        self,
        name: str,
        url: str,
        transports: tuple[httpx.AsyncBaseTransport, httpx.AsyncBaseTransport],
        headers: Mapping[str, str],
        timeout_s: float,
        breaker: CircuitBreaker,
    ) -> None:
        """
        Args:
            name: for logs and metrics.
            url: to which the paths of requests are added.
            transports: one with a connection pool, and one that opens a connection for each request.
            headers: of every request.
            timeout_s: seconds after the request's arrival at the proxy at which a call fails.
            breaker: of this service alone.
        """
        self._name = name
        # Parsed once per path: parsing it for every request was a tenth of the proxy's work.
        self._url_of = cache(lambda path: httpx.URL(url.rstrip("/") + path))
        self._attributes_of = cache(partial(_attributes, self._url_of))
        self._transports = transports
        self._headers = headers
        self._timeout_s = timeout_s
        self._breaker = breaker
        self._failures = FAILURES.labels(name)  # here, because a rate needs the 0 before the first one

    async def call(self, request: BackendRequest[T], context: RequestContext) -> T | Failure:
        """The service's response; a Failure without any call while the circuit breaker is open."""
        if not self._breaker.allows():
            failure = Failure("is not called at the moment: it failed several times in a row")
            with self._span(request) as span:
                span.fail(failure.reason, "circuit_breaker_open")
            return failure
        response = await self.call_unguarded(request, context)
        if not isinstance(response, Failure):
            self._breaker.record_success()
        elif response.refusal is None:
            self._breaker.record_failure()
            self._failures.inc()
            log.warning("service_failed", service=self._name, reason=response.reason)
        else:
            # One caller's bad requests must not take a healthy service from all others.
            self._breaker.record_success()
            REFUSALS.labels(self._name, response.refusal).inc()
            log.warning("service_refused", service=self._name, status=response.refusal)
        return response

    async def call_unguarded(self, request: BackendRequest[T], context: RequestContext) -> T | Failure:
        """The service's response, whatever the circuit breaker says; the outcome does not count for it."""
        with self._span(request) as span:
            response = await self._exchange(request, context, span)
            if isinstance(response, Failure):
                span.fail(response.reason, str(response.refusal or "_OTHER"))
            return response

    def _span(self, request: BackendRequest[T]) -> Span:
        return tracing.span(request.method, CLIENT, self._attributes_of(request.method, request.path))

    async def _exchange(self, request: BackendRequest[T], context: RequestContext, span: Span) -> T | Failure:
        deadline = context.arrived + self._timeout_s
        remaining_ms = max(0, round((deadline - asyncio.get_running_loop().time()) * 1000))
        http_request = httpx.Request(
            request.method,
            self._url_of(request.path),
            content=request.body,
            headers={
                **self._headers,
                **tracing.headers(),
                "X-Request-ID": context.request_id,
                TIMEOUT_HEADER: str(remaining_ms),
            },
        )
        try:
            async with (
                asyncio.timeout_at(deadline),
                aclosing(await self._send(http_request)) as response,
            ):
                span.set({"http.response.status_code": response.status_code})
                if response.status_code != httpx.codes.OK:
                    errors: tuple[FieldError, ...] = ()
                    with suppress(UnusableResponse):  # read, also so that the connection can be kept
                        errors = _field_errors(await _read(response, request.max_bytes))
                    refusal = response.status_code if response.is_client_error else None
                    reason = f"answered with status {response.status_code}{_text(errors)}"
                    return Failure(reason, refusal, errors)
                content = await _read(response, request.max_bytes)
        except TimeoutError:
            return Failure(f"did not answer within {self._timeout_s:g} s")
        except UnusableResponse as exc:
            return Failure(str(exc))
        try:
            return request.parse(content)
        except ValidationError:
            return Failure("sent an invalid response")
        except ValueError as exc:
            return Failure(f"sent an invalid response: {exc}")

    async def _send(self, request: httpx.Request) -> httpx.Response:
        """The response's head.

        A kept connection may close while the request is on its way. If it does, without a byte of a response, the
        request is sent once more, on a new connection: predictions change nothing.
        """
        pooled, fresh = self._transports
        connection_was_kept.set(False)
        try:
            return await pooled.handle_async_request(request)
        except (httpx.HTTPError, aiohttp.ClientError) as exc:
            if not (connection_was_kept.get() and _is_disconnect(_cause(exc))):
                raise UnusableResponse(_reason(exc)) from exc
        try:
            return await fresh.handle_async_request(request)
        except (httpx.HTTPError, aiohttp.ClientError) as exc:
            raise UnusableResponse(_reason(exc)) from exc


def _attributes(url_of: Callable[[str], httpx.URL], method: str, path: str) -> tracing.Attributes:
    """What the semantic conventions for HTTP clients require."""
    url = url_of(path)
    return {
        "http.request.method": method,
        "url.full": str(url.copy_with(userinfo=b"")),
        "server.address": url.host,
        "server.port": url.port or (443 if url.scheme == "https" else 80),
    }


class _RowError(TypedDict):
    row: NotRequired[int]
    field: Annotated[str, Field(max_length=MAX_TEXT)]
    reason: Annotated[str, Field(max_length=MAX_TEXT)]


class _Problem(TypedDict):
    errors: Annotated[list[_RowError], Field(max_length=MAX_ERRORS)]


_problem = TypeAdapter(_Problem)


def _field_errors(content: bytes) -> tuple[FieldError, ...]:
    """What the body of a problem says about rows and fields; nothing if it is not one."""
    try:
        return tuple(_problem.validate_json(content)["errors"])
    except ValidationError:
        return ()


def _text(errors: tuple[FieldError, ...]) -> str:
    """The first of the errors, to be added to a sentence."""
    if not errors:
        return ""
    row = f"row {errors[0]['row']}: " if "row" in errors[0] else ""
    return f" ({row}{errors[0]['field']} {errors[0]['reason']})"


def _cause(exc: httpx.HTTPError | aiohttp.ClientError) -> BaseException | None:
    """aiohttp's exception: the transport turns most of them into httpx's, which tell less."""
    return exc.__cause__ if isinstance(exc, httpx.HTTPError) else exc


def _is_disconnect(exc: BaseException | None) -> bool:
    """Whether an open connection ended, without a byte of a response."""
    if isinstance(exc, aiohttp.ServerDisconnectedError):
        return isinstance(exc.message, str)  # else it is the part of the head that has arrived
    return isinstance(exc, aiohttp.ClientOSError) and not isinstance(exc, aiohttp.ClientConnectorError)


def _reason(exc: httpx.HTTPError | aiohttp.ClientError) -> str:
    """Why there is no response's head."""
    match cause := _cause(exc):
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientSSLError():
            return "failed the TLS handshake"
        case aiohttp.ClientConnectorError():
            return "cannot be reached"
        case aiohttp.ClientResponseError():
            return "did not answer in HTTP"
        case aiohttp.ServerDisconnectedError() if not _is_disconnect(cause):
            return "broke off its answer"
        case _:
            return "closed the connection without an answer"


async def _read(response: httpx.Response, max_bytes: int) -> bytes:
    """The body, decompressed.

    Not with httpx's own decoder: it unpacks without a bound, 1 MB of gzip to 1 GB, and blocks the event loop meanwhile.

    Raises:
        UnusableResponse: it is incomplete, too large, or cannot be decompressed.
    """
    encoding = response.headers.get("Content-Encoding", "identity").lower()
    if encoding not in ("identity", "gzip"):
        raise UnusableResponse(f"answered with the unknown Content-Encoding {encoding[:20]!r}")
    gzip = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS) if encoding == "gzip" else None
    content = bytearray()
    try:
        async for received in response.aiter_raw():
            piece = received if gzip is None else gzip.decompress(received, STEP_BYTES)
            while piece:
                content += piece
                if len(content) > max_bytes:
                    raise UnusableResponse(f"answered with more than {max_bytes} bytes")
                if gzip is None:
                    break
                await asyncio.sleep(0)
                piece = gzip.decompress(gzip.unconsumed_tail, STEP_BYTES)
    except (httpx.HTTPError, aiohttp.ClientError) as exc:
        raise UnusableResponse("broke off its answer") from exc
    except zlib.error as exc:
        raise UnusableResponse("sent a broken gzip") from exc
    if gzip is not None and not gzip.eof:
        raise UnusableResponse("sent a broken gzip")
    return bytes(content)


connection_was_kept: ContextVar[bool] = ContextVar("connection_was_kept")
"""Whether this task's last request was sent on a connection that had served another one."""


class _PoolingConnector(aiohttp.TCPConnector):
    """Sets `connection_was_kept`. (aiohttp's tracing could, but calls back at every step of every request.)"""

    def __init__(self, *, limit_per_host: int) -> None:
        super().__init__(limit=0, limit_per_host=limit_per_host, keepalive_timeout=KEEP_ALIVE_S, ttl_dns_cache=DNS_S)
        self._reused: WeakSet[object] = WeakSet()

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's
    ) -> aiohttp.connector.Connection:
        connection = await super().connect(req, traces, timeout)
        connection_was_kept.set(connection.protocol in self._reused)
        self._reused.add(connection.protocol)
        return connection


@dataclass(frozen=True, slots=True)
class Backends:
    """All services, and the concurrency limit of the requests to them.

    Without the limit, calls that wait for their turn in the proxy time out, and the breakers open on healthy services.
    """

    by_name: Mapping[str, Backend]
    limiter: ConcurrencyLimiter


@asynccontextmanager
async def open_backends(settings: ProxySettings) -> AsyncIterator[Backends]:
    """The configured services, on one connection pool for the life of the process."""

    def transport(connector: Callable[[], aiohttp.TCPConnector]) -> AiohttpTransport:
        return AiohttpTransport(
            tls, client=lambda: aiohttp.ClientSession(connector=connector(), cookie_jar=aiohttp.DummyCookieJar())
        )

    # Without compression: services are near, and their responses small.
    headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
    if settings.services_api_key is not None:
        headers["X-API-Key"] = settings.services_api_key.get_secret_value()
    tls = ssl.create_default_context()
    # httpx without its own pool, which slows down with every request in flight, and without its AsyncClient, whose
    # cookies, redirects and authentication took a fifth of the proxy's time. The README has the figures.
    async with (
        transport(lambda: _PoolingConnector(limit_per_host=settings.max_connections)) as pooled,
        transport(lambda: aiohttp.TCPConnector(limit=0, force_close=True, ttl_dns_cache=DNS_S)) as fresh,
    ):
        by_name = {
            name: Backend(
                name,
                str(url),
                (pooled, fresh),
                headers,
                settings.service_timeouts.get(name, settings.service_timeout_s),
                CircuitBreaker(settings.breaker_failures, settings.breaker_open_s),
            )
            for name, url in settings.services.items()
        }
        yield Backends(by_name, ConcurrencyLimiter(settings.max_in_flight, "Too many requests wait for the services"))
