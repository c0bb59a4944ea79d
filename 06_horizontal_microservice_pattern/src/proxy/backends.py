"""How a service is called: HTTP client, connection pool, deadline, circuit breaker. No other module does HTTP."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import Generic, TypeVar

import aiohttp
import httpx
import structlog
from httpx_aiohttp import AiohttpTransport
from prometheus_client import Counter

from serving_common.breaker import CircuitBreaker
from serving_common.concurrency import ConcurrencyLimiter
from src.configurations import ProxySettings

T = TypeVar("T", bound=Mapping[str, object])

# Less than the 5 s after which uvicorn closes an idle connection: otherwise a request is now and then sent on a
# connection that the service is just closing.
KEEP_ALIVE_S = 2
# Less than aiohttp's default of 10 s: a recreated container may have another address.
DNS_S = 2

FAILURES = Counter("service_failures", "Calls to a service without a usable answer.", ["service"])

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Failure:
    """A service did not respond, or not usably. The caller of the proxy reads `reason`."""

    reason: str


@dataclass(frozen=True, slots=True)
class BackendRequest(Generic[T]):
    """A request that is sent to every service, and the parser of the responses."""

    method: str
    path: str
    parse: Callable[[bytes], T]  # raises ValueError if the content is not a response to this request
    body: bytes | None = None


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
        transport: httpx.AsyncBaseTransport,
        headers: Mapping[str, str],
        timeout_s: float,
        breaker: CircuitBreaker,
    ) -> None:
        self._name = name
        # Parsed once per path: parsing it for every request was a tenth of the proxy's work.
        self._url_of = cache(lambda path: httpx.URL(url.rstrip("/") + path))
        self._transport = transport
        self._headers = headers
        self._timeout_s = timeout_s
        self._breaker = breaker

    async def call(self, request: BackendRequest[T], context: RequestContext) -> T | Failure:
        """The service's response; a Failure without any call while the circuit breaker is open."""
        if not self._breaker.allows():
            return Failure("is not called at the moment: it failed several times in a row")
        response = await self.call_unguarded(request, context)
        if isinstance(response, Failure):
            self._breaker.record_failure()
            FAILURES.labels(self._name).inc()
            log.warning("service_failed", service=self._name, reason=response.reason)
        else:
            self._breaker.record_success()
        return response

    async def call_unguarded(self, request: BackendRequest[T], context: RequestContext) -> T | Failure:
        """The service's response, whatever the circuit breaker says; the outcome does not count for it."""
        http_request = httpx.Request(
            request.method,
            self._url_of(request.path),
            content=request.body,
            headers={**self._headers, "X-Request-ID": context.request_id},
        )
        try:
            async with (
                asyncio.timeout_at(context.arrived + self._timeout_s),
                aclosing(await self._transport.handle_async_request(http_request)) as response,
            ):
                content = await response.aread()
            if response.status_code != httpx.codes.OK:
                return Failure(f"answered with status {response.status_code}")
            return request.parse(content)
        except TimeoutError:
            return Failure(f"did not answer within {self._timeout_s:g} s")
        except (httpx.HTTPError, aiohttp.ClientError):
            return Failure("cannot be reached")
        except ValueError:
            return Failure("sent an invalid response")


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

    def session() -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            limit=0, limit_per_host=settings.max_connections, keepalive_timeout=KEEP_ALIVE_S, ttl_dns_cache=DNS_S
        )
        return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())

    headers = {"Content-Type": "application/json"}
    if settings.services_api_key is not None:
        headers["X-API-Key"] = settings.services_api_key.get_secret_value()
    # httpx without its own pool, which slows down with every request in flight, and without its AsyncClient, whose
    # cookies, redirects and authentication took a fifth of the proxy's time. The README has the figures.
    async with AiohttpTransport(client=session) as transport:
        by_name = {
            name: Backend(
                name,
                str(url),
                transport,
                headers,
                settings.service_timeouts.get(name, settings.service_timeout_s),
                CircuitBreaker(settings.breaker_failures, settings.breaker_open_s),
            )
            for name, url in settings.services.items()
        }
        yield Backends(by_name, ConcurrencyLimiter(settings.max_in_flight, "Too many requests wait for the services"))
