"""The Open Inference Protocol over HTTP: JSON, and the binary tensor extension, by which tensors follow the JSON."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from google.protobuf.json_format import MessageToDict

from tfserving_protos import messages

from . import json_codec
from .http_body import BINARY, BYTES_PER_VALUE, JSON, RestResponse, check_memory, unquote
from .open_inference import SIGNATURE_PARAMETER, check_parameters, spec_of
from .open_inference_tensors import datatype_of, from_raw, output_datatype, to_raw
from .status import Code, StatusError, invalid
from .tensors import element_count, shaped
from .versions import MAX_VERSION

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .context import Context
    from .http_body import RestRequest
    from .json_codec import JsonObject
    from .model import Servable
    from .open_inference import OpenInference
    from .open_inference_tensors import Datatype
    from .tensors import Array

    T = TypeVar("T")

_MODEL = r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?"
INFER = re.compile(_MODEL + "/infer")
LOADS = re.compile(r"/v2/repository/models/(?P<name>[^/]+)/(?P<verb>load|unload)")
_ROUTES = (
    ("GET", re.compile("/v2/?"), "_server_metadata"),
    ("GET", re.compile(_MODEL), "_model_metadata"),
    ("GET", re.compile(_MODEL + "/ready"), "_model_ready"),
    ("POST", re.compile("/v2/repository/index"), "_index"),
    ("POST", LOADS, "_load"),
    # These are answered elsewhere, with the right method.
    ("POST", INFER, ""),
    ("GET", re.compile("/v2/health/(?:live|ready)"), ""),
)
HEADER_LENGTH = b"inference-header-content-length"


class _Inputs(NamedTuple):
    """A decoded request. `is_binary`: the form of the outputs that it asks for by name; `all_binary`: of all others."""

    id: str | None
    signature_name: str
    tensors: Mapping[str, Array]
    outputs: list[str]
    is_binary: Mapping[str, bool]
    all_binary: bool


class OpenInferenceRest:
    """The routes below /v2. Every method raises StatusError for a request that it cannot serve."""

    def __init__(self, service: OpenInference) -> None:
        self._service = service

    def infer(self, match: re.Match[str], request: RestRequest, context: Context) -> RestResponse:
        """POST …/infer."""
        spec = spec_of(*_model(match))
        inputs = _read(request)
        servable, outputs = self._service.run(spec, inputs.signature_name, inputs.tensors, inputs.outputs, context)
        return _write(servable, inputs, outputs)

    def respond(self, method: str, path: str, request: RestRequest) -> RestResponse:
        """The response to all else but health."""
        for expected, pattern, function in _ROUTES:
            if match := pattern.fullmatch(path):
                if method not in (expected, "HEAD" if expected == "GET" else expected):
                    return RestResponse(405, JSON, json_codec.error_body(f"Method Not Allowed: use {expected}"))
                status, document = getattr(self, function)(match, request)
                return RestResponse(status, JSON, json_codec.dumps(document))
        raise StatusError(Code.NOT_FOUND, "Not Found")

    def _server_metadata(self, *_: object) -> tuple[int, object]:
        return 200, _document(self._service.server_metadata(messages.ServerMetadataRequest()))

    def _model_metadata(self, match: re.Match[str], _: object) -> tuple[int, object]:
        name, version = _model(match)
        response = self._service.model_metadata(messages.ModelMetadataRequest(name=name, version=version))
        tensors = {
            side: [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in getattr(response, side)]
            for side in ("inputs", "outputs")
        }
        return 200, _document(response) | tensors

    def _model_ready(self, match: re.Match[str], _: object) -> tuple[int, object]:
        name, version = _model(match)
        is_ready = self._service.model_ready(messages.ModelReadyRequest(name=name, version=version)).ready
        return 200 if is_ready else 503, {"name": name, "ready": is_ready}

    def _index(self, _: object, request: RestRequest) -> tuple[int, object]:
        ready = _get(_optional(request), "ready", bool, False)
        response = self._service.repository_index(messages.RepositoryIndexRequest(ready=ready))
        return 200, [_document(model) for model in response.models]

    def _load(self, match: re.Match[str], request: RestRequest) -> tuple[int, object]:
        parameters = _get(_optional(request), "parameters", dict, {})
        name = unquote(match["name"])
        if match["verb"] == "load":
            load = messages.RepositoryModelLoadRequest(model_name=name)
            for parameter in parameters:
                load.parameters[parameter].SetInParent()
            self._service.repository_load(load)
        else:
            self._service.repository_unload(messages.RepositoryModelUnloadRequest(model_name=name))
        return 200, {}


def _model(match: re.Match[str]) -> tuple[str, str]:
    return unquote(match["name"]), unquote(match["version"] or "")


def _document(message: Any) -> dict[str, Any]:
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def _optional(request: RestRequest) -> JsonObject:
    """The object in a body that may be empty."""
    content = request.content()
    return json_codec.parse_body(content) if content.strip() else {}


def _get(document: JsonObject, key: str, kind: type[T], default: T | None = None, of: str = "") -> T:
    """The value of a key, which must have that type; without a default it must be there."""
    value = document.get(key, default)
    # In Python, booleans are integers.
    if value is None or not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        names = {str: "a string", bool: "a boolean", int: "an integer", dict: "an object", list: "an array"}
        raise invalid(f"{of}{key!r} must be {names[kind]}")
    return value


def _read(request: RestRequest) -> _Inputs:
    """Decode an inference request: the JSON, and the binary tensors behind it."""
    length = request.header(HEADER_LENGTH)
    if length and not (length.isdigit() and len(length) < 16):
        raise invalid("Inference-Header-Content-Length must be the number of bytes of the JSON")
    text_size = int(length) if length else None
    content = request.content(text_size)
    if text_size is not None and text_size > len(content):
        raise invalid(f"Inference-Header-Content-Length is {text_size}, but the body has {len(content)} bytes")
    document = json_codec.parse_body(content[:text_size])
    parameters = _get(document, "parameters", dict, {})
    check_parameters(parameters)
    tensors: dict[str, Array] = {}
    position = len(content) if text_size is None else text_size
    for item in _objects(document, "inputs"):
        name = _get(item, "name", str, of="input: ")
        if name in tensors:
            raise invalid(f"input {name} is given twice")
        tensors[name], position = _read_tensor(name, item, content, position)
    if position != len(content):
        raise invalid(f"{len(content) - position} bytes after the JSON belong to no input with binary_data_size")
    all_binary = _get(parameters, "binary_data_output", bool, False)
    outputs, is_binary = [], {}
    for item in _objects(document, "outputs", []):
        name = _get(item, "name", str, of="output: ")
        of_output = _get(item, "parameters", dict, {}, of=f"output {name}: ")
        check_parameters(of_output)
        is_binary[name] = _get(of_output, "binary_data", bool, all_binary, of=f"output {name}: ")
        outputs.append(name)
    return _Inputs(
        _get(document, "id", str) if "id" in document else None,
        _get(parameters, SIGNATURE_PARAMETER, str, ""),
        tensors,
        outputs,
        is_binary,
        all_binary,
    )


def _objects(document: JsonObject, key: str, default: list[Any] | None = None) -> list[JsonObject]:
    items = _get(document, key, list, default)
    if not all(isinstance(item, dict) for item in items):
        raise invalid(f"{key!r} must be an array of objects")
    return items


def _read_tensor(name: str, item: JsonObject, content: bytes, position: int) -> tuple[Array, int]:
    """An input's array, and where the binary data of the next one begins."""
    of = f"input {name}: "
    datatype = datatype_of(name, _get(item, "datatype", str, of=of))
    shape = _get(item, "shape", list, of=of)
    if not all(type(size) is int and -1 <= size <= MAX_VERSION for size in shape):
        raise invalid(f"{of}'shape' must be an array of integers")
    parameters = _get(item, "parameters", dict, {}, of=of)
    check_parameters(parameters)
    if "binary_data_size" not in parameters:
        return _from_json(name, datatype, shape, item), position
    if "data" in item:
        raise invalid(f"{of}'data' and binary_data_size cannot both be given")
    size = _get(parameters, "binary_data_size", int, of=of)
    if not 0 <= size <= len(content) - position:
        raise invalid(f"{of}binary_data_size is {size}, but {len(content) - position} bytes are left in the body")
    if datatype.element.dtype == object:
        # The smallest element has 4 bytes in the body, and many more as an object.
        check_memory(len(content) + element_count(name, shape) * BYTES_PER_VALUE)
    return from_raw(name, datatype, shape, content[position : position + size]), position + size


def _from_json(name: str, datatype: Datatype, shape: list[int], item: JsonObject) -> Array:
    """The tensor whose elements `data` lists, flat or nested."""
    if "data" not in item:
        raise invalid(f"input {name}: it has neither 'data' nor binary_data_size")
    if not datatype.field:
        raise invalid(f"input {name}: JSON cannot hold {datatype.name}, send it as binary data")
    count = element_count(name, shape)
    array = json_codec.to_array(_get(item, "data", list, of=f"input {name}: "), datatype.data_type)
    if array.size != count:
        raise invalid(f"input {name}: 'data' has {array.size} elements, the shape has {count}")
    return shaped(name, array, shape)


def _write(servable: Servable, inputs: _Inputs, outputs: Mapping[str, Array]) -> RestResponse:
    tensors, binary = [], []
    for name, array in outputs.items():
        datatype = output_datatype(name, array)
        tensor: JsonObject = {"name": name, "datatype": datatype.name, "shape": list(array.shape)}
        if inputs.is_binary.get(name, inputs.all_binary):
            binary.append(to_raw(array))
            tensor["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            tensor["data"] = _to_json(name, datatype, array.reshape(-1))
        tensors.append(tensor)
    document: JsonObject = {"model_name": servable.name, "model_version": str(servable.version)}
    if inputs.id is not None:
        document["id"] = inputs.id
    text = json_codec.dumps(document | {"outputs": tensors})
    if not binary:
        return RestResponse(200, JSON, text)
    return RestResponse(200, BINARY, b"".join([text, *binary]), ((HEADER_LENGTH, str(len(text)).encode()),))


def _to_json(name: str, datatype: Datatype, flat: Array) -> Any:
    hint = 'request it with the parameter "binary_data": true'
    if not datatype.field:
        raise invalid(f"output {name}: JSON cannot hold {datatype.name}, {hint}")
    if flat.dtype != object:
        return flat
    try:
        return [value.decode() for value in flat.tolist()]
    except UnicodeDecodeError:
        raise invalid(f"output {name}: it is not UTF-8, which JSON cannot hold, {hint}") from None
