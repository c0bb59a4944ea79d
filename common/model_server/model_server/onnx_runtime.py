"""ONNX models in ONNX Runtime sessions, in the terms of TensorFlow Serving: aliases, signatures, tensors.

An ONNX file has no signatures: its inputs and outputs become `serving_default`. A file made from a SavedModel can carry
that one's signatures in its metadata, under SIGNATURES_KEY, as the JSON of a SignatureDefMap, so that GetModelMetadata
returns the same for both. The tensors that they name are looked up by name, and otherwise by alias.
"""

from __future__ import annotations

import ctypes
import os
import re
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from google.protobuf import json_format

from tfserving_protos import messages

from .status import Code, StatusError, invalid
from .tensors import DATA_TYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from .context import Context
    from .runtime import Function, SessionOptions
    from .tensors import Array

# Read when the library is loaded; it would otherwise look for a server of its maker's to report to.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime as ort

SIGNATURES_KEY = "tensorflow_signature_def"
# Below this a run is so short that to hand parts of it to other threads costs more than it saves.
SMALL_MODEL_BYTES = 1 << 20
# How often the deadlines and cancellations of running requests are checked.
WATCH_PERIOD_S = 0.01

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_ONNX_BFLOAT16 = 16
# What ONNX Runtime calls the types that it shares with TensorProto.
_DTYPES: dict[str, np.dtype[Any]] = {
    "float": np.dtype(np.float32),
    "double": np.dtype(np.float64),
    "float16": np.dtype(np.float16),
    "bfloat16": _BFLOAT16,
    "string": np.dtype(object),
} | {name: np.dtype(name) for name in ("bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))}
_TENSOR = re.compile(r"tensor\((\w+)\)")
_TENSORS = re.compile(r"seq\(tensor\((\w+)\)\)")
_MAP = re.compile(r"(seq\()?map\((\w+),tensor\((\w+)\)\)\)?")


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One input or output. `source`: the graph's name; `read` makes an array of what ONNX Runtime returns for it."""

    source: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...] | None
    read: Callable[[Any], Array]

    @property
    def is_one_row(self) -> bool:
        return self.shape is not None and self.shape[0] == 1


class OnnxRuntimeModel:
    """An ONNX file in a session of its own."""

    platform = "onnxruntime_onnx"

    def __init__(self, path: Path, options: SessionOptions) -> None:
        """Load it.

        Raises:
            StatusError: with ONNX Runtime's code; UNIMPLEMENTED for an input or output that no tensor can hold.
        """
        try:
            self._session = ort.InferenceSession(
                str(path), _session_options(path, options), providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise _status(error, otherwise=Code.INTERNAL) from error
        self._inputs = {node.name: _input(node) for node in self._session.get_inputs()}
        self._outputs: dict[str, _Tensor] = {}
        for node in self._session.get_outputs():
            self._outputs |= {name: tensor for name, tensor in _output(node).items() if name not in self._outputs}
        self._has_bfloat16 = any(t.dtype == _BFLOAT16 for t in (*self._inputs.values(), *self._outputs.values()))
        # Exported with a batch axis of one row, which the graph insists on: such a model is run row by row.
        ranked = [tensor for tensor in self._inputs.values() if tensor.shape]
        self._is_one_row = (
            bool(ranked)
            and all(tensor.is_one_row for tensor in ranked)
            and all(tensor.shape and tensor.shape[0] in (1, None) for tensor in self._outputs.values())
        )
        stored = self._session.get_modelmeta().custom_metadata_map.get(SIGNATURES_KEY)
        try:
            self.signatures = json_format.Parse(stored, messages.SignatureDefMap()) if stored else self._default()
        except json_format.ParseError as error:
            raise invalid(f"The metadata {SIGNATURES_KEY} of {path} is not a SignatureDefMap: {error}") from None

    def data_type(self, alias: str, tensor: str, *, is_output: bool = False) -> int:
        """As LoadedModel.data_type."""
        tensors = self._outputs if is_output else self._inputs
        found = tensors.get(tensor) or tensors.get(alias)
        return DATA_TYPES[found.dtype] if found else messages.DT_INVALID

    def function(self, _: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> Function:
        """As LoadedModel.function."""
        feeds, fetches = _find(self._inputs, inputs), _find(self._outputs, outputs)
        missing = self._inputs.keys() - {feed.source for feed in feeds}
        if missing:
            raise StatusError(Code.NOT_FOUND, f"The signature has no input for {', '.join(sorted(missing))}")
        # Two tensors are read from one output that is a map.
        sources = list(dict.fromkeys(fetch.source for fetch in fetches))

        def run(arrays: Sequence[Array], context: Context) -> list[Array]:
            given = {feed.source: _writable(feed, array) for feed, array in zip(feeds, arrays, strict=True)}
            values = dict(zip(sources, self._run(sources, given, context), strict=True))
            return [fetch.read(values[fetch.source]) for fetch in fetches]

        def run_rows(arrays: Sequence[Array], context: Context) -> list[Array]:
            counts = {len(array) for feed, array in zip(feeds, arrays, strict=True) if feed.is_one_row and array.ndim}
            if counts <= {1}:
                return run(arrays, context)
            if len(counts) > 1:
                raise invalid(f"The inputs have different numbers of rows: {', '.join(map(str, sorted(counts)))}")
            rows = []
            for row in range(counts.pop()):
                context.check()
                parts = [
                    array[row : row + 1] if feed.is_one_row and array.ndim else array
                    for feed, array in zip(feeds, arrays, strict=True)
                ]
                rows.append(run(parts, context))
            if not rows:
                return [np.empty((0, *_known(fetch)), fetch.dtype) for fetch in fetches]
            return [np.concatenate(column) for column in zip(*rows, strict=True)]

        return run_rows if self._is_one_row else run

    def close(self) -> None:
        """Free the session, once no run uses it."""
        del self._session

    def _run(self, sources: list[str], given: dict[str, Any], context: Context) -> list[Any]:
        options = ort.RunOptions()
        run = (context, options, time.monotonic())
        _WATCHDOG.add(run)
        try:
            if not self._has_bfloat16:
                values: list[Any] = self._session.run(sources, given, options)
                return values
            return list(self._session.run_with_ort_values(sources, _ort_values(given), options))
        except Exception as error:
            if options.terminate:
                context.check()
            # A graph is a function: what fails at a run is due to its input.
            raise _status(error, otherwise=Code.INVALID_ARGUMENT) from error
        finally:
            _WATCHDOG.remove(run)

    def _default(self) -> messages.SignatureDefMap:
        """The graph's inputs and outputs as the signature `serving_default`."""
        signatures = messages.SignatureDefMap()
        definition = signatures.signature_def["serving_default"]
        definition.method_name = "tensorflow/serving/predict"
        for infos, tensors in ((definition.inputs, self._inputs), (definition.outputs, self._outputs)):
            for name, tensor in tensors.items():
                info = infos[name]
                info.name = name
                info.dtype = DATA_TYPES[tensor.dtype]
                if tensor.shape is None:
                    info.tensor_shape.unknown_rank = True
                    continue
                info.tensor_shape.SetInParent()
                for axis, size in enumerate(tensor.shape):
                    is_batch = axis == 0 and self._is_one_row
                    info.tensor_shape.dim.add().size = -1 if size is None or is_batch else size
        return signatures


class _Watchdog:
    """Ends runs whose time is over or whose client has gone. One thread, which sleeps while nothing runs."""

    def __init__(self) -> None:
        self._runs: set[tuple[Context, Any, float]] = set()
        self._busy = threading.Event()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def add(self, run: tuple[Context, Any, float]) -> None:
        """Watch a run from now on."""
        self._runs.add(run)
        if not self._busy.is_set():
            self._busy.set()

    def remove(self, run: tuple[Context, Any, float]) -> None:
        """The run has ended."""
        self._runs.discard(run)

    def _watch(self) -> None:
        while True:
            self._busy.wait()
            time.sleep(WATCH_PERIOD_S)
            self._busy.clear()
            now = time.monotonic()
            for context, options, started in tuple(self._runs):
                self._busy.set()
                if now - started > WATCH_PERIOD_S:
                    # Most runs end before: only the others pay for being told that the client has gone.
                    context.watch()
                    if context.is_over():
                        options.terminate = True


_WATCHDOG = _Watchdog()


def _session_options(path: Path, options: SessionOptions) -> ort.SessionOptions:
    session = ort.SessionOptions()
    # Errors are raised as well, and the server logs those.
    session.log_severity_level = 4
    is_small = path.stat().st_size < SMALL_MODEL_BYTES
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    session.intra_op_num_threads = options.intra_op_threads or (1 if is_small else cores)
    session.inter_op_num_threads = options.inter_op_threads or 1
    if session.inter_op_num_threads > 1:
        session.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    # Spinning threads take the cores of other requests.
    session.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return session


def _input(node: Any) -> _Tensor:
    match = _TENSOR.fullmatch(node.type)
    if not match:
        raise StatusError(Code.UNIMPLEMENTED, f"Input {node.name} of type {node.type} is not a tensor")
    return _Tensor(node.name, _dtype(node, match[1]), _shape(node), np.asarray)


def _output(node: Any) -> dict[str, _Tensor]:
    """The tensors that an output becomes: a sequence is stacked, and of maps, values and keys become a matrix each."""
    if match := _TENSOR.fullmatch(node.type):
        dtype = _dtype(node, match[1])
        read = {_BFLOAT16: _read_bfloat16, np.dtype(object): _read_strings}.get(dtype, _read_value)
        return {node.name: _Tensor(node.name, dtype, _shape(node), read)}
    if match := _TENSORS.fullmatch(node.type):
        name, dtype = node.name, _dtype(node, match[1])

        def read_tensors(values: list[Array]) -> Array:
            if len({value.shape for value in values}) > 1:
                raise StatusError(Code.FAILED_PRECONDITION, f"The tensors of the sequence {name} differ in shape")
            stacked = np.stack(values) if values else np.empty(0, dtype)
            return _read_strings(stacked) if dtype.kind == "O" else stacked

        return {name: _Tensor(name, dtype, None, read_tensors)}
    if match := _MAP.fullmatch(node.type):
        keys, values = _dtype(node, match[2]), _dtype(node, match[3])
        shape = (None, None) if match[1] else (None,)
        return {
            node.name: _Tensor(node.name, values, shape, lambda maps: _read_maps(node.name, maps, values, of="values")),
            f"{node.name}_keys": _Tensor(
                node.name, keys, shape, lambda maps: _read_maps(node.name, maps, keys, of="keys")
            ),
        }
    raise StatusError(Code.UNIMPLEMENTED, f"Output {node.name} of type {node.type} cannot be returned as a tensor")


def _read_maps(name: str, maps: Any, dtype: np.dtype[Any], *, of: str) -> Array:
    """One row for each map of a sequence, its columns in the order of the keys; of a single map, only the row."""
    rows = [maps] if isinstance(maps, dict) else maps
    keys = sorted(rows[0]) if rows else []
    if any(row.keys() != rows[0].keys() for row in rows):
        raise StatusError(Code.FAILED_PRECONDITION, f"The maps of output {name} differ in their keys")
    content = [keys if of == "keys" else [row[key] for key in keys] for row in rows]
    matrix: Array = np.array(content, dtype).reshape(len(rows), len(keys))
    if dtype.kind == "O":
        matrix = _read_strings(matrix)
    return matrix[0] if isinstance(maps, dict) else matrix


def _read_value(value: Any) -> Array:
    array: Array = value.numpy() if isinstance(value, ort.OrtValue) else value
    return array


def _read_strings(value: Any) -> Array:
    text = _read_value(value)
    array: Array = np.empty(text.size, object)
    array[:] = [element.encode() for element in text.reshape(-1).tolist()]
    return array.reshape(text.shape)


def _read_bfloat16(value: Any) -> Array:
    # numpy() knows no bfloat16.
    content = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes()) if 0 not in value.shape() else b""
    return np.frombuffer(content, _BFLOAT16).reshape(value.shape())


def _writable(feed: _Tensor, array: Array) -> Array:
    """The array as ONNX Runtime takes it: strings as text."""
    if feed.dtype != object:
        return array
    text: Array = np.empty(array.size, object)
    try:
        text[:] = [element.decode() for element in array.reshape(-1).tolist()]
    except UnicodeDecodeError as error:
        raise invalid(f"Strings of ONNX models are UTF-8, and input {feed.source} is not: {error}") from None
    return text.reshape(array.shape)


def _ort_values(given: Mapping[str, Array]) -> dict[str, Any]:
    return {
        name: (
            ort.OrtValue.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(array).view(np.uint16), _ONNX_BFLOAT16)
            if array.dtype == _BFLOAT16
            else ort.OrtValue.ortvalue_from_numpy(array)
        )
        for name, array in given.items()
    }


def _dtype(node: Any, name: str) -> np.dtype[Any]:
    if name not in _DTYPES:
        raise StatusError(Code.UNIMPLEMENTED, f"{node.name} has elements of type {name}, which TensorProto cannot hold")
    return _DTYPES[name]


def _shape(node: Any) -> tuple[int | None, ...] | None:
    """Its sizes, None for those that vary. ONNX Runtime gives a scalar and an unknown rank alike: both are None."""
    return tuple(size if isinstance(size, int) else None for size in node.shape) or None


def _known(tensor: _Tensor) -> tuple[int, ...]:
    """The sizes of one row, 0 for those that only a run would tell."""
    return tuple(size or 0 for size in (tensor.shape or ())[1:])


def _find(tensors: Mapping[str, _Tensor], aliases: Mapping[str, str]) -> list[_Tensor]:
    found = []
    for alias, name in aliases.items():
        tensor = tensors.get(name) or tensors.get(alias)
        if tensor is None:
            raise StatusError(Code.NOT_FOUND, f"The graph has no tensor {name}, nor one named {alias}")
        found.append(tensor)
    return found


_CODES = {
    "InvalidArgument": Code.INVALID_ARGUMENT,
    "NoSuchFile": Code.NOT_FOUND,
    "NotImplemented": Code.UNIMPLEMENTED,
}
_OUT_OF_MEMORY = re.compile("bad.alloc|[Ff]ailed to allocate|out of memory")


def _status(error: Exception, *, otherwise: Code) -> StatusError:
    """ONNX Runtime's exceptions share no base class of their own."""
    if isinstance(error, StatusError):
        return error
    message = " ".join(re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error)).split())
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(message):
        return StatusError(Code.RESOURCE_EXHAUSTED, message)
    return StatusError(_CODES.get(type(error).__name__, otherwise), message)
