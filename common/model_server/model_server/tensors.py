"""TensorProto to numpy and back, without TensorFlow."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tfserving_protos import messages

from .status import invalid

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from google.protobuf.message import Message

Array = NDArray[Any]

# One value can represent a huge tensor, because the last value repeats: limits what a request of a few bytes allocates.
MAX_REPEATED_ELEMENTS = 1 << 26
# TensorFlow's limits of a tensor: dimensions, elements.
MAX_RANK = 254
MAX_ELEMENTS = (1 << 63) - 1


class ElementType(NamedTuple):
    """How one DataType is written: TensorFlow's name, numpy's type, and the typed field of TensorProto."""

    name: str
    dtype: np.dtype[np.generic]
    field: str


def _type(name: str, dtype: object, field: str) -> ElementType:
    return ElementType(name, np.dtype(dtype), field)  # type: ignore[call-overload]  # all values of the table are dtypes


ELEMENT_TYPES = {
    messages.DT_FLOAT: _type("float", np.float32, "float_val"),
    messages.DT_DOUBLE: _type("double", np.float64, "double_val"),
    messages.DT_INT32: _type("int32", np.int32, "int_val"),
    messages.DT_UINT8: _type("uint8", np.uint8, "int_val"),
    messages.DT_INT16: _type("int16", np.int16, "int_val"),
    messages.DT_INT8: _type("int8", np.int8, "int_val"),
    messages.DT_STRING: _type("string", object, "string_val"),
    messages.DT_COMPLEX64: _type("complex64", np.complex64, "scomplex_val"),
    messages.DT_INT64: _type("int64", np.int64, "int64_val"),
    messages.DT_BOOL: _type("bool", np.bool_, "bool_val"),
    messages.DT_UINT16: _type("uint16", np.uint16, "int_val"),
    messages.DT_COMPLEX128: _type("complex128", np.complex128, "dcomplex_val"),
    messages.DT_HALF: _type("half", np.float16, "half_val"),
    messages.DT_BFLOAT16: _type("bfloat16", ml_dtypes.bfloat16, "half_val"),
    messages.DT_UINT32: _type("uint32", np.uint32, "uint32_val"),
    messages.DT_UINT64: _type("uint64", np.uint64, "uint64_val"),
}
DATA_TYPES = {element.dtype: number for number, element in ELEMENT_TYPES.items()}


def type_name(data_type: int) -> str:
    """TensorFlow's name of an element type, for messages."""
    element = ELEMENT_TYPES.get(data_type)
    return element.name if element else f"unsupported type {data_type}"


def shape_text(shape: Sequence[int | None] | None) -> str:
    """A shape as TensorFlow writes it: [?] when the rank is unknown, -1 for an unknown size."""
    if shape is None:
        return "[?]"
    return "[" + ",".join("-1" if size is None else str(size) for size in shape) + "]"


def decode(name: str, proto: messages.TensorProto) -> Array:
    """The array that `proto` holds, in its typed field or in tensor_content. It may be read-only.

    Raises:
        StatusError: INVALID_ARGUMENT, if it is malformed or of a type that numpy cannot hold.
    """
    element = ELEMENT_TYPES.get(proto.dtype)
    if element is None:
        raise invalid(f"tensor parsing error: {name}: {type_name(proto.dtype)}")
    shape = tuple([dim.size for dim in proto.tensor_shape.dim])
    if proto.tensor_shape.unknown_rank:
        raise invalid(f"tensor parsing error: {name}: the shape must be fully known")
    count = element_count(name, shape)
    if not proto.tensor_content:
        flat = _from_field(name, proto, element, count)
    elif element.dtype == object:
        flat = _strings_from_content(name, proto.tensor_content, count)
    else:
        flat = from_content(name, proto.tensor_content, element, count)
    return shaped(name, flat, shape)


def element_count(name: str, shape: Sequence[int]) -> int:
    """How many elements a tensor of a shape has that a client sent.

    Raises:
        StatusError: INVALID_ARGUMENT, if there can be no such tensor.
    """
    if shape and min(shape) < 0:
        raise invalid(f"tensor parsing error: {name}: the shape must be fully known")
    if len(shape) > MAX_RANK or (count := prod(shape)) > MAX_ELEMENTS:
        raise invalid(f"tensor parsing error: {name}: the shape has too many dimensions or elements")
    return count


def shaped(name: str, flat: Array, shape: Sequence[int]) -> Array:
    """`flat`, which has as many elements, in that shape.

    Raises:
        StatusError: INVALID_ARGUMENT, if it has more dimensions than numpy can hold, or a size too large.
    """
    try:
        return flat.reshape(tuple(shape))
    except ValueError as error:
        raise invalid(f"tensor parsing error: {name}: {error}") from None


def from_content(name: str, content: bytes, element: ElementType, count: int) -> Array:
    """The elements, of a fixed size, that `content` holds in little-endian order.

    Raises:
        StatusError: INVALID_ARGUMENT, if it does not hold just as many.
    """
    if len(content) != count * element.dtype.itemsize:
        raise invalid(
            f"tensor parsing error: {name}: the content has {len(content)} bytes, "
            f"{count} elements of {element.name} need {count * element.dtype.itemsize}"
        )
    if element.dtype.kind == "b":
        # Every other byte is true as well, but only 0 and 1 are valid in memory.
        return np.frombuffer(content, np.uint8).astype(np.bool_)
    return np.frombuffer(content, element.dtype.newbyteorder("<")).astype(element.dtype, copy=False)


def _strings_from_content(name: str, content: bytes, count: int) -> Array:
    """TensorFlow's own encoding: the lengths of all strings as varints, then the strings."""
    error = invalid(f"tensor parsing error: {name}: malformed tensor_content of strings")
    if count > len(content):
        raise error
    lengths, position = [], 0
    for _ in range(count):
        length = shift = 0
        while True:
            if position >= len(content) or shift > 63:
                raise error
            byte = content[position]
            position += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        lengths.append(length)
    if position + sum(lengths) != len(content):
        raise error
    flat = np.empty(count, object)
    for index, length in enumerate(lengths):
        flat[index] = content[position : position + length]
        position += length
    return flat


def _from_field(name: str, proto: messages.TensorProto, element: ElementType, count: int) -> Array:
    values = getattr(proto, element.field)
    if element.dtype == object:
        flat: Array = np.empty(len(values), object)
        flat[:] = values
    elif element.field == "half_val":
        flat = np.array(values, np.int32).astype(np.uint16).view(element.dtype)
    elif element.dtype.kind == "c":
        if len(values) % 2:
            raise invalid(f"tensor parsing error: {name}: {element.field} must hold pairs")
        flat = np.array(values, element.dtype.type(0).real.dtype).view(element.dtype)
    elif element.field == "int_val":
        # int_val has 32 bits. Narrow types take the low bits, as in TensorFlow.
        flat = np.array(values, np.int32).astype(element.dtype)
    else:
        flat = np.array(values, element.dtype)
    if len(flat) == count:
        return flat
    if len(flat) > count:
        raise invalid(f"tensor parsing error: {name}: {element.field} has {len(flat)} values for {count} elements")
    if count > MAX_REPEATED_ELEMENTS:
        raise invalid(f"tensor parsing error: {name}: {len(flat)} values cannot stand for {count} elements")
    # Missing elements equal the last value; with no value at all they are zero, or the empty string.
    last = flat[-1] if len(flat) else (b"" if element.dtype == object else element.dtype.type(0))
    filled = np.full(count, last, element.dtype)
    filled[: len(flat)] = flat
    return filled


def encode(array: Array, proto: messages.TensorProto) -> None:
    """Write `array` into an empty `proto`, into the typed field of its type."""
    data_type = DATA_TYPES.get(array.dtype)
    if data_type is None:
        raise invalid(f"the output type {array.dtype} has no representation")
    element = ELEMENT_TYPES[data_type]
    proto.dtype = data_type
    # A scalar has no dimensions, but its tensor_shape must be set.
    proto.tensor_shape.SetInParent()
    for size in array.shape:
        proto.tensor_shape.dim.add().size = size
    flat = np.ascontiguousarray(array).reshape(-1)
    if element.field in _FIXED_WIDTH_KEYS:
        merge_packed(proto, _FIXED_WIDTH_KEYS[element.field], flat)
    else:
        getattr(proto, element.field).extend((flat.view(np.uint16) if element.field == "half_val" else flat).tolist())


def packed_keys(message: type[Message], fields: Iterable[str]) -> dict[str, bytes]:
    """The keys for merge_packed, of fields whose serialized form is just the numbers in little-endian order."""
    return {field: bytes([message.DESCRIPTOR.fields_by_name[field].number << 3 | 2]) for field in fields}


def merge_packed(message: Message, key: bytes, flat: Array) -> None:
    """Append numbers to a field by its serialized form, which saves a Python number for each."""
    packed = flat.astype(flat.dtype.newbyteorder("<"), copy=False).tobytes()
    message.MergeFromString(key + _varint(len(packed)) + packed)


_FIXED_WIDTH_KEYS = packed_keys(messages.TensorProto, ["float_val", "double_val", "scomplex_val", "dcomplex_val"])


def _varint(number: int) -> bytes:
    """A length as protobuf writes it: seven bits to a byte, the lowest first."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
