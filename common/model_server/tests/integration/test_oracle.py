"""Predict against TensorFlow's own session, on inputs of any shape and type: never refused, never another value."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model_server.tensors import ELEMENT_TYPES, decode
from tests.conftest import grpc_error, predict_request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import ServerUnderTest

SIGNATURES = {
    "half_plus_two": ["serving_default", "column", "odd_method"],
    "half_plus_three": ["serving_default"],
    "mistyped": ["serving_default", "untyped", "bare"],
    "several": ["serving_default", "scalar", "uneven"],
    "text": ["serving_default", "raw", "lengths"],
    "types": ["serving_default", "float32", "int8", "string", "bool"],
    "iris": ["serving_default"],
}
# The same networks as ONNX files. Those of which the graph itself has shapes are missing, because ONNX Runtime, unlike
# a session callable, holds its inputs to them.
ONNX_SIGNATURES = {
    "half_plus_two": ["serving_default", "column", "odd_method"],
    "half_plus_three": ["serving_default"],
    "mistyped": ["serving_default", "untyped", "bare"],
    "text": ["serving_default", "raw"],
    "types": ["float32", "int8", "string", "bool"],
}
INPUTS = {"tag": object, "text": object, "image_bytes": object, "sensor": np.int64}
DTYPES = [np.float32, np.float64, np.int64, np.int8, np.bool_, object]


class Oracle:
    """Sessions of the SavedModels in `folders`, by name."""

    def __init__(self, folders: dict[str, Path]) -> None:
        from tensorflow.compat import v1

        self.error = v1.errors.OpError
        self.sessions, self.signatures = {}, {}
        for model, folder in folders.items():
            self.sessions[model] = v1.Session(graph=(graph := v1.Graph()))
            with graph.as_default():
                loaded = v1.saved_model.loader.load(self.sessions[model], ["serve"], str(next(folder.iterdir())))
            self.signatures[model] = loaded.signature_def
        self.callables: dict[tuple[str, str], Any] = {}

    def inputs(self, model: str, name: str) -> list[str]:
        return sorted(self.signatures[model][name].inputs)

    def run(self, model: str, name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray] | None:
        """What a session computes; None if it refuses."""
        from tensorflow.core.protobuf.config_pb2 import CallableOptions

        signature = self.signatures[model][name]
        feeds, fetches = sorted(signature.inputs), sorted(signature.outputs)
        if (model, name) not in self.callables:
            options = CallableOptions(
                feed=[signature.inputs[feed].name for feed in feeds],
                fetch=[signature.outputs[fetch].name for fetch in fetches],
            )
            self.callables[model, name] = self.sessions[model]._make_callable_from_options(options)
        try:
            values = self.callables[model, name](*(inputs[feed] for feed in feeds))
        except self.error:
            return None
        return dict(zip(fetches, values, strict=True))

    def close(self) -> None:
        self.callables.clear()
        for session in self.sessions.values():
            session.close()


@pytest.fixture(scope="module")
def oracle(models: Path, iris_model: Path) -> Iterator[Oracle]:
    found = Oracle({model: iris_model if model == "iris" else models / model for model in SIGNATURES})
    yield found
    found.close()


def array(dtype: Any, shape: tuple[int, ...], seed: int) -> np.ndarray:
    numbers = (np.arange(math.prod(shape)) * 7 + seed) % 11
    flat = np.array([b"%d" % n for n in numbers], object) if dtype is object else numbers.astype(dtype)
    return flat.reshape(shape)


shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@pytest.mark.parametrize("server", ["private APIs", "ONNX"], indirect=True)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_predict_equals_a_session(server: ServerUnderTest, oracle: Oracle, data: st.DataObject) -> None:
    known = ONNX_SIGNATURES if server.has_onnx else SIGNATURES
    model = data.draw(st.sampled_from(sorted(known)))
    name = data.draw(st.sampled_from(known[model]))
    shape = data.draw(shapes)
    inputs = {}
    for alias in oracle.inputs(model, name):
        usual = object if (model, name) == ("types", "string") else INPUTS.get(alias, np.float32)
        if model == "types" and name in ("int8", "bool"):
            usual = np.dtype(name).type
        dtype = data.draw(st.sampled_from([usual] * 6 + DTYPES))
        inputs[alias] = array(dtype, data.draw(st.just(shape) | shapes), data.draw(st.integers(0, 5)))
    wanted = oracle.run(model, name, inputs)
    request = predict_request(server.model(f"types/{name}" if model == "types" else model), name, **inputs)
    if wanted is None:
        assert grpc_error(server.predictions.Predict, request)[0] == "INVALID_ARGUMENT"
        return
    response = server.predictions.Predict(request, timeout=60)
    for alias, value in wanted.items():
        found = decode(alias, response.outputs[alias])
        expected = np.asarray(value, ELEMENT_TYPES[response.outputs[alias].dtype].dtype)
        assert found.shape == expected.shape
        np.testing.assert_array_equal(found, expected)
