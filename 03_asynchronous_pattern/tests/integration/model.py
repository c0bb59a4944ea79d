"""TensorFlow Serving's protocol, spoken by a server that does what a test wants."""

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
"""A row that begins so makes a call fail with `failure`."""


class ScriptedModel:
    """Classifies every row as versicolor; knows the sizes of the batches that it was asked for."""

    def __init__(self, port: int | None = None) -> None:
        self.port = port or free_port()
        self.batches: list[int] = []
        self.failure = grpc.StatusCode.INVALID_ARGUMENT
        self.away = False
        self.is_mortal = False
        self.answer = [0.1, 0.7, 0.2]
        self.released = asyncio.Event()
        self.released.set()
        self.entered = asyncio.Event()
        self._server: grpc.aio.Server | None = None

    async def predict(self, request, context: Context):
        tensor = request.inputs["input"]
        rows = tensor.tensor_shape.dim[0].size
        self.batches.append(rows)
        self.entered.set()
        if self.away:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "going away")
        await self.released.wait()
        if any(abs(value - BAD) < 1e-6 for value in tensor.float_val[::4]):
            if self.is_mortal:
                os._exit(1)
            await context.abort(self.failure, "bad row")
        reply = messages.PredictResponse()
        reply.outputs["output"].float_val.extend(self.answer * rows)
        return reply

    async def status(self, request, context: Context):
        version = messages.ModelVersionStatus(version=1, state=messages.ModelVersionStatus.AVAILABLE)
        return messages.GetModelStatusResponse(model_version_status=[version])

    async def refuse(self, request, context: Context):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "not here")

    async def start(self) -> None:
        self._server = grpc.aio.server()
        others = dict.fromkeys(["Classify", "Regress", "MultiInference", "GetModelMetadata"], self.refuse)
        self._server.add_generic_rpc_handlers(
            (
                generic_handler(PREDICTION_SERVICE, {"Predict": self.predict, **others}),
                generic_handler(
                    MODEL_SERVICE, {"GetModelStatus": self.status, "HandleReloadConfigRequest": self.refuse}
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
    """A model that runs."""
    model = ScriptedModel()
    await model.start()
    try:
        yield model
    finally:
        model.released.set()
        await model.kill()


async def _serve_until_killed(port: int) -> None:
    model = ScriptedModel(port)
    model.is_mortal = True
    await model.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve_until_killed(int(sys.argv[1])))
