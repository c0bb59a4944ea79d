import asyncio
import re
import threading
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import cast

import anyio
import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving_common.errors import ErrorKind
from serving_common.problems import STATUS, problem_responses, title
from serving_common.service import ReadinessCheck
from tests.apps.example import ERRORS, ExampleSettings, create_app

ONE = {"data": [[5.1, 3.5, 1.4, 0.2]]}


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with connect() as client:
        yield client


def connect(ready: ReadinessCheck | None = None, **overrides: object) -> httpx.AsyncClient:
    app = create_app(ExampleSettings.model_validate({"max_body_bytes": 1000} | overrides), ready)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service")


async def test_valid_request_id_of_the_caller_is_kept(client):
    response = await client.post("/flowers", json=ONE, headers={"X-Request-ID": "from-the-caller"})

    assert response.json() == 1
    assert response.headers["X-Request-ID"] == "from-the-caller"


@pytest.mark.parametrize("given_id", ["", "x" * 129, "two words", 'in"jection', "ключ".encode()])
async def test_invalid_request_id_is_replaced(client, given_id):
    response = await client.post("/flowers", json=ONE, headers={"X-Request-ID": given_id})

    assert re.fullmatch("[0-9a-f]{32}", response.headers["X-Request-ID"])


def test_every_error_kind_has_a_status():
    assert STATUS.keys() == set(ErrorKind)
    assert {error.kind for error in ERRORS} == set(ErrorKind)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
async def test_serving_error_returns_a_problem(client, error):
    response = await client.get(f"/errors/{error.__name__}")

    assert response.status_code == STATUS[error.kind]
    assert response.headers["Content-Type"] == "application/problem+json"
    is_curable = error.kind in (ErrorKind.OVERLOADED, ErrorKind.UNAVAILABLE)
    assert ("Retry-After" in response.headers) == is_curable
    assert response.json() == {
        "title": title(response.status_code),
        "status": response.status_code,
        "detail": f"{error.__name__} happened",
        "errors": [{"row": 1, "field": "data", "reason": "is wrong"}],
        "request_id": response.headers["X-Request-ID"],
    }


async def test_unexpected_error_returns_500_without_details(client):
    response = await client.get("/errors/unknown")

    assert response.status_code == 500
    assert response.json() == {
        "title": "Internal Server Error",
        "status": 500,
        "detail": "Internal server error",
        "request_id": response.headers["X-Request-ID"],
    }


async def test_error_after_the_response_began_breaks_the_connection(client):
    with pytest.raises(RuntimeError, match="the rest is lost"):
        await client.get("/broken-stream")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("DELETE", "/flowers", 405)],
)
async def test_unknown_route_or_method_returns_a_problem(client, method, path, status):
    response = await client.request(method, path)

    assert response.status_code == status
    assert response.json()["detail"] == HTTPStatus(status).phrase


@pytest.mark.parametrize(
    ("body", "errors"),
    [
        pytest.param(b"", [{"field": "body", "reason": "is missing"}], id="empty"),
        pytest.param(
            b'{"data": ',
            [{"field": "body", "reason": "is not JSON: Expecting value at character 9"}],
            id="malformed JSON",
        ),
        pytest.param(b'{"data": "\xff"}', [{"field": "body", "reason": "cannot be read as JSON"}], id="not UTF-8"),
        pytest.param(b"[" * 999, [{"field": "body", "reason": "cannot be read as JSON"}], id="nested too deeply"),
        pytest.param(
            b"[]",
            [{"field": "body", "reason": "must be a JSON object, sent with Content-Type: application/json"}],
            id="not an object",
        ),
        pytest.param(b"{}", [{"field": "data", "reason": "is missing"}], id="no data"),
        pytest.param(b'{"data": 5}', [{"field": "data", "reason": "must be a valid list"}], id="not a list"),
        pytest.param(b'{"data": []}', [{"field": "data", "reason": "must have at least 1 item, not 0"}], id="no rows"),
        pytest.param(
            b'{"data": [[1, 1, 1, 1], [1, 1, 1]]}',
            [{"row": 1, "field": "data", "reason": "must have at least 4 items, not 3"}],
            id="short row",
        ),
        pytest.param(
            b'{"data": [[1, 1, 1, 1, 1]]}',
            [{"row": 0, "field": "data", "reason": "must have at most 4 items, not 5"}],
            id="long row",
        ),
        pytest.param(
            b'{"data": [[1, 1, 1, 1], [1, NaN, 1, "1"]]}',
            [
                {"row": 1, "field": "sepal_width", "reason": "must be a number greater than 0.0 and less than 10.0"},
                {"row": 1, "field": "petal_width", "reason": "must be a number greater than 0.0 and less than 10.0"},
            ],
            id="invalid numbers",
        ),
    ],
)
async def test_invalid_input_returns_422_with_field_and_reason(body, errors):
    async with connect(max_body_bytes=1_000_000) as client:
        body = body * 100 if body == b"[" * 999 else body
        response = await client.post("/flowers", content=body, headers={"Content-Type": "application/json"})

    assert response.status_code == 422
    assert response.json()["detail"] == "Invalid input"
    assert response.json()["errors"] == errors


async def test_wrong_content_type_returns_422_naming_the_header(client):
    response = await client.post(
        "/flowers", content=b'{"data": [[1, 1, 1, 1]]}', headers={"Content-Type": "text/plain"}
    )

    assert response.status_code == 422
    assert "Content-Type: application/json" in response.json()["errors"][0]["reason"]


@pytest.mark.parametrize(
    ("query", "reason"),
    [("", "is missing"), ("?limit=0", "must be greater than or equal to 1"), ("?limit=x", "must be a valid integer")],
)
async def test_invalid_query_parameter_is_named(client, query, reason):
    [error] = (await client.get(f"/limited{query}")).json()["errors"]

    assert error["field"] == "limit"
    assert error["reason"].startswith(reason)


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=200)
def test_no_body_causes_a_server_error(body):
    async def post() -> httpx.Response:
        async with connect() as client:
            return await client.post("/flowers", content=body, headers={"Content-Type": "application/json"})

    assert asyncio.run(post()).status_code in (200, 422)


async def test_declared_oversized_body_returns_413_unread(client):
    async def body() -> AsyncIterator[bytes]:
        pytest.fail("was read")
        yield b""  # type: ignore[unreachable]  # makes it a generator

    response = await client.post("/flowers", content=body(), headers={"Content-Length": "1001"})

    assert response.status_code == 413
    assert response.json()["detail"] == "The request body is larger than 1000 bytes"


async def test_undeclared_oversized_body_returns_413(client):
    chunks_sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal chunks_sent
        for chunks_sent in range(1, 100):  # noqa: B007 - counted for the assertion
            yield b"x" * 500

    response = await client.post("/flowers", content=body(), headers={"Content-Type": "application/json"})

    assert response.status_code == 413
    assert chunks_sent == 3


async def test_body_over_the_common_limit_returns_429():
    entered, proceed = asyncio.Event(), asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b'{"data": [[1, 1, 1, 1'
        entered.set()
        await proceed.wait()
        yield b" " * 500 + b"]]}"

    async with connect(max_inflight_body_bytes=100) as client:
        headers = {"Content-Type": "application/json"}
        first = asyncio.create_task(client.post("/flowers", content=body(), headers=headers))
        await entered.wait()
        rejected = await client.post("/flowers", content=b" " * 80, headers=headers)
        small = await client.post("/flowers", json=ONE)
        proceed.set()

        assert (rejected.status_code, rejected.headers["Retry-After"]) == (429, "1")
        assert rejected.json()["detail"] == "Too many large requests are being worked on"
        assert small.status_code == 200
        assert (await first).status_code == 200  # alone, it may exceed the limit
        assert (await client.post("/flowers", content=b" " * 80, headers=headers)).status_code == 422


async def test_requests_in_flight_count_work_but_neither_probes_nor_scrapes():
    entered, proceed = asyncio.Event(), asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        entered.set()
        await proceed.wait()
        yield b"{}"

    async with connect() as client:
        waiting = asyncio.create_task(client.post("/flowers", content=body()))
        await entered.wait()
        assert "\nrequests_in_flight 1.0\n" in (await client.get("/metrics")).text
        proceed.set()
        await waiting
        assert "\nrequests_in_flight 0.0\n" in (await client.get("/metrics")).text


async def test_no_configured_api_key_allows_all_requests(client):
    assert (await client.post("/flowers", json=ONE)).status_code == 200


@pytest.mark.parametrize("key", [None, "wrong", "sécret", "secret "])
async def test_wrong_api_key_is_rejected(key):
    async with connect(api_key="secret") as client:
        headers = {} if key is None else {"X-API-Key": key.encode()}
        assert (await client.post("/flowers", json=ONE, headers=headers)).status_code == 401


async def test_health_and_metrics_need_no_api_key():
    async with connect(api_key="secret") as client:
        assert (await client.post("/flowers", json=ONE, headers={"X-API-Key": "secret"})).status_code == 200
        for path in ("/health", "/health/live", "/health/ready", "/metrics", "/docs"):
            assert (await client.get(path)).status_code == 200


async def test_service_that_answers_is_alive_and_without_a_check_ready(client):
    assert (await client.get("/health/live")).json() == {"status": "alive"}
    assert (await client.get("/health/ready")).json() == {"status": "ready"}


@pytest.mark.parametrize(
    ("reason", "status", "body"),
    [
        pytest.param(None, 200, {"status": "ready"}, id="ready"),
        pytest.param("Redis is away", 503, {"status": "not ready", "reason": "Redis is away"}, id="a reason"),
    ],
)
async def test_readiness_follows_the_check(reason, status, body):
    async def ready() -> str | None:
        return cast(str | None, reason)

    async with connect(ready) as client:
        response = await client.get("/health/ready")
        alive = await client.get("/health/live")

    assert (response.status_code, response.json()) == (status, body)
    assert alive.status_code == 200


async def test_check_that_raises_is_not_ready_without_its_text():
    async def ready() -> None:
        raise OSError("a password")

    async with connect(ready) as client:
        response = await client.get("/health/ready")

    assert response.status_code == 503
    assert response.json() == {"status": "not ready", "reason": "the check failed with OSError"}


async def test_check_that_hangs_is_not_ready_in_time_and_runs_once():
    """Requests neither wait for the thread, which nothing can cancel, nor start another one."""
    released, started = threading.Event(), []

    async def ready() -> None:
        started.append(1)
        await anyio.to_thread.run_sync(released.wait)

    async with connect(ready) as client:
        answers = [await client.get("/health/ready") for _ in range(3)]
        released.set()
        while (after := await client.get("/health/ready")).status_code == 503:
            pass

    assert {each.status_code for each in answers} == {503}
    assert answers[0].json()["reason"] == "the check took longer than 0.8 s"
    assert after.json() == {"status": "ready"}
    assert len(started) == 1


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready"])
async def test_health_answers_head(client, path):
    assert (await client.head(path)).status_code == 200
    assert (await client.head("/flowers")).status_code == 405


async def test_docs_need_no_other_host(client):
    page = (await client.get("/docs")).text
    assets = re.findall(r'(?:src|href)="([^"]+)"', page)

    assert "//" not in page.replace("<!-- ", "").replace("http://www.w3.org", "")
    assert len(assets) == 3
    for asset in assets:
        response = await client.get(asset)
        assert response.status_code == 200
        assert len(response.content) > 1000


async def test_metric_labels_are_route_templates_and_known_methods(client):
    await client.post("/flowers", json=ONE)
    await client.get("/limited?limit=7")
    await client.get("/errors/unknown")
    await client.get("/invented-by-the-caller")
    await client.request("BREW", "/flowers")

    metrics = (await client.get("/metrics")).text

    assert 'request_count_total{method="POST",route="/flowers",status="200"}' in metrics
    assert 'request_count_total{method="other",' in metrics
    assert 'request_errors_total{route="/errors/{name}",status="500"}' in metrics
    assert 'request_duration_seconds_count{route="/limited"}' in metrics
    assert "invented" not in metrics
    assert "BREW" not in metrics


def test_status_titles_follow_rfc_9110():
    assert [title(status) for status in (404, 413, 422)] == ["Not Found", "Content Too Large", "Unprocessable Content"]


def test_problem_responses_describe_the_schema():
    schema = problem_responses(503)[503]["content"]["application/problem+json"]["schema"]

    assert set(schema["required"]) == {"title", "status", "detail", "request_id"}
