"""The one module that knows how a service is reached: HTTP client, pool, deadlines, and all that can go wrong."""

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

# Less than the 5 s after which uvicorn closes an idle connection: else, now and then, a request would go out on a
# connection that the service is just closing.
KEEP_ALIVE_S = 2
# Less than the 10 s for which aiohttp remembers an address: a container that is made anew may have another one.
DNS_S = 2

FAILURES = Counter("service_failures", "Calls to a service without a usable answer.", ["service"])

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Failure:
    """A service did not answer, or not usably. `reason` is for the caller to read."""

    reason: str


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A request that goes to every service, and how to read the answers."""

    method: str
    path: str
    parse: Callable[[bytes], T]  # raises ValueError for what is no answer to this request
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """The request to the proxy that makes the proxy ask."""

    request_id: str  # forwarded, so that one id joins the logs of all services
    arrived: float  # loop time from which the services' deadlines count


class Backend:
    """One service. A service that fails makes it return a `Failure`, never raise."""

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
        # Parsed once for each path that is asked for: for every request it would be a tenth of the proxy's work.
        self._url_of = cache(lambda path: httpx.URL(url.rstrip("/") + path))
        self._transport = transport
        self._headers = headers
        self._timeout_s = timeout_s
        self._breaker = breaker

    async def ask(self, call: Call[T], origin: Origin) -> T | Failure:
        """The service's answer. One that has just failed several times in a row is not asked at all."""
        if not self._breaker.allows():
            return Failure("is not asked at the moment: it failed several times in a row")
        answer = await self.probe(call, origin)
        if isinstance(answer, Failure):
            self._breaker.record_failure()
            FAILURES.labels(self._name).inc()
            log.warning("service_failed", service=self._name, reason=answer.reason)
        else:
            self._breaker.record_success()
        return answer

    async def probe(self, call: Call[T], origin: Origin) -> T | Failure:
        """The service's answer whatever happened before, and without consequences for what comes."""
        request = httpx.Request(
            call.method,
            self._url_of(call.path),
            content=call.body,
            headers={**self._headers, "X-Request-ID": origin.request_id},
        )
        try:
            async with (
                asyncio.timeout_at(origin.arrived + self._timeout_s),
                aclosing(await self._transport.handle_async_request(request)) as response,
            ):
                content = await response.aread()
            if response.status_code != httpx.codes.OK:
                return Failure(f"answered with status {response.status_code}")
            return call.parse(content)
        except TimeoutError:
            return Failure(f"did not answer within {self._timeout_s:g} s")
        except (httpx.HTTPError, aiohttp.ClientError):
            return Failure("cannot be reached")
        except ValueError:
            return Failure("answered with something else than was asked for")


@dataclass(frozen=True, slots=True)
class Backends:
    """All services, and room for so many requests to them that none waits for its turn until its time is over.

    Without that bound, the proxy's own lateness would be taken for the services', and no service be asked any more.
    """

    by_name: Mapping[str, Backend]
    places: ConcurrencyLimiter


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
    # httpx without its own pool, which becomes slower the more requests are under way, and without its AsyncClient,
    # whose cookies, redirects and authentication took a fifth of the proxy's time. The README has the figures.
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
        yield Backends(by_name, ConcurrencyLimiter(settings.max_waiting, "Too many requests wait for the services"))
