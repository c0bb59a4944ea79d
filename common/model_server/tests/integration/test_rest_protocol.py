"""The REST API as TensorFlow Serving's public documentation describes it, example by example."""

from __future__ import annotations

import base64
import gzip
import json
import math
import socket
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.conftest import ServerUnderTest, grpc_error, predict_request, slow_loops

if TYPE_CHECKING:
    import requests

pytestmark = pytest.mark.every_server

HALF = "/v1/models/half_plus_two"
# In some versions of Python, 3.11 and 3.12.1 among them, its own limit ends the parsing of 2,000 levels.
try:
    json.loads("[" * 2_000 + "]" * 2_000)
except RecursionError:
    TOO_DEEP = "the document is nested too deeply"
else:
    TOO_DEEP = "list at unexpected level: 254"


def error_of(response: requests.Response) -> str:
    """The message of an error answer, which has exactly this form."""
    document = response.json()
    assert list(document) == ["error"]
    assert response.headers["content-type"] == "application/json"
    return str(document["error"])


# ---- status and metadata ----


def test_model_status_lists_versions(server: ServerUnderTest) -> None:
    response = server.get(HALF)
    assert response.status_code == 200
    assert response.json() == {
        "model_version_status": [
            {"version": "123", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        ]
    }
    assert response.text.startswith('{\n "model_version_status": [\n  {\n   "version": "123"')


@pytest.mark.parametrize(("path", "versions"), [("", ["2", "1"]), ("/versions/1", ["1"]), ("/labels/canary", ["2"])])
def test_status_of_one_version_or_label(server: ServerUnderTest, path: str, versions: list[str]) -> None:
    entries = server.get(f"/v1/models/counted{path}").json()["model_version_status"]
    assert [entry["version"] for entry in entries] == versions


def test_metadata_contains_the_signatures(server: ServerUnderTest) -> None:
    document = server.get(HALF + "/metadata").json()
    assert document["model_spec"] == {"name": "half_plus_two", "signature_name": "", "version": "123"}
    signature = document["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["method_name"] == "tensorflow/serving/predict"
    assert signature["inputs"]["x"] == {
        "name": "x:0",
        "dtype": "DT_FLOAT",
        "tensor_shape": {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False},
    }


def test_metadata_of_a_version_and_of_a_keras_model(server: ServerUnderTest) -> None:
    assert server.get("/v1/models/counted/versions/1/metadata").json()["model_spec"]["version"] == "1"
    document = server.get("/v1/models/iris/metadata").json()
    signature = document["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["inputs"]["input"]["name"] == "serving_default_input:0"
    assert signature["outputs"]["output"]["name"] == "StatefulPartitionedCall:0"


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/v1/models/half", 404, "Could not find any versions of model half"),
        (HALF + "/versions/7", 404, "Could not find version 7 of model half_plus_two"),
        (HALF + "/labels/no", 400, "Unrecognized servable version label: no"),
        (HALF + "/versions/99999999999999999999", 400, "Failed to convert version: 99999999999999999999 to numeric."),
        (HALF + "/versions/7/metadata", 404, "Servable not found for request: Specific(half_plus_two, 7)"),
        ("/v1/models/half/metadata", 404, "Servable not found for request: Latest(half)"),
        ("/v1/models", 400, "Missing model name in request."),
        ("/v1/anything", 400, "Malformed request: GET /v1/anything"),
        (HALF + ":predict", 400, "Malformed request: GET /v1/models/half_plus_two:predict"),
        ("/elsewhere", 404, "Not Found"),
    ],
)
def test_invalid_get_returns_status_and_reason(server: ServerUnderTest, path: str, status: int, message: str) -> None:
    response = server.get(path)
    assert (response.status_code, error_of(response)) == (status, message)


# ---- predict ----


def test_rows_return_predictions(server: ServerUnderTest) -> None:
    response = server.post(HALF + ":predict", {"instances": [1.0, 2.0, 5.0]})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.text == '{\n    "predictions": [2.5, 3.0, 4.5\n    ]\n}'


@pytest.mark.parametrize("path", ["/versions/123", "", "?pretty=1"])
def test_predict_with_and_without_version(server: ServerUnderTest, path: str) -> None:
    suffix = path if path.startswith("?") else ""
    response = server.post(f"{HALF}{'' if suffix else path}:predict{suffix}", {"instances": [2]})
    assert response.json() == {"predictions": [3.0]}


@pytest.mark.parametrize(
    ("path", "y"), [("", 2.0), ("/versions/1", 1.0), ("/versions/2", 2.0), ("/labels/stable", 1.0)]
)
def test_version_and_label_select_the_version(server: ServerUnderTest, path: str, y: float) -> None:
    assert server.post(f"/v1/models/counted{path}:predict", {"instances": [0.0]}).json() == {"predictions": [y]}


@pytest.mark.parametrize("body", [{"inputs": [1.0, 2.0]}, {"inputs": {"x": [1.0, 2.0]}}])
def test_columns_return_outputs(server: ServerUnderTest, body: dict[str, Any]) -> None:
    assert server.post(HALF + ":predict", body).json() == {"outputs": [2.5, 3.0]}


def test_signature_name_selects_the_signature(server: ServerUnderTest) -> None:
    body = {"signature_name": "serving_default", "instances": [{"x": 1.0}, {"x": 2.0}]}
    assert server.post(HALF + ":predict", body).json() == {"predictions": [2.5, 3.0]}


ROWS = [
    {"tag": "foo", "signal": [1, 2, 3, 4, 5], "sensor": [[1, 2], [3, 4]]},
    {"tag": "bar", "signal": [3, 4, 1, 2, 5], "sensor": [[4, 5], [6, 8]]},
]


def test_several_named_inputs_in_rows(server: ServerUnderTest) -> None:
    response = server.post("/v1/models/several:predict", {"instances": ROWS})
    assert response.json() == {
        "predictions": [
            {"tag": "foo", "total": 15.0, "sensor": [[2, 3], [4, 5]], "raw_bytes": {"b64": "Zm9v"}},
            {"tag": "bar", "total": 15.0, "sensor": [[5, 6], [7, 9]], "raw_bytes": {"b64": "YmFy"}},
        ]
    }


def test_several_named_inputs_in_columns(server: ServerUnderTest) -> None:
    columns = {name: [row[name] for row in ROWS] for name in ROWS[0]}
    response = server.post("/v1/models/several:predict", {"inputs": columns})
    assert response.json()["outputs"]["total"] == [15.0, 15.0]
    assert response.json()["outputs"]["raw_bytes"] == [{"b64": "Zm9v"}, {"b64": "YmFy"}]


def test_strings_and_base64_values(server: ServerUnderTest) -> None:
    mixed = {"instances": ["Grüße, 世界", {"b64": base64.b64encode(b"a,b").decode()}]}
    assert server.post("/v1/models/text:predict", mixed).json() == {
        "predictions": ["Grüße, 世界-Grüße, 世界", "a,b-a,b"]
    }


@pytest.mark.tensorflow_only("ONNX Runtime's strings are UTF-8")
def test_bytes_that_are_not_text(server: ServerUnderTest) -> None:
    binary: dict[str, Any] = {"signature_name": "raw", "instances": [{"b64": "/+8="}, {"image_bytes": {"b64": "AA=="}}]}
    assert error_of(server.post("/v1/models/text:predict", binary)).startswith("Expecting value/list but got object")
    binary["instances"].pop()
    assert server.post("/v1/models/text:predict", binary).json() == {"predictions": [{"b64": "/+8="}]}


def test_base64_may_lack_padding_and_contain_white_space(server: ServerUnderTest) -> None:
    body = {"signature_name": "raw", "instances": [{"b64": "YWI"}, {"b64": "Y W J j"}]}
    assert server.post("/v1/models/text:predict", body).json() == {"predictions": [{"b64": "YWI="}, {"b64": "YWJj"}]}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("float32", [1.5, -2, 0.1, 16777215, -1e30]),
        ("float64", [1e300, 0.1, 9007199254740991, 1e22]),
        ("int8", [-128, 127]),
        ("uint8", [0, 255]),
        ("int16", [-32768]),
        ("int32", [-(2**31)]),
        ("int64", [2**63 - 1, -(2**63)]),
        ("uint32", [2**32 - 1]),
        ("uint64", [2**64 - 1]),
        ("bool", [True, False]),
        ("string", ["a", ""]),
    ],
)
def test_every_numeric_type_bool_and_string_round_trip(server: ServerUnderTest, name: str, values: list[Any]) -> None:
    path = f"/v1/models/{server.model(f'types/{name}')}:predict"
    response = server.post(path, {"signature_name": name, "instances": values})
    assert response.json() == {"predictions": values}


@pytest.mark.parametrize(("name", "given"), [("float32", 1435774380), ("float64", 2**53 + 1)])
def test_number_with_too_many_digits_is_rounded(server: ServerUnderTest, name: str, given: int) -> None:
    path = f"/v1/models/{server.model(f'types/{name}')}:predict"
    response = server.post(path, {"signature_name": name, "instances": [given]})
    assert np.dtype(name).type(response.json()["predictions"][0]) == np.dtype(name).type(given)


def test_half_plus_two_of_the_official_guide(server: ServerUnderTest) -> None:
    """Its x is [-1,1]; the documentation asks it with a flat list."""
    body = {"signature_name": "column", "instances": [1.0, 2.0, 5.0]}
    assert server.post(HALF + ":predict", body).json() == {"predictions": [2.5, 3.0, 4.5]}


def test_half_plus_three_whose_signature_has_no_shape(server: ServerUnderTest) -> None:
    for instances, predictions in (([1.0, 2.0, 5.0], [3.5, 4.0, 5.5]), ([[2.0, 4.0]], [[4.0, 5.0]])):
        response = server.post("/v1/models/half_plus_three:predict", {"instances": instances})
        assert response.json() == {"predictions": predictions}
    assert server.post("/v1/models/half_plus_three:predict", {"inputs": 2.0}).json() == {"outputs": 4.0}


def test_type_of_a_signature_reads_json_and_the_graph_decides(server: ServerUnderTest) -> None:
    path = "/v1/models/mistyped:predict"
    response = server.post(path, {"signature_name": "bare", "instances": [1, 5]})
    assert response.json() == {"predictions": [0.5, 2.5]}
    # Read as the int64 of the signature, which the graph of floats refuses.
    response = server.post(path, {"instances": [1, 5]})
    assert response.status_code == 400
    assert response.json()["error"] == 'Expects input "x" to be float but int64 is provided'
    assert "not of expected type: int64" in server.post(path, {"instances": [1.5]}).json()["error"]
    # Without a type, JSON cannot be read.
    assert server.post(path, {"signature_name": "untyped", "instances": [1]}).status_code == 501


@pytest.mark.tensorflow_only("ONNX graphs have no state")
def test_signature_without_inputs_takes_no_json(server: ServerUnderTest) -> None:
    response = server.post("/v1/models/counter:predict", {"signature_name": "get_counter", "inputs": {}})
    assert response.status_code == 400
    assert response.json()["error"] == "Failed to get input map for signature: get_counter"


def test_scalar_string_in_columns(server: ServerUnderTest) -> None:
    body = {"signature_name": "string", "inputs": "text"}
    assert server.post(f"/v1/models/{server.model('types/string')}:predict", body).json() == {"outputs": "text"}


@pytest.mark.parametrize("number", ["1e400", "-1e400", "1" + "0" * 310, "1" + "0" * 5000])
@pytest.mark.parametrize("name", ["float32", "float64", "float16", "bfloat16", "int64"])
def test_number_beyond_double_returns_400(server: ServerUnderTest, name: str, number: str) -> None:
    body = f'{{"signature_name": "{name}", "instances": [NaN, {number}]}}'
    response = server.post(f"/v1/models/{server.model(f'types/{name}')}:predict", data=body)
    offset = body.index(number)
    assert response.status_code == 400
    assert error_of(response) == f"JSON Parse error: Number too big to be stored in double. at offset: {offset}"


@pytest.mark.parametrize(("name", "given"), [("float16", 70_000), ("bfloat16", 3.4e38), ("float32", 1e39)])
def test_number_beyond_its_type_returns_400(server: ServerUnderTest, name: str, given: float) -> None:
    path = f"/v1/models/{server.model(f'types/{name}')}:predict"
    response = server.post(path, {"signature_name": name, "instances": [given]})
    assert response.status_code == 400
    assert "without loss of precision" in error_of(response)


def test_byte_order_mark_is_skipped(server: ServerUnderTest) -> None:
    body = '{"instances": [1.0]}'.encode("utf-8-sig")
    assert server.post(HALF + ":predict", data=body).json() == {"predictions": [2.5]}


def test_nan_and_infinity_are_accepted_and_returned(server: ServerUnderTest) -> None:
    body = '{"signature_name": "float64", "inputs": [NaN, Infinity, -Infinity, 1.5]}'
    response = server.post(f"/v1/models/{server.model('types/float64')}:predict", data=body)
    values = json.loads(response.text)["outputs"]
    assert math.isnan(values[0])
    assert values[1:] == [math.inf, -math.inf, 1.5]
    rows = server.post("/v1/models/types:predict", {"instances": [0.0, -0.0, 10.0]})
    assert rows.text == '{\n    "predictions": [Infinity, -Infinity, 0.1\n    ]\n}'


@pytest.mark.parametrize(
    ("model", "body", "message"),
    [
        ("half_plus_two", "", "JSON Parse error: The document is empty"),
        ("half_plus_two", "{", "JSON Parse error: Missing a name for object member. at offset: 1"),
        ("half_plus_two", '{"instances": [1, 2', "JSON Parse error: Missing a comma or ] after an array element."),
        ("half_plus_two", '{"instances": = 1}', "JSON Parse error: Invalid value. at offset: 14"),
        ("half_plus_two", b"\xff{}", "JSON Parse error: Invalid encoding in string. at offset: 0"),
        ("half_plus_two", "[" * 100_000, "JSON Parse error: "),
        ("half_plus_two", "[1]", "JSON Value: [1] Is not object"),
        ("half_plus_two", "{}", "Missing 'inputs' or 'instances' key"),
        ("half_plus_two", '{"instances": [1], "inputs": [1]}', "expecting only one of 'inputs' or 'instances'"),
        ("half_plus_two", '{"instances": 1}', "Excepting 'instances' to be an list/array"),
        ("half_plus_two", '{"instances": []}', "No values in 'instances' array"),
        ("half_plus_two", '{"instances": ["x"]}', 'JSON Value: "x" Type: String is not of expected type: float'),
        ("half_plus_two", '{"instances": [1, null]}', "Failed to process element: 1 of 'instances' list. Error: INV"),
        ("half_plus_two", '{"instances": [true]}', "JSON Value: true Type: True is not of expected type: float"),
        ("half_plus_two", '{"instances": [{"z": 1}]}', "JSON object: does not have named input: z"),
        ("half_plus_two", '{"instances": [{"x": 1}, 2]}', "Expecting object but got list at item 1 of input list"),
        ("half_plus_two", '{"instances": [[1], [1, 2]]}', "Expecting tensor size: 1 but got: 2"),
        ("half_plus_two", '{"instances": [[1, [2]]]}', "Encountered list at unexpected level: 1 expected < 1"),
        ("half_plus_two", '{"inputs": {"z": [1]}}', "Missing named input: x in 'inputs' object."),
        ("half_plus_two", '{"signature_name": 1, "instances": [1]}', "'signature_name' key must be a string value."),
        ("half_plus_two", '{"signature_name": "no", "instances": [1]}', 'name: "no" not found in signature def'),
        ("several", '{"instances": [1]}', "instances is a plain list, but expecting list of objects as multiple"),
        ("several", '{"inputs": [1]}', "inputs is a plain value/list, but expecting an object as multiple input"),
        ("several", '{"instances": [{"tag": "a"}]}', "keys must be equal to: sensor,signal,tag"),
        (
            "half_plus_two",
            '{"instances": [1e39]}',
            "Cannot convert JSON value: 1e+39 to float without loss of precision.",
        ),
        ("half_plus_two", '{"instances": ["\\ud800"]}', "JSON Parse error: The surrogate pair in string is invalid."),
        (
            "half_plus_two",
            '{"signature_name": "\\ud800", "instances": [1]}',
            "The surrogate pair in string is invalid.",
        ),
        ("half_plus_two", '{"instances": ' + "[" * 900 + "]" * 900 + "}", "list at unexpected level: 254"),
        ("half_plus_two", '{"inputs": ' + "[" * 2000 + "1" + "]" * 2000 + "}", TOO_DEEP),
        ("types/int8", '{"signature_name": "int8", "instances": [1000]}', "is not of expected type: int8"),
        (
            "types/int32",
            '{"signature_name": "int32", "instances": [1.0]}',
            "JSON Value: 1.0 Type: Number is not of expected",
        ),
        ("types/float64", '{"signature_name": "float64", "instances": [1' + "0" * 5000 + "]}", "JSON Parse error: "),
        ("text", '{"instances": [{"b64": "!"}]}', "Unable to base64 decode"),
        ("text", '{"instances": [{"b64": "\u00e9"}]}', "Unable to base64 decode"),
        ("text", '{"instances": [["a", {"c": 1}]]}', "not formatted correctly for base64 data"),
    ],
)
def test_invalid_predict_body_returns_400_with_the_reason(
    server: ServerUnderTest, model: str, body: str | bytes, message: str
) -> None:
    response = server.post(f"/v1/models/{server.model(model)}:predict", data=body)
    assert response.status_code == 400
    assert message in error_of(response)


@pytest.mark.tensorflow_only("ONNX Runtime has no complex numbers")
def test_complex_numbers_return_501(server: ServerUnderTest) -> None:
    response = server.post("/v1/models/types:predict", {"signature_name": "complex64", "instances": [1]})
    assert response.status_code == 501
    assert "Conversion of JSON Value: 1 to type: complex64" in error_of(response)


@pytest.mark.tensorflow_only("a graph of ONNX needs all of its inputs")
def test_outputs_without_a_common_batch_size_return_400(server: ServerUnderTest) -> None:
    rows = [[1, 2, 3, 4, 5], [1, 2, 3, 4, 5]]
    scalar = server.post("/v1/models/several:predict", {"signature_name": "scalar", "instances": rows})
    assert (scalar.status_code, error_of(scalar)) == (400, "Tensor name: total has no shape information ")
    uneven = server.post("/v1/models/several:predict", {"signature_name": "uneven", "instances": rows})
    assert "has inconsistent batch size: 2 expecting: 1" in error_of(uneven)
    columns = server.post("/v1/models/several:predict", {"signature_name": "scalar", "inputs": rows})
    assert columns.json() == {"outputs": 30.0}


@pytest.mark.parametrize("verb", ["predict", "classify", "regress"])
def test_unknown_model_returns_404(server: ServerUnderTest, verb: str) -> None:
    body = {"instances": [1.0], "examples": [{"x": 1.0}]}
    response = server.post(f"/v1/models/half:{verb}", body)
    assert (response.status_code, error_of(response)) == (404, "Servable not found for request: Latest(half)")


# ---- classify and regress ----


@pytest.mark.tensorflow_only("a graph of ONNX cannot parse a tf.Example")
def test_regress_returns_one_value_per_example(server: ServerUnderTest) -> None:
    body = {"signature_name": "tensorflow/serving/regress", "examples": [{"x": 1.0}, {"x": 2.0}]}
    assert server.post(HALF + ":regress", body).json() == {"results": [2.5, 3.0]}


@pytest.mark.tensorflow_only("a graph of ONNX cannot parse a tf.Example")
def test_classify_returns_labels_and_scores(server: ServerUnderTest) -> None:
    body = {"signature_name": "classify", "examples": [{"x": 1.0}, {"x": [2.0]}]}
    assert server.post(HALF + ":classify", body).json() == {
        "results": [[["low", 2.5], ["high", 3.5]], [["low", 3.0], ["high", 4.0]]]
    }
    assert server.post(HALF + ":classify", {**body, "signature_name": "scores_only"}).json()["results"][0] == [
        ["", 2.5],
        ["", 3.5],
    ]


@pytest.mark.tensorflow_only("a graph of ONNX cannot parse a tf.Example")
def test_context_is_common_to_all_examples(server: ServerUnderTest) -> None:
    body = {"signature_name": "tensorflow/serving/regress", "context": {"x": 4.0}, "examples": [{}, {"other": "a"}]}
    assert server.post(HALF + ":regress", body).json() == {"results": [4.0, 4.0]}


@pytest.mark.tensorflow_only("a graph of ONNX cannot parse a tf.Example")
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"examples": [{"x": 1.0}]}, "No classification inputs found in SignatureDef: serving_default"),
        ({"signature_name": "no", "examples": [{"x": 1.0}]}, "No signature was found with the name: no"),
        ({"signature_name": "classify"}, "key 'examples' is expected and was not found"),
        ({"signature_name": "classify", "examples": {}}, "Expecting 'examples' value to be an list/array"),
        ({"signature_name": "classify", "examples": []}, "'examples' value is an empty array"),
        ({"signature_name": "classify", "examples": [1]}, "Example must be JSON object but got JSON Number"),
        ({"signature_name": "classify", "examples": [{"x": None}]}, "element with unexpected JSON type: Null"),
        ({"signature_name": "classify", "examples": [{"x": [[1.0]]}]}, "element with unexpected JSON type: Array"),
        ({"signature_name": "classify", "examples": [{"x": [1.0, 1]}]}, "in feature: x expecting type: float"),
        ({"signature_name": "classify", "examples": [{"x": 1e39}]}, "Cannot convert JSON value: 1e+39 to float"),
        ({"signature_name": "classify", "examples": [{"x": 2**63}]}, "has uint64 element. Only int64 is supported."),
        ({"signature_name": "classify", "examples": [{"x": {"b64": "!"}}]}, "Unable to base64 decode"),
        ({"signature_name": "classify", "examples": [{"x": {"b64": "é"}}]}, "Unable to base64 decode"),
        ({"signature_name": "classify", "examples": [{"x": 1}]}, "Data types don't match. Data type: int64"),
    ],
)
def test_invalid_classify_body_returns_400_with_the_reason(
    server: ServerUnderTest, body: dict[str, Any], message: str
) -> None:
    response = server.post(HALF + ":classify", body)
    assert response.status_code == 400
    assert message in error_of(response)


# ---- HTTP ----


def test_gzip_bodies_are_accepted(server: ServerUnderTest) -> None:
    body = gzip.compress(json.dumps({"instances": [1.0]}).encode())
    response = server.post(HALF + ":predict", data=body, headers={"Content-Encoding": "gzip"})
    assert response.json() == {"predictions": [2.5]}
    broken = server.post(HALF + ":predict", data=b"plain", headers={"Content-Encoding": "gzip"})
    assert "Cannot decompress the body" in error_of(broken)


# On one server: the body is refused before any runtime or gRPC sees it.
@pytest.mark.parametrize("server", ["ONNX"], indirect=True)
@pytest.mark.parametrize(
    "element",
    [b"0,", b"1.5,", b"[],", b'{"x":1},', b'"a",', b" "],
    ids=["0", "1.5", "list", "object", "string", "space"],
)
def test_body_that_needs_too_much_memory_returns_413(server: ServerUnderTest, element: bytes) -> None:
    """900 MB in one megabyte: refused before it is parsed, at a peak of a few hundred megabytes."""
    deflate = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    start = deflate.compress(b'{"instances": [') + deflate.flush(zlib.Z_FULL_FLUSH)
    # After a full flush, the compressed form depends on nothing before it, and can be repeated.
    mebibyte = deflate.compress(element * ((1 << 20) // len(element))) + deflate.flush(zlib.Z_FULL_FLUSH)
    body = start + mebibyte * 900
    before = server.peak_memory()
    response = server.post(HALF + ":predict", data=body, headers={"Content-Encoding": "gzip"})
    assert (response.status_code, "bytes of memory" in error_of(response)) == (413, True)
    assert server.peak_memory() - before < 700 << 20
    assert server.post(HALF + ":predict", {"instances": [1.0]}).status_code == 200


def test_incomplete_gzip_returns_400(server: ServerUnderTest) -> None:
    body = gzip.compress(b'{"instances": [1.0]}')[:-9]
    response = server.post(HALF + ":predict", data=body, headers={"Content-Encoding": "gzip"})
    assert (response.status_code, error_of(response)) == (400, "Cannot decompress the body: it is incomplete")


def test_health_endpoints(server: ServerUnderTest) -> None:
    for path, status in (("live", "alive"), ("ready", "ready")):
        response = server.get(f"/health/{path}")
        assert (response.status_code, response.json()) == (200, {"status": status})
        assert server.session.head(f"{server.rest_url}/health/{path}", timeout=30).status_code == 200


def test_ipv6_is_served(server: ServerUnderTest) -> None:
    """As on the gRPC port, and as TensorFlow Serving does it: for some clients, localhost is ::1 only."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    port = server.rest_url.rsplit(":", 1)[1]
    assert server.session.get(f"http://[::1]:{port}{HALF}", timeout=30).status_code == 200


def test_cors_headers_are_sent(server: ServerUnderTest) -> None:
    preflight = server.session.options(server.rest_url + HALF + ":predict", timeout=30)
    assert preflight.status_code == 200
    for response in (preflight, server.get(HALF)):
        assert response.headers["Access-Control-Allow-Origin"] == "*"
        assert response.headers["Access-Control-Allow-Methods"] == "POST, GET"
        assert response.headers["Access-Control-Allow-Headers"] == "Content-Type"


def metrics(server: ServerUnderTest) -> dict[str, float]:
    """Every series of the metrics page, with its value."""
    response = server.get("/monitoring/prometheus/metrics")
    assert response.headers["content-type"] == "text/plain"
    assert "# TYPE :tensorflow:serving:request_count counter" in response.text.splitlines()
    lines = [line.rsplit(" ", 1) for line in response.text.splitlines() if not line.startswith("#")]
    return {series.removeprefix(":tensorflow:serving:"): float(value) for series, value in lines}


def test_metrics_count_requests_by_model_and_status(server: ServerUnderTest) -> None:
    """The names, labels and values of TensorFlow Serving: failures count for their model, and not in the latency."""
    before = metrics(server)
    server.post(HALF + ":predict", {"instances": [1.0]})
    server.predictions.Predict(predict_request("half_plus_two", x=[1.0]), timeout=30)
    server.post(HALF + ":predict", {"instances": ["x"]})
    grpc_error(server.predictions.Predict, predict_request("half_plus_two", z=[1.0]))
    server.post(HALF + "/versions/7:predict", {"instances": [1.0]})
    server.post("/v1/models/unknown:predict", {"instances": [1.0]})
    server.get(HALF)
    found = {series: value - before.get(series, 0) for series, value in metrics(server).items()}
    model = 'model_name="half_plus_two"'
    assert found[f'request_count{{{model},status="OK"}}'] == 2
    assert found[f'request_count{{{model},status="INVALID_ARGUMENT"}}'] == 2
    assert found[f'request_count{{{model},status="NOT_FOUND"}}'] == 1
    assert found['request_count{model_name="",status="NOT_FOUND"}'] == 1
    assert found[f'request_latency_count{{{model},API="predict",entrypoint="REST"}}'] == 1
    assert found[f'request_latency_count{{{model},API="Predict",entrypoint="GRPC"}}'] == 1
    assert found[f'request_latency_bucket{{{model},API="predict",entrypoint="REST",le="+Inf"}}'] == 1
    assert not [series for series in found if "unknown" in series or "GetModel" in series]


def test_slow_requests_do_not_block_fast_requests(server: ServerUnderTest) -> None:
    """More loops than the server has threads at first, and a fast request among them."""
    body = {"inputs": slow_loops(server)}
    with ThreadPoolExecutor(4) as pool:
        slow = [pool.submit(server.post, "/v1/models/slow:predict", body) for _ in range(4)]
        assert server.post(HALF + ":predict", {"instances": [1.0]}).status_code == 200
        assert server.get(HALF).status_code == 200
        assert not all(future.done() for future in slow)
        assert all(future.result().status_code == 200 for future in slow)
