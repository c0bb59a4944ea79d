"""The trace of a fan-out, exported by real processes to a real collector. One of the three services does not run."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from serving_testing.collector import Collector, attributes, running_collector
from serving_testing.processes import free_port, running

PATTERN = Path(__file__).parents[2]
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"
BODY = {"data": [[5.1, 3.5, 1.4, 0.2]]}
TREE = [
    "proxy: POST /predict",
    "  proxy: POST",
    "    service_setosa: POST /predict",
    "      service_setosa: run model",
    "  proxy: POST",
    "    service_versicolor: POST /predict",
    "      service_versicolor: run model",
    "  proxy: POST",
]


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with running_collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def proxy(models: Path, collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    logs = tmp_path_factory.mktemp("traces")
    ports = {name: free_port() for name in ("setosa", "versicolor", "virginica")}
    with ExitStack() as stack:

        def start(module: str, name: str, port: int, **env: str) -> str:
            url = f"http://127.0.0.1:{port}"
            environment = {**collector.environment, **env, "PORT": str(port)}
            running_process = running(module, cwd=PATTERN, env=environment, log=logs / name, ready=f"{url}/health")
            stack.enter_context(running_process)
            return url

        def start_service(name: str) -> str:
            model = str(models / f"iris_svc_0_{name}.onnx")
            return start("src.services.app", name, ports[name], SERVICE_NAME=name, MODEL_FILEPATH=model)

        services = ",".join(f"{name}=http://127.0.0.1:{port}" for name, port in ports.items())
        with ThreadPoolExecutor() as pool:  # each takes seconds to import
            started = [pool.submit(start_service, name) for name in ("setosa", "versicolor")]
            url = start("src.proxy.app", "proxy", free_port(), SERVICES=services)
            for each in started:
                each.result()
        yield url


def test_a_fan_out_is_one_trace_in_which_the_dead_service_has_failed(proxy, collector):
    answer = httpx.post(f"{proxy}/predict", json=BODY, headers={"traceparent": TRACEPARENT}, timeout=30)

    assert "error" in answer.json()["virginica"]
    assert sorted(collector.tree(TRACE_ID, len(TREE))) == sorted(TREE)
    spans = [span for _, span in collector.spans(TRACE_ID)]
    [failed] = [span for span in spans if span.status.code == span.status.STATUS_CODE_ERROR]
    assert (failed.kind, failed.status.message) == (failed.SPAN_KIND_CLIENT, "cannot be reached")
    calls = [attributes(span) for span in spans if span.kind == span.SPAN_KIND_CLIENT]
    assert {call.get("http.response.status_code") for call in calls} == {200, None}
    assert all(call["url.full"] == f"http://127.0.0.1:{call['server.port']}/predict" for call in calls)


def test_an_invalid_request_is_no_error_of_the_server(proxy, collector):
    trace_id = "5" * 32
    headers = {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"}
    assert httpx.post(f"{proxy}/predict", json={"data": []}, headers=headers, timeout=30).status_code == 422

    assert collector.tree(trace_id, 1) == ["proxy: POST /predict"]
    [(_, span)] = collector.spans(trace_id)
    assert span.status.code == span.status.STATUS_CODE_UNSET
    assert attributes(span)["http.response.status_code"] == 422
