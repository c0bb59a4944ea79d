"""Alternatives to the proxy, for `make bench`: a bare fan-out with CLIENT=book|httpx|httpx-aiohttp|aiohttp."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
import httpx
import orjson
import uvicorn
from httpx_aiohttp import HttpxAiohttpClient
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

URLS = os.environ["URLS"].split(",")
JSON = {"Content-Type": "application/json"}
LIMITS = httpx.Limits(max_connections=300, max_keepalive_connections=300)

Post = Callable[[str, bytes], Awaitable[bytes]]


async def book_style(url: str, body: bytes) -> bytes:
    async with httpx.AsyncClient() as client:
        return (await client.post(url, content=body, headers=JSON)).content


def with_httpx(client: httpx.AsyncClient) -> Post:
    async def post(url: str, body: bytes) -> bytes:
        return (await client.post(url, content=body, headers=JSON)).content

    return post


def with_aiohttp(session: aiohttp.ClientSession) -> Post:
    async def post(url: str, body: bytes) -> bytes:
        async with session.post(url, data=body, headers=JSON) as response:
            return await response.read()

    return post


async def choose(stack: AsyncExitStack) -> Post:
    match os.environ["CLIENT"]:
        case "book":
            return book_style
        case "httpx":
            return with_httpx(await stack.enter_async_context(httpx.AsyncClient(limits=LIMITS)))
        case "httpx-aiohttp":
            return with_httpx(await stack.enter_async_context(HttpxAiohttpClient(limits=LIMITS)))
        case "aiohttp":
            connector = aiohttp.TCPConnector(limit=300)
            return with_aiohttp(await stack.enter_async_context(aiohttp.ClientSession(connector=connector)))
        case other:
            raise ValueError(other)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        app.state.post = await choose(stack)
        yield


async def predict(request: Request) -> Response:
    body = await request.body()
    answers = await asyncio.gather(*(request.app.state.post(url, body) for url in URLS))
    return Response(orjson.dumps([orjson.loads(answer) for answer in answers]), media_type="application/json")


async def health(request: Request) -> Response:
    return Response(b'{"health":"ok"}', media_type="application/json")


app = Starlette(
    routes=[Route("/predict", predict, methods=["POST"]), Route("/health", health)],
    lifespan=lifespan,
)
if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ["PORT"]), access_log=False, log_level="warning")
