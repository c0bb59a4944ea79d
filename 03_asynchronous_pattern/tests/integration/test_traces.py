"""Traces of jobs, from the caller to the model server, exported by real processes to a real collector."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import pytest

from serving_testing.collector import Collector, attributes, running_collector
from serving_testing.processes import Process, free_port, running, wait_until
from serving_testing.redis_server import RedisServer
from tests.conftest import PATTERN, SAMPLE, ModelServer

TRACE_ID, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE_ID}-{CALLER}-01"
TREE = [
    "proxy: POST /predict",
    "  proxy: send queue:predict",
    "    worker: wait queue:predict",
    "    worker: process queue:predict",
    "      worker: process batch",
    "        worker: tensorflow.serving.PredictionService/Predict",
    "          model_server: tensorflow.serving.PredictionService/Predict",
    "            model_server: run model",
    "        worker: settle queue:predict",
]


@dataclass
class Traced:
    client: httpx.Client
    collector: Collector
    proxy: Process
    worker: Process

    def run_job(self, **headers: str) -> str:
        """Submits a job and returns its id once it has completed."""
        job_id: str = self.client.post("/predict", json=SAMPLE, headers=headers).json()["job_id"]
        assert self.client.get(f"/job/{job_id}?wait=20").json()["status"] == "completed", self.worker.log
        return job_id


@pytest.fixture(scope="module")
def traced(iris_model: Path, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    logs = tmp_path_factory.mktemp("traces")
    port, worker_port = free_port(), free_port()
    url = f"http://127.0.0.1:{port}"
    with ExitStack() as stack:
        collector = stack.enter_context(running_collector())
        model = ModelServer(iris_model, logs, environment=collector.environment, stack=stack)
        environment = {
            **collector.environment,
            "REDIS_HOST": "127.0.0.1",
            "REDIS_PORT": str(redis_server.port),
            "TF_SERVING_HOST": "127.0.0.1",
            "TF_SERVING_GRPC_PORT": str(model.port),
            "LOG_FORMAT": "json",
        }

        def start(module: str, port: int) -> Process:
            name = module.rpartition(".")[0]
            env = {**environment, "PORT": str(port)}
            ready = f"http://127.0.0.1:{port}/health"
            return stack.enter_context(running(module, cwd=PATTERN, env=env, log=logs / name, ready=ready))

        with ThreadPoolExecutor() as pool:  # each takes seconds to import
            starting = pool.submit(model.start)
            processes = pool.map(start, ("src.proxy.app", "src.worker.main"), (port, worker_port))
            starting.result()
            proxy, worker = processes
        client = stack.enter_context(httpx.Client(base_url=url, timeout=30))
        yield Traced(client, collector, proxy, worker)


def test_a_job_is_one_trace_from_the_caller_to_the_model(traced):
    job_id = traced.run_job(traceparent=TRACEPARENT, tracestate="shop=7")

    assert traced.collector.tree(TRACE_ID, len(TREE)) == TREE
    spans = {f"{service}: {span.name}": span for service, span in traced.collector.spans(TRACE_ID)}
    server, process = spans["proxy: POST /predict"], spans["worker: process queue:predict"]
    assert server.parent_span_id.hex() == CALLER
    assert {span.trace_state for span in spans.values()} == {"shop=7"}
    assert attributes(server).items() >= {
        ("http.request.method", "POST"),
        ("http.route", "/predict"),
        ("http.response.status_code", 200),
        ("url.path", "/predict"),
    }
    assert attributes(process)["messaging.message.id"] == job_id
    batch, waiting = spans["worker: process batch"], spans["worker: wait queue:predict"]
    assert [link.span_id for link in batch.links] == [process.span_id]
    assert attributes(batch)["messaging.batch.message_count"] == 1
    assert waiting.end_time_unix_nano >= waiting.start_time_unix_nano
    called = attributes(spans["model_server: tensorflow.serving.PredictionService/Predict"])
    assert called.items() >= {("rpc.system.name", "grpc"), ("rpc.response.status_code", "OK")}


def lines_of_order_7(process: Process, action: str) -> list[dict[str, str]]:
    lines = [json.loads(line) for line in process.log.splitlines(keepends=True) if line.endswith("\n")]
    return [line for line in lines if line["action"] == action and line.get("request_id") == "order-7"]


def test_the_lines_about_a_job_have_the_ids_of_its_request(traced):
    trace_id = "1" * 32
    job_id = traced.run_job(traceparent=f"00-{trace_id}-{CALLER}-00", **{"X-Request-ID": "order-7"})

    ids = {"request_id": "order-7", "trace_id": trace_id, "job_id": job_id}
    for process, action in ((traced.proxy, "request_completed"), (traced.worker, "prediction_completed")):
        wait_until(partial(lines_of_order_7, process, action))  # written once the result is stored
        [line] = lines_of_order_7(process, action)
        assert line.items() >= ids.items()


def test_a_trace_that_the_caller_does_not_sample_has_no_spans(traced):
    unsampled, sampled = "2" * 32, "3" * 32
    traced.run_job(traceparent=f"00-{unsampled}-{CALLER}-00")
    traced.run_job(traceparent=f"00-{sampled}-{CALLER}-01")
    traced.collector.tree(sampled, len(TREE))
    assert traced.collector.spans(unsampled) == []
