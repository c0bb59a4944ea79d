"""The gRPC services: a table of their methods, client stubs, and handlers for servers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import grpc

from tfserving_protos import messages

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from google.protobuf.message import Message


class UnaryMethod(NamedTuple):
    """The classes of a method's request and response."""

    request: type[Message]
    response: type[Message]


PREDICTION_SERVICE = "tensorflow.serving.PredictionService"
MODEL_SERVICE = "tensorflow.serving.ModelService"
INFERENCE_SERVICE = "inference.GRPCInferenceService"

METHODS: Mapping[str, Mapping[str, UnaryMethod]] = {
    PREDICTION_SERVICE: {
        "Predict": UnaryMethod(messages.PredictRequest, messages.PredictResponse),
        "Classify": UnaryMethod(messages.ClassificationRequest, messages.ClassificationResponse),
        "Regress": UnaryMethod(messages.RegressionRequest, messages.RegressionResponse),
        "MultiInference": UnaryMethod(messages.MultiInferenceRequest, messages.MultiInferenceResponse),
        "GetModelMetadata": UnaryMethod(messages.GetModelMetadataRequest, messages.GetModelMetadataResponse),
    },
    MODEL_SERVICE: {
        "GetModelStatus": UnaryMethod(messages.GetModelStatusRequest, messages.GetModelStatusResponse),
        "HandleReloadConfigRequest": UnaryMethod(messages.ReloadConfigRequest, messages.ReloadConfigResponse),
    },
    INFERENCE_SERVICE: {
        "ServerLive": UnaryMethod(messages.ServerLiveRequest, messages.ServerLiveResponse),
        "ServerReady": UnaryMethod(messages.ServerReadyRequest, messages.ServerReadyResponse),
        "ModelReady": UnaryMethod(messages.ModelReadyRequest, messages.ModelReadyResponse),
        "ServerMetadata": UnaryMethod(messages.ServerMetadataRequest, messages.ServerMetadataResponse),
        "ModelMetadata": UnaryMethod(messages.ModelMetadataRequest, messages.ModelMetadataResponse),
        "ModelInfer": UnaryMethod(messages.ModelInferRequest, messages.ModelInferResponse),
        "RepositoryIndex": UnaryMethod(messages.RepositoryIndexRequest, messages.RepositoryIndexResponse),
        "RepositoryModelLoad": UnaryMethod(messages.RepositoryModelLoadRequest, messages.RepositoryModelLoadResponse),
        "RepositoryModelUnload": UnaryMethod(
            messages.RepositoryModelUnloadRequest, messages.RepositoryModelUnloadResponse
        ),
    },
}


class _Stub:
    """The methods of one service as callables, on a grpc.Channel or a grpc.aio.Channel."""

    service: str

    def __init__(self, channel: grpc.Channel | grpc.aio.Channel) -> None:
        for name, method in METHODS[self.service].items():
            call = channel.unary_unary(
                f"/{self.service}/{name}",
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.response.FromString,
            )
            setattr(self, name, call)


class PredictionServiceStub(_Stub):
    """Inference. Call a method with a request and `timeout=`, in seconds."""

    service = PREDICTION_SERVICE
    Predict: Callable[..., Any]
    Classify: Callable[..., Any]
    Regress: Callable[..., Any]
    MultiInference: Callable[..., Any]
    GetModelMetadata: Callable[..., Any]


class ModelServiceStub(_Stub):
    """Status and configuration of the models of a server."""

    service = MODEL_SERVICE
    GetModelStatus: Callable[..., Any]
    HandleReloadConfigRequest: Callable[..., Any]


class InferenceServiceStub(_Stub):
    """The Open Inference Protocol (V2)."""

    service = INFERENCE_SERVICE
    ServerLive: Callable[..., Any]
    ServerReady: Callable[..., Any]
    ModelReady: Callable[..., Any]
    ServerMetadata: Callable[..., Any]
    ModelMetadata: Callable[..., Any]
    ModelInfer: Callable[..., Any]
    RepositoryIndex: Callable[..., Any]
    RepositoryModelLoad: Callable[..., Any]
    RepositoryModelUnload: Callable[..., Any]


def generic_handler(service: str, behaviors: Mapping[str, Callable[..., Any]]) -> grpc.GenericRpcHandler:
    """For `server.add_generic_rpc_handlers`: `behaviors` maps the name of each method to its implementation."""
    return grpc.method_handlers_generic_handler(
        service,
        {
            name: grpc.unary_unary_rpc_method_handler(
                behaviors[name],
                request_deserializer=method.request.FromString,
                response_serializer=method.response.SerializeToString,
            )
            for name, method in METHODS[service].items()
        },
    )
