"""Private APIs are used only while they behave; the public ones do the same."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from structlog.testing import capture_logs

from model_server import unary
from model_server.fallback import VARIABLE, try_private
from model_server.status import Code

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from model_server.context import Context

METHOD = "/test.Service/Method"


def answering(results: Mapping[bytes, unary.CallResult]) -> unary.Behavior:
    def behavior(request: bytes, _: Context, respond: Callable[[unary.CallResult], None]) -> None:
        respond(results[request])

    return behavior


@pytest.fixture(autouse=True)
def _private_apis_allowed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(VARIABLE, raising=False)
    unary._is_cygrpc_usable.cache_clear()
    yield
    unary._is_cygrpc_usable.cache_clear()


def test_private_api_that_passes_its_test_is_used_silently() -> None:
    with capture_logs() as logs:
        assert try_private("api", lambda: 1) == 1
    assert logs == []


def test_private_api_that_fails_its_test_is_logged_once() -> None:
    with capture_logs() as logs:
        assert try_private("api", lambda: 1 / 0) is None
    [entry] = logs
    assert (entry["event"], entry["api"]) == ("public_api_fallback", "api")
    assert entry["reason"] == "ZeroDivisionError: division by zero"


def test_variable_forces_public_apis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "1")
    with capture_logs() as logs:
        assert try_private("api", lambda: 1) is None
    assert logs[0]["reason"] == f"{VARIABLE} is set"


def test_cygrpc_is_used_as_long_as_it_works() -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    assert isinstance(unary.serve_unary(server, {}, threads=1, max_threads=1), unary.CompletionQueueCalls)
    server.stop(None)


@pytest.mark.parametrize("problem", ["missing", "silent", "wrong"])
def test_changed_cygrpc_is_replaced_by_public_grpc(monkeypatch: pytest.MonkeyPatch, problem: str) -> None:
    calls = unary.CompletionQueueCalls
    if problem == "missing":
        monkeypatch.delattr(calls, "_request_call")
    elif problem == "silent":
        monkeypatch.setattr(unary, "SELF_TEST_TIMEOUT_S", 0.2)
        monkeypatch.setattr(calls, "_on_call", lambda *_: None)
    else:
        # Every response is what an error handler would send.
        result = unary.CallResult(Code.OK, message=b"something else")
        real = calls.__init__
        monkeypatch.setattr(
            calls,
            "__init__",
            lambda self, server, behaviors, *n: real(
                self, server, {m: lambda _, __, respond: respond(result) for m in behaviors}, *n
            ),
        )
    results = {
        b"good": unary.CallResult(Code.OK, message=b"message"),
        b"bad": unary.CallResult(Code.NOT_FOUND, "\ud800"),
    }
    server = grpc.server(ThreadPoolExecutor(1))
    served = unary.serve_unary(server, {METHOD: answering(results)}, threads=1, max_threads=1)
    assert isinstance(served, unary.PooledCalls)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    served.start()
    with grpc.insecure_channel(address) as channel:
        call: Any = channel.unary_unary(METHOD)
        assert call(b"good", timeout=30) == b"message"
        with pytest.raises(grpc.RpcError) as caught:
            call(b"bad", timeout=30)
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.NOT_FOUND, "?")
    server.stop(None).wait()
    served.stop()
