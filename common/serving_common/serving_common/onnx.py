"""A loaded ONNX model that has been checked against what the service expects, and never holds the event loop."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from serving_common.errors import StartupError

# Since 1.29, on Linux too, ONNX Runtime sends to its maker what models it loads and how they run, and keeps a device id
# on disk, unless it is told otherwise before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

FloatArray = npt.NDArray[np.float32]
Shape = tuple[int | None, ...]
"""Sizes of a tensor's dimensions; None is a batch dimension of any size."""

CGROUP_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True, eq=False)
class OnnxModel:
    """One model in ONNX Runtime. `run` may be called from several threads at once; it releases the GIL."""

    session: ort.InferenceSession
    input_name: str
    output_name: str
    one_row: bool
    """It was exported for batches of exactly one row, as PyTorch does unless it is told otherwise."""

    @classmethod
    def load(cls, path: Path, *, input_shape: Shape, output_shape: Shape, threads: int = 1) -> Self:
        """Load, check and warm up a model with one float32 input.

        Args:
            path: the .onnx file.
            input_shape: for instance (None, 4).
            output_shape: of the float32 output to use, for instance (None, 3); a model may have others beside it.
            threads: used by one run; 0 means all that this container may use.

        Raises:
            StartupError: the file is missing, is no ONNX model, or does not have this input and output.
        """
        if not path.is_file():
            raise StartupError(f"there is no model at {path} (build it with: python -m models.build)")
        options = ort.SessionOptions()
        # ONNX Runtime's own default is one thread per core of the host, whatever the container may use of it.
        options.intra_op_num_threads = threads or available_cpus()
        options.inter_op_num_threads = 1
        # Threads that spin while they wait win microseconds and cost a small container its quota.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as exc:
            raise StartupError(f"{path} is not a usable ONNX model: {exc}") from exc

        [given] = _matching(path, "input", session.get_inputs(), input_shape)
        output = _matching(path, "output", session.get_outputs(), output_shape)[0]
        model = cls(session, given.name, output.name, one_row=1 in (given.shape[0], output.shape[0]))
        answer = model.run(np.ones([size or 1 for size in input_shape], np.float32))
        if answer.shape != tuple(size or 1 for size in output_shape):
            raise StartupError(f"{path} answers one row with shape {answer.shape}, wanted {_spelled(output_shape)}")
        return model

    def run(self, batch: FloatArray) -> FloatArray:
        """The model's answer to a batch, row by row. Blocks until it is there."""
        if self.one_row and len(batch) > 1:
            return np.concatenate([self.run(batch[row : row + 1]) for row in range(len(batch))])
        [output] = self.session.run([self.output_name], {self.input_name: batch})
        return output  # type: ignore[no-any-return]  # onnxruntime has no types


def available_cpus(cpu_max: Path = CGROUP_CPU_MAX) -> int:
    """CPUs that this process may use: its affinity, or the container's quota if that is less; at least 1."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = cpu_max.read_text().split()
        if quota != "max":
            cpus = min(cpus, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # no cgroup v2 here, so no quota that could be read
    return cpus


def _matching(path: Path, kind: str, tensors: Sequence[Any], wanted: Shape) -> list[Any]:
    """The tensors with the wanted shape; all of the inputs must have it. A batch may be of one row only."""

    def fits(tensor: Any) -> bool:
        return (
            tensor.type == "tensor(float)"
            and len(tensor.shape) == len(wanted)
            # A dimension of any size has a name, or none, in the model.
            and all(
                not isinstance(have, int) or have == (want or 1)
                for have, want in zip(tensor.shape, wanted, strict=True)
            )
        )

    matching = [tensor for tensor in tensors if fits(tensor)]
    if not matching or (kind == "input" and len(tensors) != 1):
        found = ", ".join(f"{t.name} {t.type}{t.shape}" for t in tensors)
        raise StartupError(f"{path} has the wrong {kind}: wanted one tensor(float){_spelled(wanted)}, found {found}")
    return matching


def _spelled(shape: Shape) -> str:
    return f"[{', '.join('N' if size is None else str(size) for size in shape)}]"
