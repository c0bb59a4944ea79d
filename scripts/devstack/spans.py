"""The last spans that the processes have exported: an OTLP receiver for development, `make up TRACES=1`.

    store = SpanStore()
    async with serving(store, 4318): ...   OTLP/HTTP, POST /v1/traces; GET /traces and /traces/{trace_id} as JSON
    store.trace("4bf92f3577b34da6a3ce929d0e0e4736")

A span in JSON: `trace_id`, `span_id`, `parent_id` (None for a root), `name`, `kind` ("server"), `service`, `start_us`
(microseconds since 1970), `duration_us`, `status` ("unset", "ok" or "error") and `message`, `attributes`, `resource`
(the process's attributes), `links` ([{trace_id, span_id}]) and `events` ([{name, time_us, attributes}]).
"""

from __future__ import annotations

import contextlib
import json
import socket
import zlib
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from scripts.devstack import web
from scripts.devstack.table import HOST

MAX_SPANS = 10_000
MAX_BYTES = 16 * 1024 * 1024  # of one request, unpacked; the SDK sends 512 spans at a time
MAX_TEXT = 4_000  # characters of one attribute
MAX_LISTED = 100

Message = MutableMapping[str, Any]
JsonSpan = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


class SpanStore:
    """The newest spans by trace. For one event loop; it takes no locks."""

    def __init__(self, max_spans: int = MAX_SPANS) -> None:
        self._max_spans = max_spans
        self._spans: deque[JsonSpan] = deque()
        self._traces: OrderedDict[str, list[JsonSpan]] = OrderedDict()  # the one that changed last at the end

    def add(self, request: ExportTraceServiceRequest) -> None:
        """Keep the spans of this export; the oldest ones make room."""
        for group in request.resource_spans:
            resource = _attributes(group.resource.attributes)
            for scope in group.scope_spans:
                for span in scope.spans:
                    self._add(_json_span(span, resource))

    def _add(self, span: JsonSpan) -> None:
        self._spans.append(span)
        self._traces.setdefault(span["trace_id"], []).append(span)
        self._traces.move_to_end(span["trace_id"])
        if len(self._spans) > self._max_spans:
            oldest = self._spans.popleft()
            remaining = self._traces[oldest["trace_id"]]
            remaining.remove(oldest)
            if not remaining:
                del self._traces[oldest["trace_id"]]

    def trace(self, trace_id: str) -> list[JsonSpan]:
        """The spans of a trace, in the order of their starts; none if it is unknown."""
        return sorted(self._traces.get(trace_id, []), key=lambda span: span["start_us"])

    def traces(self, limit: int = MAX_LISTED) -> list[dict[str, Any]]:
        """Summaries, the trace that changed last first: trace_id, name and service of the first span, spans, errors."""
        newest = [trace_id for trace_id, _ in zip(reversed(self._traces), range(limit), strict=False)]
        return [_summary(self.trace(trace_id)) for trace_id in newest]


def _summary(spans: list[JsonSpan]) -> dict[str, Any]:
    first = next((span for span in spans if span["parent_id"] is None), spans[0])
    end_us = max(span["start_us"] + span["duration_us"] for span in spans)
    return {
        **{key: first[key] for key in ("trace_id", "name", "service")},
        "start_us": spans[0]["start_us"],
        "duration_us": end_us - spans[0]["start_us"],
        "spans": len(spans),
        "errors": sum(span["status"] == "error" for span in spans),
    }


def _json_span(span: Span, resource: dict[str, Any]) -> JsonSpan:
    return {
        "trace_id": span.trace_id.hex(),
        "span_id": span.span_id.hex(),
        "parent_id": span.parent_span_id.hex() or None,
        "name": span.name[:MAX_TEXT],
        "kind": Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
        "service": resource.get("service.name", "unknown"),
        "start_us": span.start_time_unix_nano // 1000,
        "duration_us": max(0, span.end_time_unix_nano - span.start_time_unix_nano) // 1000,
        "status": Status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_").lower(),
        "message": span.status.message[:MAX_TEXT],
        "attributes": _attributes(span.attributes),
        "resource": resource,
        "links": [{"trace_id": link.trace_id.hex(), "span_id": link.span_id.hex()} for link in span.links],
        "events": [
            {"name": each.name, "time_us": each.time_unix_nano // 1000, "attributes": _attributes(each.attributes)}
            for each in span.events
        ],
    }


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    match value.WhichOneof("value"):
        case "array_value":
            return [_value(each) for each in value.array_value.values]
        case "kvlist_value":
            return _attributes(value.kvlist_value.values)
        case "bytes_value":
            return value.bytes_value.hex()[:MAX_TEXT]
        case "string_value":
            return value.string_value[:MAX_TEXT]
        case None:
            return None
        case kind:
            return getattr(value, kind)


class Rejected(Exception):
    """A request that cannot be taken: its status and the reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def decode(body: bytes, headers: dict[bytes, bytes]) -> ExportTraceServiceRequest:
    """An OTLP/HTTP body. Raises Rejected."""
    if headers.get(b"content-type", b"").partition(b";")[0].strip() != b"application/x-protobuf":
        raise Rejected(415, "only OTLP in protobuf is understood: OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf")
    if headers.get(b"content-encoding") == b"gzip":
        unpacking = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        try:
            body = unpacking.decompress(body, MAX_BYTES + 1)
        except zlib.error as exc:
            raise Rejected(400, f"not gzip: {exc}") from exc
    if len(body) > MAX_BYTES:
        raise Rejected(413, f"more than {MAX_BYTES} bytes")
    try:
        return ExportTraceServiceRequest.FromString(body)
    except DecodeError as exc:
        raise Rejected(400, f"not an ExportTraceServiceRequest: {exc}") from exc


def receiver(store: SpanStore) -> Application:
    """An ASGI application that takes OTLP/HTTP and shows what the store has."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        content_type, content = b"application/json", b""
        try:
            match scope["method"], scope["path"].strip("/").split("/"):
                case "POST", ["v1", "traces"]:
                    store.add(decode(await _body(receive), dict(scope["headers"])))
                    status, content_type = 200, b"application/x-protobuf"  # an empty ExportTraceServiceResponse
                case "GET", ["traces"]:
                    status, content = 200, json.dumps(store.traces()).encode()
                case "GET", ["traces", trace_id]:
                    spans = store.trace(trace_id)
                    status, content = 200 if spans else 404, json.dumps(spans).encode()
                case _:
                    raise Rejected(404, "POST /v1/traces, GET /traces, GET /traces/{trace_id}")
        except Rejected as exc:
            status, content = exc.status, json.dumps({"detail": str(exc)}).encode()
        headers = [(b"content-type", content_type), (b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    return app


async def _body(receive: Receive) -> bytes:
    """Raises Rejected if it is too large."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_BYTES:
            raise Rejected(413, f"more than {MAX_BYTES} bytes")
        if not message.get("more_body", False):
            return bytes(body)


@contextlib.asynccontextmanager
async def serving(store: SpanStore, port: int = 0) -> AsyncIterator[str]:
    """The receiver on this port of this machine, beside the body; its base URL. Port 0: any. OSError: it is taken."""
    listener = socket.create_server((HOST, port))
    address = f"http://{HOST}:{listener.getsockname()[1]}"
    async with web.serving(receiver(store), listener):
        yield address


def variables(url: str) -> dict[str, str]:
    """With these in their environment, processes export to the receiver at this URL, soon after a span has ended."""
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": url,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
    }
