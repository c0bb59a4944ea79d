"""Load against real servers: an endpoint of the comparison, and gRPC over both APIs."""

import asyncio
import http.server
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from scripts.benchmarks import grpc_load
from scripts.benchmarks.harness import Endpoint
from tfserving_protos import messages, services


class Accepting(http.server.BaseHTTPRequestHandler):
    """Answers POST of a body with 200, and anything else with an error."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.send_response(200 if self.rfile.read(int(self.headers["Content-Length"])) == b'{"data": []}' else 400)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


def test_endpoint_sends_its_body():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Accepting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        stack: Any = SimpleNamespace(urls={"PORT_90": f"http://127.0.0.1:{server.server_port}"})
        load = asyncio.run(Endpoint("a job", "PORT_90", "/predict", lambda: {"data": []}).load(stack, 1, 0.1))
        server.shutdown()
    assert load.latencies
    assert load.failed == 0


@pytest.mark.parametrize("client", [grpc_load.CompletionQueueClient, grpc_load.PublicClient])
def test_calls_are_measured_over_the_private_and_over_the_public_grpc_api(client, monkeypatch):
    executor = ThreadPoolExecutor(2)
    server = grpc.server(executor)
    response = messages.PredictResponse(model_spec=messages.ModelSpec(name="iris"))
    inferred = messages.ModelInferResponse(model_name="iris")
    for service, answer in ((services.PREDICTION_SERVICE, response), (services.INFERENCE_SERVICE, inferred)):
        behaviors = dict.fromkeys(services.METHODS[service], lambda request, context, answer=answer: answer)
        server.add_generic_rpc_handlers((services.generic_handler(service, behaviors),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setattr(grpc_load, "connect", client)
    for is_v2 in (False, True):
        load = grpc_load.run(f"127.0.0.1:{port}", 2, [[1, 2, 3, 4]] * 3, 0.1, is_v2=is_v2)
        assert len(load.latencies) > 2
    server.stop(None).wait()
    executor.shutdown()


def test_grpc_load_falls_back_to_the_public_api(monkeypatch):
    def missing(*_):
        raise ImportError

    monkeypatch.setattr(grpc_load, "CompletionQueueClient", missing)
    assert isinstance(grpc_load.connect("127.0.0.1:1", grpc_load.PREDICT, b""), grpc_load.PublicClient)
