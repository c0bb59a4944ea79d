"""The proxy in front of services that fail in every way. Real servers on real sockets."""

import asyncio
import gzip
import re
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from prometheus_client import REGISTRY

from serving_common.breaker import CircuitBreaker
from serving_testing.processes import free_port
from serving_testing.promtool import naming_problems, needs_promtool, undocumented
from src.configurations import ProxySettings
from src.proxy import backends
from src.proxy.app import create_app

ONE_ROW = {"data": [[5.1, 3.5, 1.4, 0.2]]}
PREDICTED = '{"prediction":[0.75,0.25]}'
NAMES = ("setosa", "versicolor", "virginica")

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class StubService:
    """A server that lets `answer` write each response, and records the requests."""

    port: int = field(default_factory=free_port)
    host: str = "127.0.0.1"
    requests: list[bytes] = field(default_factory=list)
    entered: asyncio.Event = field(default_factory=asyncio.Event)
    answer: Answer | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    (int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if b"content-length" in line), 0
                )
                self.requests.append(head + await reader.readexactly(length))
                self.entered.set()
                if self.answer is not None:
                    await self.answer(reader, writer)
                else:
                    await respond(writer, 200, {"prediction": [0.75, 0.25]})
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with await asyncio.start_server(self.serve, "127.0.0.1", self.port) as server:
            yield
            server.close()


async def respond(writer: asyncio.StreamWriter, status: int, body: object) -> None:
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
    await writer.drain()


def responds(status: int, body: object) -> Answer:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await respond(writer, status, body)

    return answer


async def hangs(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()  # until the proxy goes away


async def hangs_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def resets(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def writes(content: bytes) -> Answer:
    """Writes this and closes the connection."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(content)
        await writer.drain()
        writer.close()

    return answer


async def speaks_another_protocol(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 mail.example ESMTP\r\n\r\n")
    await writer.drain()


HALF_A_BODY = b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"predic'
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def gzipped(content: bytes, encoding: str = "gzip") -> Answer:
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {encoding}\r\nContent-Length: {len(content)}\r\n\r\n"
    return writes(head.encode() + content)


async def endless(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(CHUNKED)
    while True:
        writer.write(b"1000\r\n" + b" " * 4096 + b"\r\n")
        await writer.drain()  # raises ConnectionError once the proxy has hung up


@pytest.fixture
async def services() -> AsyncIterator[dict[str, StubService]]:
    async with AsyncExitStack() as stack:
        services = {name: StubService() for name in NAMES}
        for service in services.values():
            await stack.enter_async_context(service.running())
        yield services


@asynccontextmanager
async def proxy(
    services: dict[str, StubService], path: str = "", **settings: object
) -> AsyncIterator[httpx.AsyncClient]:
    urls = {name: f"http://{service.host}:{service.port}{path}" for name, service in services.items()}
    app = create_app(ProxySettings.model_validate({"services": urls} | settings))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://p") as client:
        yield client


async def test_request_id_and_services_api_key_are_forwarded(services):
    async with proxy(services, services_api_key="secret") as client:
        await client.post("/predict", json=ONE_ROW, headers={"X-Request-ID": "joins-the-logs"})

    for service in services.values():
        [request] = service.requests
        assert b"x-request-id: joins-the-logs" in request.lower()
        assert b"x-api-key: secret" in request.lower()
        assert request.endswith(orjson.dumps(ONE_ROW))


async def test_remaining_time_is_forwarded(services):
    async with proxy(services, service_timeout_s=30, service_timeouts="setosa=0.9") as client:
        await client.post("/predict", json=ONE_ROW)

    remaining = {
        name: int(re.findall(rb"x-request-timeout-ms: (\d+)\r", service.requests[0].lower())[0])
        for name, service in services.items()
    }
    assert 0 <= remaining["setosa"] <= 900
    assert 900 < remaining["virginica"] <= 30_000


async def test_service_url_may_have_a_path(services):
    async with proxy(services, path="/models/iris/") as client:
        await client.post("/predict", json=ONE_ROW)

    assert services["setosa"].requests[0].startswith(b"POST /models/iris/predict HTTP/1.1\r\n")


async def test_all_services_are_called_at_the_same_time(services):
    all_entered = asyncio.Barrier(len(services))

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await all_entered.wait()  # called one after the other, the first would wait forever
        await respond(writer, 200, {"prediction": [0.75, 0.25]})

    for service in services.values():
        service.answer = answer

    async with proxy(services, service_timeout_s=30) as client:
        answers = (await client.post("/predict", json=ONE_ROW)).json()

    assert answers == {name: {"prediction": [0.75, 0.25]} for name in NAMES}


async def test_connections_are_reused(services):
    connections = set()

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(writer.get_extra_info("peername"))
        await respond(writer, 200, {"prediction": [0.75, 0.25]})

    services["setosa"].answer = answer
    async with proxy(services) as client:
        for _ in range(5):
            await client.post("/predict", json=ONE_ROW)

    assert len(connections) == 1


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        pytest.param(responds(500, {"detail": "no"}), "answered with status 500", id="500"),
        pytest.param(responds(404, b"no such page"), "answered with status 404", id="404"),
        pytest.param(responds(404, b"x" * 1_000_000), "answered with status 404", id="404 with a large body"),
        pytest.param(responds(301, b""), "answered with status 301", id="redirect"),
        pytest.param(responds(200, b"<html>"), "sent an invalid response", id="HTML"),
        pytest.param(responds(200, {"prediction": [[1, 0]] * 2}), "sent an invalid response", id="too many rows"),
        pytest.param(hangs, "did not answer within 0.2 s", id="hangs"),
        pytest.param(hangs_up, "closed the connection without an answer", id="hangs up"),
        pytest.param(resets, "closed the connection without an answer", id="resets"),
        pytest.param(writes(b"HTTP/1.1 200 OK\r\nContent-"), "broke off its answer", id="half a head"),
        pytest.param(writes(HALF_A_BODY), "broke off its answer", id="half a body"),
        pytest.param(writes(CHUNKED + b"5\r\nabc"), "broke off its answer", id="half a chunk"),
        pytest.param(speaks_another_protocol, "did not answer in HTTP", id="another protocol"),
        pytest.param(gzipped(b"no gzip"), "sent a broken gzip", id="broken gzip"),
        pytest.param(gzipped(gzip.compress(b"{}" * 99)[:-9]), "sent a broken gzip", id="half a gzip"),
        pytest.param(gzipped(b"", "br"), "answered with the unknown Content-Encoding 'br'", id="unknown encoding"),
        pytest.param(responds(200, b" " * 65_665), "answered with more than 65664 bytes", id="too large"),
        pytest.param(
            gzipped(gzip.compress(b" " * 100_000_000, 1)), "answered with more than 65664 bytes", id="gzip bomb"
        ),
        pytest.param(endless, "answered with more than 65664 bytes", id="endless body"),
    ],
)
async def test_failed_service_does_not_affect_the_others(services, answer, reason):
    services["versicolor"].answer = answer

    limits: dict[str, Any] = {"service_timeouts": "versicolor=0.2"} if answer is hangs else {}
    async with proxy(services, service_timeout_s=30, **limits) as client:
        all_answers = await client.post("/predict", json=ONE_ROW)
        label = await client.post("/predict/label", json=ONE_ROW)

    assert all_answers.status_code == label.status_code == 200
    assert all_answers.json()["versicolor"]["error"].startswith(reason)
    assert all_answers.json()["setosa"] == all_answers.json()["virginica"] == {"prediction": [0.75, 0.25]}
    assert label.json() == {"prediction": {"proba": 0.75, "label": "setosa"}, "missing": ["versicolor"]}


@pytest.mark.parametrize("path", ["/predict", "/predict/label", "/predict/get/test", "/predict/post/test"])
async def test_all_services_failed_returns_503(path):
    services = {name: StubService() for name in NAMES}  # not running

    async with proxy(services, service_timeout_s=30) as client:
        response = await client.request("GET" if "get" in path else "POST", path, json=ONE_ROW)

    assert response.status_code == 503
    assert response.headers["Retry-After"] == "1"
    assert response.json()["detail"] == "No service answered"
    assert response.json()["errors"] == [{"field": name, "reason": "cannot be reached"} for name in NAMES]


async def test_health_all_reports_failed_services_with_200(services):
    for name in NAMES:
        services[name].answer = responds(200, {"health": "ok"})
    services["setosa"].answer = hangs
    services["virginica"].port = free_port()

    async with proxy(services, service_timeout_s=30, service_timeouts="setosa=0.2") as client:
        response = await client.get("/health/all")

    assert response.status_code == 200
    assert response.json() == {
        "setosa": {"error": "did not answer within 0.2 s"},
        "versicolor": {"health": "ok"},
        "virginica": {"error": "cannot be reached"},
    }


async def test_proxy_is_ready_as_long_as_one_service_answers(services):
    for name in NAMES:
        services[name].answer = responds(200, {"health": "ok"})
    async with proxy(services, service_timeout_s=30) as client:
        assert (await client.get("/health/ready")).json() == {"status": "ready"}

        services["setosa"].answer = hangs
        services["virginica"].answer = responds(503, b"")
        missing = ["setosa did not answer within 0.7 s", "virginica answered with status 503"]
        degraded = await client.get("/health/ready")
        assert (degraded.status_code, degraded.json()) == (200, {"status": "ready", "warnings": missing})

        services["versicolor"].answer = hangs_up
        missing.insert(1, "versicolor closed the connection without an answer")
        unready = await client.get("/health/ready")
        reason = f"no service answers: {'; '.join(missing)}"
        assert (unready.status_code, unready.json()) == (503, {"status": "not ready", "reason": reason})
        assert (await client.get("/health/live")).status_code == 200
        assert (await client.get("/health")).status_code == 200


async def test_each_service_may_have_its_own_timeout(services):
    services["setosa"].answer = services["virginica"].answer = hangs
    released = asyncio.Event()

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await released.wait()
        await respond(writer, 200, {"prediction": [0.75, 0.25]})

    services["virginica"].answer = answer
    async with proxy(services, service_timeout_s=0.1, service_timeouts="virginica=30") as client:
        pending = asyncio.create_task(client.post("/predict", json=ONE_ROW))
        await services["virginica"].entered.wait()
        await asyncio.sleep(0.3)  # past the others' timeout, which is what is tested
        released.set()
        answers = (await pending).json()

    assert answers["setosa"] == {"error": "did not answer within 0.1 s"}
    assert answers["virginica"] == {"prediction": [0.75, 0.25]}


async def test_circuit_breaker_opens_for_a_hanging_service_and_closes_after_recovery(services, monkeypatch):
    services["setosa"].answer = hangs
    seconds = 0.0
    monkeypatch.setattr(backends, "CircuitBreaker", partial(CircuitBreaker, now=lambda: seconds))

    settings: dict[str, Any] = {"service_timeout_s": 30, "service_timeouts": "setosa=0.1", "breaker_failures": 3}
    async with proxy(services, **settings, breaker_open_s=2) as client:
        for _ in range(3):
            assert "did not answer" in (await client.post("/predict", json=ONE_ROW)).json()["setosa"]["error"]
        calls = len(services["setosa"].requests)
        for _ in range(5):
            assert "not called at the moment" in (await client.post("/predict", json=ONE_ROW)).json()["setosa"]["error"]
        assert len(services["setosa"].requests) == calls == 3

        services["setosa"].answer = None  # recovered
        seconds = 1.9
        assert "not called at the moment" in (await client.post("/predict", json=ONE_ROW)).json()["setosa"]["error"]
        async with asyncio.timeout(60):
            while "error" in (await client.post("/predict", json=ONE_ROW)).json()["setosa"]:
                seconds += 2  # again, where the trial call was late


@pytest.mark.parametrize("path", ["/predict", "/predict/label"])
async def test_probability_just_above_1_is_answered_as_1(services, path):
    services["setosa"].answer = responds(200, b'{"prediction": [1.0000001, -1e-7]}')

    async with proxy(services) as client:
        answer = (await client.post(path, json=ONE_ROW)).json()

    expected = (
        {"setosa": {"prediction": [1, 0]}} if path == "/predict" else {"prediction": {"proba": 1, "label": "setosa"}}
    )
    assert expected.items() <= answer.items()


async def test_compressed_answer_is_read(services):
    services["setosa"].answer = gzipped(gzip.compress(PREDICTED.encode()))

    async with proxy(services) as client:
        assert (await client.post("/predict", json=ONE_ROW)).json()["setosa"] == {"prediction": [0.75, 0.25]}


async def test_answer_may_grow_with_the_number_of_rows(services):
    rows = {"data": ONE_ROW["data"] * 20_000}
    for service in services.values():
        service.answer = responds(200, {"prediction": [[0.123456789012345678, 0.876543210987654322]] * 20_000})

    async with proxy(services, service_timeout_s=60) as client:
        answers = (await client.post("/predict", json=rows)).json()

    assert {len(answer["prediction"]) for answer in answers.values()} == {20_000}


async def test_request_on_a_kept_connection_that_closes_is_sent_again(services):
    """The service closes the connection at its second request, as if the idle time had just ended."""
    served = set()

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if writer in served:
            writer.close()
        else:
            served.add(writer)
            await respond(writer, 200, {"prediction": [0.75, 0.25]})

    services["setosa"].answer = answer
    async with proxy(services, breaker_failures=1) as client:
        answers = [(await client.post("/predict", json=ONE_ROW)).json() for _ in range(10)]

    assert all(each["setosa"] == {"prediction": [0.75, 0.25]} for each in answers)


async def test_idle_connections_that_close_fail_no_request(services):
    """Idle for as long as the service keeps connections, a request may or may not meet an open one."""
    idle_s = 0.05

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def close_if_idle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await respond(writer, 200, {"prediction": [0.75, 0.25]})
            asyncio.get_running_loop().call_later(idle_s, writer.close)

        services["setosa"].answer = close_if_idle
        await StubService.serve(services["setosa"], reader, writer)

    closing = StubService()
    async with (
        await asyncio.start_server(serve, "127.0.0.1", closing.port),
        proxy(services | {"setosa": closing}, service_timeout_s=30) as client,
    ):
        for _ in range(40):
            answer = (await client.post("/predict", json=ONE_ROW)).json()["setosa"]
            assert answer == {"prediction": [0.75, 0.25]}
            await asyncio.sleep(idle_s)


@pytest.mark.parametrize("answer", [hangs_up, resets])
async def test_request_is_sent_once_on_a_new_connection_and_again_at_most_once(services, answer):
    async with proxy(services, breaker_failures=99) as client:
        services["setosa"].answer = answer
        await client.post("/predict", json=ONE_ROW)
        assert len(services["setosa"].requests) == 1
        services["setosa"].answer = None
        await client.post("/predict", json=ONE_ROW)
        services["setosa"].answer = answer
        error = (await client.post("/predict", json=ONE_ROW)).json()["setosa"]["error"]

    assert len(services["setosa"].requests) == 4
    assert error == "closed the connection without an answer"


@pytest.mark.parametrize("status", [400, 401, 413, 422, 429])
async def test_refusals_do_not_open_the_circuit_breaker(services, status):
    """One caller's requests, too large for one service, must not take it from all the others."""
    async with proxy(services, breaker_failures=1, breaker_open_s=3600) as client:
        services["setosa"].answer = responds(status, {"detail": "no"})
        before = failures("setosa")
        refused = [await client.post("/predict", json=ONE_ROW) for _ in range(3)]
        services["setosa"].answer = None
        after = (await client.post("/predict", json=ONE_ROW)).json()

    assert [each.json()["setosa"] for each in refused] == [{"error": f"answered with status {status}"}] * 3
    assert after["setosa"] == {"prediction": [0.75, 0.25]}
    assert failures("setosa") == before


@pytest.mark.parametrize(
    ("statuses", "status", "detail"),
    [
        pytest.param((422, 413, 422), 422, "Every service refused the request", id="4xx"),
        pytest.param((422, 429, 422), 422, "Every service refused the request", id="4xx, one overloaded"),
        pytest.param((429, 429, 429), 429, "Every service has too many requests", id="all overloaded"),
        pytest.param((422, 500, 422), 503, "No service answered", id="one failed"),
    ],
)
@pytest.mark.parametrize("path", ["/predict", "/predict/label"])
async def test_status_if_no_service_predicts(services, statuses, status, detail, path):
    for service, answered in zip(services.values(), statuses, strict=True):
        service.answer = responds(answered, {"detail": "no"})

    async with proxy(services) as client:
        response = await client.post(path, json=ONE_ROW)

    assert (response.status_code, response.json()["detail"]) == (status, detail)
    assert response.json()["errors"] == [
        {"field": name, "reason": f"answered with status {answered}"}
        for name, answered in zip(NAMES, statuses, strict=True)
    ]


async def test_requests_over_the_concurrency_limit_return_429_at_once(services):
    go_on = asyncio.Event()

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await go_on.wait()
        await respond(writer, 200, {"prediction": [0.75, 0.25]})

    services["setosa"].answer = answer
    async with proxy(services, max_in_flight=2, breaker_failures=1, service_timeout_s=60) as client:
        accepted = [asyncio.create_task(client.post("/predict", json=ONE_ROW)) for _ in range(2)]
        await services["setosa"].entered.wait()
        rejected = [await client.post("/predict", json=ONE_ROW) for _ in range(10)]
        go_on.set()
        after = [*await asyncio.gather(*accepted), await client.post("/predict", json=ONE_ROW)]

    assert {(each.status_code, each.headers["Retry-After"]) for each in rejected} == {(429, "1")}
    assert {each.text for each in after} == {'{"setosa":X,"versicolor":X,"virginica":X}'.replace("X", PREDICTED)}


async def test_service_with_a_new_address_is_found_within_5_s(services, monkeypatch):
    """A recreated container has one."""
    addresses = ["127.0.0.1"]
    resolve = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **more: resolve(addresses[0] if host == "s" else host, *rest, **more)
    )
    moving = services["setosa"] = StubService(host="s")

    async with proxy(services) as client:
        for addresses[0] in ("127.0.0.1", "127.0.0.2"):
            async with await asyncio.start_server(moving.serve, addresses[0], moving.port):
                deadline = time.monotonic() + 5
                while "error" in (await client.post("/predict", json=ONE_ROW)).json()["setosa"]:
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.05)


async def test_failures_are_counted_per_service(services):
    services["setosa"].answer = responds(500, b"")
    before = {name: failures(name) for name in NAMES}

    async with proxy(services) as client:
        await client.post("/predict", json=ONE_ROW)

    assert {name: failures(name) - before[name] for name in NAMES} == {"setosa": 1, "versicolor": 0, "virginica": 0}


@needs_promtool
async def test_metrics_follow_the_naming_rules(services):
    services["setosa"].answer = responds(500, b"")
    services["versicolor"].answer = responds(422, b"{}")
    async with proxy(services) as client:
        await client.post("/predict", json=ONE_ROW)
        page = (await client.get("/metrics")).text

    assert "service_refusals_total" in page
    assert naming_problems(page) == []
    assert undocumented(page, Path(__file__).parents[2] / "README.md") == []


async def test_failures_are_counted_from_zero(services):
    """Prometheus computes a rate from two samples: without the 0 it would not see the first failure."""
    async with proxy({"lily": services["setosa"]}) as client:
        page = (await client.get("/metrics")).text

    assert 'service_failures_total{service="lily"} 0.0' in page


def failures(name: str) -> float:
    return REGISTRY.get_sample_value("service_failures_total", {"service": name}) or 0


@pytest.mark.parametrize("path", ["/predict", "/predict/label"])
async def test_body_is_forwarded_unchanged(services, path):
    """Serialised again, 1 would become 1.0, and the body could exceed the size limit of a service."""
    body = b'{"data": [[1, 2, 3, 4]]}'

    async with proxy(services) as client:
        await client.post(path, content=body, headers={"Content-Type": "application/json"})

    assert all(service.requests[0].endswith(b"\r\n\r\n" + body) for service in services.values())


async def test_invalid_input_is_not_forwarded(services):
    async with proxy(services) as client:
        response = await client.post("/predict", json={"data": [[5.1, 3.5, 1.4, 20]]})

    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == "petal_width"
    assert not any(service.requests for service in services.values())


async def test_responses_and_openapi_follow_services(services):
    other = {"lily": services["setosa"], "tulip": services["virginica"]}

    async with proxy(other) as client:
        answers = (await client.post("/predict", json=ONE_ROW)).json()
        metadata = (await client.get("/metadata")).json()
        openapi = (await client.get("/openapi.json")).json()

    assert list(answers) == metadata["services"] == ["lily", "tulip"]
    schema = openapi["paths"]["/predict"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert schema["required"] == ["lily", "tulip"]


async def test_api_key_is_required_for_predictions_but_not_for_health(services):
    async with proxy(services, api_key="secret") as client:
        assert (await client.post("/predict", json=ONE_ROW)).status_code == 401
        assert (await client.post("/predict", json=ONE_ROW, headers={"X-API-Key": "secret"})).status_code == 200
        assert (await client.get("/health/all")).status_code == 200
