"""The client of TensorFlow Serving: the only module that uses gRPC and its messages."""

import asyncio
import math
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import structlog
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from grpc import ChannelConnectivity, StatusCode

from serving_common import tracing
from serving_common.cards import ADD, Binding, Card, Part, Task, Tensor, bind
from serving_common.errors import StartupError, Unavailable
from serving_common.tracing import CLIENT
from src.configurations import TfServingSettings
from src.constants import SIGNATURE_INPUT, SIGNATURE_OUTPUT, TIMEOUT_ERROR, UNAVAILABLE
from src.jobs import Rows
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

_DTYPES = {
    messages.DT_FLOAT: ("float", "float_val"),
    messages.DT_DOUBLE: ("double", "double_val"),
    messages.DT_INT64: ("int64", "int64_val"),
    messages.DT_INT32: ("int32", "int_val"),
    messages.DT_STRING: ("string", "string_val"),
    messages.DT_BOOL: ("bool", "bool_val"),
}
_NUMBERS = {name: (number, field) for number, (name, field) in _DTYPES.items()}

log = structlog.get_logger()

PREDICT = "tensorflow.serving.PredictionService/Predict"
CONNECT_WITHIN_S = 1
METADATA_RETRIES = 2

# gRPC has one code for a server that refuses a call and for a connection that broke under it; only the text differs.
BROKEN = re.compile("socket closed|connection reset|broken pipe|keepalive", re.IGNORECASE)


class ModelUnavailable(Unavailable):
    """TensorFlow Serving cannot be reached, or does not serve the model."""


class ModelCrashed(ModelUnavailable):
    """The connection broke while TensorFlow Serving was processing the request."""


class CardMismatch(ModelUnavailable):
    """The model that is served differs from the card: its jobs wait in the queue until an operator has acted."""


class InferenceFailed(Exception):
    """TensorFlow Serving could not process this request; `str()` is the error that the client reads."""


class TfServing:
    """A channel to one model, on one or more servers that take turns."""

    def __init__(self, channel: grpc.aio.Channel, model: str, timeout_s: float, card: Card, address: str) -> None:
        self._channel = channel
        self._predictions = PredictionServiceStub(channel)
        self._attributes = {"rpc.system.name": "grpc", "rpc.method": PREDICT, "server.address": address}
        self._models = ModelServiceStub(channel)
        self._spec = messages.ModelSpec(name=model)
        self._timeout_s = timeout_s
        self._card = card
        self._binding: Binding | None = None
        self.mismatch: str | None = None
        """How the model differed from the card when it was last compared."""

    async def connect(self) -> None:
        """Wait briefly for the connection, which gRPC itself restores after a failure, and check the model's signature.

        Raises:
            ModelUnavailable: there is no connection, or no model.
            CardMismatch: the model is another one than the card's.
        """
        await self._bound()

    async def _bound(self) -> Binding:
        state = self._channel.get_state(try_to_connect=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(CONNECT_WITHIN_S):
                while state in (ChannelConnectivity.IDLE, ChannelConnectivity.CONNECTING):
                    await self._channel.wait_for_state_change(state)
                    state = self._channel.get_state(try_to_connect=True)
        if state is not ChannelConnectivity.READY:
            raise ModelUnavailable(UNAVAILABLE)
        return self._binding or await self._check(self._timeout_s)

    async def _check(self, timeout_s: float) -> Binding:
        """Compare the model with the card: its signature, and what it answers to the sample if that is new."""
        binding = await self._bind(timeout_s)
        if binding != self._binding:
            await self._try_sample(binding, timeout_s)
        self._binding, self.mismatch = binding, None
        return binding

    async def _bind(self, timeout_s: float) -> Binding:
        """Which tensors of the signature take the card's columns and have the answer."""
        try:
            reply = await self._get_metadata(timeout_s)
        except grpc.aio.AioRpcError as exc:
            if exc.code() is StatusCode.UNIMPLEMENTED:
                return self._specified_binding()
            raise ModelUnavailable(UNAVAILABLE) from exc
        signatures = _signatures(reply)
        name = self._card.signature
        if name not in signatures:
            known = ", ".join(sorted(signatures)) or "none"
            raise self._mismatch(f"the card has the signature {name}, the model {known}")
        inputs, outputs = (
            [_tensor(*each) for each in sorted(some.items())]
            for some in (signatures[name].inputs, signatures[name].outputs)
        )
        # A signature has no order: several matrices need their names in the card.
        if 1 < len(inputs) < len(self._card.inputs) and not any(each.tensor for each in self._card.inputs):
            found = ", ".join(map(str, inputs))
            raise self._mismatch(f"inputs.tensor must name the model's input, one of {found}")
        try:
            return bind(self._card, inputs, outputs)
        except StartupError as exc:
            raise self._mismatch(str(exc)) from exc

    def _mismatch(self, reason: str) -> CardMismatch:
        if ADD not in reason:
            reason = f"{self._card.name}: {reason} ({ADD})"
        if reason != self.mismatch:
            log.error("model_differs_from_card", reason=reason)
        self._binding, self.mismatch = None, reason
        return CardMismatch(reason)

    def _specified_binding(self) -> Binding:
        columns = tuple(range(len(self._card.inputs)))
        rows = Tensor(SIGNATURE_INPUT, "float", (None, len(columns)))
        return Binding((Part(rows, columns),), Tensor(SIGNATURE_OUTPUT, "float", (None, self._card.width)))

    async def _try_sample(self, binding: Binding, timeout_s: float) -> None:
        """Raises CardMismatch if the model answers the card's sample with other numbers than the card expects."""
        sample = self._card.sample
        if sample is None or sample.expected is None:
            return
        try:
            answers = await self._predict(binding, self._card.sample_rows, timeout_s)
        except ModelCrashed as exc:  # not while processing a job
            raise ModelUnavailable(UNAVAILABLE) from exc
        except InferenceFailed as exc:
            if str(exc) == TIMEOUT_ERROR:
                raise ModelUnavailable(UNAVAILABLE) from exc
            raise self._mismatch(f"the card's sample fails: {exc}") from exc
        for number, (answer, expected) in enumerate(zip(answers, sample.expected, strict=True)):
            for got, wanted in zip(answer, expected, strict=True):
                if not math.isclose(got, wanted, rel_tol=sample.tolerance, abs_tol=sample.tolerance):
                    raise self._mismatch(f"row {number} of the sample gives {answer}, the card expects {expected}")

    async def predict(self, rows: Rows) -> list[list[float]]:
        """The model's numbers for rows of the card's inputs, shape (N, card.width).

        Raises:
            InferenceFailed: this request failed or timed out.
            ModelUnavailable: TensorFlow Serving cannot process any request.
            ModelCrashed: it died while processing this one.
        """
        binding = await self._bound()
        try:
            return await self._predict(binding, rows, self._timeout_s)
        except InferenceFailed as exc:
            if str(exc) != TIMEOUT_ERROR:
                self._binding = None  # it may be another model by now, which the next connect finds out
            raise

    async def _predict(self, binding: Binding, rows: Rows, timeout_s: float) -> list[list[float]]:
        is_one_row = any(part.tensor.shape[0] == 1 for part in binding.parts)
        if is_one_row and len(rows) > 1:
            return [answer for row in rows for answer in await self._predict(binding, [row], timeout_s)]
        request = messages.PredictRequest(model_spec=self._spec)
        request.model_spec.signature_name = self._card.signature
        for part in binding.parts:
            try:
                _fill(request.inputs[part.tensor.name], part, rows)
            except (TypeError, ValueError) as exc:  # for instance an int64 beyond the int32 of the model
                raise InferenceFailed(f"Model inference failed: {exc}") from exc
        try:
            reply = await self._call(request, timeout_s)
        except grpc.aio.AioRpcError as exc:
            if exc.code() is StatusCode.DEADLINE_EXCEEDED:
                raise InferenceFailed(TIMEOUT_ERROR) from exc
            if exc.code() not in SERVER_UNAVAILABLE:
                raise InferenceFailed(f"Model inference failed: {exc.details() or exc.code().name}") from exc
            # With several servers the channel stays up when one dies.
            is_broken = BROKEN.search(exc.details() or "") or await self._is_broken()
            error = ModelCrashed if is_broken else ModelUnavailable
            raise error(UNAVAILABLE) from exc
        return self._answers(reply.outputs[binding.output.name], len(rows))

    async def _call(self, request: Any, timeout_s: float) -> Any:
        """The reply of Predict. Raises grpc.aio.AioRpcError."""
        with tracing.span(PREDICT, CLIENT, self._attributes) as span:
            metadata = tuple(tracing.headers().items())
            if request_id := tracing.request_id.get():
                metadata += (("x-request-id", request_id),)
            try:
                reply = await self._predictions.Predict(request, timeout=timeout_s, metadata=metadata)
            except grpc.aio.AioRpcError as exc:
                span.set({"rpc.response.status_code": exc.code().name})
                raise
            span.set({"rpc.response.status_code": "OK"})
            return reply

    def _answers(self, tensor: Any, rows: int) -> list[list[float]]:
        _, field = _DTYPES.get(tensor.dtype, _DTYPES[messages.DT_FLOAT])
        values = list(getattr(tensor, field))
        width = self._card.width
        if len(values) == rows and width == 2 and self._card.task is Task.CLASSIFICATION:
            return [[1 - value, value] for value in values]  # only the probability of the second class
        if len(values) != width * rows:
            wanted = f"{rows} rows, of which each has {width}"
            raise InferenceFailed(f"Model inference failed: {len(values)} values for {wanted}")
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
        """Why TensorFlow Serving cannot predict the card's rows now, or None."""
        no_version, mismatch = await asyncio.gather(self._why_no_version(within_s), self.why_mismatch(within_s))
        return no_version or mismatch

    async def why_mismatch(self, within_s: float) -> str | None:
        """How the model differs from the card; None also if TensorFlow Serving does not answer."""
        try:
            async with asyncio.timeout(within_s):
                await self._check(within_s)
        except CardMismatch as exc:
            return str(exc)
        except (ModelUnavailable, TimeoutError):
            pass
        return None

    async def _why_no_version(self, within_s: float) -> str | None:
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
        try:
            reply = await self._get_metadata(self._timeout_s)
        except grpc.aio.AioRpcError as exc:
            raise ModelUnavailable(UNAVAILABLE) from exc
        return {
            "model_spec": {"name": reply.model_spec.name, "version": str(reply.model_spec.version.value)},
            "metadata": {
                "signature_def": {
                    name: {"inputs": _tensors(signature.inputs), "outputs": _tensors(signature.outputs)}
                    for name, signature in sorted(_signatures(reply).items())
                    if signature.inputs
                }
            },
        }

    async def _get_metadata(self, timeout_s: float) -> Any:
        request = messages.GetModelMetadataRequest(model_spec=self._spec, metadata_field=["signature_def"])
        return await self._predictions.GetModelMetadata(request, timeout=timeout_s)


def _signatures(reply: Any) -> Mapping[str, Any]:
    """The model's signatures by name."""
    signatures = messages.SignatureDefMap()
    reply.metadata["signature_def"].Unpack(signatures)
    return signatures.signature_def


def _tensor(name: str, info: Any) -> Tensor:
    dtype, _ = _DTYPES.get(info.dtype, (f"type {info.dtype}", ""))
    shape = info.tensor_shape
    sizes = (None, None) if shape.unknown_rank else tuple(dim.size if dim.size >= 0 else None for dim in shape.dim)
    return Tensor(name, dtype, sizes)


def _fill(tensor: Any, part: Part, rows: Rows) -> None:
    """Write the part's columns into the request's tensor; null becomes NaN. Raises ValueError."""
    tensor.dtype, field = _NUMBERS[part.tensor.dtype]
    sizes = (len(rows), len(part.columns))
    for size in sizes[: len(part.tensor.shape)]:
        tensor.tensor_shape.dim.add().size = size
    values = getattr(tensor, field)
    for row in rows:
        columns: Sequence[Any] = row if len(part.columns) == len(row) else [row[column] for column in part.columns]
        if field == "string_val":
            columns = [str(value).encode() for value in columns]
        elif None in columns:
            columns = [math.nan if value is None else value for value in columns]
        values.extend(columns)


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
    address = settings.tf_serving_address
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        yield TfServing(channel, settings.model_name, settings.tf_serving_timeout_s, settings.card, address)
