"""What layers of a service and the proxy cost, for `scripts.benchmarks.profile`: `python -m tests.layers WHAT FILE`.

Each app of SERVICE and PROXY answers the same body, and does what the one before it does and one thing more.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import structlog
import uvloop
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from serving_common import logs
from serving_common.direct import direct
from serving_common.service import create_service
from serving_common.settings import load
from serving_common.tabular import TabularModel
from serving_testing.layers import measure
from src.configurations import ProxySettings, ServiceSettings
from src.models import prediction_type, request_types
from src.proxy import app as proxy_app
from src.proxy.fan_out import fan_out
from src.services import app as service_app
from tests.fastapi_service import without_direct

BODY = b'{"data": [[5.1, 3.5, 1.4, 0.2]]}'
ANSWER: Any = {"prediction": [0.9897701740264893, 0.010229798965156078]}
CONTENT = json.dumps(ANSWER).encode()
HEADERS = [(b"content-length", str(len(CONTENT)).encode()), (b"content-type", b"application/json")]

log = structlog.get_logger()


class Constant:
    """An app, or the innermost middleware, that answers everything alike."""

    def __init__(self, app: ASGIApp | None = None, *, reads: bool = True, logs: bool = False) -> None:
        self._reads, self._logs = reads, logs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        while self._reads and (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        await send({"type": "http.response.body", "body": CONTENT})
        if self._logs:
            log.info("request_completed", method="POST", path=scope["path"], status=200, duration_ms=0.12)


def below_middleware(count: int, **options: bool) -> FastAPI:
    """The constant below the outermost `count` of our own middleware."""
    app = service()
    app.user_middleware = [*app.user_middleware[:count], Middleware(Constant, **options)]
    return app


def service(add: Callable[[APIRouter], None] = lambda _: None) -> FastAPI:
    """An app with all of our middleware."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield

    router = APIRouter()
    add(router)
    app = create_service(settings, title="Layers", description="", lifespan=lifespan)
    app.include_router(router)
    return app


def without_body(router: APIRouter) -> None:
    @router.post("/predict", response_model=prediction_type(settings.card))
    @direct
    async def predict() -> Any:
        return ANSWER


def with_body(router: APIRouter) -> None:
    bodies = request_types(settings.card)

    @router.post("/predict", response_model=prediction_type(settings.card))
    @direct(body=bodies.list_rows)
    async def predict(request: bodies.any_rows) -> Any:  # type: ignore[name-defined]  # made at the start
        return ANSWER


def with_model(router: APIRouter) -> None:
    bodies, model = request_types(settings.card), TabularModel.load(settings.card)

    @router.post("/predict", response_model=prediction_type(settings.card))
    @direct(body=bodies.list_rows)
    async def predict(request: bodies.any_rows) -> Any:  # type: ignore[name-defined]  # made at the start
        [prediction] = model.run(model.encode(request.data)).tolist()
        return {"prediction": prediction}


settings = load(ServiceSettings)
on_thread = settings.model_copy(update={"model_loop_us": 0})


def service_layers() -> dict[str, ASGIApp]:
    from tests.bare_service import app as bare

    return {
        "uvicorn: HTTP, a constant response": Constant(reads=False),
        "receiving the body": Constant(),
        "FastAPI's and Starlette's outermost layers": below_middleware(0),
        "request id": below_middleware(1),
        "access log": below_middleware(1, logs=True),
        "metrics": below_middleware(2),
        "unexpected errors": below_middleware(3),
        "body limits": below_middleware(4),
        "`@direct`: route, dependencies, response model": service(without_body),
        "validation of the rows": service(with_body),
        "model: rows to an array, run, back to a list": service(with_model),
        "deadline, caller, checks of the answer": service_app.create_app(settings),
        "= with the way to the model's thread and back": service_app.create_app(on_thread),
        "= with FastAPI's route in place of `@direct`": without_direct(service_app.create_app(settings)),
        "= a bare FastAPI endpoint around the same model": bare,
    }


async def constant_calls(backends: Any, request: Any, context: Any) -> Any:
    return dict.fromkeys(backends.by_name, ANSWER)


def bare_calls(session: aiohttp.ClientSession, urls: list[str]) -> Any:
    """With an aiohttp session alone: no deadline, breaker, ids, limits, retries or reasons."""

    async def call(url: str, request: Any) -> Any:
        async with session.post(url, data=request.body) as response:
            return request.parse(await response.read())

    async def fan_out(backends: Any, request: Any, context: Any) -> Any:
        answers = await asyncio.gather(*(call(url, request) for url in urls))
        return dict(zip(backends.by_name, answers, strict=True))

    return fan_out


async def proxy_layers(stack: AsyncExitStack) -> dict[str, ASGIApp]:
    proxied = load(ProxySettings)
    headers = {"Content-Type": "application/json"}
    session = await stack.enter_async_context(aiohttp.ClientSession(headers=headers))
    calls = bare_calls(session, urls := [f"{url}predict" for url in proxied.services.values()])
    os.environ |= {"CLIENT": "aiohttp", "URLS": ",".join(urls)}
    from tests.bare_fan_out import app as bare

    return {
        "all but the calls": proxy_app.create_app(proxied, fan_out=constant_calls),
        "three calls with a bare aiohttp session": proxy_app.create_app(proxied, fan_out=calls),
        "deadlines, breakers, limits, retries, ids, httpx's types": proxy_app.create_app(proxied, fan_out=fan_out),
        "= a bare aiohttp fan-out in Starlette": bare,
    }


async def main(what: str) -> dict[str, float]:
    logs.configure("layers", settings)
    async with AsyncExitStack() as stack:
        apps = service_layers() if what == "service" else await proxy_layers(stack)
        for app in apps.values():
            if isinstance(app, Starlette):
                await stack.enter_async_context(app.router.lifespan_context(app))
        return await measure(apps, BODY, int(os.environ["ROUNDS"]))


if __name__ == "__main__":
    what, output = sys.argv[1:]
    Path(output).write_text(json.dumps(uvloop.run(main(what))))
