"""A server with TensorFlow Serving's gRPC protocol whose behaviour a test controls."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc

from serving_testing.processes import free_port
from tfserving_protos import messages
from tfserving_protos.services import MODEL_SERVICE, PREDICTION_SERVICE, generic_handler

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]
else:
    Context = grpc.aio.ServicerContext  # generic only in its stub

BAD = 9.5
"""A row that starts with this value makes the call fail with `failure`."""


class ScriptedModel:
    """Classifies every row as versicolor, and records the sizes of the batches."""

    def __init__(self, port: int | None = None) -> None:
        self.port = port or free_port()
        self.batches: list[int] = []
        self.request_ids: list[str | bytes | None] = []
        self.failure = grpc.StatusCode.INVALID_ARGUMENT
        self.is_unavailable = False
        self.crashes_on_bad_row = False
        self.answer = [0.1, 0.7, 0.2]
        self.columns: int | None = None
        """Of the rows that the metadata describes; None: the server has no metadata."""
        self.released = asyncio.Event()
        self.released.set()
        self.entered = asyncio.Event()
        self.cancelled = asyncio.Event()
        self._server: grpc.aio.Server | None = None

    async def predict(self, request, context: Context):
        tensor = request.inputs["input"]
        rows = tensor.tensor_shape.dim[0].size
        self.batches.append(rows)
        self.request_ids.append(dict(context.invocation_metadata() or ()).get("x-request-id"))
        self.entered.set()
        if self.is_unavailable:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "unavailable")
        try:
            await self.released.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        if any(abs(value - BAD) < 1e-6 for value in tensor.float_val[::4]):
            if self.crashes_on_bad_row:
                os._exit(1)
            await context.abort(self.failure, "bad row")
        reply = messages.PredictResponse()
        reply.outputs["output"].float_val.extend(self.answer * rows)
        return reply

    async def status(self, request, context: Context):
        version = messages.ModelVersionStatus(version=1, state=messages.ModelVersionStatus.AVAILABLE)
        return messages.GetModelStatusResponse(model_version_status=[version])

    async def metadata(self, request, context: Context):
        if self.columns is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "not here")
        signatures = messages.SignatureDefMap()
        signature = signatures.signature_def["serving_default"]
        for info, width in ((signature.inputs["input"], self.columns), (signature.outputs["output"], 3)):
            info.dtype = messages.DT_FLOAT
            for size in (-1, width):
                info.tensor_shape.dim.add().size = size
        reply = messages.GetModelMetadataResponse()
        reply.metadata["signature_def"].Pack(signatures)
        return reply

    async def reject(self, request, context: Context):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "not here")

    async def start(self) -> None:
        self._server = grpc.aio.server()
        others = dict.fromkeys(["Classify", "Regress", "MultiInference"], self.reject)
        self._server.add_generic_rpc_handlers(
            (
                generic_handler(
                    PREDICTION_SERVICE, {"Predict": self.predict, "GetModelMetadata": self.metadata, **others}
                ),
                generic_handler(
                    MODEL_SERVICE, {"GetModelStatus": self.status, "HandleReloadConfigRequest": self.reject}
                ),
            )
        )
        self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def kill(self) -> None:
        """Break all connections."""
        if self._server is not None:
            await self._server.stop(None)


@asynccontextmanager
async def scripted_model() -> AsyncIterator[ScriptedModel]:
    """A running model server."""
    model = ScriptedModel()
    await model.start()
    try:
        yield model
    finally:
        model.released.set()
        await model.kill()


async def _serve_until_killed(port: int) -> None:
    model = ScriptedModel(port)
    model.crashes_on_bad_row = True
    await model.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve_until_killed(int(sys.argv[1])))
