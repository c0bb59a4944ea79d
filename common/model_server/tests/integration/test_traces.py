"""Spans of the model server's REST side, and the ids in its log lines."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from model_server.context import Context
from model_server.grpc_server import _result
from model_server.rest import _outcome
from serving_testing.collector import Collector, attributes, running_collector
from tests.conftest import ServerUnderTest, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

V1, V2 = "/v1/models/iris:predict", "/v2/models/iris/infer"
ROW = [5.1, 3.5, 1.4, 0.2]
BODIES = {
    V1: {"instances": [ROW]},
    V2: {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 4], "data": ROW}]},
}


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory, iris_model: Path) -> Iterator[tuple[ServerUnderTest, Collector]]:
    with running_collector() as collector:
        flags = ["--model_name=iris", f"--model_base_path={iris_model}"]
        with running(tmp_path_factory.mktemp("traced"), *flags, **collector.environment) as server:
            yield server, collector


@pytest.mark.parametrize(
    ("path", "route"), [(V1, "/v1/models/{name}:predict"), (V2, "/v2/models/{name}/infer")], ids=["v1", "v2"]
)
@pytest.mark.parametrize("is_sampled", [True, False], ids=["sampled", "not sampled"])
def test_a_rest_request_continues_its_callers_trace(
    traced: tuple[ServerUnderTest, Collector], path: str, route: str, is_sampled: bool
) -> None:
    server, collector = traced
    trace_id = secrets.token_hex(16)
    headers = {"traceparent": f"00-{trace_id}-{'1' * 16}-{is_sampled:02x}"}
    assert server.post(path, BODIES[path], headers=headers).status_code == 200
    if not is_sampled:
        # The spans of a later request have arrived, and none of this one.
        server.post(path, BODIES[path], headers={"traceparent": f"00-{'2' * 32}-{'1' * 16}-01"})
        collector.tree("2" * 32, 2)
        assert collector.spans(trace_id) == []
        return
    name = f"POST {route}"
    service = collector.tree(trace_id, 2)[0].partition(":")[0]
    assert collector.tree(trace_id, 2) == [f"{service}: {name}", f"  {service}: run model"]
    (_, span), _ = collector.spans(trace_id)
    assert span.parent_span_id.hex() == "1" * 16
    wanted = {"http.request.method": "POST", "http.route": route, "http.response.status_code": 200}
    assert wanted.items() <= attributes(span).items()


def test_a_refused_request_is_no_failure_of_the_server(traced: tuple[ServerUnderTest, Collector]) -> None:
    server, collector = traced
    headers = {"traceparent": f"00-{'3' * 32}-{'1' * 16}-01"}
    assert server.post(V1, {"instances": [[1.0]]}, headers=headers).status_code == 400
    collector.tree("3" * 32, 1)
    spans = {span.name: span for _, span in collector.spans("3" * 32)}
    span = spans["POST /v1/models/{name}:predict"]
    assert attributes(span)["http.response.status_code"] == 400
    assert span.status.code == 0


HEADERS = [(b"traceparent", f"00-{'4' * 32}-{'5' * 16}-00".encode()), (b"x-request-id", b"order-7")]
IDS = {"request_id": "order-7", "trace_id": "4" * 32}


def fail() -> None:
    raise RuntimeError("a bug")


@pytest.mark.parametrize(
    ("headers", "ids"),
    [
        pytest.param(HEADERS, IDS, id="HTTP"),
        pytest.param([(name.decode(), value.decode()) for name, value in HEADERS], IDS, id="gRPC"),
        pytest.param([(b"x-request-id", b"no id, but\nlines"), (b"traceparent", b"none")], {}, id="invalid"),
        pytest.param([], {}, id="none"),
    ],
)
def test_a_line_about_a_request_has_its_ids(
    headers: list[tuple[str | bytes, str | bytes]], ids: dict[str, str]
) -> None:
    with capture_logs() as lines:
        _outcome("predict", fail, headers)  # type: ignore[arg-type]
        _result("Predict", fail, Context(headers=headers))  # type: ignore[arg-type]
    assert [line["event"] for line in lines] == ["request_failed", "call_failed"]
    for line in lines:
        assert {name: line[name] for name in ("request_id", "trace_id") if name in line} == ids
