"""Traces of images, exported by a proxy and a worker to a real collector."""

import base64
import json

import httpx
import pytest

from serving_testing.collector import running_collector
from tests.e2e.conftest import running_system

TREE = [
    "proxy: POST /predict",
    "  proxy: read image",
    "  proxy: run model",
    "  proxy: send queue:jobs",
    "    worker: wait queue:jobs",
    "    worker: process queue:jobs",
    "      worker: process batch",
    "        worker: run model",
    "        worker: settle queue:jobs",
]


@pytest.fixture(scope="module")
def traced(models, tmp_path_factory):
    with running_collector() as collector:
        environment = {**collector.environment, "NUM_WORKERS": "1"}
        fast = models / "mobilenet_v2.onnx"  # in place of ResNet50, whose start takes seconds
        with running_system(models, fast, tmp_path_factory.mktemp("traces"), environment=environment) as system:
            yield collector, system


def test_both_answers_to_an_image_are_one_trace(traced, photo):
    collector, system = traced
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01", "X-Request-ID": "photo-7"}
    body = {"image_data": base64.b64encode(photo).decode()}
    with httpx.Client(base_url=system.proxy, timeout=60) as client:
        job_id = client.post("/predict", json=body, headers=headers).json()["job_id"]
        assert client.get(f"/job/{job_id}?wait=30").json()[job_id]["prediction"]

    assert sorted(collector.tree(trace_id, len(TREE))) == sorted(TREE)
    lines = [json.loads(line) for line in system.processes["worker"].log.splitlines()]
    [line] = [line for line in lines if line["action"].startswith("Async prediction")]
    assert line.items() >= {"request_id": "photo-7", "trace_id": trace_id, "job_id": job_id}.items()
