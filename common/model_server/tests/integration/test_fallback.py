"""TensorFlow's private API is checked at start; what the servers of the protocol tests run on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import ServerUnderTest


@pytest.mark.parametrize(
    ("server", "apis"),
    [("private APIs", []), ("public APIs", ["tensorflow.python", "grpc._cython.cygrpc"])],
    indirect=["server"],
)
def test_server_logs_each_fallback_once(server: ServerUnderTest, apis: list[str]) -> None:
    lines = [line for line in server.log.read_text().splitlines() if "public_api_fallback" in line]
    assert len(lines) == len(apis)
    assert all(api in line for api, line in zip(apis, lines, strict=True))


def test_session_callable_that_is_missing_or_wrong_is_detected(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorflow.python.client.session import BaseSession

    from model_server import tensorflow_runtime

    monkeypatch.setattr(BaseSession, "_make_callable_from_options", lambda *_: lambda x: [x])
    with pytest.raises(RuntimeError, match="computes something else"):
        tensorflow_runtime._private_api()
    monkeypatch.delattr(BaseSession, "_make_callable_from_options")
    with pytest.raises(AttributeError):
        tensorflow_runtime._private_api()
