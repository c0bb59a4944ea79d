from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """Writes a model that doubles the sums of its rows' halves: (N, 4) → (N, 2)."""

    def make(
        width: int = 4,
        dtype: int = TensorProto.FLOAT,
        output_width: int = 2,
        inputs: int = 1,
        declared_output: int | None = None,
        rows: int | str = "N",
    ) -> Path:
        np_dtype = helper.tensor_dtype_to_np_dtype(dtype)
        weight = np.zeros((width, output_width), np_dtype)
        weight[: width // 2, 0] = weight[width // 2 :, -1] = 2
        names = ["input", *(f"input_{i}" for i in range(1, inputs))]
        nodes = [helper.make_node("MatMul", ["input", "weight"], ["output"])]
        graph = helper.make_graph(
            nodes,
            "doubled",
            [helper.make_tensor_value_info(name, dtype, [rows, width]) for name in names],
            [helper.make_tensor_value_info("output", dtype, [rows, declared_output or output_width])],
            [numpy_helper.from_array(weight, "weight")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        path = tmp_path / "model.onnx"
        onnx.save(model, path)
        return path

    return make


@pytest.fixture
def slow_model(tmp_path: Path) -> Path:
    """A model (N, 4) → (N, 1) that multiplies matrices as often as the largest number in its rows says."""
    float_, bool_, int64 = TensorProto.FLOAT, TensorProto.BOOL, TensorProto.INT64
    body = helper.make_graph(
        [helper.make_node("MatMul", ["before", "square"], ["after"]), helper.make_node("Identity", ["go"], ["again"])],
        "body",
        [
            helper.make_tensor_value_info("number", int64, []),
            helper.make_tensor_value_info("go", bool_, []),
            helper.make_tensor_value_info("before", float_, [128, 128]),
        ],
        [helper.make_tensor_value_info("again", bool_, []), helper.make_tensor_value_info("after", float_, [128, 128])],
        [numpy_helper.from_array(np.full((128, 128), 1 / 128, np.float32), "square")],
    )
    nodes = [
        helper.make_node("ReduceMax", ["input"], ["largest"], keepdims=0),
        helper.make_node("Cast", ["largest"], ["loops"], to=int64),
        helper.make_node("Loop", ["loops", "always", "start"], ["end"], body=body),
        helper.make_node("ReduceMin", ["end"], ["one"], keepdims=0),
        helper.make_node("ReduceSum", ["input", "columns"], ["sum"]),
        helper.make_node("Mul", ["sum", "one"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "slow",
        [helper.make_tensor_value_info("input", float_, ["N", 4])],
        [helper.make_tensor_value_info("output", float_, ["N", 1])],
        [
            numpy_helper.from_array(np.array(True), "always"),
            numpy_helper.from_array(np.ones((128, 128), np.float32), "start"),
            numpy_helper.from_array(np.array([1]), "columns"),
        ],
    )
    path = tmp_path / "slow.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path
