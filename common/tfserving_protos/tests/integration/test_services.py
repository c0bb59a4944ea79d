"""Stubs and handlers together, over a real channel."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc
import pytest

from tfserving_protos import messages
from tfserving_protos.services import (
    INFERENCE_SERVICE,
    METHODS,
    MODEL_SERVICE,
    PREDICTION_SERVICE,
    InferenceServiceStub,
    ModelServiceStub,
    PredictionServiceStub,
    generic_handler,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def channel() -> Iterator[grpc.Channel]:
    """To a server that answers every method with an empty response of the right type."""
    server = grpc.server(ThreadPoolExecutor(max_workers=1))
    for service, methods in METHODS.items():
        behaviors = {name: lambda request, context, m=method: m.response() for name, method in methods.items()}
        server.add_generic_rpc_handlers((generic_handler(service, behaviors),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    server.stop(0)


@pytest.mark.parametrize(
    ("stub", "service"),
    [
        (PredictionServiceStub, PREDICTION_SERVICE),
        (ModelServiceStub, MODEL_SERVICE),
        (InferenceServiceStub, INFERENCE_SERVICE),
    ],
)
def test_every_method_accepts_its_request_and_returns_its_response(channel, stub, service):
    for name, method in METHODS[service].items():
        response = getattr(stub(channel), name)(method.request(), timeout=10)
        assert isinstance(response, method.response)


def test_request_arrives_as_it_was_sent():
    server = grpc.server(ThreadPoolExecutor(max_workers=1))
    seen = []

    def predict(request, context):
        seen.append(request)
        return messages.PredictResponse()

    behaviors = dict.fromkeys(METHODS[PREDICTION_SERVICE], predict)
    server.add_generic_rpc_handlers((generic_handler(PREDICTION_SERVICE, behaviors),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    request = messages.PredictRequest(model_spec=messages.ModelSpec(name="iris"))
    request.inputs["input"].float_val.extend([5.0, 3.5])
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        PredictionServiceStub(channel).Predict(request, timeout=10)
    server.stop(0)

    assert seen == [request]
