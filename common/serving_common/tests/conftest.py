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
