"""TensorFlow Serving's JSON: from request bodies to arrays and examples, from results to response bodies."""

from __future__ import annotations

import base64
import json
import math
import re
import secrets
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

import ml_dtypes
import numpy as np
import orjson

from tfserving_protos import messages

from .status import Code, StatusError, invalid
from .tensors import ELEMENT_TYPES, MAX_RANK, Array, ElementType, shape_text, type_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .signature import Signature, TensorSpec

# A JSON value; types are checked at run time.
JsonValue = Any
JsonObject = dict[str, JsonValue]

# ---- parsing ----

# From the messages of the standard library to those of TensorFlow Serving's JSON parser.
_PARSE_ERRORS = {
    "Expecting value": "Invalid value.",
    "Expecting property name enclosed in double quotes": "Missing a name for object member.",
    "Illegal trailing comma before end of object": "Missing a name for object member.",
    "Illegal trailing comma before end of array": "Invalid value.",
    "Expecting ':' delimiter": "Missing a colon after a name of object member.",
    "Expecting ',' delimiter": "Missing a comma or ] after an array element.",
    "Extra data": "The document root must not be followed by other values.",
    "Unterminated string starting at": "Missing a closing quotation mark in string.",
    "Invalid control character at": "Invalid encoding in string.",
    "Invalid \\escape": "Invalid escape character in string.",
    "Invalid \\uXXXX escape": "Incorrect hex digit after \\u escape in string.",
}


def parse_body(body: bytes) -> JsonObject:
    """The object in `body`. NaN, Infinity and -Infinity are accepted as numbers.

    Raises:
        StatusError: INVALID_ARGUMENT, saying what is wrong and where.
    """
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        document = _parse_leniently(body)
    if not isinstance(document, dict):
        raise invalid(f"JSON Value: {_text(document)} Is not object")
    return document


def _parse_leniently(body: bytes) -> JsonValue:
    """The slow parser: accepts NaN and Infinity, and says what is wrong."""
    try:
        document = json.loads(body.decode("utf-8-sig"), parse_float=_finite, parse_int=_integer)
        if rb"\u" in body:
            # A lone surrogate is not a character: neither a response nor a message can contain it.
            json.dumps(document, ensure_ascii=False).encode()
        return document
    except json.JSONDecodeError as error:
        reason = _PARSE_ERRORS.get(error.msg, error.msg)
        raise invalid(f"JSON Parse error: {reason} at offset: {len(error.doc[: error.pos].encode())}") from None
    except UnicodeDecodeError as error:
        raise invalid(f"JSON Parse error: Invalid encoding in string. at offset: {error.start}") from None
    except UnicodeEncodeError:
        raise invalid("JSON Parse error: The surrogate pair in string is invalid.") from None
    except RecursionError:
        raise invalid("JSON Parse error: the document is nested too deeply") from None
    except OverflowError as error:
        offset = body.index(str(error).encode())
        raise invalid(f"JSON Parse error: Number too big to be stored in double. at offset: {offset}") from None


def _finite(text: str) -> float:
    """The number in `text`. Raises OverflowError with it if a double cannot hold it."""
    value = float(text)
    if math.isinf(value):
        raise OverflowError(text)
    return value


def _integer(text: str) -> int:
    _finite(text)
    return int(text)


def signature_name(document: JsonObject) -> str:
    """The optional `signature_name` of a body; empty means the default one."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid(
            f"JSON Value: {_text(document)} not formatted correctly. 'signature_name' key must be a string value."
        )
    return name


# ---- input of predict ----


def predict_inputs(document: JsonObject, signature: Signature) -> tuple[dict[str, Array], bool]:
    """The input arrays of a predict body, and whether it was in row format."""
    specs = signature.inputs
    has_rows, has_columns = "instances" in document, "inputs" in document
    if has_rows and has_columns:
        raise invalid(
            f"JSON Value: {_text(document)} Not formatted correctly expecting only"
            " one of 'inputs' or 'instances' keys to exist "
        )
    if not specs:
        raise invalid(f"Failed to get input map for signature: {signature.name}")
    if has_rows:
        return _from_rows(document, specs), True
    if has_columns:
        return _from_columns(document["inputs"], signature), False
    raise invalid("Missing 'inputs' or 'instances' key")


def _from_rows(document: JsonObject, specs: Mapping[str, TensorSpec]) -> dict[str, Array]:
    rows = document["instances"]
    if not isinstance(rows, list):
        raise invalid(f"JSON Value: {_text(document)} Excepting 'instances' to be an list/array")
    if not rows:
        raise invalid(f"JSON Value: {_text(document)} No values in 'instances' array")
    if not _is_object(rows[0]):
        if len(specs) > 1:
            raise invalid(
                "instances is a plain list, but expecting list of objects as multiple input tensors required "
                "as per tensorinfo_map"
            )
        [(name, spec)] = specs.items()
        for index, row in enumerate(rows):
            if _is_object(row):
                raise invalid(f"Expecting value/list but got object at item {index} of input list")
        return {name: _rows_to_array(rows, spec, "")}
    columns: dict[str, list[Any]] = {name: [] for name in specs}
    for index, row in enumerate(rows):
        if not _is_object(row):
            raise invalid(f"Expecting object but got list at item {index} of input list")
        for name in row:
            if name not in specs:
                raise invalid(
                    f"Failed to process element: {index} key: {name} of 'instances' list. Error: "
                    f"INVALID_ARGUMENT: JSON object: does not have named input: {name}"
                )
        if len(row) != len(specs):
            raise invalid(
                f"Failed to process element: {index} of 'instances' list. JSON object: {_text(row)} "
                f"keys must be equal to: {','.join(specs)}"
            )
        for name, value in row.items():
            columns[name].append(value)
    return {name: _rows_to_array(column, specs[name], f" key: {name}") for name, column in columns.items()}


def _rows_to_array(rows: list[Any], spec: TensorSpec, key: str) -> Array:
    array = _dense_array(rows, spec.data_type)
    if array is not None:
        return array
    # Only when the fast way has failed, check row by row to say what is wrong with which.
    first: tuple[int, ...] | None = None
    for index, row in enumerate(rows):
        try:
            shape = _shape(row)
            size = _check_values(row, 0, shape, spec.data_type)
            if first is None:
                first = shape
            elif size != np.prod(first, dtype=int):
                raise invalid(f"Expecting tensor size: {np.prod(first, dtype=int)} but got: {size}")
            elif shape != first:
                raise invalid(f"Expecting shape {shape_text(first)} but got: {shape_text(shape)}")
        except StatusError as error:
            raise StatusError(
                error.code if error.code is Code.UNIMPLEMENTED else Code.INVALID_ARGUMENT,
                f"Failed to process element: {index}{key} of 'instances' list. Error: {error.describe()}",
            ) from None
    raise invalid(f"the values of 'instances' cannot be converted to {type_name(spec.data_type)}")


def _from_columns(inputs: JsonValue, signature: Signature) -> dict[str, Array]:
    specs = signature.inputs
    if not _is_object(inputs):
        if len(specs) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required "
                "as per tensorinfo_map"
            )
        [(name, spec)] = specs.items()
        return {name: to_array(inputs, spec.data_type)}
    arrays = {}
    for name, spec in specs.items():
        if name in inputs:
            arrays[name] = to_array(inputs[name], spec.data_type)
        elif name not in signature.defaults:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
    return arrays


def to_array(value: JsonValue, data_type: int) -> Array:
    """`value`, nested lists of equal lengths, as an array of the type.

    Raises:
        StatusError: INVALID_ARGUMENT, naming the first value that does not fit; UNIMPLEMENTED for a type without JSON.
    """
    array = _dense_array(value, data_type)
    if array is None:
        _check_values(value, 0, _shape(value), data_type)
        raise invalid(f"JSON Value: {_text(value)} cannot be converted to {type_name(data_type)}")
    return array


def _dense_array(value: JsonValue, data_type: int) -> Array | None:
    """`value`, nested lists of equal lengths, as an array; None unless every value is exactly of the type."""
    element = ELEMENT_TYPES.get(data_type)
    if element is None:
        return None
    shape = []
    level = [value]
    while type(level[0]) is list:
        size = len(level[0])
        if set(map(type, level)) != {list} or set(map(len, level)) != {size}:
            return None
        shape.append(size)
        level = list(chain.from_iterable(level))
        if not level:
            break
    try:
        return _leaves_to_array(level, element, shape) if level else np.zeros(shape, element.dtype)
    except (OverflowError, ValueError, TypeError):
        return None


def _leaves_to_array(leaves: list[Any], element: ElementType, shape: list[int]) -> Array | None:
    types = set(map(type, leaves))
    if element.dtype == object:
        array: Array = np.empty(len(leaves), object)
        array[:] = [_to_bytes(leaf) for leaf in leaves]
        return array.reshape(shape)
    if element.dtype.kind == "b":
        accepted = types == {bool}
    elif element.dtype.kind in "iu":
        accepted = types == {int}
    else:
        accepted = types <= {int, float} and element.dtype.kind != "c"
    if not accepted:
        return None
    with np.errstate(over="ignore"):
        flat: Array = np.array(leaves, element.dtype)
    largest = LARGEST.get(element.name)
    # Finite results were in range. Only otherwise check one by one.
    if largest and not np.isfinite(flat).all() and not all(_is_in_range(leaf, largest) for leaf in leaves):
        return None
    return flat.reshape(shape)


# Largest absolute values. Numbers with too many digits are rounded silently, as TensorFlow Serving documents it.
LARGEST = {
    element.name: float(ml_dtypes.finfo(element.dtype).max)  # type: ignore[no-untyped-call]
    for element in ELEMENT_TYPES.values()
    if element.name in ("half", "bfloat16", "float", "double")
}


def _is_in_range(value: float, largest: float) -> bool:
    return not math.isfinite(value) or abs(value) <= largest


def _to_bytes(leaf: JsonValue) -> bytes:
    """The bytes of a string, or of an object with only `b64`. Raises ValueError or TypeError for anything else."""
    if isinstance(leaf, str):
        return leaf.encode("utf-8", "surrogatepass")
    if not _is_base64(leaf):
        raise TypeError(type(leaf))
    return _decode_base64(leaf["b64"])


def _decode_base64(text: str) -> bytes:
    """Padding is optional and white space is skipped. Raises ValueError for anything else that is not base64."""
    compact = "".join(text.split()).rstrip("=")
    return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)


def _is_base64(value: JsonValue) -> bool:
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def _is_object(value: JsonValue) -> bool:
    return isinstance(value, dict) and not _is_base64(value)


def _shape(value: JsonValue) -> tuple[int, ...]:
    """The shape that the first elements suggest."""
    shape: list[int] = []
    while isinstance(value, list):
        if len(shape) == MAX_RANK:
            raise invalid(f"Encountered list at unexpected level: {MAX_RANK} expected < {MAX_RANK}")
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return tuple(shape)


def _check_values(value: JsonValue, level: int, shape: tuple[int, ...], data_type: int) -> int:
    """The number of values; raises the error of the first that does not fit."""
    rank = len(shape)
    if isinstance(value, list):
        if level >= rank:
            raise invalid(f"Encountered list at unexpected level: {level} expected < {rank}")
        if len(value) != shape[level]:
            raise invalid(
                f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: {shape[level]}"
            )
        return sum(_check_values(element, level + 1, shape, data_type) for element in value)
    if level != rank:
        raise invalid(
            f"JSON Value: {_text(value)} found at incorrect level: {level + 1} in the JSON DOM. "
            f"Expected at level: {rank}"
        )
    element = ELEMENT_TYPES.get(data_type)
    if element is None or element.dtype.kind == "c":
        raise StatusError(
            Code.UNIMPLEMENTED, f"Conversion of JSON Value: {_text(value)} to type: {type_name(data_type)}"
        )
    if isinstance(value, dict) and element.dtype == object:
        if not _is_base64(value):
            raise invalid(f"JSON Value: {_text(value)} not formatted correctly for base64 data")
        try:
            _decode_base64(value["b64"])
        except ValueError:
            raise invalid("Unable to base64 decode") from None
    elif _dense_array(value, data_type) is None:
        if element.name in LARGEST and type(value) in (int, float):
            raise invalid(f"Cannot convert JSON value: {_text(value)} to {element.name} without loss of precision.")
        raise invalid(f"JSON Value: {_text(value)} Type: {_type_text(value)} is not of expected type: {element.name}")
    return 1


def _type_text(value: JsonValue) -> str:
    names = {bool: str(value), type(None): "Null", dict: "Object", list: "Array", str: "String"}
    return names.get(type(value), "Number")


def _text(value: JsonValue) -> str:
    """A JSON value as it appears in messages, shortened so that they do not repeat a large body."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 500 else text[:500] + "..."


# ---- input of classify and regress ----


def example_input(document: JsonObject) -> messages.Input:
    """The examples of a classify or regress body, with their common context if there is one."""
    given = messages.Input()
    target = given.example_list.examples
    if "context" in document:
        _fill_example(document["context"], given.example_list_with_context.context)
        target = given.example_list_with_context.examples
    if "examples" not in document:
        raise invalid(
            f"JSON Value: {_text(document)} When method is classify, key 'examples' is expected and was not found"
        )
    examples = document["examples"]
    if not isinstance(examples, list):
        raise invalid(f"JSON Value: {_text(document)} Expecting 'examples' value to be an list/array")
    if not examples:
        raise invalid(f"JSON Value: {_text(document)} 'examples' value is an empty array")
    for example in examples:
        _fill_example(example, target.add())
    return given


def _fill_example(value: JsonValue, example: messages.Example) -> None:
    if not isinstance(value, dict):
        raise invalid(f"Example must be JSON object but got JSON {_type_text(value)}")
    example.features.SetInParent()
    for name, content in value.items():
        feature = example.features.feature[name]
        for element in content if isinstance(content, list) else [content]:
            _add_to_feature(element, name, feature)


def _add_to_feature(value: JsonValue, name: str, feature: messages.Feature) -> None:
    kind = feature.WhichOneof("kind")
    if isinstance(value, (str, dict)) and (isinstance(value, str) or _is_base64(value)):
        wanted = "bytes_list"
    elif isinstance(value, float):
        wanted = "float_list"
    elif isinstance(value, int):
        wanted = "int64_list"
    else:
        raise invalid(f"Feature: {name} has element with unexpected JSON type: {_type_text(value)}")
    if kind not in (None, wanted):
        raise invalid(
            f"Unexpected element type in feature: {name} expecting type: {cast('str', kind).removesuffix('_list')}"
        )
    if wanted == "bytes_list":
        try:
            feature.bytes_list.value.append(_to_bytes(value))
        except ValueError:
            raise invalid("Unable to base64 decode") from None
    elif wanted == "float_list":
        if not _is_in_range(value, LARGEST["float"]):
            raise invalid(f"Cannot convert JSON value: {_text(value)} to float without loss of precision.")
        feature.float_list.value.append(value)
    elif not -(2**63) <= value < 2**63:
        raise invalid(f"Feature: {name} has uint64 element. Only int64 is supported.")
    else:
        feature.int64_list.value.append(int(value))


# ---- responses ----


def predict_body(outputs: Mapping[str, Array], *, is_row_format: bool) -> bytes:
    """The body for a predict call: `predictions` for rows, `outputs` for columns; a single output has no name."""
    if not is_row_format:
        columns = {name: _jsonable(name, array) for name, array in outputs.items()}
        return pretty({"outputs": columns if len(columns) > 1 else next(iter(columns.values()))}, 4)
    size = None
    for name, array in outputs.items():
        if array.ndim == 0:
            raise invalid(f"Tensor name: {name} has no shape information ")
        if size not in (None, len(array)):
            raise invalid(f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting: {size}")
        size = len(array)
    if len(outputs) > 1:
        rows = {name: list(_jsonable(name, array)) for name, array in outputs.items()}
        predictions: JsonValue = [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)]
        return pretty({"predictions": predictions}, 4)
    [(name, array)] = outputs.items()
    content = dumps(_jsonable(name, array))
    if array.dtype != object:
        content = content.replace(b",", b", ")
    return b'{\n    "predictions": ' + content[:-1] + b"\n    ]\n}"


def classify_body(result: messages.ClassificationResult) -> bytes:
    """The body for a classify call: for each example its pairs of label and score."""
    return pretty(
        {
            "results": [
                [[entry.label, np.float32(entry.score)] for entry in classification.classes]
                for classification in result.classifications
            ]
        },
        4,
    )


def regress_body(result: messages.RegressionResult) -> bytes:
    """The body for a regress call: one value for each example."""
    return pretty({"results": np.array([regression.value for regression in result.regressions], np.float32)}, 4)


def error_body(message: str) -> bytes:
    """The body of every error."""
    return pretty({"error": message}, 4)


def _jsonable(name: str, array: Array) -> JsonValue:
    """An array, or nested lists where orjson cannot write the elements themselves."""
    if array.dtype == object:
        return _strings(array.tolist(), as_bytes=name.endswith("_bytes"))
    if array.dtype.kind == "c":
        raise invalid(f"Failed to write JSON value for tensor type: {array.dtype}")
    if array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    return np.ascontiguousarray(array) if array.ndim else array[()]


def _strings(value: JsonValue, *, as_bytes: bool) -> JsonValue:
    if isinstance(value, list):
        return [_strings(element, as_bytes=as_bytes) for element in value]
    if as_bytes:
        return {"b64": base64.b64encode(value).decode()}
    return value.decode("utf-8", "replace")


def pretty(document: JsonValue, indent: int) -> bytes:
    """JSON over several lines. TensorFlow Serving indents inference by 4 and status by 1."""
    text = dumps(document, orjson.OPT_INDENT_2)
    # White space at the start of a line is always indentation: line breaks in strings are written as \n.
    return re.sub(rb"(?m)^ +", lambda spaces: b" " * (len(spaces[0]) // 2 * indent), text)


def dumps(document: JsonValue, options: int = 0) -> bytes:
    """Compact JSON, in which arrays may stand for lists. NaN and Infinity are written as such."""
    text = orjson.dumps(document, option=options | orjson.OPT_SERIALIZE_NUMPY)
    if b"null" not in text:
        return text
    # orjson writes NaN and Infinity as null. Only then, replace them by marked strings and strip the quotes afterwards.
    marked = orjson.dumps(_mark_non_finite(document), option=options)
    return _MARKED.sub(rb"\1", marked)


# Random, so that no string of a request or a model is taken for one.
_MARK = secrets.token_hex(8)
_MARKED = re.compile(f'"{_MARK}(NaN|-?Infinity)"'.encode())


def _mark_non_finite(value: JsonValue) -> JsonValue:
    if isinstance(value, dict):
        return {key: _mark_non_finite(element) for key, element in value.items()}
    if isinstance(value, np.ndarray):
        value = list(value)
    if isinstance(value, list):
        return [_mark_non_finite(element) for element in value]
    if isinstance(value, (float, np.floating)):
        if np.isnan(value):
            return f"{_MARK}NaN"
        if np.isinf(value):
            return f"{_MARK}Infinity" if value > 0 else f"{_MARK}-Infinity"
        # The digits of the original type: 0.1 for float32, not the 0.10000000149 of its value in double precision.
        return float(str(value))
    return value.item() if isinstance(value, np.generic) else value
