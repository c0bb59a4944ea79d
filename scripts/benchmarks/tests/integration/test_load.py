"""Load against real servers: an endpoint of the comparison, and gRPC over both APIs."""

import asyncio
import http.server
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, ClassVar

import grpc
import pytest

from scripts.benchmarks import grpc_load
from scripts.benchmarks.harness import Endpoint
from tfserving_protos import messages, services


class Jobs(http.server.BaseHTTPRequestHandler):
    """POST gives out an id; GET of another path is 404."""

    protocol_version = "HTTP/1.1"
    paths: ClassVar[set[str]] = set()

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.respond(200)

    def do_GET(self):
        self.paths.add(self.path)
        self.respond(200 if self.path == "/job/a1b2c3" else 404)

    def respond(self, status):
        body = b'{"job_id": "a1b2c3"}'
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Jobs) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_endpoint_sends_its_body(server):
    stack: Any = SimpleNamespace(urls={"PORT_90": server})
    endpoint = Endpoint("a job", "PORT_90", "/predict", lambda: {"data": []})
    assert asyncio.run(endpoint.load(stack, 1, 0.1)).latencies


@pytest.mark.parametrize("client", [grpc_load.CompletionQueueClient, grpc_load.PublicClient])
def test_calls_are_measured_over_the_private_and_over_the_public_grpc_api(client, monkeypatch):
    executor = ThreadPoolExecutor(2)
    server = grpc.server(executor)
    response = messages.PredictResponse(model_spec=messages.ModelSpec(name="iris"))
    behaviors = dict.fromkeys(services.METHODS[services.PREDICTION_SERVICE], lambda request, context: response)
    server.add_generic_rpc_handlers((services.generic_handler(services.PREDICTION_SERVICE, behaviors),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setattr(grpc_load, "connect", client)
    load = grpc_load.run(f"127.0.0.1:{port}", 2, [[1, 2, 3, 4]] * 3, 0.2)
    assert len(load.latencies) > 2
    server.stop(None).wait()
    executor.shutdown()


def test_grpc_load_falls_back_to_the_public_api(monkeypatch):
    def missing(*_):
        raise ImportError

    monkeypatch.setattr(grpc_load, "CompletionQueueClient", missing)
    assert isinstance(grpc_load.connect("127.0.0.1:1", b""), grpc_load.PublicClient)
