"""The requests of TensorFlow Serving's two services, as functions from message to message."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tfserving_protos import messages

from .context import NO_LIMIT
from .signature import DEFAULT_SIGNATURE
from .status import Code, StatusError, invalid
from .tensors import ELEMENT_TYPES, Array, decode, encode, shape_text, type_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .context import Context
    from .core import Core
    from .manager import ModelManager, VersionStatus
    from .model import Servable
    from .signature import Signature

CLASSIFY_METHOD = "tensorflow/serving/classify"
REGRESS_METHOD = "tensorflow/serving/regress"


class Inference:
    """PredictionService. Every method raises StatusError for a request that it cannot serve."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def predict(self, request: messages.PredictRequest, context: Context = NO_LIMIT) -> messages.PredictResponse:
        """PredictionService.Predict."""
        servable = self._find(request)
        signature = servable.signature(request.model_spec.signature_name)
        inputs = {alias: decode(alias, proto) for alias, proto in request.inputs.items()}
        outputs = self._core.predict(signature, inputs, request.output_filter, context)
        response = messages.PredictResponse()
        for alias, array in outputs.items():
            encode(array, response.outputs[alias])
        _fill(response.model_spec, request.model_spec, servable, signature.name)
        return response

    def classify(
        self, request: messages.ClassificationRequest, context: Context = NO_LIMIT
    ) -> messages.ClassificationResponse:
        """PredictionService.Classify."""
        servable = self._find(request)
        signature = _example_signature(servable, request.model_spec.signature_name)
        _check_classify(signature)
        examples = _examples(request.input)
        outputs = self._core.predict(signature, {"inputs": examples}, context=context)
        response = messages.ClassificationResponse()
        _fill_classification(response.result, outputs, len(examples))
        _fill(response.model_spec, request.model_spec, servable, signature.name)
        return response

    def regress(self, request: messages.RegressionRequest, context: Context = NO_LIMIT) -> messages.RegressionResponse:
        """PredictionService.Regress."""
        servable = self._find(request)
        signature = _example_signature(servable, request.model_spec.signature_name)
        _check_regress(signature)
        examples = _examples(request.input)
        outputs = self._core.predict(signature, {"inputs": examples}, context=context)
        response = messages.RegressionResponse()
        _fill_regression(response.result, outputs, len(examples))
        _fill(response.model_spec, request.model_spec, servable, signature.name)
        return response

    def multi_inference(
        self, request: messages.MultiInferenceRequest, context: Context = NO_LIMIT
    ) -> messages.MultiInferenceResponse:
        """PredictionService.MultiInference: several signatures of one model on the same examples."""
        if not request.tasks:
            raise invalid("Inference request must have at least one task.")
        servable = self._find(request.tasks[0])
        tasks = _tasks(servable, request.tasks)
        examples = _examples(request.input)
        response = messages.MultiInferenceResponse()
        for task, signature in tasks:
            outputs = self._core.predict(signature, {"inputs": examples}, context=context)
            result = response.results.add()
            if task.method_name == CLASSIFY_METHOD:
                _fill_classification(result.classification_result, outputs, len(examples))
            else:
                _fill_regression(result.regression_result, outputs, len(examples))
            _fill(result.model_spec, task.model_spec, servable, signature.name)
        return response

    def metadata(self, request: messages.GetModelMetadataRequest) -> messages.GetModelMetadataResponse:
        """PredictionService.GetModelMetadata."""
        _require_spec(request)
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for name in request.metadata_field:
            if name != "signature_def":
                raise invalid(f"Metadata field {name} is not supported")
        servable = self._core.find(request.model_spec)
        response = messages.GetModelMetadataResponse()
        _fill(response.model_spec, request.model_spec, servable, "")
        response.metadata["signature_def"].Pack(servable.model.signatures, deterministic=True)
        return response

    def _find(self, request: Spec) -> Servable:
        _require_spec(request)
        return self._core.find(request.model_spec)


class ModelService:
    """Status and configuration of the models of one manager, and whether the server is ready."""

    def __init__(self, manager: ModelManager, *, is_controlled: bool = False) -> None:
        """`is_controlled`: whether clients may load and unload models."""
        self._manager = manager
        self._is_controlled = is_controlled
        self.is_stopping = False

    def known(self, name: str) -> str:
        """As ModelManager.known."""
        return self._manager.known(name)

    def index(self) -> list[tuple[str, int, VersionStatus]]:
        """As ModelManager.index."""
        return self._manager.index()

    def not_ready(self) -> str:
        """Why no new requests should be sent here; empty if they should: every model serves. Never waits."""
        if missing := self._manager.missing():
            return f"No version is available of: {', '.join(missing)}"
        return "the server is stopping" if self.is_stopping else ""

    def report_stopping(self) -> None:
        """Not ready from now on, while requests are still served."""
        self.is_stopping = True

    def load(self, name: str) -> None:
        """As ModelManager.load; PERMISSION_DENIED unless clients may do so."""
        self._check_control()
        self._manager.load(name)

    def unload(self, name: str) -> None:
        """As ModelManager.unload; PERMISSION_DENIED unless clients may do so."""
        self._check_control()
        self._manager.unload(name)

    def _check_control(self) -> None:
        if not self._is_controlled:
            raise StatusError(
                Code.PERMISSION_DENIED,
                "Models cannot be loaded and unloaded by requests: start the server with --model_control_mode=explicit",
            )

    def status(self, request: messages.GetModelStatusRequest) -> messages.GetModelStatusResponse:
        """ModelService.GetModelStatus: one version, or all seen since the start, newest first."""
        _require_spec(request)
        name = request.model_spec.name
        wanted = self._manager.version_of(request.model_spec)
        response = messages.GetModelStatusResponse()
        for version, status in self._manager.statuses(name):
            if wanted in (None, version):
                entry = response.model_version_status.add()
                entry.version = version
                entry.state = status.state
                entry.status.error_code = status.error.code if status.error else Code.OK
                entry.status.error_message = str(status.error or "")
        if not response.model_version_status:
            if wanted is None:
                raise StatusError(Code.NOT_FOUND, f"Could not find any versions of model {name}")
            raise StatusError(Code.NOT_FOUND, f"Could not find version {wanted} of model {name}")
        return response

    def reload_config(self, request: messages.ReloadConfigRequest) -> messages.ReloadConfigResponse:
        """ModelService.HandleReloadConfigRequest."""
        if request.config.WhichOneof("config") != "model_config_list":
            raise invalid(
                "ServerModelConfig type not supported by HandleReloadConfigRequest."
                " Only ModelConfigList is currently supported"
            )
        self._manager.reload(request.config)
        response = messages.ReloadConfigResponse()
        response.status.SetInParent()
        return response


if TYPE_CHECKING:
    Spec = (
        messages.PredictRequest
        | messages.ClassificationRequest
        | messages.RegressionRequest
        | messages.InferenceTask
        | messages.GetModelMetadataRequest
        | messages.GetModelStatusRequest
    )


def _require_spec(request: Spec) -> None:
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")


def _fill(target: messages.ModelSpec, requested: messages.ModelSpec, servable: Servable, signature: str) -> None:
    """The model_spec of a response: which version and signature it comes from."""
    target.name = requested.name
    target.version.value = servable.version
    target.signature_name = signature


def _example_signature(servable: Servable, name: str) -> Signature:
    # TensorFlow 2 writes predict as the method_name of every signature, so it is not checked, as in TensorFlow Serving.
    # The names of inputs and outputs decide whether Classify or Regress can use a signature.
    name = name or DEFAULT_SIGNATURE
    signature = servable.signatures.get(name)
    if signature is None:
        raise invalid(f"No signature was found with the name: {name}")
    return signature


def _check_classify(signature: Signature) -> None:
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if len(signature.outputs) not in (1, 2):
        raise invalid(f"Expected one or two output Tensors, found {len(signature.outputs)}")
    if "inputs" not in signature.inputs:
        raise invalid(f"No classification inputs found in SignatureDef: {signature.name}")
    if not {"classes", "scores"} & signature.outputs.keys():
        raise invalid(
            'Expected classification signature outputs to contain at least one of "classes" or "scores". '
            f"Signature was: {signature.name}"
        )


def _check_regress(signature: Signature) -> None:
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if len(signature.outputs) != 1:
        raise invalid("Expected one output Tensor.")
    if "inputs" not in signature.inputs:
        raise invalid(f"No regression inputs found in SignatureDef: {signature.name}")
    if "outputs" not in signature.outputs:
        raise invalid(f"No regression outputs found in SignatureDef: {signature.name}")


def _tasks(
    servable: Servable, tasks: Sequence[messages.InferenceTask]
) -> list[tuple[messages.InferenceTask, Signature]]:
    """Each task with its signature, which has been checked to take examples."""
    found: list[tuple[messages.InferenceTask, Signature]] = []
    for task in tasks:
        if not task.model_spec.name:
            raise invalid("Found ModelSpec with an empty model name.")
        if task.model_spec.name != servable.name:
            raise invalid("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
        name = task.model_spec.signature_name or DEFAULT_SIGNATURE
        if any(name == signature.name for _, signature in found):
            raise invalid(f"Duplicate evaluation of signature: {name}")
        signature = servable.signatures.get(name)
        if signature is None:
            raise invalid(f"Requested signature not found in model graph: {name}")
        if task.method_name == CLASSIFY_METHOD:
            _check_classify(signature)
        elif task.method_name == REGRESS_METHOD:
            _check_regress(signature)
        else:
            raise StatusError(Code.UNIMPLEMENTED, f"Unsupported signature method_name: {task.method_name}")
        found.append((task, signature))
    return found


def _examples(given: messages.Input) -> Array:
    """The examples as serialized strings, as the graph's parsing operation takes them. Shape: (examples,)."""
    kind = given.WhichOneof("kind")
    context = b""
    examples: Sequence[messages.Example] = ()
    if kind == "example_list":
        examples = given.example_list.examples
    elif kind == "example_list_with_context":
        examples = given.example_list_with_context.examples
        # Concatenated, two serialized messages are one message with the fields of both.
        context = given.example_list_with_context.context.SerializeToString()
    if not examples:
        raise invalid("Input is empty.")
    array = np.empty(len(examples), object)
    array[:] = [context + example.SerializeToString() for example in examples]
    return array


def _fill_classification(result: messages.ClassificationResult, outputs: Mapping[str, Array], count: int) -> None:
    classes, scores = outputs.get("classes"), outputs.get("scores")
    for name, array, wanted in (("classes", classes, messages.DT_STRING), ("scores", scores, messages.DT_FLOAT)):
        if array is None:
            continue
        if array.ndim != 2:
            raise invalid(f"Expected Tensor shape: [batch_size num_classes] but got {shape_text(array.shape)}")
        if array.dtype != ELEMENT_TYPES[wanted].dtype:
            raise invalid(f"Expected {name} Tensor of {type_name(wanted)}. Got: {array.dtype}")
        if len(array) != count:
            raise invalid(f"Expected {name} output batch size of {count}. Got: {len(array)}")
    if classes is not None and scores is not None and classes.shape != scores.shape:
        raise invalid(
            f"Tensors class and score should match in dim_size(1). Got {classes.shape[1]} vs. {scores.shape[1]}"
        )
    for index in range(count):
        classification = result.classifications.add()
        labels = [] if classes is None else [_text(label) for label in classes[index]]
        values = [] if scores is None else scores[index].tolist()
        for column in range(max(len(labels), len(values))):
            entry = classification.classes.add()
            if labels:
                entry.label = labels[column]
            if values:
                entry.score = values[column]


def _fill_regression(result: messages.RegressionResult, outputs: Mapping[str, Array], count: int) -> None:
    values = outputs["outputs"]
    if not (values.ndim == 1 or (values.ndim == 2 and values.shape[1] == 1)):
        raise invalid(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] "
            f"but got {shape_text(values.shape)}"
        )
    if len(values) != count:
        raise invalid(f"Input batch size did not match output batch size: {count} vs. {len(values)}")
    if values.dtype != np.float32:
        raise invalid(f"Expected output Tensor of DT_FLOAT.  Got: {values.dtype}")
    for value in values.reshape(-1).tolist():
        result.regressions.add().value = value


def _text(label: bytes) -> str:
    return label.decode("utf-8", "replace")
