"""What the server needs of a machine learning runtime, and which one loads a version's folder.

A runtime is imported when the first model needs it: a server of ONNX models never imports TensorFlow.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from .status import Code, StatusError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tfserving_protos import messages

    from .context import Context
    from .tensors import Array

    # Takes the inputs in the order of their aliases, and returns the requested outputs.
    # Raises StatusError: DEADLINE_EXCEEDED or CANCELLED when the context ends the run, else what the runtime reports.
    Function = Callable[[Sequence[Array], Context], list[Array]]

ONNX_FILE = "model.onnx"
SAVED_MODEL_FILES = ("saved_model.pb", "saved_model.pbtxt")


class Runtime(StrEnum):
    """What --runtime chooses from."""

    AUTO = "auto"
    TENSORFLOW = "tensorflow"
    ONNX = "onnx"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOptions:
    """Which runtime, which graph of a SavedModel, and how many threads; 0: the runtime's default."""

    runtime: Runtime = Runtime.AUTO
    tags: tuple[str, ...] = ("serve",)
    intra_op_threads: int = 0
    inter_op_threads: int = 0


class LoadedModel(Protocol):
    """One version in memory, whichever runtime holds it."""

    signatures: messages.SignatureDefMap
    platform: str  # the Open Inference Protocol's name of its kind

    def data_type(self, alias: str, tensor: str, *, is_output: bool = False) -> int:
        """The type that the graph has for an input or output; 0 if it has no such tensor, so that calling it fails, and
        not loading."""

    def function(self, signature: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> Function:
        """The computation of `outputs` from `inputs`; both map an alias to the name of a tensor.

        Raises:
            StatusError: NOT_FOUND, if the graph has no such tensor.
        """

    def close(self) -> None:
        """Free what the runtime holds."""


def load(folder: Path, options: SessionOptions) -> LoadedModel:
    """The model in a version's folder.

    Raises:
        StatusError: NOT_FOUND without a model's file, FAILED_PRECONDITION without its runtime, or what that reports.
    """
    if _runtime_for(folder, options.runtime) is Runtime.ONNX:
        from .onnx_runtime import OnnxRuntimeModel

        return OnnxRuntimeModel(folder / ONNX_FILE, options)
    if importlib.util.find_spec("tensorflow") is None:
        raise StatusError(
            Code.FAILED_PRECONDITION,
            f"The SavedModel at {folder} needs TensorFlow, which is not installed: "
            "pip install 'portable-model-server[tensorflow]'",
        )
    from .tensorflow_runtime import TensorFlowModel

    return TensorFlowModel(folder, options)


def _runtime_for(folder: Path, chosen: Runtime) -> Runtime:
    if chosen is not Runtime.TENSORFLOW and (folder / ONNX_FILE).is_file():
        return Runtime.ONNX
    if chosen is not Runtime.ONNX and any((folder / name).is_file() for name in SAVED_MODEL_FILES):
        return Runtime.TENSORFLOW
    missing = {
        Runtime.AUTO: "SavedModel .pb or .pbtxt, or model.onnx,",
        Runtime.TENSORFLOW: "SavedModel .pb or .pbtxt",
        Runtime.ONNX: "model.onnx",
    }[chosen]
    raise StatusError(Code.NOT_FOUND, f"Could not find {missing} at supplied export directory path: {folder}")
