"""The receiver with a real exporter of the SDK, over HTTP."""

import gzip

import httpx
import pytest
from anyio.to_thread import run_sync
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import Link, SpanKind, StatusCode

from scripts.devstack import spans
from scripts.devstack.spans import SpanStore, serving

PROTOBUF = {"content-type": "application/x-protobuf"}


@pytest.fixture
async def store():
    return SpanStore()


@pytest.fixture
async def client(store):
    async with serving(store) as url, httpx.AsyncClient(base_url=url) as client:
        yield client


def export(count, trace_id=1):
    """An export of spans of one trace; their ids are 1, 2, … and so are the microseconds of their starts."""
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    for number in range(1, count + 1):
        scope.spans.add(
            trace_id=trace_id.to_bytes(16), span_id=number.to_bytes(8), name="work", start_time_unix_nano=number * 1000
        )
    return request


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip])
async def test_an_exported_span_is_found_by_its_trace(client, compression):
    def send():
        provider = TracerProvider(resource=Resource({"service.name": "shop"}), shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=f"{client.base_url}/v1/traces", compression=compression)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        tracer = provider.get_tracer("test")
        with tracer.start_as_current_span("parent", kind=SpanKind.SERVER) as parent:
            links = [Link(parent.get_span_context())]
            with tracer.start_as_current_span("child", links=links, attributes={"rows": 3, "labels": ["a"]}) as span:
                span.set_status(StatusCode.ERROR, "broken")
                span.add_event("retried")
        provider.shutdown()
        return parent.get_span_context()

    context = await run_sync(send)
    trace_id, span_id = f"{context.trace_id:032x}", f"{context.span_id:016x}"
    parent, child = (await client.get(f"/traces/{trace_id}")).json()
    assert (parent["name"], parent["kind"], parent["service"], parent["parent_id"]) == (
        "parent",
        "server",
        "shop",
        None,
    )
    assert child["parent_id"] == parent["span_id"] == span_id
    assert child["attributes"] == {"rows": 3, "labels": ["a"]}
    assert (child["status"], child["message"]) == ("error", "broken")
    assert child["links"] == [{"trace_id": trace_id, "span_id": span_id}]
    assert [event["name"] for event in child["events"]] == ["retried"]
    assert parent["start_us"] <= child["start_us"]
    assert parent["duration_us"] >= child["duration_us"]
    [summary] = (await client.get("/traces")).json()
    assert (summary["name"], summary["spans"], summary["errors"]) == ("parent", 2, 1)


def test_the_oldest_spans_make_room():
    store = SpanStore(max_spans=3)
    store.add(export(2, trace_id=1))
    store.add(export(2, trace_id=2))
    assert [len(store.trace(f"{trace_id:032x}")) for trace_id in (1, 2)] == [1, 2]
    store.add(export(2, trace_id=3))
    assert [summary["trace_id"][-1] for summary in store.traces()] == ["3", "2"]
    assert store.traces(limit=1)[0]["spans"] == 2


async def test_what_is_no_export_is_rejected(client, monkeypatch):
    assert (await client.get("/traces/00")).status_code == 404
    assert (await client.get("/")).status_code == 404
    assert (await client.post("/v1/traces", json={})).status_code == 415
    assert (await client.post("/v1/traces", content=b"\xff", headers=PROTOBUF)).status_code == 400
    zipped = PROTOBUF | {"content-encoding": "gzip"}
    assert (await client.post("/v1/traces", content=b"no gzip", headers=zipped)).status_code == 400
    monkeypatch.setattr(spans, "MAX_BYTES", 100)
    assert (await client.post("/v1/traces", content=bytes(101), headers=PROTOBUF)).status_code == 413
    assert (await client.post("/v1/traces", content=gzip.compress(bytes(101)), headers=zipped)).status_code == 413
    assert (await client.get("/traces")).json() == []


async def test_a_taken_port_is_reported(store, client):
    with pytest.raises(OSError, match="in use"):
        async with serving(store, client.base_url.port):
            pass
