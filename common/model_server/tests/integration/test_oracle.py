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
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import ServerUnderTest

    Oracle = Callable[[str, str, dict[str, np.ndarray]], dict[str, np.ndarray] | None]

SIGNATURES = {
    "half_plus_two": ["serving_default", "column", "odd_method"],
    "half_plus_three": ["serving_default"],
    "several": ["serving_default", "scalar", "uneven"],
    "text": ["serving_default", "raw", "lengths"],
    "types": ["serving_default", "float32", "int8", "string", "bool"],
    "iris": ["serving_default"],
}
INPUTS = {"tag": object, "text": object, "image_bytes": object, "sensor": np.int64}
DTYPES = [np.float32, np.float64, np.int64, np.int8, np.bool_, object]


@pytest.fixture(scope="module")
def oracle(models: Path, iris_model: Path) -> Iterator[Oracle]:
    """What a session computes for a model's signature and its inputs; None if it refuses."""
    from tensorflow.compat import v1
    from tensorflow.core.protobuf.config_pb2 import CallableOptions

    sessions: dict[str, Any] = {}
    callables: dict[tuple[str, str], Any] = {}

    def run(model: str, name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray] | None:
        if model not in sessions:
            base = iris_model if model == "iris" else models / model
            session = v1.Session(graph=(graph := v1.Graph()))
            with graph.as_default():
                meta_graph = v1.saved_model.loader.load(session, ["serve"], str(next(base.iterdir())))
            sessions[model] = session, meta_graph.signature_def
        session, signatures = sessions[model]
        signature = signatures[name]
        if set(inputs) != set(signature.inputs):
            return None
        feeds, fetches = sorted(signature.inputs), sorted(signature.outputs)
        if (model, name) not in callables:
            options = CallableOptions(
                feed=[signature.inputs[feed].name for feed in feeds],
                fetch=[signature.outputs[fetch].name for fetch in fetches],
            )
            callables[model, name] = session._make_callable_from_options(options)
        try:
            return dict(zip(fetches, callables[model, name](*(inputs[feed] for feed in feeds)), strict=True))
        except v1.errors.OpError:
            return None

    yield run
    callables.clear()
    for session, _ in sessions.values():
        session.close()


def array(dtype: Any, shape: tuple[int, ...], seed: int) -> np.ndarray:
    numbers = (np.arange(math.prod(shape)) * 7 + seed) % 11
    flat = np.array([b"%d" % n for n in numbers], object) if dtype is object else numbers.astype(dtype)
    return flat.reshape(shape)


shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_predict_equals_a_session(server: ServerUnderTest, oracle: Oracle, data: st.DataObject) -> None:
    model = data.draw(st.sampled_from(sorted(SIGNATURES)))
    name = data.draw(st.sampled_from(SIGNATURES[model]))
    metadata = server.get(f"/v1/models/{model}/metadata").json()
    aliases = sorted(metadata["metadata"]["signature_def"]["signature_def"][name]["inputs"])
    shape = data.draw(shapes)
    inputs = {}
    for alias in aliases:
        usual = object if (model, name) == ("types", "string") else INPUTS.get(alias, np.float32)
        if model == "types" and name in ("int8", "bool"):
            usual = np.dtype(name).type
        dtype = data.draw(st.sampled_from([usual] * 6 + DTYPES))
        inputs[alias] = array(dtype, data.draw(st.just(shape) | shapes), data.draw(st.integers(0, 5)))
    wanted = oracle(model, name, inputs)
    request = predict_request(model, name, **inputs)
    if wanted is None:
        assert grpc_error(server.predictions.Predict, request)[0] == "INVALID_ARGUMENT"
        return
    response = server.predictions.Predict(request, timeout=60)
    for alias, value in wanted.items():
        found = decode(alias, response.outputs[alias])
        np.testing.assert_array_equal(found, np.asarray(value, ELEMENT_TYPES[response.outputs[alias].dtype].dtype))
