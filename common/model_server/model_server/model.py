"""One version of a model in memory: a SavedModel in a TensorFlow session, and its signatures as typed functions."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tfserving_protos import messages

from .context import NO_LIMIT
from .runtime import LoadedModel, OpError
from .status import Code, StatusError, invalid
from .tensors import ELEMENT_TYPES, decode, shape_text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from .context import Context
    from .runtime import Function
    from .tensors import Array

DEFAULT_SIGNATURE = "serving_default"
CLASSIFY_METHOD = "tensorflow/serving/classify"
REGRESS_METHOD = "tensorflow/serving/regress"

# Functions that are kept for one signature, one for each output_filter. Further filters cost a new one at every call.
MAX_FILTERS = 32

# A run below this may overstep its deadline; in return it is several times cheaper.
QUICK_S = 0.02


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a signature. Shape: None for an unknown rank, None for an unknown size."""

    name: str
    data_type: int
    shape: tuple[int | None, ...] | None

    def check(self, alias: str, array: Array) -> None:
        """Raises INVALID_ARGUMENT, naming the input and what was wanted, unless `array` fits."""
        element = ELEMENT_TYPES.get(self.data_type)
        if element is not None and array.dtype != element.dtype:
            given = next((e.name for e in ELEMENT_TYPES.values() if e.dtype == array.dtype), str(array.dtype))
            raise invalid(
                f'Expects input "{alias}" to be {element.name} {shape_text(self.shape)} '
                f"but {given} {shape_text(array.shape)} is provided"
            )
        if not self._takes(array.shape):
            raise invalid(
                f'Expects input "{alias}" to have shape {shape_text(self.shape)} but got {shape_text(array.shape)}'
            )

    def _takes(self, given: tuple[int, ...]) -> bool:
        # A dimension of size 1 accepts any size: TensorFlow Serving leaves shapes to the model's operations, and its
        # own half_plus_two example sends [1.0, 2.0, 5.0] to an input of [-1,1].
        wanted = self.shape
        return wanted is None or (
            len(given) <= len(wanted)
            and all(size == 1 for size in wanted[len(given) :])
            and all(size in (None, 1, got) for size, got in zip(wanted, given, strict=False))
        )


class Signature:
    """One entry of the SavedModel's signature_def, ready to run."""

    def __init__(self, name: str, definition: messages.SignatureDef, model: LoadedModel) -> None:
        self.name = name
        self.inputs = {alias: _spec(info) for alias, info in sorted(definition.inputs.items())}
        self.outputs = {alias: _spec(info) for alias, info in sorted(definition.outputs.items())}
        self.defaults = {alias: decode(alias, proto) for alias, proto in definition.defaults.items()}
        self._model = model
        self._functions: dict[tuple[str, ...], Function] = {}
        # Runs with inputs of up to so many bytes have been quick.
        self._quick_bytes = -1

    def run(
        self, inputs: Mapping[str, Array], outputs: tuple[str, ...] = (), context: Context = NO_LIMIT
    ) -> dict[str, Array]:
        """The named outputs, all when `outputs` is empty, in the order of their names.

        Raises:
            StatusError: INVALID_ARGUMENT when the inputs do not fit, DEADLINE_EXCEEDED or CANCELLED when nobody waits
                for the result; otherwise what TensorFlow reports.
        """
        context.check()
        arguments = []
        for alias, spec in self.inputs.items():
            array = inputs.get(alias)
            if array is None:
                array = self.defaults[alias]
            spec.check(alias, array)
            arguments.append(array)
        wanted = outputs or tuple(self.outputs)
        size = sum(map(_size, arguments))
        timeout_ms = None if size <= self._quick_bytes else context.left_ms()
        started = time.monotonic()
        try:
            values = self._function(wanted)(arguments, timeout_ms)
        except OpError as error:
            raise StatusError(Code(error.error_code), error.message) from None
        self._learn(size, time.monotonic() - started)
        # TensorFlow returns a scalar string as bytes, which have neither dtype nor shape.
        arrays = [np.array(value, object) if isinstance(value, bytes) else value for value in values]
        return dict(zip(wanted, arrays, strict=True))

    def _learn(self, size: int, duration_s: float) -> None:
        if duration_s > QUICK_S:
            self._quick_bytes = min(self._quick_bytes, size - 1)
        elif size > self._quick_bytes and not self._model.has_loops:
            self._quick_bytes = size

    def _function(self, outputs: tuple[str, ...]) -> Function:
        found = self._functions.get(outputs)
        if found is None:
            feeds = {alias: spec.name for alias, spec in self.inputs.items()}
            found = self._model.function(self.name, feeds, {alias: self.outputs[alias].name for alias in outputs})
            if len(self._functions) < MAX_FILTERS:
                self._functions[outputs] = found
        return found


class Servable:
    """A loaded version. Requests in flight hold it; the manager closes `model` when the last reference is gone."""

    def __init__(self, name: str, version: int, model: LoadedModel) -> None:
        self.name = name
        self.version = version
        self.model = model
        self.signatures = {
            key: Signature(key, definition, model)
            for key, definition in model.signatures.signature_def.items()
            if _is_runnable(definition)
        }

    @classmethod
    def load(cls, name: str, version: int, path: Path, parallelism: int = 0) -> Servable:
        """Read the SavedModel at `path`. `parallelism`: threads inside one operation, 0 for one per core.

        Raises:
            StatusError: with TensorFlow's code and message, if it cannot be loaded.
        """
        if not any((path / f"saved_model.{suffix}").is_file() for suffix in ("pb", "pbtxt")):
            raise StatusError(
                Code.NOT_FOUND, f"Could not find SavedModel .pb or .pbtxt at supplied export directory path: {path}"
            )
        model = None
        try:
            model = LoadedModel(path, parallelism)
            return cls(name, version, model)
        except Exception as error:
            if model is not None:
                model.close()
            if isinstance(error, StatusError):
                raise
            if isinstance(error, OpError):
                raise StatusError(Code(error.error_code), error.message) from error
            # A damaged SavedModel can raise any exception: of the parser, of the graph's import, of files.
            raise StatusError(Code.INTERNAL, f"Could not load the SavedModel at {path}: {error}") from error


def _size(array: Array) -> int:
    """Bytes of the elements. Those of strings are objects, and `nbytes` counts only references to them."""
    return array.nbytes + (sum(map(len, array.flat)) if array.dtype == object else 0)


def _is_runnable(definition: messages.SignatureDef) -> bool:
    """Whether it is a function to call, and not the graph's initialisation, whose output is an operation."""
    return bool(definition.outputs) and all(
        info.name and info.dtype != messages.DT_INVALID
        for info in (*definition.inputs.values(), *definition.outputs.values())
    )


def _spec(info: messages.TensorInfo) -> TensorSpec:
    if info.tensor_shape.unknown_rank:
        return TensorSpec(info.name, info.dtype, None)
    return TensorSpec(info.name, info.dtype, tuple(None if dim.size < 0 else dim.size for dim in info.tensor_shape.dim))
