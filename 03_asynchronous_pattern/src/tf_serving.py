"""The client of TensorFlow Serving: the only module that uses gRPC and its messages."""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from grpc import ChannelConnectivity, StatusCode

from serving_common.errors import Unavailable
from src.configurations import TfServingSettings
from src.constants import SIGNATURE_INPUT, SIGNATURE_OUTPUT, TIMEOUT_ERROR, UNAVAILABLE
from src.schemas import Metadata
from tfserving_protos import channels, messages
from tfserving_protos.services import ModelServiceStub, PredictionServiceStub

SERVER_UNAVAILABLE = frozenset(
    {
        StatusCode.UNAVAILABLE,
        StatusCode.NOT_FOUND,  # the model is not loaded (yet), or MODEL_NAME is wrong: not a job's fault
        StatusCode.RESOURCE_EXHAUSTED,
        StatusCode.UNAUTHENTICATED,
        StatusCode.PERMISSION_DENIED,
        StatusCode.UNIMPLEMENTED,
    }
)
"""Codes that concern the server; all others concern the one call."""

CONNECT_WITHIN_S = 1
METADATA_RETRIES = 2

# gRPC has one code for a server that refuses a call and for a connection that broke under it; only the text differs.
BROKEN = re.compile("socket closed|connection reset|broken pipe|keepalive", re.IGNORECASE)


class ModelUnavailable(Unavailable):
    """TensorFlow Serving cannot be reached, or does not serve the model."""


class ModelCrashed(ModelUnavailable):
    """The connection broke while TensorFlow Serving was processing the request."""


class InferenceFailed(Exception):
    """TensorFlow Serving could not process this request; `str()` is the error that the client reads."""


class TfServing:
    """A channel to one model, on one or more servers that take turns."""

    def __init__(self, channel: grpc.aio.Channel, model: str, timeout_s: float) -> None:
        self._channel = channel
        self._predictions = PredictionServiceStub(channel)
        self._models = ModelServiceStub(channel)
        self._spec = messages.ModelSpec(name=model)
        self._timeout_s = timeout_s

    async def connect(self) -> None:
        """Wait briefly for the connection, which gRPC itself restores after a failure. Raises ModelUnavailable."""
        state = self._channel.get_state(try_to_connect=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(CONNECT_WITHIN_S):
                while state in (ChannelConnectivity.IDLE, ChannelConnectivity.CONNECTING):
                    await self._channel.wait_for_state_change(state)
                    state = self._channel.get_state(try_to_connect=True)
        if state is not ChannelConnectivity.READY:
            raise ModelUnavailable(UNAVAILABLE)

    async def predict(self, rows: Sequence[Sequence[float]]) -> list[list[float]]:
        """The probabilities of the classes, shape (N, 3), for rows of shape (N, 4).

        Raises:
            InferenceFailed: this request failed or timed out.
            ModelUnavailable: TensorFlow Serving cannot process any request.
            ModelCrashed: it died while processing this one.
        """
        request = messages.PredictRequest(model_spec=self._spec)
        tensor = request.inputs[SIGNATURE_INPUT]
        tensor.dtype = messages.DT_FLOAT
        for size in (len(rows), len(rows[0])):
            tensor.tensor_shape.dim.add().size = size
        for row in rows:
            tensor.float_val.extend(row)

        await self.connect()
        try:
            reply = await self._predictions.Predict(request, timeout=self._timeout_s)
        except grpc.aio.AioRpcError as exc:
            if exc.code() is StatusCode.DEADLINE_EXCEEDED:
                raise InferenceFailed(TIMEOUT_ERROR) from exc
            if exc.code() not in SERVER_UNAVAILABLE:
                raise InferenceFailed(f"Model inference failed: {exc.details() or exc.code().name}") from exc
            # With several servers the channel stays up when one dies.
            is_broken = BROKEN.search(exc.details() or "") or await self._is_broken()
            error = ModelCrashed if is_broken else ModelUnavailable
            raise error(UNAVAILABLE) from exc
        values = list(reply.outputs[SIGNATURE_OUTPUT].float_val)
        width = len(values) // len(rows)
        if not width or len(values) != width * len(rows):
            raise InferenceFailed(f"Model inference failed: {len(values)} values for {len(rows)} rows")
        return [values[start : start + width] for start in range(0, len(values), width)]

    async def _is_broken(self) -> bool:
        """Whether the connection, which was up when the call began, breaks as the call fails."""
        try:
            async with asyncio.timeout(0.1):
                await self._channel.wait_for_state_change(ChannelConnectivity.READY)
        except TimeoutError:
            return False
        return True

    async def why_unavailable(self, within_s: float) -> str | None:
        """Why TensorFlow Serving has no version of the model available now, or None."""
        request = messages.GetModelStatusRequest(model_spec=self._spec)
        try:
            reply = await self._models.GetModelStatus(request, timeout=within_s)
        except grpc.aio.AioRpcError as exc:
            if exc.code() is StatusCode.DEADLINE_EXCEEDED:
                return f"TensorFlow Serving does not answer within {within_s:g} s"
            return f"TensorFlow Serving: {exc.details() or exc.code().name}"
        available = messages.ModelVersionStatus.AVAILABLE
        if any(version.state == available for version in reply.model_version_status):
            return None
        return "TensorFlow Serving has no version of the model available"

    async def metadata(self) -> Metadata:
        """Raises ModelUnavailable."""
        request = messages.GetModelMetadataRequest(model_spec=self._spec, metadata_field=["signature_def"])
        try:
            reply = await self._predictions.GetModelMetadata(request, timeout=self._timeout_s)
        except grpc.aio.AioRpcError as exc:
            raise ModelUnavailable(UNAVAILABLE) from exc
        signatures = messages.SignatureDefMap()
        reply.metadata["signature_def"].Unpack(signatures)
        return {
            "model_spec": {"name": reply.model_spec.name, "version": str(reply.model_spec.version.value)},
            "metadata": {
                "signature_def": {
                    name: {"inputs": _tensors(signature.inputs), "outputs": _tensors(signature.outputs)}
                    for name, signature in sorted(signatures.signature_def.items())
                    if signature.inputs
                }
            },
        }


def _tensors(tensors: Mapping[str, Message]) -> dict[str, Any]:
    described = {name: MessageToDict(info, preserving_proto_field_name=True) for name, info in sorted(tensors.items())}
    return {name: {"dtype": info["dtype"], "tensor_shape": info["tensor_shape"]} for name, info in described.items()}


@asynccontextmanager
async def open_tf_serving(settings: TfServingSettings) -> AsyncIterator[TfServing]:
    """A client of the model that the settings name, which need not be running yet.

    gRPC itself does not retry Predict: a job that crashes a server must not crash the next one before the queue has
    counted it. Jobs of a server that is unavailable go back to the queue.
    """
    options = channels.options(retries=METADATA_RETRIES, method="GetModelMetadata")
    async with grpc.aio.insecure_channel(settings.tf_serving_address, options=options) as channel:
        yield TfServing(channel, settings.model_name, settings.tf_serving_timeout_s)
