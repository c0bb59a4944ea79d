"""The two gRPC services as tables: what a stub and a server's registration need to know about each method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import grpc

from tfserving_protos import messages

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from google.protobuf.message import Message


class Method(NamedTuple):
    """One unary method: the classes of its request and its response."""

    request: type[Message]
    response: type[Message]


PREDICTION_SERVICE = "tensorflow.serving.PredictionService"
MODEL_SERVICE = "tensorflow.serving.ModelService"

METHODS: Mapping[str, Mapping[str, Method]] = {
    PREDICTION_SERVICE: {
        "Predict": Method(messages.PredictRequest, messages.PredictResponse),
        "Classify": Method(messages.ClassificationRequest, messages.ClassificationResponse),
        "Regress": Method(messages.RegressionRequest, messages.RegressionResponse),
        "MultiInference": Method(messages.MultiInferenceRequest, messages.MultiInferenceResponse),
        "GetModelMetadata": Method(messages.GetModelMetadataRequest, messages.GetModelMetadataResponse),
    },
    MODEL_SERVICE: {
        "GetModelStatus": Method(messages.GetModelStatusRequest, messages.GetModelStatusResponse),
        "HandleReloadConfigRequest": Method(messages.ReloadConfigRequest, messages.ReloadConfigResponse),
    },
}


class _Stub:
    """The methods of one service as callables of a channel, which may be a grpc.Channel or a grpc.aio.Channel."""

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
    """Inference. Call its methods with a request and `timeout=`, in seconds."""

    service = PREDICTION_SERVICE
    Predict: Callable[..., Any]
    Classify: Callable[..., Any]
    Regress: Callable[..., Any]
    MultiInference: Callable[..., Any]
    GetModelMetadata: Callable[..., Any]


class ModelServiceStub(_Stub):
    """Status and configuration of a model server."""

    service = MODEL_SERVICE
    GetModelStatus: Callable[..., Any]
    HandleReloadConfigRequest: Callable[..., Any]


def generic_handler(service: str, behaviors: Mapping[str, Callable[..., Any]]) -> grpc.GenericRpcHandler:
    """What `server.add_generic_rpc_handlers` takes: `behaviors` maps each method's name to its implementation."""
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
