"""The Open Inference Protocol (V2) over HTTP and gRPC, on both runtimes: the published specification, case by case."""

from __future__ import annotations

import gzip
import json
import socket
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model_server.open_inference_tensors import DATATYPES
from serving_testing.processes import wait_until
from tests import onnx_models
from tests.conftest import UP_WITHIN_S, ServerUnderTest, grpc_error, starting
from tests.integration.test_fuzz import endpoint, json_values, outcome
from tfserving_protos import messages
from tfserving_protos.services import INFERENCE_SERVICE, METHODS, InferenceServiceStub

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import requests

HALF = "/v2/models/half_plus_two"
Tensor = messages.ModelInferRequest.InferInputTensor


@pytest.fixture(scope="module")
def onnx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerUnderTest]:
    """A server of every ONNX model, which its clients may load and unload; and of one that can be broken."""
    folder = tmp_path_factory.mktemp("v2")
    onnx_models.build_all(folder / "models")
    onnx_models.half_plus(folder / "models/fragile/1", 1.0, ["N"])
    entries = [
        f'config {{ name: "{base.name}" base_path: "{base}" model_platform: "tensorflow" }}'
        for base in (folder / "models").iterdir()
    ]
    (folder / "models.config").write_text(f"model_config_list {{ {' '.join(entries)} }}")
    flags = ("--model_control_mode=explicit", "--file_system_poll_wait_seconds=0")
    with starting(folder, f"--model_config_file={folder}/models.config", *flags) as server:
        wait_until(server.is_up, UP_WITHIN_S)
        yield server


@pytest.fixture(params=["tensorflow", "tensorflow on public APIs", "onnx"])
def v2(request: pytest.FixtureRequest, onnx: ServerUnderTest) -> ServerUnderTest:
    """The servers of both runtimes. Those of TensorFlow start only for tests that use them."""
    if request.param == "onnx":
        return onnx
    request.getfixturevalue("models")
    servers = request.getfixturevalue("starting_servers")
    found: ServerUnderTest = servers["public APIs" if "public" in request.param else "private APIs"]
    wait_until(found.is_up, UP_WITHIN_S)
    return found


def stub(server: ServerUnderTest) -> InferenceServiceStub:
    return InferenceServiceStub(server.channel)


def infer(server: ServerUnderTest, request: messages.ModelInferRequest) -> messages.ModelInferResponse:
    response: messages.ModelInferResponse = stub(server).ModelInfer(request, timeout=30)
    return response


def error_of(response: requests.Response) -> tuple[int, str]:
    document = response.json()
    assert list(document) == ["error"]
    assert response.headers["content-type"] == "application/json"
    return response.status_code, document["error"]


def fp32(name: Any = "x", **changes: Any) -> dict[str, Any]:
    return {"name": name, "shape": [2], "datatype": "FP32", "data": [1.0, 2.0]} | changes


def post_binary(server: ServerUnderTest, path: str, document: Any, binary: bytes, **headers: str) -> requests.Response:
    text = json.dumps(document).encode()
    found = {"Inference-Header-Content-Length": str(len(text))} | headers
    return server.post(path, data=text + binary, headers=found)


# ---- server and models ----


def test_live_ready_and_metadata_of_the_server(v2: ServerUnderTest) -> None:
    for word in ("live", "ready"):
        response = v2.get(f"/v2/health/{word}")
        assert (response.status_code, response.json()) == (200, {word: True})
        assert v2.session.head(f"{v2.rest_url}/v2/health/{word}", timeout=30).status_code == 200
    assert stub(v2).ServerLive(messages.ServerLiveRequest(), timeout=30).live
    assert stub(v2).ServerReady(messages.ServerReadyRequest(), timeout=30).ready
    document = v2.get("/v2").json()
    assert document["name"] == "portable-model-server"
    assert document["extensions"] == ["binary_tensor_data", "model_repository"]
    found = stub(v2).ServerMetadata(messages.ServerMetadataRequest(), timeout=30)
    assert document == {"name": found.name, "version": found.version, "extensions": list(found.extensions)}


def test_model_metadata_over_both_transports(v2: ServerUnderTest) -> None:
    document = v2.get("/v2/models/several").json()
    assert document["inputs"] == [
        {"name": "sensor", "datatype": "INT64", "shape": [-1, 2, 2]},
        {"name": "signal", "datatype": "FP32", "shape": [-1, 5]},
        {"name": "tag", "datatype": "BYTES", "shape": [-1]},
    ]
    assert document["platform"] in ("tensorflow_savedmodel", "onnxruntime_onnx")
    assert v2.get("/v2/models/several/versions/1").json() == document
    found = stub(v2).ModelMetadata(messages.ModelMetadataRequest(name="several", version="1"), timeout=30)
    assert (found.name, list(found.versions), found.platform) == ("several", ["1"], document["platform"])
    for ours, theirs in ((found.inputs, document["inputs"]), (found.outputs, document["outputs"])):
        assert [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in ours] == theirs


@pytest.mark.parametrize("server", ["private APIs", "ONNX"], indirect=True)
def test_metadata_has_the_types_of_the_graph(server: ServerUnderTest) -> None:
    """What a client sends by it, the graph accepts; the signature says int64, and has no rank."""
    document = server.get("/v2/models/mistyped").json()
    assert document["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1]}]
    assert document["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1]}]
    answer = server.post("/v2/models/mistyped/infer", {"inputs": [fp32()]}).json()
    assert answer["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [2], "data": [0.5, 1.0]}]


def test_model_ready_over_both_transports(v2: ServerUnderTest) -> None:
    for path in (HALF, f"{HALF}/versions/123"):
        assert v2.get(f"{path}/ready").json() == {"name": "half_plus_two", "ready": True}
    call: Any = stub(v2).ModelReady
    assert call(messages.ModelReadyRequest(name="half_plus_two", version="123"), timeout=30).ready
    assert error_of(v2.get("/v2/models/none/ready")) == (404, "Could not find any versions of model none")
    assert grpc_error(call, messages.ModelReadyRequest(name="half_plus_two", version="7"))[0] == "NOT_FOUND"


def test_versions_and_labels_select_the_version(server: ServerUnderTest) -> None:
    body = {"inputs": [fp32(shape=[1], data=[0])]}
    for version, y in (("", 2.0), ("/versions/1", 1.0), ("/versions/stable", 1.0), ("/versions/canary", 2.0)):
        document = server.post(f"/v2/models/counted{version}/infer", body).json()
        assert (document["outputs"][0]["data"], document["model_version"]) == ([y], str(int(y)))
    assert sorted(server.get("/v2/models/counted").json()["versions"]) == ["1", "2"]


def test_service_is_in_reflection_and_health(v2: ServerUnderTest) -> None:
    database = ProtoReflectionDescriptorDatabase(v2.channel)
    assert INFERENCE_SERVICE in database.get_services()
    file = database.FindFileContainingSymbol(INFERENCE_SERVICE)
    assert "ModelInfer" in [method.name for method in file.service[0].method]
    health: Any = health_pb2_grpc.HealthStub(v2.channel)
    assert health.Check(health_pb2.HealthCheckRequest(service=INFERENCE_SERVICE), timeout=30).status == 1


# ---- inference ----


class Typed(NamedTuple):
    """A datatype, the test model with an input x and an output y of it, and its values."""

    datatype: str
    signature: str
    values: np.ndarray


# The test models are named as numpy names types, and SavedModels' signatures likewise.
NAMES = {"BF16": "bfloat16", "BYTES": "string", "BOOL": "bool"}
VALUES: dict[str, list[Any]] = {"BYTES": ["a", "é", "", "x" * 300], "BOOL": [True, False, False, True]}
TYPED = [
    Typed(
        name,
        NAMES.get(name, datatype.element.dtype.name),
        np.array(VALUES.get(name, [1, 0, 100, 7]), datatype.element.dtype).reshape(2, 2),
    )
    for name, datatype in DATATYPES.items()
]


def raw_of(values: np.ndarray) -> bytes:
    """The protocol's binary form, written independently of the server's code."""
    if values.dtype != object:
        return values.tobytes()
    return b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in values.ravel())


@pytest.mark.parametrize("typed", TYPED, ids=lambda typed: typed.datatype)
def test_every_datatype_round_trips(v2: ServerUnderTest, onnx: ServerUnderTest, typed: Typed) -> None:
    model = typed.signature if v2 is onnx else "types"
    raw, shape = raw_of(typed.values), [2, 2]

    # Over gRPC: raw contents, and typed contents if there is a field for them.
    request = messages.ModelInferRequest(model_name=model, id="7", raw_input_contents=[raw])
    request.inputs.add(name="x", datatype=typed.datatype, shape=shape)
    if v2 is not onnx:
        request.parameters["signature_name"].string_param = typed.signature
    response = infer(v2, request)
    [output] = response.outputs
    assert (output.name, output.datatype, list(output.shape), response.id) == ("y", typed.datatype, shape, "7")
    assert list(response.raw_output_contents) == [raw]
    field = DATATYPES[typed.datatype].field
    plain = typed.values.ravel().tolist()
    if field:
        del request.raw_input_contents[:]
        getattr(request.inputs[0].contents, field).extend([v.encode() if isinstance(v, str) else v for v in plain])
        response = infer(v2, request)
        assert not response.raw_output_contents
        assert response.outputs[0].contents == request.inputs[0].contents

    # Over HTTP: binary and JSON, in every combination that the datatype allows.
    path = f"/v2/models/{model}/infer"
    parameters = {} if v2 is onnx else {"signature_name": typed.signature}
    binary: dict[str, Any] = {
        "inputs": [
            {"name": "x", "datatype": typed.datatype, "shape": shape, "parameters": {"binary_data_size": len(raw)}}
        ],
        "parameters": parameters | {"binary_data_output": True},
        "id": "7",
    }
    answer = post_binary(v2, path, binary, raw)
    assert answer.headers["content-type"] == "application/octet-stream"
    size = int(answer.headers["inference-header-content-length"])
    document = json.loads(answer.content[:size])
    assert document["outputs"] == [
        {"name": "y", "datatype": typed.datatype, "shape": shape, "parameters": {"binary_data_size": len(raw)}}
    ]
    assert (document["id"], answer.content[size:]) == ("7", raw)
    as_json = {"inputs": [fp32(datatype=typed.datatype, shape=shape, data=plain)], "parameters": parameters}
    binary["parameters"] = parameters
    if field:
        assert v2.post(path, as_json).json()["outputs"][0]["data"] == plain
        nested = as_json | {"inputs": [as_json["inputs"][0] | {"data": [plain[:2], plain[2:]]}]}  # type: ignore[index]
        assert v2.post(path, nested).json()["outputs"][0]["data"] == plain
        assert post_binary(v2, path, binary, raw).json()["outputs"][0]["data"] == plain
    else:
        assert f"JSON cannot hold {typed.datatype}" in error_of(v2.post(path, as_json))[1]
        assert f"JSON cannot hold {typed.datatype}" in error_of(post_binary(v2, path, binary, raw))[1]
        del request.raw_input_contents[:]
        assert "use raw_input_contents" in grpc_error(stub(v2).ModelInfer, request)[1]


def test_requested_outputs_in_their_order_and_id_and_unknown_parameters(v2: ServerUnderTest) -> None:
    inputs = [
        {"name": "tag", "shape": [2], "datatype": "BYTES", "data": ["a", "b"], "parameters": {"note": 1}},
        {"name": "signal", "shape": [2, 5], "datatype": "FP32", "data": [1] * 10},
        {"name": "sensor", "shape": [2, 2, 2], "datatype": "INT64", "data": [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]},
    ]
    everything = [tensor["name"] for tensor in v2.get("/v2/models/several").json()["outputs"]]
    body = {"id": "a-1", "inputs": inputs, "parameters": {"priority": 3, "timeout": 0, "sequence_id": "s"}}
    document = v2.post("/v2/models/several/infer", body).json()
    assert [tensor["name"] for tensor in document["outputs"]] == everything
    assert (document["model_name"], document["model_version"], document["id"]) == ("several", "1", "a-1")
    some = body | {"outputs": [{"name": name} for name in reversed(everything)]}
    del some["id"]
    document = v2.post("/v2/models/several/infer", some).json()
    assert [tensor["name"] for tensor in document["outputs"]] == everything[::-1]
    assert "id" not in document
    one: dict[str, Any] = {"outputs": [{"name": "total", "parameters": {"binary_data": True}}, {"name": everything[0]}]}
    answer = v2.post("/v2/models/several/infer", body | one)
    assert answer.content.endswith(np.array([5, 5], "<f4").tobytes())
    assert b'"data"' in answer.content


def test_nan_scalar_and_empty_tensors(v2: ServerUnderTest) -> None:
    path = "/v2/models/half_plus_three/infer"
    # Only numbers are written without quotes.
    text = '{"id": "\\u0000NaN", "inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": [NaN, -Infinity]}]}'
    answer = v2.post(path, data=text)
    assert answer.text.endswith('"data":[NaN,-Infinity]}]}')
    assert answer.json()["id"] == "\0NaN"
    for shape, data in (([], [2]), ([0, 3], []), ([1, 1], [2])):
        document = v2.post(path, {"inputs": [fp32(shape=shape, data=data)]}).json()
        assert (document["outputs"][0]["shape"], document["outputs"][0]["data"]) == (shape, [4.0] * len(data))
        request = messages.ModelInferRequest(model_name="half_plus_three")
        request.inputs.add(name="x", datatype="FP32", shape=shape).contents.fp32_contents.extend(data)
        assert list(infer(v2, request).outputs[0].contents.fp32_contents) == [4.0] * len(data)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compressed_binary_bodies_are_read(v2: ServerUnderTest, encoding: str) -> None:
    text = json.dumps({"inputs": [fp32(parameters={"binary_data_size": 8})]}).replace(', "data": [1.0, 2.0]', "")
    body = text.encode() + np.array([1, 2], "<f4").tobytes()
    compressed = gzip.compress(body) if encoding == "gzip" else zlib.compress(body)
    headers = {"Content-Encoding": encoding, "Inference-Header-Content-Length": str(len(text))}
    document = v2.post(f"{HALF}/infer", data=compressed, headers=headers).json()
    assert document["outputs"][0]["data"] == [2.5, 3.0]


def test_binary_tensor_that_needs_too_much_memory_returns_413(onnx: ServerUnderTest) -> None:
    """100 MB of empty strings, which would be 25 million objects."""
    size = 100 << 20
    tensor = {"name": "x", "shape": [size // 4], "datatype": "BYTES", "parameters": {"binary_data_size": size}}
    text = json.dumps({"inputs": [tensor]}).encode()
    body = gzip.compress(text + bytes(size), 1)
    headers = {"Content-Encoding": "gzip", "Inference-Header-Content-Length": str(len(text))}
    before = onnx.peak_memory()
    assert error_of(onnx.post("/v2/models/string/infer", data=body, headers=headers))[0] == 413
    assert onnx.peak_memory() - before < 400 << 20


# ---- errors ----


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/v2/models/none/infer", {"inputs": [fp32()]}, 404, "Servable not found for request: Latest(none)"),
        (f"{HALF}/versions/7/infer", {"inputs": [fp32()]}, 404, "Specific(half_plus_two, 7)"),
        (f"{HALF}/versions/x/infer", {"inputs": [fp32()]}, 400, "Unrecognized servable version label: x"),
        (f"{HALF}/versions/{10**30}/infer", {"inputs": [fp32()]}, 400, "versions are 64-bit integers"),
        (f"{HALF}/infer", {}, 400, "'inputs' must be an array"),
        (f"{HALF}/infer", [], 400, "Is not object"),
        (f"{HALF}/infer", {"inputs": [1]}, 400, "'inputs' must be an array of objects"),
        (f"{HALF}/infer", {"inputs": []}, 400, "Missing but required: {x}"),
        (f"{HALF}/infer", {"inputs": [fp32(), fp32()]}, 400, "input x is given twice"),
        (f"{HALF}/infer", {"inputs": [fp32("z")]}, 400, "Signature input alias: x("),
        (f"{HALF}/infer", {"inputs": [fp32(name=None)]}, 400, "input: 'name' must be a string"),
        (f"{HALF}/infer", {"inputs": [fp32(datatype="FLOAT")]}, 400, "unknown datatype 'FLOAT'"),
        (f"{HALF}/infer", {"inputs": [fp32(datatype="FP64")]}, 400, "to be float but double is provided"),
        (f"{HALF}/infer", {"inputs": [fp32(shape=[3])]}, 400, "'data' has 2 elements, the shape has 3"),
        (f"{HALF}/infer", {"inputs": [fp32(shape=[-1])]}, 400, "the shape must be fully known"),
        (f"{HALF}/infer", {"inputs": [fp32(shape=[2.0])]}, 400, "'shape' must be an array of integers"),
        (f"{HALF}/infer", {"inputs": [fp32(shape=[True, 2])]}, 400, "'shape' must be an array of integers"),
        (f"{HALF}/infer", {"inputs": [fp32(shape=[2**62] * 300)]}, 400, "too many dimensions or elements"),
        (f"{HALF}/infer", {"inputs": [fp32(shape=[1] * 70, data=[1])]}, 400, "tensor parsing error: x"),
        (f"{HALF}/infer", {"inputs": [fp32(shape=[0, 2**62], data=[])]}, 400, "tensor parsing error: x"),
        (f"{HALF}/infer", {"inputs": [fp32(data=["a", "b"])]}, 400, "is not of expected type: float"),
        (f"{HALF}/infer", {"inputs": [fp32(data=None)]}, 400, "'data' must be an array"),
        (f"{HALF}/infer", {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32"}]}, 400, "neither 'data' nor"),
        (f"{HALF}/infer", {"inputs": [fp32()], "outputs": [{"name": "q"}]}, 400, "output tensor alias not found"),
        (f"{HALF}/infer", {"inputs": [fp32()], "outputs": [{"name": "y"}] * 2}, 400, "duplicate output tensor alias"),
        (f"{HALF}/infer", {"inputs": [fp32()], "id": 7}, 400, "'id' must be a string"),
        (f"{HALF}/infer", {"inputs": [fp32()], "parameters": {"signature_name": "q"}}, 400, 'key "q" not found'),
        (
            f"{HALF}/infer",
            {"inputs": [fp32()], "outputs": [{"name": "y", "parameters": {"classification": 2}}]},
            400,
            "parameter classification is not supported",
        ),
        (
            f"{HALF}/infer",
            {"inputs": [fp32(parameters={"shared_memory_region": "r"})]},
            400,
            "parameter shared_memory_region is not supported",
        ),
        (
            f"{HALF}/infer",
            {"inputs": [fp32(parameters={"binary_data_size": 8})]},
            400,
            "'data' and binary_data_size cannot both be given",
        ),
    ],
)
def test_invalid_infer_returns_status_and_reason(
    v2: ServerUnderTest, path: str, body: object, status: int, message: str
) -> None:
    found, error = error_of(v2.post(path, body))
    assert found == status
    assert message in error


@pytest.mark.parametrize(
    ("size", "binary", "headers", "message"),
    [
        (8, b"1234", {}, "binary_data_size is 8, but 4 bytes are left in the body"),
        (-1, b"", {}, "binary_data_size is -1"),
        (True, b"", {}, "'binary_data_size' must be an integer"),
        (8, bytes(9), {}, "1 bytes after the JSON belong to no input"),
        (4, bytes(4), {}, "the content has 4 bytes, 2 elements of float need 8"),
        (8, bytes(8), {"Inference-Header-Content-Length": "9999"}, "Inference-Header-Content-Length is 9999, but"),
        (8, bytes(8), {"Inference-Header-Content-Length": "-1"}, "must be the number of bytes of the JSON"),
        (8, bytes(8), {"Inference-Header-Content-Length": "5"}, "JSON Parse error"),
    ],
)
def test_invalid_binary_body_returns_400_with_the_reason(
    v2: ServerUnderTest, size: object, binary: bytes, headers: dict[str, str], message: str
) -> None:
    tensor = {"name": "x", "shape": [2], "datatype": "FP32", "parameters": {"binary_data_size": size}}
    status, error = error_of(post_binary(v2, f"{HALF}/infer", {"inputs": [tensor]}, binary, **headers))
    assert status == 400
    assert message in error


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", f"{HALF}/infer", 405),
        ("POST", HALF, 405),
        ("POST", "/v2/health/live", 405),
        ("GET", "/v2/repository/index", 405),
        ("GET", "/v2/elsewhere", 404),
        ("GET", "/v2/models/none", 404),
        ("GET", f"{HALF}/versions/7", 404),
        ("POST", "/v2/models//infer", 404),
    ],
)
def test_wrong_method_or_path_returns_an_error(v2: ServerUnderTest, method: str, path: str, status: int) -> None:
    assert error_of(v2.session.request(method, v2.rest_url + path, data=b"", timeout=30))[0] == status


def grpc_request(**changes: Any) -> messages.ModelInferRequest:
    tensor: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": [1]}
    fields: dict[str, Any] = {"model_name": "half_plus_two", "raw_input_contents": [bytes(4)]}
    for name, value in changes.items():
        (tensor if name in ("name", "datatype", "shape", "contents") else fields)[name] = value
    return messages.ModelInferRequest(**({"inputs": [Tensor(**tensor)]} | fields))


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        (grpc_request(model_name="none"), "NOT_FOUND", "Latest(none)"),
        (grpc_request(model_name=""), "INVALID_ARGUMENT", "no name"),
        (grpc_request(model_version="7"), "NOT_FOUND", "Specific(half_plus_two, 7)"),
        (grpc_request(raw_input_contents=[]), "INVALID_ARGUMENT", "fp32_contents has 0 elements, the shape has 1"),
        (grpc_request(raw_input_contents=[b"", b""]), "INVALID_ARGUMENT", "has 2 entries for 1 inputs"),
        (grpc_request(raw_input_contents=[b""]), "INVALID_ARGUMENT", "has 0 bytes"),
        (
            grpc_request(contents=messages.InferTensorContents(fp32_contents=[1])),
            "INVALID_ARGUMENT",
            "contents and raw_input_contents cannot both be given",
        ),
        (grpc_request(datatype="BYTES", raw_input_contents=[b"\x05\0\0\0ab"]), "INVALID_ARGUMENT", "malformed BYTES"),
        (grpc_request(datatype="BYTES", shape=[2**40]), "INVALID_ARGUMENT", "malformed BYTES"),
        (grpc_request(datatype="BYTES", raw_input_contents=[bytes(8)]), "INVALID_ARGUMENT", "malformed BYTES"),
        (
            grpc_request(
                datatype="INT8", raw_input_contents=[], contents=messages.InferTensorContents(int_contents=[300])
            ),
            "INVALID_ARGUMENT",
            "out of the range of INT8",
        ),
        (grpc_request(shape=[2**62] * 300), "INVALID_ARGUMENT", "too many dimensions or elements"),
        (grpc_request(inputs=[Tensor(name="x", datatype="INT4")]), "INVALID_ARGUMENT", "unknown datatype"),
        (grpc_request(inputs=[], raw_input_contents=[]), "INVALID_ARGUMENT", "Missing but required: {x}"),
        (
            grpc_request(inputs=[Tensor(name="x", datatype="FP32", shape=[1])] * 2, raw_input_contents=[bytes(4)] * 2),
            "INVALID_ARGUMENT",
            "given twice",
        ),
    ],
)
def test_invalid_call_returns_code_and_reason(
    v2: ServerUnderTest, request_: messages.ModelInferRequest, code: str, message: str
) -> None:
    found, details = grpc_error(stub(v2).ModelInfer, request_)
    assert found == code
    assert message in details


def test_strings_that_json_cannot_hold_are_refused_but_sent_as_binary(server: ServerUnderTest) -> None:
    raw = struct.pack("<I", 1) + b"\xff"
    tensor = {"name": "x", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(raw)}}
    body: dict[str, Any] = {"inputs": [tensor], "parameters": {"signature_name": "string"}}
    assert "it is not UTF-8" in error_of(post_binary(server, "/v2/models/types/infer", body, raw))[1]
    body["parameters"]["binary_data_output"] = True
    assert post_binary(server, "/v2/models/types/infer", body, raw).content.endswith(raw)


def test_output_without_a_datatype_is_unimplemented(server: ServerUnderTest) -> None:
    assert server.get("/v2/models/types/versions/1").json()["outputs"] == [
        {"name": "y", "datatype": "FP32", "shape": [-1]}
    ]
    body = {"inputs": [fp32()], "parameters": {"signature_name": "complex64"}}
    assert "to be complex64 but float is provided" in error_of(server.post("/v2/models/types/infer", body))[1]


# ---- repository ----


def index(server: ServerUnderTest, name: str, **body: object) -> list[dict[str, str]]:
    return [entry for entry in server.post("/v2/repository/index", body).json() if entry["name"] == name]


def test_unloaded_model_serves_again_once_loaded(onnx: ServerUnderTest) -> None:
    ready = [{"name": "counted", "version": "3", "state": "READY", "reason": ""}]
    assert index(onnx, "counted") == index(onnx, "counted", ready=True) == ready
    path = "/v2/repository/models/counted"
    for _ in range(2):
        assert onnx.post(f"{path}/unload").status_code == 200
        assert index(onnx, "counted") == [{**ready[0], "state": "UNAVAILABLE", "reason": "unloaded"}]
        assert index(onnx, "counted", ready=True) == []
        assert onnx.get("/v2/models/counted/ready").status_code == 503
        assert error_of(onnx.post("/v2/models/counted/infer", {"inputs": [fp32()]}))[0] == 404
    # Unloaded on purpose: the server is ready for all others.
    assert onnx.get("/v2/health/ready").status_code == 200
    assert onnx.post(f"{path}/load", {"parameters": {}}).status_code == 200
    assert onnx.get("/v2/models/counted/ready").status_code == 200
    calls = stub(onnx)
    calls.RepositoryModelUnload(messages.RepositoryModelUnloadRequest(model_name="counted"), timeout=30)
    assert not calls.ModelReady(messages.ModelReadyRequest(name="counted"), timeout=30).ready
    calls.RepositoryModelLoad(messages.RepositoryModelLoadRequest(model_name="counted"), timeout=30)
    found = calls.RepositoryIndex(messages.RepositoryIndexRequest(ready=True), timeout=30).models
    assert [(m.version, m.state) for m in found if m.name == "counted"] == [("3", "READY")]


def test_model_that_cannot_be_loaded_stays_unloaded_with_the_reason(
    onnx: ServerUnderTest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = next(Path(tmp_path_factory.getbasetemp()).glob("v2*/models/fragile/1/model.onnx"))
    content = file.read_bytes()
    path = "/v2/repository/models/fragile"
    assert onnx.post(f"{path}/unload").status_code == 200
    file.write_bytes(b"damaged")
    status, error = error_of(onnx.post(f"{path}/load"))
    assert (status, "did not become available" in error) == (400, True)
    [entry] = index(onnx, "fragile")
    assert (entry["state"], "odel" in entry["reason"]) == ("UNAVAILABLE", True)
    file.rename(file.with_name("elsewhere"))
    file.parent.rename(file.parent.with_name("none"))
    assert "No versions of servable fragile found" in error_of(onnx.post(f"{path}/load"))[1]
    file.parent.with_name("none").rename(file.parent)
    file.write_bytes(content)
    assert onnx.post(f"{path}/load").status_code == 200
    assert onnx.post("/v2/models/fragile/infer", {"inputs": [fp32()]}).status_code == 200


def test_load_of_an_unknown_model_or_with_a_config_returns_the_reason(onnx: ServerUnderTest) -> None:
    for verb in ("load", "unload"):
        status, error = error_of(onnx.post(f"/v2/repository/models/none/{verb}"))
        assert (status, error) == (404, "Model none is not in the server's configuration")
    response = onnx.post("/v2/repository/models/counted/load", {"parameters": {"config": "{}"}})
    assert "parameter config is not supported" in error_of(response)[1]
    request = messages.RepositoryIndexRequest(repository_name="other")
    assert grpc_error(stub(onnx).RepositoryIndex, request)[0] == "INVALID_ARGUMENT"


def test_models_are_not_loaded_by_requests_without_the_flag(server: ServerUnderTest) -> None:
    for verb in ("load", "unload"):
        status, error = error_of(server.post(f"/v2/repository/models/counted/{verb}"))
        assert (status, "--model_control_mode=explicit" in error) == (403, True)
    request = messages.RepositoryModelUnloadRequest(model_name="counted")
    assert grpc_error(stub(server).RepositoryModelUnload, request)[0] == "PERMISSION_DENIED"
    assert [entry["state"] for entry in index(server, "counted", ready=True)] == ["READY", "READY"]


# ---- limits ----


def test_deadline_ends_the_run(v2: ServerUnderTest) -> None:
    request = grpc_request(model_name="endless", name="n", datatype="INT64", shape=[], raw_input_contents=[bytes(8)])
    assert grpc_error(stub(v2).ModelInfer, request, timeout_s=0.3)[0] == "DEADLINE_EXCEEDED"


def test_metrics_count_both_transports(server: ServerUnderTest) -> None:
    def count(series: str) -> float:
        lines = server.get("/monitoring/prometheus/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if series in line)

    over_rest = 'request_latency_count{model_name="half_plus_two",API="infer",entrypoint="REST"}'
    over_grpc = 'request_latency_count{model_name="half_plus_two",API="ModelInfer",entrypoint="GRPC"}'
    before = count(over_rest), count(over_grpc)
    server.post(f"{HALF}/infer", {"inputs": [fp32()]})
    infer(server, grpc_request())
    assert (count(over_rest) - before[0], count(over_grpc) - before[1]) == (1, 1)


# ---- fuzz ----

# All examples share one server, so it does not matter that hypothesis sets fixtures up only once.
FUZZ = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
)
MODELS = st.sampled_from(["half_plus_two", "several", "half_plus_three", "none"])
PARAMETERS = st.dictionaries(
    st.sampled_from(["binary_data_size", "binary_data", "binary_data_output", "signature_name", "other"]),
    st.integers(-1, 9) | json_values,
    max_size=2,
)
SHAPES = st.lists(st.integers(-1, 3) | st.integers(), max_size=3)
TENSORS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["x", "y", "tag"]) | json_values,
        "datatype": st.sampled_from(list(DATATYPES)) | json_values,
        "shape": SHAPES | json_values,
        "data": st.lists(st.integers(-300, 300) | st.floats() | st.booleans() | st.text(max_size=3)) | json_values,
        "parameters": PARAMETERS | json_values,
    },
)
BODIES = st.fixed_dictionaries(
    {"inputs": st.lists(TENSORS, max_size=3) | json_values},
    optional={
        "id": json_values,
        "outputs": st.lists(TENSORS, max_size=2) | json_values,
        "parameters": PARAMETERS | json_values,
    },
)


@FUZZ
@given(model=MODELS, body=BODIES, binary=st.binary(max_size=12), length=st.none() | st.integers(-3, 3))
def test_random_infer_body_returns_an_answer_or_a_client_error(
    v2: ServerUnderTest, model: str, body: dict[str, Any], binary: bytes, length: int | None
) -> None:
    text = json.dumps(body).encode("utf-8", "surrogatepass")
    headers = {} if length is None else {"Inference-Header-Content-Length": str(len(text) + length)}
    content = text if length is None else text + binary
    response = v2.post(f"/v2/models/{model}/infer", data=content, headers=headers)
    assert response.status_code in (200, 400, 404)
    if response.status_code != 200:
        assert list(response.json()) == ["error"]


@FUZZ
@given(
    body=st.binary(max_size=60) | json_values.map(json.dumps).map(str.encode),
    path=st.sampled_from(["index", "models/none/load", "models/none/unload"]),
)
def test_random_repository_body_returns_a_client_error(onnx: ServerUnderTest, body: bytes, path: str) -> None:
    assert onnx.post(f"/v2/repository/{path}", data=body).status_code in (200, 400, 404)


@FUZZ
@given(
    method=st.sampled_from(["GET", "POST", "HEAD", "DELETE"]),
    start=st.sampled_from(
        ["/v2", "/v2/", "/v2/health/", f"{HALF}/", f"{HALF}/versions/", "/v2/models/", "/v2/repository/"]
    ),
    path=st.text(st.characters(codec="latin-1", exclude_characters="\r\n #?"), max_size=20),
)
def test_random_path_returns_an_answer_or_a_client_error(
    v2: ServerUnderTest, method: str, start: str, path: str
) -> None:
    # The tilde keeps the names of models unknown, also those that hypothesis draws from source code.
    with socket.create_connection(endpoint(v2.rest_url), timeout=30) as raw:
        target = f"{start}~{path}".encode("latin-1")
        raw.sendall(method.encode() + b" " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert raw.recv(20).split(b" ")[1] in (b"400", b"404", b"405")


GRPC_TENSORS = st.builds(
    lambda name, datatype, shape, contents: Tensor(name=name, datatype=datatype, shape=shape, contents=contents),
    st.sampled_from(["x", "tag", ""]),
    st.sampled_from([*DATATYPES, ""]),
    st.lists(st.integers(-1, 3) | st.integers(-(2**63), 2**63 - 1), max_size=3),
    st.none()
    | st.builds(
        messages.InferTensorContents,
        fp32_contents=st.lists(st.floats(width=32), max_size=3),
        int_contents=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3),
        bytes_contents=st.lists(st.binary(max_size=3), max_size=3),
    ),
)


@FUZZ
@given(
    model=MODELS,
    tensors=st.lists(GRPC_TENSORS, max_size=2),
    raw=st.lists(st.binary(max_size=12), max_size=2),
    outputs=st.lists(st.sampled_from(["y", "copy", ""]), max_size=2),
)
def test_random_infer_call_returns_an_answer_or_a_client_error(
    v2: ServerUnderTest, model: str, tensors: list[Tensor], raw: list[bytes], outputs: list[str]
) -> None:
    request = messages.ModelInferRequest(model_name=model, inputs=tensors, raw_input_contents=raw)
    for name in outputs:
        request.outputs.add(name=name)
    check(v2, "ModelInfer", request.SerializeToString())


PROTO_PARAMETERS = st.dictionaries(
    st.sampled_from(["config", "file:1/model.onnx", "unload_dependents", ""]),
    st.builds(messages.ModelRepositoryParameter, bool_param=st.booleans())
    | st.builds(messages.ModelRepositoryParameter, bytes_param=st.binary(max_size=3)),
    max_size=2,
)


@FUZZ
@given(
    request=st.builds(
        messages.RepositoryModelLoadRequest,
        model_name=st.text(max_size=4).map("~{}".format),
        parameters=PROTO_PARAMETERS,
    )
    | st.builds(
        messages.RepositoryModelUnloadRequest,
        model_name=st.text(max_size=4).map("~{}".format),
        parameters=PROTO_PARAMETERS,
    )
    | st.builds(messages.RepositoryIndexRequest, repository_name=st.text(max_size=2), ready=st.booleans())
    | st.builds(
        messages.ModelMetadataRequest, name=st.text(max_size=4) | st.just("several"), version=st.text(max_size=3)
    )
    | st.builds(messages.ModelReadyRequest, name=st.text(max_size=4) | st.just("several"), version=st.text(max_size=3)),
)
def test_random_control_call_returns_an_answer_or_a_client_error(v2: ServerUnderTest, request: Any) -> None:
    check(v2, type(request).__name__.removesuffix("Request"), request.SerializeToString())


@FUZZ
@given(data=st.data(), method=st.sampled_from(sorted(METHODS[INFERENCE_SERVICE])))
def test_random_or_mutated_message_returns_a_client_error(
    v2: ServerUnderTest, data: st.DataObject, method: str
) -> None:
    payload = bytearray(grpc_request(id="7").SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    check(v2, method, bytes(payload) if data.draw(st.booleans()) else data.draw(st.binary(max_size=200)))


def check(server: ServerUnderTest, method: str, payload: bytes) -> None:
    call: Callable[..., object] = server.channel.unary_unary(f"/{INFERENCE_SERVICE}/{method}")
    error = outcome(call, payload)
    client_errors = ("INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "PERMISSION_DENIED")
    assert error is None or error.code().name in client_errors
