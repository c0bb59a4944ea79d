"""A service with a route for each kind of failure: `python -m tests.apps.example`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import structlog
from fastapi import APIRouter, FastAPI, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from serving_common.errors import (
    CallerGone,
    Conflict,
    InvalidInput,
    Misconfigured,
    NotFound,
    Overloaded,
    ServingError,
    StartupError,
    TooLarge,
    Unauthorized,
    Unavailable,
)
from serving_common.service import ReadinessCheck, api_key_required, create_service, lazy_app, serve
from serving_common.settings import HttpSettings, load
from tests import iris

ERRORS: list[type[ServingError]] = [
    InvalidInput,
    Misconfigured,
    Unauthorized,
    NotFound,
    CallerGone,
    Conflict,
    TooLarge,
    Overloaded,
    Unavailable,
]
router = APIRouter()


class ExampleSettings(HttpSettings):
    model_filepath: Path | None = Field(None, description="If set and missing, the service does not start.")


class Flowers(BaseModel):
    data: iris.Rows


@router.post("/flowers")
async def flowers(request: Flowers) -> int:
    return len(request.data)


@router.get("/limited")
async def limited(limit: Annotated[int, Query(ge=1)]) -> int:
    return limit


@router.get("/errors/{name}")
async def fail(name: str) -> None:
    for error in ERRORS:
        if error.__name__ == name:
            raise error(f"{name} happened", [{"row": 1, "field": "data", "reason": "is wrong"}])
    raise RuntimeError("a secret detail")


@router.get("/broken-stream")
async def broken_stream() -> StreamingResponse:
    async def content() -> AsyncIterator[bytes]:
        yield b"some of it"
        raise RuntimeError("the rest is lost")

    return StreamingResponse(content())


@router.get("/slow/{seconds}")
async def slow(seconds: float) -> str:
    structlog.get_logger().info("slow_entered")
    await asyncio.sleep(seconds)
    return "done"


def create_app(settings: ExampleSettings, ready: ReadinessCheck | None = None) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if settings.model_filepath is not None and not settings.model_filepath.exists():
            raise StartupError(f"there is no model at {settings.model_filepath}")
        yield

    app = create_service(settings, title="Example", description="For tests.", lifespan=lifespan, ready=ready)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"health": "ok"}

    app.include_router(router, dependencies=api_key_required(settings))
    return app


__getattr__ = lazy_app(lambda: create_app(load(ExampleSettings)))

if __name__ == "__main__":
    settings = load(ExampleSettings)
    serve(create_app(settings), "example", settings)
