"""A direct endpoint beside the same endpoint as a plain FastAPI route: same document, same responses."""

import json
from collections.abc import Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Request, Response, routing
from pydantic import BaseModel, SecretStr
from structlog.testing import capture_logs
from typing_extensions import TypedDict

from serving_common.direct import direct, direct_routes
from serving_common.errors import Overloaded
from serving_common.problems import problem_responses
from serving_common.service import api_key_required, create_service
from serving_common.settings import HttpSettings
from tests import iris

KEY = {"X-API-Key": "a long enough key"}
JSON = {"Content-Type": "application/json"}
ONE = b'{"data": [[5.1, 3.5, 1.4, 0.2]]}'


class DirectBody(BaseModel):
    data: iris.Rows
    behaviour: str = ""


class DirectReply(TypedDict):
    rows: int
    note: str | None


async def count(body: DirectBody) -> int:
    return len(body.data)


async def not_teapot(request: Request) -> None:
    if request.headers.get("X-Teapot"):
        raise HTTPException(418, "A teapot", {"X-Tea": "green"})


def create_app(mark: Callable[[Any], Any]) -> FastAPI:
    """The app with `mark` on its endpoint; `state.direct` has one entry per call of the endpoint."""
    router = APIRouter()

    @router.post("/count", responses=problem_responses(422, 429), dependencies=[Depends(not_teapot)])
    @mark
    async def count_rows(
        request: Request,
        body: DirectBody,
        rows: Annotated[int, Depends(count)],
        note: Annotated[str | None, Header(max_length=5)] = None,
    ) -> DirectReply:
        """Documented."""
        request.app.state.direct.append("fastapi_inner_astack" not in request.scope)
        match body.behaviour:
            case "overloaded":
                raise Overloaded("Too much")
            case "bug":
                raise KeyError("bug")
            case "invalid":
                return {"rows": "many", "note": note}  # type: ignore[typeddict-item]
            case "response":
                return Response(b"as it is", 202)  # type: ignore[return-value]
        return {"rows": rows, "note": note}

    @asynccontextmanager
    async def lifespan(_app: FastAPI):
        yield

    settings = HttpSettings(api_key=SecretStr(KEY["X-API-Key"]), max_body_bytes=10_000)
    app = create_service(settings, title="Direct", description="Counts.", lifespan=lifespan)
    app.include_router(router, prefix="/v1", dependencies=api_key_required(settings))
    app.state.direct = []
    return app


@pytest.fixture(scope="module")
def apps() -> tuple[FastAPI, FastAPI]:
    return create_app(direct), create_app(lambda endpoint: endpoint)


def test_the_openapi_document_is_that_of_the_plain_route(apps):
    ours, plain = (json.dumps(app.openapi()).encode() for app in apps)

    assert ours == plain


@pytest.mark.parametrize(
    ("content", "headers", "is_direct"),
    [
        pytest.param(ONE, JSON | KEY, True, id="valid"),
        pytest.param(ONE, JSON | KEY | {"Note": "hello"}, False, id="header"),
        pytest.param(ONE, JSON | KEY | {"Note": "too long"}, None, id="invalid header"),
        pytest.param(ONE, JSON | KEY | {"X-Teapot": "1"}, None, id="HTTPException of a dependency"),
        pytest.param(ONE, JSON, None, id="no key"),
        pytest.param(b"{", JSON, None, id="no key, no JSON"),
        pytest.param(b"{", JSON | KEY, None, id="no JSON"),
        pytest.param(b"\xff", JSON | KEY, None, id="not UTF-8"),
        pytest.param(b"", JSON | KEY, None, id="empty"),
        pytest.param(b"[" * 999, JSON | KEY, None, id="deep"),
        pytest.param(b'{"data": [[5.1, 3.5, 1.4, NaN]]}', JSON | KEY, None, id="NaN"),
        pytest.param(b'{"data": [[5.1, "3.5", 1.4, 0.2]]}', JSON | KEY, None, id="string"),
        pytest.param(b'{"data": [[5.1, true, 1.4, 0.2]]}', JSON | KEY, None, id="boolean"),
        pytest.param(b'{"data": [[5, 3, 1, 1]], "data": [[1,1,1,1],[1,1,1,1]]}', JSON | KEY, True, id="duplicate key"),
        pytest.param(ONE.decode().encode("utf-16"), JSON | KEY, False, id="UTF-16"),
        pytest.param(ONE, {"Content-Type": "application/json; charset=utf-8"} | KEY, False, id="content type"),
        pytest.param(ONE, {"Content-Type": "text/plain"} | KEY, None, id="not declared as JSON"),
        pytest.param(ONE + b" " * 10_000, JSON | KEY, None, id="too large"),
        pytest.param(b'{"ignored": ' + b"1" * 5000 + b', "data": [[1,1,1,1]]}', JSON | KEY, None, id="5,000 digits"),
        pytest.param(b'{"behaviour": "overloaded", "data": [[1,1,1,1]]}', JSON | KEY, True, id="overloaded"),
        pytest.param(b'{"behaviour": "bug", "data": [[1,1,1,1]]}', JSON | KEY, True, id="unexpected"),
        pytest.param(b'{"behaviour": "invalid", "data": [[1,1,1,1]]}', JSON | KEY, True, id="invalid response"),
        pytest.param(b'{"behaviour": "response", "data": [[1,1,1,1]]}', JSON | KEY, True, id="response"),
    ],
)
@pytest.mark.parametrize("as_stream", [False, True], ids=["whole", "chunked"])
async def test_responses_are_those_of_the_plain_route(apps, content, headers, is_direct, as_stream):
    responses = []
    for app in apps:
        app.state.direct.clear()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:

            async def chunks():
                for start in range(0, len(content), 100):
                    yield content[start : start + 100]

            with capture_logs():  # rendering a traceback takes seconds
                response = await client.post(
                    "/v1/count", content=chunks() if as_stream else content, headers=headers | {"X-Request-ID": "same"}
                )
        responses.append((response.status_code, response.headers.multi_items(), response.content))

    ours, plain = responses
    assert ours == plain
    assert apps[0].state.direct == ([] if is_direct is None else [is_direct])


@pytest.mark.parametrize("is_missing", [True, False], ids=["missing", "different"])
async def test_another_fastapi_costs_speed_not_function(monkeypatch, is_missing):
    if is_missing:
        monkeypatch.delattr(routing, "iter_route_contexts")
    else:
        contexts = routing.iter_route_contexts
        known = ("endpoint", "path", "methods")
        monkeypatch.setattr(
            routing,
            "iter_route_contexts",
            lambda routes: [
                SimpleNamespace(**{name: getattr(each, name) for name in known}) for each in contexts(routes)
            ],
        )
    app = create_app(direct)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
        with capture_logs() as logs:
            responses = [await client.post("/v1/count", content=ONE, headers=JSON | KEY) for _ in range(2)]

    assert [response.json() for response in responses] == [{"rows": 1, "note": None}] * 2
    assert app.state.direct == [False, False]
    assert [line["api"] for line in logs if line["event"] == "public_api_fallback"] == [
        "fastapi.routing.iter_route_contexts"
    ]


def test_an_endpoint_that_needs_more_is_refused():
    app = create_app(lambda endpoint: endpoint)

    @app.get("/search")
    @direct
    async def search(query: str) -> str:
        return query

    with pytest.raises(TypeError, match="cannot be served directly"):
        direct_routes(app)
