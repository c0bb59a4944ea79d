"""The service answered by FastAPI's own route, with the same contract: the baseline of `make bench PATTERNS=06`."""

from typing import Any, cast

from fastapi import FastAPI

from serving_common.direct import DirectMiddleware
from serving_common.service import serve
from serving_common.settings import load
from src.configurations import ServiceSettings
from src.services.app import create_app


def without_direct(app: FastAPI) -> FastAPI:
    """The same app, in which `@direct` means nothing."""
    app.user_middleware = [each for each in app.user_middleware if cast(Any, each.cls) is not DirectMiddleware]
    return app


if __name__ == "__main__":
    settings = load(ServiceSettings)
    serve(without_direct(create_app(settings)), f"service_{settings.name}", settings)
