"""The Open Inference Protocol's tensors to numpy and back: datatypes, raw bytes and typed contents."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tfserving_protos import messages

from .status import Code, StatusError, invalid
from .tensors import (
    ELEMENT_TYPES,
    Array,
    ElementType,
    element_count,
    from_content,
    merge_packed,
    packed_keys,
    shaped,
    type_name,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


class Datatype(NamedTuple):
    """One of the protocol's types. `field`: of InferTensorContents; empty: only raw bytes can hold it."""

    name: str
    data_type: int
    element: ElementType
    field: str


def _datatypes(names: dict[str, tuple[int, str]]) -> dict[str, Datatype]:
    return {name: Datatype(name, number, ELEMENT_TYPES[number], field) for name, (number, field) in names.items()}


DATATYPES = _datatypes(
    {
        "BOOL": (messages.DT_BOOL, "bool_contents"),
        "UINT8": (messages.DT_UINT8, "uint_contents"),
        "UINT16": (messages.DT_UINT16, "uint_contents"),
        "UINT32": (messages.DT_UINT32, "uint_contents"),
        "UINT64": (messages.DT_UINT64, "uint64_contents"),
        "INT8": (messages.DT_INT8, "int_contents"),
        "INT16": (messages.DT_INT16, "int_contents"),
        "INT32": (messages.DT_INT32, "int_contents"),
        "INT64": (messages.DT_INT64, "int64_contents"),
        "FP16": (messages.DT_HALF, ""),
        "BF16": (messages.DT_BFLOAT16, ""),
        "FP32": (messages.DT_FLOAT, "fp32_contents"),
        "FP64": (messages.DT_DOUBLE, "fp64_contents"),
        "BYTES": (messages.DT_STRING, "bytes_contents"),
    }
)
_BY_DTYPE = {datatype.element.dtype: datatype for datatype in DATATYPES.values()}
_NAMES = {datatype.data_type: datatype.name for datatype in DATATYPES.values()}
# The length that precedes each element of type BYTES.
LENGTH = struct.Struct("<I")


def datatype_of(name: str, datatype: str) -> Datatype:
    """The type that a request gives for the tensor `name`.

    Raises:
        StatusError: INVALID_ARGUMENT, if there is no such type.
    """
    found = DATATYPES.get(datatype)
    if found is None:
        raise invalid(f"input {name}: unknown datatype {datatype!r}, expected one of {', '.join(DATATYPES)}")
    return found


def datatype_name(data_type: int) -> str:
    """The protocol's name of a TensorFlow type; TensorFlow's own, in capitals, for those that it cannot send."""
    return _NAMES.get(data_type) or type_name(data_type).upper()


def output_datatype(name: str, array: Array) -> Datatype:
    """The type of an output.

    Raises:
        StatusError: UNIMPLEMENTED, if the protocol has none for it.
    """
    found = _BY_DTYPE.get(array.dtype)
    if found is None:
        raise StatusError(Code.UNIMPLEMENTED, f"output {name}: the protocol has no datatype for {array.dtype}")
    return found


def from_raw(name: str, datatype: Datatype, shape: Sequence[int], content: bytes) -> Array:
    """The tensor whose elements `content` holds; it may be read-only.

    Raises:
        StatusError: INVALID_ARGUMENT, if they are not as many as the shape says.
    """
    count = element_count(name, shape)
    if datatype.element.dtype == object:
        flat = _split(name, content, count)
    else:
        flat = from_content(name, content, datatype.element, count)
    return shaped(name, flat, shape)


def _split(name: str, content: bytes, count: int) -> Array:
    """The elements of type BYTES."""
    error = invalid(f"input {name}: malformed BYTES, expected {count} times a length of 4 bytes, and so many bytes")
    if count * LENGTH.size > len(content):
        raise error
    flat = np.empty(count, object)
    position = 0
    for index in range(count):
        start = position + LENGTH.size
        if start > len(content):
            raise error
        position = start + LENGTH.unpack_from(content, start - LENGTH.size)[0]
        flat[index] = content[start:position]
    if position != len(content):
        raise error
    return flat


def to_raw(array: Array) -> bytes:
    """The elements of `array` as raw bytes."""
    if array.dtype == object:
        return b"".join([LENGTH.pack(len(value)) + value for value in array.reshape(-1).tolist()])
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def from_contents(name: str, datatype: Datatype, shape: Sequence[int], contents: messages.InferTensorContents) -> Array:
    """The tensor whose elements the field of its type holds.

    Raises:
        StatusError: INVALID_ARGUMENT, if they are not as many as the shape says, out of range, or have no field.
    """
    if not datatype.field:
        raise invalid(f"input {name}: {datatype.name} has no typed contents, use raw_input_contents")
    count = element_count(name, shape)
    values = getattr(contents, datatype.field)
    if len(values) != count:
        raise invalid(f"input {name}: {datatype.field} has {len(values)} elements, the shape has {count}")
    dtype = datatype.element.dtype
    if dtype.kind == "O":
        flat: Array = np.empty(count, object)
        flat[:] = values
    elif dtype.itemsize < 4 and dtype.kind != "b":
        wide = np.array(values, np.int64)
        flat = wide.astype(dtype)
        if not np.array_equal(flat, wide):
            raise invalid(f"input {name}: a value of {datatype.field} is out of the range of {datatype.name}")
    else:
        flat = np.array(values, dtype)
    return shaped(name, flat, shape)


def to_contents(array: Array, datatype: Datatype, contents: messages.InferTensorContents) -> None:
    """Write `array` into the field of its type."""
    flat = array.reshape(-1)
    if datatype.field in _FIXED_WIDTH_KEYS:
        merge_packed(contents, _FIXED_WIDTH_KEYS[datatype.field], flat)
    else:
        getattr(contents, datatype.field).extend(flat.tolist())


_FIXED_WIDTH_KEYS = packed_keys(messages.InferTensorContents, ["fp32_contents", "fp64_contents"])
