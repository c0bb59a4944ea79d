"""Deadlines, cancellations and disconnects reach the work, and a model that computes for ever holds up nothing else."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from model_server.fallback import VARIABLE
from serving_testing.processes import wait_until
from tests.conftest import ServerUnderTest, predict_request, running
from tfserving_protos import messages

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CALLS = 80
MAX_THREADS = 9
REST_TIMEOUT_S = 3
ENDLESS = predict_request("endless", n=np.array(10))


@pytest.fixture(scope="module", params=["0", "1"], ids=["private APIs", "public APIs"])
def limited(
    request: pytest.FixtureRequest, models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerUnderTest]:
    """A server with few threads, a short limit over REST, and metrics."""
    folder = tmp_path_factory.mktemp("limited")
    config, monitoring = folder / "models.config", folder / "monitoring.config"
    entry = 'config {{ name: "{0}" base_path: "{1}/{0}" model_platform: "tensorflow" }}'
    entries = " ".join(entry.format(name, models) for name in ("endless", "half_plus_two"))
    config.write_text(f"model_config_list {{ {entries} }}")
    monitoring.write_text("prometheus_config { enable: true }")
    flags = [f"--model_config_file={config}", f"--monitoring_config_file={monitoring}"]
    limits = [f"--grpc_max_threads={MAX_THREADS}", f"--rest_api_timeout_in_ms={REST_TIMEOUT_S * 1000}"]
    with running(folder, *flags, *limits, **{VARIABLE: request.param}) as server:
        yield server
        # The last test leaves work behind that never ends.
        server.process.kill()


def count(server: ServerUnderTest, status: str) -> int:
    """Requests that have ended with `status`."""
    page = server.get("/monitoring/prometheus/metrics").text
    return sum(int(found) for found in re.findall(rf'request_count{{.*status="{status}"}} (\d+)', page))


def wait_until_idle(server: ServerUnderTest) -> None:
    """Returns when the server uses less than a tenth of a core."""

    def is_idle() -> bool:
        before = server.cpu_s()
        time.sleep(0.5)
        return server.cpu_s() - before < 0.05

    wait_until(is_idle)


def test_expired_calls_are_stopped_or_never_started(limited: ServerUnderTest) -> None:
    predict: Any = limited.predictions.Predict
    calls = [predict.future(ENDLESS, timeout=1) for _ in range(CALLS)]
    assert {call.code().name for call in calls} == {"DEADLINE_EXCEEDED"}
    # One call that goes on would use a core.
    wait_until_idle(limited)


def send(server: ServerUnderTest, stack: contextlib.ExitStack) -> None:
    """A REST request for endless work. Its client hangs up when `stack` is closed."""
    host, port = server.rest_url.removeprefix("http://").split(":")
    client = stack.enter_context(socket.create_connection((host, int(port)), timeout=30))
    body = json.dumps({"inputs": 10}).encode()
    client.sendall(
        b"POST /v1/models/endless:predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    )


def test_work_of_clients_that_hang_up_is_not_started(limited: ServerUnderTest) -> None:
    before, started = count(limited, "CANCELLED"), limited.cpu_s()
    with contextlib.ExitStack() as stack:
        for _ in range(CALLS):
            send(limited, stack)
        wait_until(lambda: limited.cpu_s() > started + 0.2)
    wait_until(lambda: count(limited, "CANCELLED") >= before + CALLS - MAX_THREADS)
    wait_until_idle(limited)


def test_rest_timeout_stops_the_work(limited: ServerUnderTest) -> None:
    response = limited.post("/v1/models/endless:predict", {"inputs": 10})
    assert (response.status_code, response.json()) == (504, {"error": "Timed out waiting for notification"})
    wait_until_idle(limited)


def test_nothing_else_waits_for_a_model_that_computes(limited: ServerUnderTest) -> None:
    """The last test: the work has no end, and its calls nearly none."""
    predict: Any = limited.predictions.Predict
    calls = [predict.future(ENDLESS, timeout=3600) for _ in range(CALLS)]
    with contextlib.ExitStack() as stack:
        for _ in range(CALLS):
            send(limited, stack)
        before = limited.cpu_s()
        wait_until(lambda: limited.cpu_s() > before + 0.5)
        quick = predict(predict_request("half_plus_two", x=[1.0]), timeout=30)
        assert list(quick.outputs["y"].float_val) == [2.5]
        assert limited.post("/v1/models/half_plus_two:predict", {"instances": [1.0]}).status_code == 200
        for path in ("/v1/models/endless", "/v1/models/endless/metadata", "/monitoring/prometheus/metrics"):
            assert limited.get(path).status_code == 200
        spec = messages.ModelSpec(name="endless")
        status = limited.models.GetModelStatus(messages.GetModelStatusRequest(model_spec=spec), timeout=30)
        assert status.model_version_status[0].state == messages.ModelVersionStatus.AVAILABLE
        metadata = messages.GetModelMetadataRequest(model_spec=spec, metadata_field=["signature_def"])
        assert limited.predictions.GetModelMetadata(metadata, timeout=30).metadata
        health: Any = health_pb2_grpc.HealthStub(limited.channel)
        response = health.Check(health_pb2.HealthCheckRequest(), timeout=30)
        assert response.status == health_pb2.HealthCheckResponse.SERVING
    assert not any(call.done() for call in calls)
