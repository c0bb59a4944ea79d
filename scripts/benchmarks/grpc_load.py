"""A gRPC load generator for Predict: `python -m scripts.benchmarks.grpc_load HOST:PORT CONCURRENCY ROWS SECONDS`.

Prints a Load as JSON. Closed loop over one connection: CONCURRENCY calls are always in flight. It uses grpc's private
completion queue, because its public Python client takes longer for a call than the server measured here; where the
private one is missing or different, it falls back to the public one, and the rates are then the client's.
"""

from __future__ import annotations

import json
import queue
import sys
import time
from dataclasses import asdict
from typing import Any, Protocol

import grpc

from scripts.benchmarks.harness import ROW
from scripts.benchmarks.load import Load
from tfserving_protos import messages

PREDICT = "/tensorflow.serving.PredictionService/Predict"


def predict_request(rows: int) -> Any:
    """A PredictRequest of `rows` rows in typed fields."""
    request = messages.PredictRequest(model_spec=messages.ModelSpec(name="iris"))
    tensor = request.inputs["input"]
    tensor.dtype = messages.DT_FLOAT
    for size in (rows, len(ROW)):
        tensor.tensor_shape.dim.add().size = size
    tensor.float_val.extend(ROW * rows)
    return request


class PredictClient(Protocol):
    """Sends the same request again and again."""

    def send(self) -> None:
        """Start a call."""

    def receive(self) -> float:
        """Wait for the next call that ends; its latency in seconds. Raises RuntimeError if it failed."""


class CompletionQueueClient:
    """On grpc's private completion queue. The constructor raises if that is missing or different."""

    def __init__(self, target: str, payload: bytes) -> None:
        from grpc._cython import cygrpc  # type: ignore[attr-defined]

        self._cygrpc, self._payload = cygrpc, payload
        self._channel = cygrpc.Channel(target.encode(), (), None)
        self.send()
        self.receive()

    def send(self) -> None:
        cygrpc = self._cygrpc
        operations = (
            cygrpc.SendInitialMetadataOperation(None, 0),
            cygrpc.SendMessageOperation(self._payload, 0),
            cygrpc.SendCloseFromClientOperation(0),
            cygrpc.ReceiveInitialMetadataOperation(0),
            cygrpc.ReceiveMessageOperation(0),
            cygrpc.ReceiveStatusOnClientOperation(0),
        )
        tagged = ((operations, time.perf_counter()),)
        self._channel.integrated_call(0, PREDICT.encode(), None, None, None, None, tagged, None, None)

    def receive(self) -> float:
        event = self._channel.next_call_event()
        status = event.batch_operations[-1]
        if status.code() != 0:
            raise RuntimeError(status.details())
        return time.perf_counter() - float(event.tag)


class PublicClient:
    """On grpc's public API."""

    def __init__(self, target: str, payload: bytes) -> None:
        self._payload = payload
        self._call: Any = grpc.insecure_channel(target).unary_unary(PREDICT)
        self._ended: queue.SimpleQueue[tuple[Any, float]] = queue.SimpleQueue()

    def send(self) -> None:
        started = time.perf_counter()
        self._call.future(self._payload).add_done_callback(
            lambda call: self._ended.put((call, time.perf_counter() - started))
        )

    def receive(self) -> float:
        call, latency = self._ended.get()
        if error := call.exception():
            raise RuntimeError(str(error))
        return latency


def connect(target: str, payload: bytes) -> PredictClient:
    """A client on the private API, or on the public one where that does not work."""
    try:
        return CompletionQueueClient(target, payload)
    except (ImportError, AttributeError, TypeError):
        return PublicClient(target, payload)


def run(target: str, concurrency: int, rows: int, seconds: float) -> Load:
    """Latencies of Predict with `rows` rows."""
    client = connect(target, predict_request(rows).SerializeToString())

    def send_all() -> None:
        for _ in range(concurrency):
            client.send()

    def receive_all() -> list[float]:
        return [client.receive() for _ in range(concurrency)]

    send_all()
    receive_all()  # the first calls wait for the connection
    latencies = []
    started = time.perf_counter()
    send_all()
    while time.perf_counter() < started + seconds:
        latencies.append(client.receive())
        client.send()
    latencies += receive_all()
    return Load(sorted(latencies), 0, time.perf_counter() - started)


if __name__ == "__main__":
    print(json.dumps(asdict(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))))
