"""The proxy in this process, with a real Redis; the tests act as the worker."""

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving_testing.redis_server import RedisServer
from src.configurations import ProxySettings
from src.proxy.app import create_app

MakeSettings = Callable[..., ProxySettings]


def make_settings(models: Path, redis_server: RedisServer, **overrides: Any) -> ProxySettings:
    defaults: dict[str, Any] = {
        "redis_host": "127.0.0.1",
        "redis_port": redis_server.port,
        "sync_model_path": models / "mobilenet_v2.onnx",
        "async_model_path": models / "mobilenet_v2.onnx",
        "labels_path": models / "imagenet_labels.json",
        "sample_image_path": models / "sample.jpg",
        "job_timeout_s": 10,  # tests run beside others
    }
    return ProxySettings(**(defaults | overrides))


@pytest.fixture
def settings(models, redis_server) -> MakeSettings:
    return partial(make_settings, models, redis_server)


@asynccontextmanager
async def proxy(settings: ProxySettings) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://proxy", timeout=60) as client,
    ):
        yield client


@pytest.fixture
async def client(redis, settings) -> AsyncIterator[httpx.AsyncClient]:
    async with proxy(settings()) as client:
        yield client


def body_of(image: bytes) -> dict[str, str]:
    return {"image_data": base64.b64encode(image).decode()}


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    """Return once the condition holds. Raises TimeoutError after 30 s."""
    async with asyncio.timeout(30):
        while not await condition():  # noqa: ASYNC110 - neither Redis nor the proxy offers an event
            await asyncio.sleep(0.01)
