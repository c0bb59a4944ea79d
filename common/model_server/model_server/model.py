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
from .tensors import ELEMENT_TYPES, decode

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from .context import Context
    from .runtime import Function, SessionOptions
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
    """One input or output of a signature: the tensor's name, and its type for reading JSON.

    A signature also has shapes, which are documentation: what a model computes, its graph decides.
    """

    name: str
    data_type: int


class Signature:
    """One entry of the SavedModel's signature_def, ready to run."""

    def __init__(self, name: str, definition: messages.SignatureDef, model: LoadedModel) -> None:
        self.name = name
        self.inputs = {alias: TensorSpec(info.name, info.dtype) for alias, info in sorted(definition.inputs.items())}
        self.outputs = {alias: TensorSpec(info.name, info.dtype) for alias, info in sorted(definition.outputs.items())}
        self.defaults = {alias: decode(alias, proto) for alias, proto in definition.defaults.items()}
        self._model = model
        self._types = {alias: model.data_type(spec.name) for alias, spec in self.inputs.items()}
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
        self.check(inputs)
        arguments = []
        for alias in self.inputs:
            array = inputs.get(alias)
            if array is None:
                array = self.defaults[alias]
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

    def check(self, inputs: Mapping[str, Array]) -> None:
        """Raises INVALID_ARGUMENT if an input is not of its type.

        TensorFlow's own error does not name the input, and its public API silently converts.
        """
        for alias, array in inputs.items():
            wanted = ELEMENT_TYPES.get(self._types[alias])
            if wanted is not None and array.dtype != wanted.dtype:
                given = next((e.name for e in ELEMENT_TYPES.values() if e.dtype == array.dtype), str(array.dtype))
                raise invalid(f'Expects input "{alias}" to be {wanted.name} but {given} is provided')

    def _learn(self, size: int, duration_s: float) -> None:
        if duration_s > QUICK_S:
            self._quick_bytes = min(self._quick_bytes, size - 1)
        elif size > self._quick_bytes and not self._model.has_loops:
            self._quick_bytes = size

    def _function(self, outputs: tuple[str, ...]) -> Function:
        found = self._functions.get(outputs)
        if found is None:
            feeds = {alias: spec.name for alias, spec in self.inputs.items()}
            fetches = {alias: self.outputs[alias].name for alias in outputs}
            try:
                found = self._model.function(self.name, feeds, fetches)
            except (KeyError, ValueError) as error:
                # A tensor that the signature names is not in the graph.
                raise StatusError(Code.NOT_FOUND, str(error.args[0])) from None
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
    def load(cls, name: str, version: int, path: Path, options: SessionOptions) -> Servable:
        """Read the SavedModel at `path`.

        Raises:
            StatusError: with TensorFlow's code and message, if it cannot be loaded.
        """
        if not any((path / f"saved_model.{suffix}").is_file() for suffix in ("pb", "pbtxt")):
            raise StatusError(
                Code.NOT_FOUND, f"Could not find SavedModel .pb or .pbtxt at supplied export directory path: {path}"
            )
        model = None
        try:
            model = LoadedModel(path, options)
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
