"""The page at /: choose an image, see the fast answer, then the better one in its place.

The page and what it loads need no API key, so that it can say what is needed; its requests for predictions do.
"""

from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from starlette.types import Scope
from typing_extensions import TypedDict  # pydantic takes the one from typing only since Python 3.12

from src.configurations import ProxySettings
from src.ml.image_file import FORMATS
from src.proxy.predictor import max_file_bytes
from src.schemas import WeightsOfBoth

STATIC = Path(__file__).with_name("static")

# Only resources of this origin and the chosen image; no inline code, no framing.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # asks whether it has changed: a page must not meet the script of another version
}

page_router = APIRouter(include_in_schema=False)


class PageSettings(TypedDict):
    """What the page must know before it sends an image."""

    formats: list[str]
    max_file_bytes: int
    needs_api_key: bool
    weights: WeightsOfBoth


def page_settings(settings: ProxySettings, weights: WeightsOfBoth) -> PageSettings:
    return {
        "formats": list(FORMATS),
        "max_file_bytes": max_file_bytes(settings),
        "needs_api_key": settings.api_key is not None,
        "weights": weights,
    }


@page_router.get("/")
async def page() -> FileResponse:
    return FileResponse(STATIC / "index.html", headers=HEADERS)


@page_router.get("/page/settings")
async def settings_of_page(request: Request) -> PageSettings:
    page: PageSettings = request.app.state.page
    return page


@page_router.get("/page/example")
async def example(request: Request) -> Response:
    """The photograph of GET /predict/test."""
    # Without a type: browsers recognise images by their first bytes, and the setting may name any file.
    return Response(request.app.state.sample_file, headers=HEADERS)


class PageFiles(StaticFiles):
    """The page's script, style and icon."""

    def __init__(self) -> None:
        super().__init__(directory=STATIC)

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response
