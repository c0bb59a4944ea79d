"""An OpenTelemetry collector: OTLP over gRPC on a free port, with the official servicer."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from serving_testing.processes import wait_until


class Collector(TraceServiceServicer):
    """Keeps every span."""

    def __init__(self) -> None:
        self.port = 0
        self._spans: list[tuple[str, Span]] = []

    def Export(self, request: ExportTraceServiceRequest, context: Any) -> ExportTraceServiceResponse:  # noqa: N802
        """OTLP's only method."""
        for group in request.resource_spans:
            names = [each.value.string_value for each in group.resource.attributes if each.key == "service.name"]
            self._spans += [(names[0], span) for scope in group.scope_spans for span in scope.spans]
        return ExportTraceServiceResponse()

    @property
    def environment(self) -> Mapping[str, str]:
        """For a process that shall export to it, at once."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.port}",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
        }

    def spans(self, trace_id: str) -> list[tuple[str, Span]]:
        """(service, span) of a trace, in the order of their starts."""
        found = [each for each in list(self._spans) if each[1].trace_id.hex() == trace_id]
        return sorted(found, key=lambda each: each[1].start_time_unix_nano)

    def all_spans(self, count: int) -> list[Span]:
        """Every span, once there are this many."""
        wait_until(lambda: len(self._spans) >= count, within_s=10)
        return [span for _, span in list(self._spans)]

    def tree(self, trace_id: str, spans: int) -> list[str]:
        """`service: name` of each span, indented below its parent, once the trace has this many."""
        wait_until(lambda: len(self.spans(trace_id)) >= spans, within_s=10)
        found = self.spans(trace_id)
        ids = {span.span_id for _, span in found}

        def below(parent: bytes, indent: str) -> Iterator[str]:
            for service, span in found:
                if span.parent_span_id == parent or (not parent and span.parent_span_id not in ids):
                    yield f"{indent}{service}: {span.name}"
                    yield from below(span.span_id, indent + "  ")

        return list(below(b"", ""))


def attributes(span: Span) -> dict[str, Any]:
    """A span's attributes by name."""
    return {each.key: getattr(each.value, str(each.value.WhichOneof("value"))) for each in span.attributes}


@contextmanager
def running_collector() -> Iterator[Collector]:
    """A collector while the body runs."""
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    collector.port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield collector
    finally:
        server.stop(0).wait()
