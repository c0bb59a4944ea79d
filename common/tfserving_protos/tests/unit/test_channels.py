"""Targets and retries of a channel, with servers that count their calls."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc
import pytest

from tfserving_protos import channels, messages, services

if TYPE_CHECKING:
    from collections.abc import Iterator

REQUEST = messages.PredictRequest()


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        pytest.param("localhost:8500", "localhost:8500", id="host and port"),
        pytest.param("dns:///tf-serving:8500", "dns:///tf-serving:8500", id="name with several addresses"),
        pytest.param("10.0.0.1:1, 10.0.0.2:2", "ipv4:10.0.0.1:1,10.0.0.2:2", id="IPv4"),
        pytest.param("[::1]:1,[fe80::1]:2", "ipv6:[::1]:1,[fe80::1]:2", id="IPv6"),
        pytest.param("ipv4:10.0.0.1:1,10.0.0.2:2", "ipv4:10.0.0.1:1,10.0.0.2:2", id="a target already"),
    ],
)
def test_addresses_become_a_target(addresses: str, expected: str) -> None:
    assert channels.target(addresses) == expected


@pytest.mark.parametrize("addresses", ["a:1,b:2", "10.0.0.1,10.0.0.2", "10.0.0.1:1,[::1]:2", "10.0.0.1:1,", ","])
def test_several_servers_need_ip_addresses_and_ports(addresses: str) -> None:
    with pytest.raises(ValueError, match="one DNS name"):
        channels.target(addresses)


class CountingServer:
    """Ends its first calls with `failures`, in order, and counts all of them."""

    def __init__(self, *failures: grpc.StatusCode) -> None:
        self.failures = list(failures)
        self.calls = 0
        self._server = grpc.server(ThreadPoolExecutor(2))
        behaviors = dict.fromkeys(services.METHODS[services.PREDICTION_SERVICE], self._answer)
        self._server.add_generic_rpc_handlers((services.generic_handler(services.PREDICTION_SERVICE, behaviors),))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def _answer(self, request: object, context: grpc.ServicerContext) -> messages.PredictResponse:
        self.calls += 1
        if self.failures:
            context.abort(self.failures.pop(0), "as told")
        return messages.PredictResponse()

    def stop(self) -> None:
        self._server.stop(None).wait()


@contextlib.contextmanager
def connected(*servers: CountingServer, retries: int = 0, method: str = "") -> Iterator[services.PredictionServiceStub]:
    target = channels.target(",".join(server.address for server in servers))
    with grpc.insecure_channel(target, channels.options(retries=retries, method=method)) as channel:
        yield services.PredictionServiceStub(channel)
    for server in servers:
        server.stop()


def test_calls_take_turns_and_survive_the_loss_of_a_server() -> None:
    one, other = CountingServer(), CountingServer()
    with connected(one, other, retries=1) as stub:
        for _ in range(200):
            stub.Predict(REQUEST, timeout=30)
        # The first calls go to the server that is connected first.
        assert one.calls + other.calls == 200
        assert min(one.calls, other.calls) > 80
        one.stop()
        for _ in range(20):
            stub.Predict(REQUEST, timeout=30)


@pytest.mark.parametrize(("code", "calls"), [(grpc.StatusCode.UNAVAILABLE, 3), (grpc.StatusCode.ABORTED, 1)])
def test_only_unavailable_is_retried(code: grpc.StatusCode, calls: int) -> None:
    server = CountingServer(*[code] * 5)
    with connected(server, retries=2) as stub, pytest.raises(grpc.RpcError) as caught:
        stub.Predict(REQUEST, timeout=30)
    assert (caught.value.code(), caught.value.details(), server.calls) == (code, "as told", calls)


def test_retries_can_be_limited_to_a_method() -> None:
    server = CountingServer(grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAVAILABLE)
    with connected(server, retries=2, method="GetModelMetadata") as stub:
        with pytest.raises(grpc.RpcError):
            stub.Predict(REQUEST, timeout=30)
        assert server.calls == 1
        stub.GetModelMetadata(messages.GetModelMetadataRequest(), timeout=30)
        assert server.calls == 3
