"""The Open Inference Protocol (V2): its gRPC methods as functions from message to message, and what REST shares.

The protocol knows no signatures. Its inputs and outputs are those of `serving_default`, or of the one that the request
parameter `signature_name` names. A version is a number or one of the model's version labels.
"""

from __future__ import annotations

import functools
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from tfserving_protos import messages

from .context import NO_LIMIT
from .manager import State
from .open_inference_tensors import (
    datatype_name,
    datatype_of,
    from_contents,
    from_raw,
    output_datatype,
    to_contents,
    to_raw,
)
from .signature import DEFAULT_SIGNATURE
from .status import invalid
from .versions import MAX_VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .context import Context
    from .core import Core
    from .inference import ModelService
    from .model import Servable
    from .tensors import Array

EXTENSIONS = ("binary_tensor_data", "model_repository")
SIGNATURE_PARAMETER = "signature_name"
# Parameters that change what a response means: without support for them, it would be wrong. All others are ignored.
UNSUPPORTED_PARAMETERS = frozenset(["classification", "shared_memory_region"])
_STATES = {
    State.START: "LOADING",
    State.LOADING: "LOADING",
    State.AVAILABLE: "READY",
    State.UNLOADING: "UNLOADING",
    State.END: "UNAVAILABLE",
}


class OpenInference:
    """GRPCInferenceService. Every method raises StatusError for a request that it cannot serve."""

    def __init__(self, core: Core, models: ModelService) -> None:
        self._core = core
        self._models = models

    def server_live(self, _: messages.ServerLiveRequest) -> messages.ServerLiveResponse:
        """Whether the process answers."""
        return messages.ServerLiveResponse(live=True)

    def server_ready(self, _: messages.ServerReadyRequest) -> messages.ServerReadyResponse:
        """Whether every model serves, and the server is not about to stop."""
        return messages.ServerReadyResponse(ready=not self._models.not_ready())

    def server_metadata(self, _: messages.ServerMetadataRequest) -> messages.ServerMetadataResponse:
        """Name, version and extensions."""
        return messages.ServerMetadataResponse(
            name="portable-model-server", version=_package_version(), extensions=EXTENSIONS
        )

    def model_ready(self, request: messages.ModelReadyRequest) -> messages.ModelReadyResponse:
        """Whether the version, or any, serves. NOT_FOUND for one that was never there."""
        status = self._models.status(messages.GetModelStatusRequest(model_spec=spec_of(request.name, request.version)))
        is_available = any(entry.state == State.AVAILABLE for entry in status.model_version_status)
        return messages.ModelReadyResponse(ready=is_available and not self._models.is_stopping)

    def model_metadata(self, request: messages.ModelMetadataRequest) -> messages.ModelMetadataResponse:
        """Inputs and outputs of the default signature, and the versions that serve. An unknown rank is [-1]."""
        servable = self._core.find(spec_of(request.name, request.version))
        definition = servable.signature(DEFAULT_SIGNATURE).definition
        response = messages.ModelMetadataResponse(name=servable.name, platform=servable.model.platform)
        response.versions.extend(
            str(number) for name, number, status in self._models.index() if name == servable.name and status.is_serving
        )
        for infos, tensors in ((definition.inputs, response.inputs), (definition.outputs, response.outputs)):
            is_output = tensors is response.outputs
            for name, info in sorted(infos.items()):
                has_rank = info.HasField("tensor_shape") and not info.tensor_shape.unknown_rank
                # A client sends what it reads here, so it is the graph's type, which a signature may not have.
                data_type = servable.model.data_type(name, info.name, is_output=is_output) or info.dtype
                shape = [dim.size for dim in info.tensor_shape.dim] if has_rank else [-1]
                tensors.add(name=name, datatype=datatype_name(data_type), shape=shape)
        return response

    def infer(self, request: messages.ModelInferRequest, context: Context = NO_LIMIT) -> messages.ModelInferResponse:
        """ModelInfer. The outputs are raw, unless the inputs were typed contents."""
        parts: list[Any] = [request, *request.inputs, *request.outputs]
        for part in parts:
            if part.parameters:
                check_parameters(part.parameters)
        signature = request.parameters[SIGNATURE_PARAMETER].string_param if request.parameters else ""
        servable, outputs = self.run(
            spec_of(request.model_name, request.model_version),
            signature,
            _inputs(request),
            [output.name for output in request.outputs],
            context,
        )
        response = messages.ModelInferResponse(
            model_name=servable.name, model_version=str(servable.version), id=request.id
        )
        datatypes = [output_datatype(name, array) for name, array in outputs.items()]
        is_typed = request.inputs and not request.raw_input_contents
        # The protocol does not allow a mix of both forms.
        is_raw = not (is_typed and all(datatype.field for datatype in datatypes))
        for (name, array), datatype in zip(outputs.items(), datatypes, strict=True):
            tensor = response.outputs.add(name=name, datatype=datatype.name, shape=array.shape)
            if is_raw:
                response.raw_output_contents.append(to_raw(array))
            else:
                to_contents(array, datatype, tensor.contents)
        return response

    def run(
        self,
        spec: messages.ModelSpec,
        signature_name: str,
        inputs: Mapping[str, Array],
        outputs: Iterable[str],
        context: Context,
    ) -> tuple[Servable, dict[str, Array]]:
        """What both protocols do with an inference request once it is decoded: the version that ran, and its outputs.

        Raises:
            StatusError: as Core.find and Core.predict; FAILED_PRECONDITION for an unknown signature.
        """
        servable = self._core.find(spec)
        return servable, self._core.predict(servable.signature(signature_name), inputs, outputs, context)

    def repository_index(self, request: messages.RepositoryIndexRequest) -> messages.RepositoryIndexResponse:
        """Every version of every configured model, and why it is not ready if so."""
        _check_repository(request)
        response = messages.RepositoryIndexResponse()
        for name, number, status in self._models.index():
            if status.is_serving or not request.ready:
                reason = str(status.error or ("unloaded" if status.state is State.END else ""))
                response.models.add(name=name, version=str(number), state=_STATES[status.state], reason=reason)
        return response

    def repository_load(self, request: messages.RepositoryModelLoadRequest) -> messages.RepositoryModelLoadResponse:
        """Load a configured model, or check its base path for new versions. Returns once it serves."""
        _check_repository(request)
        for name in request.parameters:
            if name == "config" or name.startswith("file:"):
                raise invalid(f"load parameter {name} is not supported: models come from the configured base path")
        self._models.load(request.model_name)
        return messages.RepositoryModelLoadResponse()

    def repository_unload(
        self, request: messages.RepositoryModelUnloadRequest
    ) -> messages.RepositoryModelUnloadResponse:
        """Take a model out of traffic until it is loaded again. Requests that run are completed."""
        _check_repository(request)
        self._models.unload(request.model_name)
        return messages.RepositoryModelUnloadResponse()


def spec_of(name: str, version: str) -> messages.ModelSpec:
    """The version `version` of a model: a number, a label, or, when empty, the newest."""
    spec = messages.ModelSpec(name=name)
    if version.isascii() and version.isdigit():
        if len(version) > 19 or int(version) > MAX_VERSION:
            raise invalid(f"model {name} has no version {version[:40]}: versions are 64-bit integers")
        spec.version.value = int(version)
    elif version:
        spec.version_label = version
    return spec


def check_parameters(names: Iterable[str]) -> None:
    """Raises INVALID_ARGUMENT if one of these parameters cannot be ignored."""
    if unsupported := UNSUPPORTED_PARAMETERS.intersection(names):
        raise invalid(f"parameter {min(unsupported)} is not supported")


def _inputs(request: messages.ModelInferRequest) -> dict[str, Array]:
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise invalid(f"raw_input_contents has {len(raw)} entries for {len(request.inputs)} inputs")
    inputs: dict[str, Array] = {}
    for index, tensor in enumerate(request.inputs):
        name = tensor.name
        if name in inputs:
            raise invalid(f"input {name} is given twice")
        datatype = datatype_of(name, tensor.datatype)
        if not raw:
            inputs[name] = from_contents(name, datatype, tensor.shape, tensor.contents)
        elif tensor.HasField("contents"):
            raise invalid(f"input {name}: contents and raw_input_contents cannot both be given")
        else:
            inputs[name] = from_raw(name, datatype, tensor.shape, raw[index])
    return inputs


def _check_repository(request: Any) -> None:
    if request.repository_name:
        raise invalid("repository_name must be empty: there is one repository, the server's configuration")


@functools.cache
def _package_version() -> str:
    return version("portable-model-server")
