"""Inputs and outputs of ONNX graphs, and one trial run."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime

from models.files import BuildError
from models.manifest import Tensor

Array = np.ndarray[Any, np.dtype[Any]]


def tensors(values: Sequence[onnx.ValueInfoProto]) -> list[Tensor]:
    return [
        Tensor(
            name=value.name,
            dtype=onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
            shape=[dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
        )
        for value in values
    ]


def run(model: onnx.ModelProto, rows: Array) -> list[Array]:
    """All outputs for one batch at the model's only input. Raises BuildError if the run fails."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised as exceptions
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        outputs: list[Array] = session.run(None, {session.get_inputs()[0].name: rows})
    except Exception as exc:  # onnxruntime's exceptions share no other base class
        raise BuildError(f"onnxruntime cannot run it on {list(rows.shape)}: {str(exc).splitlines()[0]}") from exc
    return outputs
