"""PredictionService, ModelService, health and reflection, as a gRPC client sees them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from model_server.tensors import ELEMENT_TYPES, ElementType
from tests.conftest import ServerUnderTest, grpc_error, predict_request, slow_loops
from tfserving_protos import messages

pytestmark = pytest.mark.every_server


def to_numpy(tensor: messages.TensorProto) -> np.ndarray:
    """Read by TensorFlow itself, not by our own code."""
    import tensorflow as tf
    from tensorflow.core.framework import tensor_pb2

    array: np.ndarray = tf.make_ndarray(tensor_pb2.TensorProto.FromString(tensor.SerializeToString()))
    return array


def test_predict_returns_outputs_and_model_spec(server: ServerUnderTest) -> None:
    response = server.predictions.Predict(predict_request("half_plus_two", x=[1.0, 2.0, 5.0]), timeout=30)
    assert list(response.outputs["y"].float_val) == [2.5, 3.0, 4.5]
    assert response.outputs["y"].tensor_content == b""
    assert response.model_spec.name == "half_plus_two"
    assert response.model_spec.signature_name == "serving_default"
    assert response.model_spec.version.value == 123


# ONNX Runtime's strings are UTF-8.
VALUES: dict[str, list[Any]] = {"string": [b"a", b"\xff\x00", b""], "bool": [True, False, True]}
ONNX_VALUES = VALUES | {"string": [b"a", b"\xc3\xa9", b""]}
# The test model names its signatures as tf.dtypes does.
SIGNATURES = {"float": "float32", "double": "float64", "half": "float16"}
COMPLEX = [element for element in ELEMENT_TYPES.values() if element.name.startswith("complex")]
OTHERS = [element for element in ELEMENT_TYPES.values() if element not in COMPLEX]


def check_round_trip(server: ServerUnderTest, dtype: ElementType, form: str) -> None:
    values = (ONNX_VALUES if server.has_onnx else VALUES).get(dtype.name, [1, 2, 3])
    value = np.array(values, dtype.dtype).reshape(3, 1)
    signature = SIGNATURES.get(dtype.name, dtype.name)
    request = predict_request(server.model(f"types/{signature}"), signature, x=value)
    tensor = request.inputs["x"]
    assert tensor.tensor_content == b""
    np.testing.assert_array_equal(to_numpy(tensor), value)
    if form == "content":
        tensor.ClearField(dtype.field)
        # Strings: first their sizes, each less than 128 and so a varint of one byte, then their bytes.
        is_string = dtype.name == "string"
        tensor.tensor_content = bytes(map(len, values)) + b"".join(values) if is_string else value.tobytes()
    response = server.predictions.Predict(request, timeout=30).outputs["y"]
    np.testing.assert_array_equal(to_numpy(response), value)


# For 16-bit floats, TensorFlow 2.21's make_ndarray uses what NumPy 2.5 deprecates.
@pytest.mark.filterwarnings("ignore:Setting the dtype on a NumPy array:DeprecationWarning")
@pytest.mark.parametrize("dtype", OTHERS, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("form", ["typed", "content"])
def test_every_type_round_trips_as_typed_field_and_as_tensor_content(
    server: ServerUnderTest, dtype: ElementType, form: str
) -> None:
    check_round_trip(server, dtype, form)


@pytest.mark.tensorflow_only("ONNX Runtime has no complex numbers")
@pytest.mark.parametrize("dtype", COMPLEX, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("form", ["typed", "content"])
def test_complex_numbers_round_trip(server: ServerUnderTest, dtype: ElementType, form: str) -> None:
    check_round_trip(server, dtype, form)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (3, 1), (2, 2), (0, 4)])
@pytest.mark.parametrize(
    ("model", "signature", "offset"),
    [("half_plus_two", "", 2), ("half_plus_two", "column", 2), ("half_plus_three", "", 3)],
)
def test_shapes_of_a_signature_are_not_enforced(
    server: ServerUnderTest, model: str, signature: str, offset: int, shape: tuple[int, ...]
) -> None:
    """As in TensorFlow Serving, which leaves shapes to the model: [-1], [-1,1] and none at all take every shape."""
    request = predict_request(model, signature, x=np.full(shape, 2, np.float32))
    answer = server.predictions.Predict(request, timeout=30).outputs["y"]
    np.testing.assert_array_equal(to_numpy(answer), np.full(shape, 1 + offset, np.float32))


@pytest.mark.parametrize("signature", ["", "untyped", "bare"])
def test_types_of_a_signature_are_not_enforced(server: ServerUnderTest, signature: str) -> None:
    """A graph of floats whose signature says int64, nothing, or names operations instead of tensors."""
    answer = server.predictions.Predict(predict_request("mistyped", signature, x=[1.0, 5.0]), timeout=30)
    assert to_numpy(answer.outputs["y"]).tolist() == [0.5, 2.5]
    code, message = grpc_error(server.predictions.Predict, predict_request("mistyped", signature, x=np.array([1])))
    assert (code, message) == ("INVALID_ARGUMENT", 'Expects input "x" to be float but int64 is provided')


@pytest.mark.tensorflow_only("ONNX graphs have no state")
def test_counter_keeps_its_state_between_calls(server: ServerUnderTest) -> None:
    def call(signature: str, **inputs: Any) -> float:
        request = predict_request("counter", signature, **inputs)
        value: float = to_numpy(server.predictions.Predict(request, timeout=30).outputs["output"]).item()
        return value

    assert call("reset_counter") == 0
    assert [call("incr_counter"), call("incr_counter")] == [1, 2]
    assert call("incr_counter_by", delta=2.5) == 4.5
    assert call("get_counter") == 4.5


def test_last_value_repeats_for_missing_elements(server: ServerUnderTest) -> None:
    request = predict_request(server.model("types/float32"), "float32", x=np.zeros((2, 3), np.float32))
    del request.inputs["x"].float_val[:]
    request.inputs["x"].ClearField("tensor_content")
    request.inputs["x"].float_val.extend([7.0, 1.0])
    answer = server.predictions.Predict(request, timeout=30).outputs["y"]
    assert to_numpy(answer).tolist() == [[7, 1, 1], [1, 1, 1]]


def test_scalar_and_empty_tensor_round_trip(server: ServerUnderTest) -> None:
    for signature, value in [
        ("float32", np.float32(3)),
        ("float32", np.zeros((0, 4), np.float32)),
        ("string", np.array(b"text", object)),
    ]:
        request = predict_request(server.model(f"types/{signature}"), signature, x=value)
        answer = server.predictions.Predict(request, timeout=30).outputs["y"]
        np.testing.assert_array_equal(to_numpy(answer), value)
        assert answer.HasField("tensor_shape")


def test_output_filter_selects_outputs(server: ServerUnderTest) -> None:
    signal = np.ones((2, 5), np.float32)
    sensor = np.zeros((2, 2, 2), np.int64)
    request = predict_request("several", tag=[b"a", b"b"], signal=signal, sensor=sensor)
    assert sorted(server.predictions.Predict(request, timeout=30).outputs) == ["raw_bytes", "sensor", "tag", "total"]
    request.output_filter.extend(["total", "tag"])
    assert sorted(server.predictions.Predict(request, timeout=30).outputs) == ["tag", "total"]
    request.output_filter.append("total")
    assert grpc_error(server.predictions.Predict, request) == (
        "INVALID_ARGUMENT",
        "duplicate output tensor alias: total",
    )
    request.output_filter[:] = ["nothing"]
    code, message = grpc_error(server.predictions.Predict, request)
    assert code == "INVALID_ARGUMENT"
    assert message.startswith("output tensor alias not found in signature: nothing Outputs expected to be in the set")


def test_version_and_label_select_the_version(server: ServerUnderTest) -> None:
    request = predict_request("counted", x=[0.0])
    assert server.predictions.Predict(request, timeout=30).outputs["y"].float_val == [2.0]
    request.model_spec.version.value = 1
    assert server.predictions.Predict(request, timeout=30).outputs["y"].float_val == [1.0]
    request.model_spec.version_label = "canary"
    response = server.predictions.Predict(request, timeout=30)
    assert (response.outputs["y"].float_val, response.model_spec.version.value) == ([2.0], 2)


def bad(**changes) -> messages.PredictRequest:
    """A good request, spoiled in one place."""
    request = predict_request("half_plus_two", x=[1.0])
    for name, value in changes.items():
        if name == "version":
            request.model_spec.version.value = value
        elif name == "tensor":
            request.inputs["x"].CopyFrom(value)
        else:
            setattr(request.model_spec, name, value)
    return request


def tensor(**fields) -> messages.TensorProto:
    shape = messages.TensorShapeProto(dim=[messages.TensorShapeProto.Dim(size=size) for size in fields.pop("shape")])
    return messages.TensorProto(tensor_shape=shape, **{"dtype": messages.DT_FLOAT, **fields})


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        pytest.param(messages.PredictRequest(), "INVALID_ARGUMENT", "Missing ModelSpec", id="no spec"),
        pytest.param(bad(name=""), "INVALID_ARGUMENT", "ModelSpec has no name specified.", id="no name"),
        pytest.param(bad(name="a"), "NOT_FOUND", "Servable not found for request: Latest(a)", id="unknown model"),
        pytest.param(
            bad(version=7),
            "NOT_FOUND",
            "Servable not found for request: Specific(half_plus_two, 7)",
            id="unknown version",
        ),
        pytest.param(
            bad(version_label="x"), "INVALID_ARGUMENT", "Unrecognized servable version label: x", id="unknown label"
        ),
        pytest.param(
            bad(signature_name="x"), "FAILED_PRECONDITION", 'Serving signature key "x" not found.', id="signature"
        ),
        pytest.param(
            predict_request("half_plus_two", x=[1.0], z=[1.0]),
            "INVALID_ARGUMENT",
            "input size does not match signature: 2!=1 len({x,z}) != len({x}). Sent extra: {z}. "
            "Missing but required: {}.",
            id="extra input",
        ),
        pytest.param(predict_request("half_plus_two"), "INVALID_ARGUMENT", "Missing but required: {x}.", id="no input"),
        pytest.param(
            predict_request("half_plus_two", z=[1.0]), "INVALID_ARGUMENT", "Signature input alias: x(", id="wrong name"
        ),
        pytest.param(
            predict_request("half_plus_two", x=np.ones(1)),
            "INVALID_ARGUMENT",
            'Expects input "x" to be float but double is provided',
            id="dtype",
        ),
        pytest.param(
            predict_request("half_plus_three", "missing", x=[1.0]), "NOT_FOUND", "nowhere", id="tensor not in the graph"
        ),
        pytest.param(
            bad(tensor=tensor(shape=[3], tensor_content=b"1234")), "INVALID_ARGUMENT", "has 4 bytes", id="content"
        ),
        pytest.param(
            bad(tensor=tensor(shape=[1], float_val=[1, 2])), "INVALID_ARGUMENT", "2 values for 1", id="too many"
        ),
        pytest.param(bad(tensor=tensor(shape=[-1])), "INVALID_ARGUMENT", "fully known", id="unknown size"),
        pytest.param(
            bad(tensor=tensor(shape=[1 << 40], float_val=[1])), "INVALID_ARGUMENT", "cannot stand for", id="bomb"
        ),
        pytest.param(bad(tensor=tensor(shape=[1] * 70)), "INVALID_ARGUMENT", "tensor parsing error: x", id="rank"),
        pytest.param(bad(tensor=tensor(shape=[0, 1 << 62])), "INVALID_ARGUMENT", "tensor parsing error: x", id="size"),
        pytest.param(
            bad(tensor=tensor(shape=[], dtype=messages.DT_RESOURCE)), "INVALID_ARGUMENT", "unsupported", id="resource"
        ),
        pytest.param(
            bad(tensor=tensor(shape=[2], dtype=messages.DT_STRING, tensor_content=b"\xff")),
            "INVALID_ARGUMENT",
            "malformed tensor_content",
            id="strings",
        ),
    ],
)
def test_invalid_predict_request_returns_code_and_reason(
    server: ServerUnderTest, request_: messages.PredictRequest, code: str, message: str
) -> None:
    found_code, found_message = grpc_error(server.predictions.Predict, request_)
    assert found_code == code
    assert message in found_message


def examples(*values: float) -> messages.Input:
    given = messages.Input()
    for value in values:
        given.example_list.examples.add().features.feature["x"].float_list.value.append(value)
    return given


def spec(signature: str) -> messages.ModelSpec:
    return messages.ModelSpec(name="half_plus_two", signature_name=signature)


@pytest.mark.tensorflow_only("a graph of ONNX cannot parse a tf.Example")
def test_classify_and_regress_return_results_per_example(server: ServerUnderTest) -> None:
    request = messages.ClassificationRequest(model_spec=spec("classify"), input=examples(1, 2))
    response = server.predictions.Classify(request, timeout=30)
    found = [[(entry.label, entry.score) for entry in one.classes] for one in response.result.classifications]
    assert found == [[("low", 2.5), ("high", 3.5)], [("low", 3.0), ("high", 4.0)]]
    assert response.model_spec.version.value == 123
    regression = messages.RegressionRequest(model_spec=spec("tensorflow/serving/regress"), input=examples(1, 2))
    response = server.predictions.Regress(regression, timeout=30)
    assert [one.value for one in response.result.regressions] == [2.5, 3.0]


@pytest.mark.tensorflow_only("a graph of ONNX cannot parse a tf.Example")
def test_method_names_are_not_checked(server: ServerUnderTest) -> None:
    """As in TensorFlow Serving by default: TensorFlow 2 gives every signature the method of Predict."""
    odd = predict_request("half_plus_two", "odd_method", x=[1.0])
    assert server.predictions.Predict(odd, timeout=30).outputs["y"].float_val == [2.0]
    classified = server.predictions.Classify(
        messages.ClassificationRequest(model_spec=spec("tf2_classify"), input=examples(1)), timeout=30
    )
    assert [entry.label for entry in classified.result.classifications[0].classes] == ["low", "high"]
    both = messages.MultiInferenceRequest(
        tasks=[task("tf2_regress", "regress"), task("tf2_classify", "classify")], input=examples(1)
    )
    regression, classification = server.predictions.MultiInference(both, timeout=30).results
    assert regression.regression_result.regressions[0].value == 2.5
    assert classification.classification_result.classifications[0].classes[0].score == 2.5


@pytest.mark.tensorflow_only("a graph of ONNX cannot parse a tf.Example")
def test_context_is_added_to_every_example(server: ServerUnderTest) -> None:
    given = messages.Input()
    given.example_list_with_context.context.CopyFrom(examples(6).example_list.examples[0])
    given.example_list_with_context.examples.add()
    request = messages.RegressionRequest(model_spec=spec("tensorflow/serving/regress"), input=given)
    assert server.predictions.Regress(request, timeout=30).result.regressions[0].value == 5.0


@pytest.mark.tensorflow_only("a graph of ONNX cannot parse a tf.Example")
@pytest.mark.parametrize(
    ("signature", "given", "message"),
    [
        ("classify", messages.Input(), "Input is empty."),
        ("no", examples(1), "No signature was found with the name: no"),
        ("serving_default", examples(1), "No classification inputs found in SignatureDef: serving_default"),
    ],
)
def test_invalid_classify_request_returns_the_reason(
    server: ServerUnderTest, signature: str, given: messages.Input, message: str
) -> None:
    request = messages.ClassificationRequest(model_spec=spec(signature), input=given)
    code, details = grpc_error(server.predictions.Classify, request)
    assert code == "INVALID_ARGUMENT"
    assert message in details


def task(signature: str, method: str, model: str = "half_plus_two") -> messages.InferenceTask:
    return messages.InferenceTask(
        model_spec=messages.ModelSpec(name=model, signature_name=signature), method_name=f"tensorflow/serving/{method}"
    )


@pytest.mark.tensorflow_only("a graph of ONNX cannot parse a tf.Example")
def test_multi_inference_runs_every_task(server: ServerUnderTest) -> None:
    request = messages.MultiInferenceRequest(
        tasks=[task("tensorflow/serving/regress", "regress"), task("classify", "classify")], input=examples(1)
    )
    regression, classification = server.predictions.MultiInference(request, timeout=30).results
    assert regression.regression_result.regressions[0].value == 2.5
    assert classification.classification_result.classifications[0].classes[1].label == "high"
    assert classification.model_spec.signature_name == "classify"


@pytest.mark.tensorflow_only("a graph of ONNX cannot parse a tf.Example")
@pytest.mark.parametrize(
    ("tasks", "code", "message"),
    [
        ([], "INVALID_ARGUMENT", "at least one task"),
        ([task("classify", "classify"), task("classify", "classify")], "INVALID_ARGUMENT", "Duplicate evaluation of"),
        ([task("no", "classify")], "INVALID_ARGUMENT", "Requested signature not found in model graph: no"),
        ([task("classify", "predict")], "UNIMPLEMENTED", "Unsupported signature method_name"),
        ([task("classify", "classify"), task("x", "regress", "other")], "INVALID_ARGUMENT", "the same model name"),
        ([task("classify", "regress")], "INVALID_ARGUMENT", "Expected one output Tensor."),
    ],
)
def test_invalid_multi_inference_request_returns_code_and_reason(
    server: ServerUnderTest, tasks: list[messages.InferenceTask], code: str, message: str
) -> None:
    request = messages.MultiInferenceRequest(tasks=tasks, input=examples(1))
    found_code, details = grpc_error(server.predictions.MultiInference, request)
    assert found_code == code
    assert message in details


def test_metadata_contains_the_signatures(server: ServerUnderTest) -> None:
    request = messages.GetModelMetadataRequest(model_spec=spec(""), metadata_field=["signature_def"])
    response = server.predictions.GetModelMetadata(request, timeout=30)
    signatures = messages.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    assert signatures.signature_def["serving_default"].inputs["x"].dtype == messages.DT_FLOAT
    assert response.model_spec.version.value == 123


@pytest.mark.parametrize(
    ("fields", "message"), [([], "must specify at least one metadata_field"), (["x"], "Metadata field x is not supp")]
)
def test_invalid_metadata_request_returns_the_reason(server: ServerUnderTest, fields: list[str], message: str) -> None:
    request = messages.GetModelMetadataRequest(model_spec=spec(""), metadata_field=fields)
    code, details = grpc_error(server.predictions.GetModelMetadata, request)
    assert code == "INVALID_ARGUMENT"
    assert message in details


def test_model_status_lists_versions(server: ServerUnderTest) -> None:
    request = messages.GetModelStatusRequest(model_spec=messages.ModelSpec(name="counted"))
    found = server.models.GetModelStatus(request, timeout=30).model_version_status
    assert [(one.version, one.state) for one in found] == [
        (2, messages.ModelVersionStatus.AVAILABLE),
        (1, messages.ModelVersionStatus.AVAILABLE),
    ]
    request.model_spec.name = "none"
    assert grpc_error(server.models.GetModelStatus, request) == (
        "NOT_FOUND",
        "Could not find any versions of model none",
    )


def test_health_and_reflection(server: ServerUnderTest) -> None:
    check: Any = health_pb2_grpc.HealthStub(server.channel)
    for service in ("", "tensorflow.serving.PredictionService"):
        response = check.Check(health_pb2.HealthCheckRequest(service=service), timeout=30)
        assert response.status == health_pb2.HealthCheckResponse.SERVING
    database = ProtoReflectionDescriptorDatabase(server.channel)
    assert {
        "tensorflow.serving.PredictionService",
        "tensorflow.serving.ModelService",
        "grpc.health.v1.Health",
    } <= set(database.get_services())
    file = database.FindFileContainingSymbol("tensorflow.serving.PredictionService")
    assert {service.name for service in file.service} == {"PredictionService", "ModelService"}


def test_slow_calls_do_not_block_fast_calls(server: ServerUnderTest) -> None:
    """More loops than the server has threads at first, and a fast call among them."""
    request = predict_request("slow", n=np.array(slow_loops(server)))
    predict: Any = server.predictions.Predict
    slow = [predict.future(request, timeout=60) for _ in range(4)]
    fast = predict(predict_request("half_plus_two", x=[1.0]), timeout=30)
    assert list(fast.outputs["y"].float_val) == [2.5]
    assert not all(call.done() for call in slow)
    assert all(call.result().outputs["done"].float_val for call in slow)


def test_calls_that_end_early_do_not_block_the_next(server: ServerUnderTest) -> None:
    """A deadline, a cancellation, no message at all: the server takes the next call."""
    predict: Any = server.predictions.Predict
    slow_request = predict_request("slow", n=np.array(1_000_000))
    assert grpc_error(predict, slow_request, timeout_s=0.05)[0] == "DEADLINE_EXCEEDED"
    predict.future(slow_request).cancel()
    without_message: Any = server.channel.stream_unary("/tensorflow.serving.PredictionService/Predict")
    assert grpc_error(without_message, iter([]))[0] == "UNIMPLEMENTED"
    unknown: Any = server.channel.unary_unary("/tensorflow.serving.PredictionService/Forget")
    assert grpc_error(unknown, b"")[0] == "UNIMPLEMENTED"
    large = np.ones(1_000_000, np.float32)
    answer = predict(predict_request(server.model("types/float32"), "float32", x=large), timeout=30)
    np.testing.assert_array_equal(to_numpy(answer.outputs["y"]), large)


def test_official_client_gets_a_prediction(server: ServerUnderTest) -> None:
    import tensorflow as tf
    from tensorflow_serving.apis import (  # type: ignore[import-untyped]
        predict_pb2,
        prediction_service_pb2_grpc,
    )

    request = predict_pb2.PredictRequest()
    request.model_spec.name = "iris"
    request.model_spec.signature_name = "serving_default"
    request.inputs["input"].CopyFrom(tf.make_tensor_proto([[5.1, 3.5, 1.4, 0.2]], shape=[1, 4]))
    stub = prediction_service_pb2_grpc.PredictionServiceStub(server.channel)
    response = stub.Predict(request, timeout=30.0)
    assert max(range(3), key=response.outputs["output"].float_val.__getitem__) == 0
