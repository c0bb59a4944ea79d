"""Random bytes and mutated messages at both ports: correct codes, and the server keeps serving."""

from __future__ import annotations

import json
import random
import socket
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import predict_request
from tfserving_protos.services import METHODS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import ServerUnderTest

# All examples share one server, so it does not matter that hypothesis sets fixtures up only once.
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["x", "b64", "tag"]), inner, max_size=2),
    max_leaves=8,
)


def endpoint(address: str) -> tuple[str, int]:
    host, port = address.removeprefix("http://").split(":")
    return host, int(port)


def outcome(call: Callable[..., object], payload: bytes) -> Any:
    """The error that a call ends with, which must not be an internal one of the server; None on success."""
    try:
        call(payload, timeout=30)
    except grpc.RpcError as error:
        found = error
    else:
        return None
    assert "server's log" not in (found.details() or "")
    return found


def still_serves(server: ServerUnderTest) -> bool:
    return server.post("/v1/models/half_plus_two:predict", {"instances": [1.0]}).status_code == 200


@FUZZ
@given(body=st.binary(max_size=200), verb=st.sampled_from(["predict", "classify", "regress"]))
def test_random_body_returns_400(server: ServerUnderTest, body: bytes, verb: str) -> None:
    response = server.post(f"/v1/models/half_plus_two:{verb}", data=body)
    assert response.status_code == 400
    assert list(response.json()) == ["error"]


@FUZZ
@given(
    model=st.sampled_from(["half_plus_two", "several", "text", "types"]),
    verb=st.sampled_from(["predict", "classify", "regress"]),
    signature=st.sampled_from([{}, {"signature_name": "classify"}, {"signature_name": "raw"}]),
    key=st.sampled_from(["instances", "inputs", "examples", "signature_name"]),
    value=json_values | st.lists(st.dictionaries(st.sampled_from(["x", "tag"]), json_values, max_size=2), max_size=3),
)
def test_random_json_returns_200_or_400(
    server: ServerUnderTest, model: str, verb: str, signature: dict[str, str], key: str, value: Any
) -> None:
    body = json.dumps(signature | {key: value}).encode("utf-8", "surrogatepass")
    response = server.post(f"/v1/models/{model}:{verb}", data=body)
    assert response.status_code in (200, 400)
    assert set(json.loads(response.text)) <= {"predictions", "outputs", "results", "error"}


@FUZZ
@given(path=st.text(st.characters(codec="latin-1", exclude_characters="\r\n #?"), max_size=40))
def test_random_path_returns_400_or_404(server: ServerUnderTest, path: str) -> None:
    with socket.create_connection(endpoint(server.rest_url), timeout=30) as raw:
        # Hypothesis also draws strings from source code, such as names of models: the prefix keeps those unknown.
        raw.sendall(b"GET /v1/models/~" + path.encode("latin-1") + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert raw.recv(20).split(b" ")[1] in (b"400", b"404")


@pytest.mark.parametrize("port", ["grpc", "rest"])
def test_server_survives_random_bytes_on_its_ports(server: ServerUnderTest, port: str) -> None:
    address = endpoint(server.grpc_address if port == "grpc" else server.rest_url)
    source = random.Random(0)
    for size in (1, 24, 500, 5000):
        for prefix in (b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"POST /v1/models/iris:predict HTTP/1.1\r\n"):
            with socket.create_connection(address, timeout=30) as raw:
                raw.sendall(prefix + source.randbytes(size))
    assert still_serves(server)


@FUZZ
@given(
    payload=st.binary(max_size=300),
    method=st.sampled_from([(service, name) for service, methods in METHODS.items() for name in methods]),
)
def test_random_message_returns_a_client_error(
    server: ServerUnderTest, payload: bytes, method: tuple[str, str]
) -> None:
    call: Callable[..., object] = server.channel.unary_unary(f"/{method[0]}/{method[1]}")
    error = outcome(call, payload)
    assert error is None or error.code().name in ("INTERNAL", "INVALID_ARGUMENT", "NOT_FOUND", "PERMISSION_DENIED")


@FUZZ
@given(data=st.data())
def test_mutated_predict_request_returns_a_correct_code(server: ServerUnderTest, data: st.DataObject) -> None:
    payload = bytearray(predict_request("half_plus_two", x=[1.0, 2.0]).SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    call: Callable[..., object] = server.channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    error = outcome(call, bytes(payload))
    assert error is None or error.code().name not in ("UNKNOWN", "UNAVAILABLE", "DEADLINE_EXCEEDED")
