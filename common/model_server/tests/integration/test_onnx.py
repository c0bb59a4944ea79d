"""What is particular to ONNX models: types, maps, sequences, fixed batches, signatures, and no TensorFlow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from model_server.tensors import ELEMENT_TYPES, ElementType, decode
from serving_testing.processes import wait_until
from tests import onnx_models
from tests.conftest import UP_WITHIN_S, ServerUnderTest, grpc_error, predict_request, starting
from tfserving_protos import messages

if TYPE_CHECKING:
    from collections.abc import Iterator

# Their names in onnx_models.
NAMES = {"float": "float32", "double": "float64", "half": "float16"}
SHARED = [e for e in ELEMENT_TYPES.values() if NAMES.get(e.name, e.name) in onnx_models.TYPES]
VALUES: dict[str, list[Any]] = {"string": ["a", "é\0", ""], "bool": [True, False, True]}


@pytest.fixture(scope="module")
def onnx(tmp_path_factory: pytest.TempPathFactory, iris_model: Path) -> Iterator[ServerUnderTest]:
    """A server of every ONNX model, and of Iris."""
    folder = tmp_path_factory.mktemp("onnx")
    onnx_models.build_all(folder / "models")
    bases = {base.name: base for base in (folder / "models").iterdir()} | {"iris": iris_model}
    entries = " ".join(
        f'config {{ name: "{n}" base_path: "{b}" model_platform: "tensorflow" }}' for n, b in bases.items()
    )
    (folder / "models.config").write_text(f"model_config_list {{ {entries} }}")
    with starting(folder, f"--model_config_file={folder}/models.config") as server:
        wait_until(server.is_up, UP_WITHIN_S)
        yield server


def predict(server: ServerUnderTest, model: str, **inputs: Any) -> dict[str, np.ndarray]:
    response = server.predictions.Predict(predict_request(model, **inputs), timeout=30)
    return {alias: decode(alias, proto) for alias, proto in response.outputs.items()}


def test_tensorflow_is_in_no_process(onnx: ServerUnderTest) -> None:
    assert predict(onnx, "iris", input=np.ones((1, 4), np.float32))["output"].shape == (1, 3)
    maps = Path(f"/proc/{onnx.process.pid}/maps").read_text()
    assert "onnxruntime" in maps
    assert "tensorflow" not in maps


@pytest.mark.parametrize("element", SHARED, ids=lambda element: element.name)
def test_every_shared_type_round_trips(onnx: ServerUnderTest, element: ElementType) -> None:
    values = [v.encode() if isinstance(v, str) else v for v in VALUES.get(element.name, [1, 0, 1])]
    model = NAMES.get(element.name, element.name)
    for given in (np.array(values, element.dtype).reshape(3, 1), np.array(values[0], element.dtype)):
        found = predict(onnx, model, x=given)["y"]
        assert found.dtype == given.dtype
        np.testing.assert_array_equal(found, given)
    assert predict(onnx, model, x=np.empty((0, 2), element.dtype))["y"].shape == (0, 2)


def test_strings_that_are_not_utf8_are_refused(onnx: ServerUnderTest) -> None:
    code, message = grpc_error(onnx.predictions.Predict, predict_request("string", x=np.array([b"\xff"], object)))
    assert code == "INVALID_ARGUMENT"
    assert "Strings of ONNX models are UTF-8, and input x is not" in message


@pytest.mark.parametrize(
    ("model", "keys"), [("zip_map", [b"high", b"low"]), ("zip_map_of_numbers", [3, 7])], ids=["strings", "numbers"]
)
def test_maps_become_a_matrix_of_values_and_one_of_keys(onnx: ServerUnderTest, model: str, keys: list[Any]) -> None:
    rows = np.array([[0.25, 0.75], [0.5, 0.5], [1, 0]], np.float32)
    found = predict(onnx, model, x=rows)
    np.testing.assert_array_equal(found["scores"], rows[:, ::-1])
    assert found["scores_keys"].tolist() == [keys] * 3
    only = predict_request(model, x=rows)
    only.output_filter.append("scores_keys")
    assert list(onnx.predictions.Predict(only, timeout=30).outputs) == ["scores_keys"]
    by_rest = onnx.post(f"/v1/models/{model}:predict", {"instances": [[0.25, 0.75]]}).json()
    names = [key.decode() if isinstance(key, bytes) else key for key in keys]
    assert by_rest == {"predictions": [{"scores": [0.75, 0.25], "scores_keys": names}]}


def test_sequence_is_stacked(onnx: ServerUnderTest) -> None:
    assert predict(onnx, "sequence", x=[1.0, 2.0])["both"].tolist() == [[1, 2], [2, 4]]


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_batch_axis_of_one_row_is_run_row_by_row(onnx: ServerUnderTest, rows: int) -> None:
    given = np.arange(3 * rows, dtype=np.float32).reshape(rows, 3)
    np.testing.assert_array_equal(predict(onnx, "one_row", x=given)["y"], given / 2 + 2)
    code, _ = grpc_error(onnx.predictions.Predict, predict_request("one_row", x=np.ones((2, 4), np.float32)))
    assert code == "INVALID_ARGUMENT"


def test_several_inputs_and_outputs(onnx: ServerUnderTest) -> None:
    sensor = np.arange(8).reshape(2, 2, 2)
    found = predict(onnx, "several", tag=[b"a", b"b"], signal=np.ones((2, 5), np.float32), sensor=sensor)
    assert found["copy"].tolist() == [b"a", b"b"]
    assert found["total"].tolist() == [5, 5]
    np.testing.assert_array_equal(found["next"], sensor + 1)


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        ("half_plus_two", {"x": np.ones(1)}, 'Expects input "x" to be float but double is provided'),
        ("half_plus_two", {"z": [1.0]}, "Signature input alias: x(feed name: x) not found in request"),
        ("iris", {"input": np.ones((1, 5), np.float32)}, "Got invalid dimensions for input: input"),
        ("iris", {"input": np.ones(4, np.float32)}, "Invalid rank for input: input Got: 1 Expected: 2"),
    ],
)
def test_invalid_input_returns_the_reason(
    onnx: ServerUnderTest, model: str, inputs: dict[str, Any], message: str
) -> None:
    code, found = grpc_error(onnx.predictions.Predict, predict_request(model, **inputs))
    assert code == "INVALID_ARGUMENT"
    assert message in found


def test_deadline_and_cancellation_end_the_run(onnx: ServerUnderTest) -> None:
    call: Any = onnx.predictions.Predict
    endless = predict_request("endless", n=np.array(1))
    assert grpc_error(call, endless, timeout_s=0.3)[0] == "DEADLINE_EXCEEDED"
    running = call.future(endless, timeout=3600)
    before = onnx.cpu_s()
    wait_until(lambda: onnx.cpu_s() > before + 0.2)
    running.cancel()
    # With work that goes on, one of these rounds would use a core's full time.
    busy = [onnx.cpu_s()]

    def is_idle() -> bool:
        busy.append(onnx.cpu_s())
        return len(busy) > 5 and busy[-1] - busy[-5] < 0.02

    wait_until(is_idle)


def test_metadata_of_iris_equals_that_of_tensorflow(onnx: ServerUnderTest, server: ServerUnderTest) -> None:
    path = "/v1/models/iris/metadata"
    assert onnx.get(path).content == server.get(path).content
    spec = messages.ModelSpec(name="iris")
    request = messages.GetModelMetadataRequest(model_spec=spec, metadata_field=["signature_def"])
    found, wanted = (s.predictions.GetModelMetadata(request, timeout=30).metadata for s in (onnx, server))
    assert found["signature_def"].value == wanted["signature_def"].value
