"""A loaded ONNX model, its inputs and outputs checked against what the service expects."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from serving_common.errors import StartupError

# From 1.29 on, ONNX Runtime reports the models it loads to its vendor and stores a device id, on Linux too, unless
# this is set before the import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort
from onnxruntime import RunOptions as RunOptions

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
    """Exported for batches of exactly one row, PyTorch's default."""

    @classmethod
    def load(
        cls, path: Path, *, input_shape: Shape, output_shape: Shape, output_name: str | None = None, threads: int = 1
    ) -> Self:
        """Load, check and warm up a model with one float32 input.

        Args:
            path: the .onnx file.
            input_shape: for instance (None, 4).
            output_shape: of the float32 output to use, for instance (None, 3); the model may have further outputs.
            output_name: of the output; needed where several have that shape.
            threads: per run; 0 means one per CPU that the container may use.

        Raises:
            StartupError: the file is missing, is not an ONNX model, or does not have this input and output.
        """
        session = open_session(path, threads)
        [given] = _matching(path, "input", session.get_inputs(), input_shape)
        outputs = [each for each in session.get_outputs() if output_name in (None, each.name)]
        output, *others = _matching(path, "output", outputs, output_shape)
        if others:
            names = ", ".join(each.name for each in (output, *others))
            raise StartupError(f"{path} has several outputs that fit, {names}: the card must name one as output.tensor")
        model = cls(session, given.name, output.name, one_row=1 in (given.shape[0], output.shape[0]))
        output_row = model.run(np.ones([size or 1 for size in input_shape], np.float32))
        if output_row.shape != tuple(size or 1 for size in output_shape):
            raise StartupError(f"{path} answers one row with shape {output_row.shape}, wanted {_format(output_shape)}")
        return model

    def run(self, batch: FloatArray, options: RunOptions | None = None) -> FloatArray:
        """The model's output for a batch, row by row. Blocks until the run ends.

        Another thread ends it by setting `options.terminate`: it raises then, what ONNX Runtime raises for it.
        """
        if self.one_row and len(batch) > 1:
            return np.concatenate([self.run(batch[row : row + 1], options) for row in range(len(batch))])
        [output] = self.session.run([self.output_name], {self.input_name: batch}, options)
        return output  # type: ignore[no-any-return]  # onnxruntime has no types


def run_options() -> RunOptions:
    """For one run, which ends once `terminate` is set. Why one fails is raised; it is not printed as well."""
    options = RunOptions()
    options.log_severity_level = 4
    return options


def open_session(path: Path, threads: int = 1) -> Any:
    """A session with the model at `path`; 0 threads: one per CPU. Raises StartupError."""
    if not path.is_file():
        raise StartupError(f"there is no model at {path} (build it with: python -m models.build)")
    options = ort.SessionOptions()
    # ONNX Runtime's default is one thread per core of the host, even if the container may use fewer.
    options.intra_op_num_threads = threads or available_cpus()
    options.inter_op_num_threads = 1
    # Spinning threads save microseconds and use up a small container's CPU quota.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as exc:
        raise StartupError(f"{path} is not a usable ONNX model: {exc}") from exc


def available_cpus(cpu_max: Path = CGROUP_CPU_MAX) -> int:
    """CPUs that this process may use: the lower of its affinity and the container's quota, at least 1."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = cpu_max.read_text().split()
        if quota != "max":
            cpus = min(cpus, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # no cgroup v2, hence no quota
    return cpus


def _matching(path: Path, kind: str, tensors: Sequence[Any], wanted: Shape) -> list[Any]:
    """The tensors of the wanted shape; a model has exactly one input. A batch dimension may be fixed to one row."""

    def fits(tensor: Any) -> bool:
        return (
            tensor.type == "tensor(float)"
            and len(tensor.shape) == len(wanted)
            # In the model, a dimension of any size is a name or None.
            and all(
                not isinstance(have, int) or have == (want or 1)
                for have, want in zip(tensor.shape, wanted, strict=True)
            )
        )

    matching = [tensor for tensor in tensors if fits(tensor)]
    if not matching or (kind == "input" and len(tensors) != 1):
        found = ", ".join(f"{t.name} {t.type}{t.shape}" for t in tensors)
        raise StartupError(f"{path} has the wrong {kind}: wanted one tensor(float){_format(wanted)}, found {found}")
    return matching


def _format(shape: Shape) -> str:
    return f"[{', '.join('N' if size is None else str(size) for size in shape)}]"
