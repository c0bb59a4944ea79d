"""A gRPC load generator for Predict and, of V2, ModelInfer.

`python -m scripts.benchmarks.grpc_load` reads the arguments of `run` as JSON.

It uses grpc's private completion queue, because its public Python client takes longer for a call than the server
measured here; where the private one is missing or different, it falls back to the public one, and the rates are then
the client's.
"""

import json
import queue
import struct
import sys
import time
from dataclasses import asdict
from typing import Any

import grpc

from serving_testing.load import Load
from tfserving_protos import messages

PREDICT = "/tensorflow.serving.PredictionService/Predict"
MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"


class CompletionQueueClient:
    """On grpc's private completion queue. The constructor raises if that is missing or different."""

    def __init__(self, target: str, path: str, payload: bytes) -> None:
        from grpc._cython import cygrpc  # type: ignore[attr-defined]

        self._cygrpc, self._path, self._payload = cygrpc, path.encode(), payload
        self._channel = cygrpc.Channel(target.encode(), (), None)
        self.send()
        self.receive()

    def send(self) -> None:
        """Start a call."""
        operations = (
            self._cygrpc.SendInitialMetadataOperation(None, 0),
            self._cygrpc.SendMessageOperation(self._payload, 0),
            self._cygrpc.SendCloseFromClientOperation(0),
            self._cygrpc.ReceiveInitialMetadataOperation(0),
            self._cygrpc.ReceiveMessageOperation(0),
            self._cygrpc.ReceiveStatusOnClientOperation(0),
        )
        tagged = ((operations, time.perf_counter()),)
        self._channel.integrated_call(0, self._path, None, None, None, None, tagged, None, None)

    def receive(self) -> float:
        """Wait for the next call that ends; its latency in seconds. Raises RuntimeError if it failed."""
        event = self._channel.next_call_event()
        status = event.batch_operations[-1]
        if status.code() != 0:
            raise RuntimeError(status.details())
        return time.perf_counter() - float(event.tag)


class PublicClient:
    """The same on grpc's public API."""

    def __init__(self, target: str, path: str, payload: bytes) -> None:
        self._payload = payload
        self._call: Any = grpc.insecure_channel(target).unary_unary(path)
        self._ended: queue.SimpleQueue[tuple[Any, float]] = queue.SimpleQueue()

    def send(self) -> None:
        started = time.perf_counter()
        future = self._call.future(self._payload)
        future.add_done_callback(lambda call: self._ended.put((call, time.perf_counter() - started)))

    def receive(self) -> float:
        call, latency = self._ended.get()
        if error := call.exception():
            raise RuntimeError(str(error))
        return latency


def connect(target: str, path: str, payload: bytes) -> CompletionQueueClient | PublicClient:
    """A client on the private API, or on the public one where that does not work."""
    try:
        return CompletionQueueClient(target, path, payload)
    except (ImportError, AttributeError, TypeError):
        return PublicClient(target, path, payload)


def predict_call(rows: list[list[float]]) -> tuple[str, bytes]:
    """Path and request of Predict."""
    request = messages.PredictRequest(model_spec=messages.ModelSpec(name="iris"))
    tensor = request.inputs["input"]
    tensor.dtype = messages.DT_FLOAT
    for size in (len(rows), len(rows[0])):
        tensor.tensor_shape.dim.add().size = size
    tensor.float_val.extend(value for row in rows for value in row)
    return PREDICT, request.SerializeToString()


def infer_call(rows: list[list[float]]) -> tuple[str, bytes]:
    """Path and request of ModelInfer, with raw contents, as the clients of Triton and KServe send them."""
    request = messages.ModelInferRequest(model_name="iris")
    request.inputs.add(name="input", datatype="FP32", shape=(len(rows), len(rows[0])))
    values = [value for row in rows for value in row]
    request.raw_input_contents.append(struct.pack(f"<{len(values)}f", *values))
    return MODEL_INFER, request.SerializeToString()


def run(target: str, concurrency: int, rows: list[list[float]], seconds: float, *, is_v2: bool = False) -> Load:
    """Latencies of a call in a closed loop over one connection, with this many always in flight."""
    client = connect(target, *(infer_call(rows) if is_v2 else predict_call(rows)))
    latencies = []
    for _ in range(concurrency):
        client.send()
    for _ in range(concurrency):
        client.receive()  # the first calls wait for the connection
    started = time.perf_counter()
    for _ in range(concurrency):
        client.send()
    while time.perf_counter() < started + seconds:
        latencies.append(client.receive())
        client.send()
    latencies += [client.receive() for _ in range(concurrency)]
    return Load(sorted(latencies), 0, time.perf_counter() - started)


if __name__ == "__main__":
    print(json.dumps(asdict(run(**json.load(sys.stdin)))))
