import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import uvicorn
from fastapi import FastAPI

from serving_testing.openapi import assert_conforms
from serving_testing.processes import free_port, wait_until


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def app_that_returns(value: object) -> FastAPI:
    app = FastAPI()

    @app.get("/number")
    async def number() -> int:
        return value  # type: ignore[return-value]  # what it should be, and is not, is the test

    return app


def test_a_service_that_keeps_to_its_document_passes(tmp_path):
    with serving(app_that_returns(1)) as url:
        assert_conforms(url, tmp_path, examples=1)


def test_a_500_is_reported(tmp_path):
    with serving(app_that_returns("no number")) as url, pytest.raises(AssertionError, match="GET /number"):
        assert_conforms(url, tmp_path, examples=1)
