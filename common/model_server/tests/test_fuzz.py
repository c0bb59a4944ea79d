"""Random bytes and mutated messages at both ports: correct codes, and the server lives on."""

from __future__ import annotations

import json
import random
import socket
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model_server.json_codec import parse_body
from model_server.status import Code, StatusError
from model_server.tensors import ELEMENT_TYPES, decode, encode
from tests.test_grpc_protocol import predict_request
from tfserving_protos import messages
from tfserving_protos.services import METHODS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Server

# サーバーはテスト全体で1つなので、例ごとに作り直されないことは問題にならない。
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
    """The error that a call ends with, which must not be one that the server did not expect; None: it succeeded."""
    try:
        call(payload, timeout=30)
    except grpc.RpcError as error:
        found = error
    else:
        return None
    assert "server's log" not in (found.details() or "")
    return found


def still_serves(server: Server) -> bool:
    return server.post("/v1/models/half_plus_two:predict", {"instances": [1.0]}).status_code == 200


@FUZZ
@given(body=st.binary(max_size=200), verb=st.sampled_from(["predict", "classify", "regress"]))
def test_random_bytes_as_body(server: Server, body: bytes, verb: str) -> None:
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
def test_random_json(server: Server, model: str, verb: str, signature: dict[str, str], key: str, value: Any) -> None:
    body = json.dumps(signature | {key: value}).encode("utf-8", "surrogatepass")
    response = server.post(f"/v1/models/{model}:{verb}", data=body)
    assert response.status_code in (200, 400)
    assert set(json.loads(response.text)) <= {"predictions", "outputs", "results", "error"}


@FUZZ
@given(path=st.text(st.characters(codec="latin-1", exclude_characters="\r\n #?"), max_size=40))
def test_random_paths(server: Server, path: str) -> None:
    with socket.create_connection(endpoint(server.rest_url), timeout=30) as raw:
        # 生成される文字列には、ソースコードから採られたモデルの名前もあるので、名前にならない文字を前に置く。
        raw.sendall(b"GET /v1/models/~" + path.encode("latin-1") + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert raw.recv(20).split(b" ")[1] in (b"400", b"404")


@pytest.mark.parametrize("port", ["grpc", "rest"])
def test_random_bytes_on_the_socket(server: Server, port: str) -> None:
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
def test_random_bytes_as_message(server: Server, payload: bytes, method: tuple[str, str]) -> None:
    call: Callable[..., object] = server.channel.unary_unary(f"/{method[0]}/{method[1]}")
    error = outcome(call, payload)
    assert error is None or error.code().name in ("INTERNAL", "INVALID_ARGUMENT", "NOT_FOUND")


@FUZZ
@given(data=st.data())
def test_mutated_predict_requests(server: Server, data: st.DataObject) -> None:
    payload = bytearray(predict_request("half_plus_two", x=[1.0, 2.0]).SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    call: Callable[..., object] = server.channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    error = outcome(call, bytes(payload))
    assert error is None or error.code().name not in ("UNKNOWN", "UNAVAILABLE", "DEADLINE_EXCEEDED")


@given(st.binary(max_size=60))
def test_parse_body_gives_an_object_or_a_reason(body: bytes) -> None:
    try:
        document = parse_body(body)
    except StatusError as error:
        code = error.code
    else:
        assert isinstance(document, dict)
        return
    assert code is Code.INVALID_ARGUMENT


@given(
    st.sampled_from(sorted(ELEMENT_TYPES)),
    st.lists(st.integers(-1, 4), max_size=3),
    st.binary(max_size=40),
    st.lists(st.integers(0, 100), max_size=5),
)
def test_decode_gives_the_shape_or_a_reason(kind: int, shape: list[int], content: bytes, values: list[int]) -> None:
    proto = messages.TensorProto(dtype=kind, tensor_content=content, int_val=values)
    for size in shape:
        proto.tensor_shape.dim.add().size = size
    try:
        array = decode("x", proto)
    except StatusError as error:
        code = error.code
    else:
        assert array.shape == tuple(shape)
        return
    assert code is Code.INVALID_ARGUMENT


@given(
    st.sampled_from([np.float32, np.int64, np.uint8, np.bool_, np.complex64]), st.lists(st.integers(0, 3), max_size=3)
)
def test_encode_and_decode_are_inverse(dtype: type[np.generic], shape: list[int]) -> None:
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    proto = messages.TensorProto()
    encode(array, proto)
    np.testing.assert_array_equal(decode("x", proto), array)


@given(
    st.sampled_from([np.float32, np.float64, np.complex64, np.complex128]),
    st.lists(st.floats(width=32), max_size=40),
    st.booleans(),
)
def test_packed_fields_are_what_protobuf_writes_itself(
    dtype: type[np.generic], values: list[float], is_reversed: bool
) -> None:
    array = np.array(values, dtype)[:: -1 if is_reversed else 1]
    proto = messages.TensorProto()
    encode(array, proto)
    field = ELEMENT_TYPES[proto.dtype].field
    parts = array if array.dtype.kind == "f" else np.stack([array.real, array.imag], axis=1).reshape(-1)
    expected = messages.TensorProto(dtype=proto.dtype, tensor_shape=proto.tensor_shape)
    getattr(expected, field).extend(parts.tolist())
    assert proto.SerializeToString() == expected.SerializeToString()
