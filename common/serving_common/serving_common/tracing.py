"""Traces: the one module that knows OpenTelemetry's SDK, and imports it only where traces are on.

    tracing.configure("proxy")                                        on, if OTEL_EXPORTER_OTLP_ENDPOINT is set
    with tracing.begin(headers, "POST", SERVER):                      continue the caller's trace, or begin one
        with tracing.span("send queue:predict", PRODUCER) as span:    nothing, if what runs now is not recorded
            span.set({"messaging.message.id": job_id})
            await send(body, headers=tracing.headers())               traceparent for whoever is called
    tracing.shutdown()

Whether a trace is sampled is decided where it begins, before any span exists. One that is not has no spans of the SDK:
its id is drawn or read, logged, and sent on with the flag 00, so that nobody further on samples it.

Names and attributes follow OpenTelemetry's semantic conventions. docs/traces.md has the spans and the variables.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar, Token
from enum import Enum
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

import structlog

Attributes = Mapping[str, str | int | float | bool]

SHUTDOWN_S = 1.0
"""Seconds that a process waits at its end for the collector to take the last spans."""
MAX_TRACESTATE = 512
"""Characters of a tracestate that are passed on, which W3C Trace Context asks for; a longer one is dropped."""

REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
"""A caller's X-Request-ID that is logged and forwarded: its length and characters are limited."""

# Neither id may be 0; a later version may have more fields.
_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_ALL = 2**64  # values of the lower half of a trace id
_GRPC_PORT = 4317  # OTLP's registered port for gRPC; 4318 is that for HTTP

log = structlog.get_logger()

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""X-Request-ID of the request that is being answered; it travels with the jobs of the request."""


class SpanKind(Enum):
    """OpenTelemetry's, by name: importing that would import the SDK."""

    INTERNAL = "INTERNAL"
    SERVER = "SERVER"
    CLIENT = "CLIENT"
    PRODUCER = "PRODUCER"
    CONSUMER = "CONSUMER"


INTERNAL, SERVER, CLIENT, PRODUCER, CONSUMER = SpanKind


class Span:
    """A context manager that makes the span the current one, and ends it. This class itself records nothing."""

    __slots__ = ()

    is_recording = False
    trace_id = ""
    headers: Mapping[str, str] = MappingProxyType({})
    """`traceparent` and `tracestate`, for who continues the trace after this span."""

    def child(
        self,
        name: str,
        kind: SpanKind = INTERNAL,
        attributes: Attributes | None = None,
        *,
        links: Iterable[Span] = (),
        start_ns: int | None = None,
    ) -> Span:
        """A new span below this one. `start_ns`: nanoseconds since 1970, if it began earlier."""
        return NO_SPAN

    def set(self, attributes: Attributes) -> None:
        """Add attributes."""

    def rename(self, name: str) -> None:
        """Replace the name."""

    def link(self, other: Span) -> None:
        """Refer to a span of another trace, or further up in this one, if that is recorded."""

    def record(self, error: BaseException) -> None:
        """Add the error as an event; the status stays."""

    def fail(self, reason: str, error_type: str = "_OTHER") -> None:
        """Mark the span as failed."""

    def end(self, end_ns: int | None = None) -> None:
        """For a span that is not used as a context manager."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None


NO_SPAN = Span()
_current: ContextVar[Span] = ContextVar("span", default=NO_SPAN)


class TraceParent(NamedTuple):
    """A `traceparent` header and its `tracestate`."""

    trace_id: str
    span_id: str
    flags: int
    tracestate: str = ""

    @classmethod
    def parse(cls, traceparent: str, tracestate: str = "") -> TraceParent | None:
        """None if it is absent or malformed, as W3C Trace Context says."""
        match = _TRACEPARENT.fullmatch(traceparent)
        if match is None:
            return None
        version, trace_id, span_id, flags, more = match.groups()
        if more and version == "00":
            return None
        if tracestate and not (len(tracestate) <= MAX_TRACESTATE and tracestate.isascii() and tracestate.isprintable()):
            tracestate = ""
        return cls(trace_id, span_id, int(flags, 16), tracestate)

    @property
    def is_sampled(self) -> bool:
        return bool(self.flags & 1)

    @property
    def headers(self) -> dict[str, str]:
        headers = {"traceparent": f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"}
        return headers | {"tracestate": self.tracestate} if self.tracestate else headers


class _UnsampledSpan(Span):
    """Where a trace that is not sampled passes: its id flows, nothing is recorded."""

    __slots__ = ("_parent", "_token")

    def __init__(self, parent: TraceParent) -> None:
        self._parent = parent

    @property
    def trace_id(self) -> str:  # type: ignore[override]
        return self._parent.trace_id

    @property
    def headers(self) -> Mapping[str, str]:  # type: ignore[override]
        return self._parent._replace(flags=self._parent.flags & ~1).headers

    def __enter__(self) -> Self:
        self._token = _current.set(self)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _current.reset(self._token)


class _SampledSpan(Span):
    """A span of the SDK; or one of another process, to which children can be added."""

    __slots__ = ("_otel", "_token", "_tracing")

    is_recording = True

    def __init__(self, tracing: _Tracing, otel: Any) -> None:
        self._tracing = tracing
        self._otel = otel
        self._token: Token[Span] | None = None

    @property
    def trace_id(self) -> str:  # type: ignore[override]
        return f"{self._otel.get_span_context().trace_id:032x}"

    @property
    def headers(self) -> Mapping[str, str]:  # type: ignore[override]
        context = self._otel.get_span_context()
        headers = {"traceparent": f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"}
        state = context.trace_state.to_header()
        return headers | {"tracestate": state} if state else headers

    def child(
        self,
        name: str,
        kind: SpanKind = INTERNAL,
        attributes: Attributes | None = None,
        *,
        links: Iterable[Span] = (),
        start_ns: int | None = None,
    ) -> Span:
        return self._tracing.start(self._otel, name, kind, attributes, links, start_ns)

    def set(self, attributes: Attributes) -> None:
        self._otel.set_attributes(attributes)

    def rename(self, name: str) -> None:
        self._otel.update_name(name)

    def link(self, other: Span) -> None:
        if isinstance(other, _SampledSpan):
            self._otel.add_link(other._otel.get_span_context())

    def record(self, error: BaseException) -> None:
        self._otel.record_exception(error)

    def fail(self, reason: str, error_type: str = "_OTHER") -> None:
        self._otel.set_status(self._tracing.api.StatusCode.ERROR, reason)
        self._otel.set_attribute("error.type", error_type)

    def end(self, end_ns: int | None = None) -> None:
        self._otel.end(end_ns)

    def __enter__(self) -> Self:
        self._token = _current.set(self)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._token is not None:
            _current.reset(self._token)
        if exc is not None and exc_type is not None:
            if isinstance(exc, Exception):  # not a cancellation, whose traceback tells nothing
                self.record(exc)
            self.fail(str(exc) or exc_type.__name__, f"{exc_type.__module__}.{exc_type.__qualname__}")
        self.end()


class Sampler(NamedTuple):
    """OTEL_TRACES_SAMPLER: which traces are recorded."""

    follows_parent: bool
    below: int
    """The SDK's rule: a trace that begins here is recorded if the lower half of its id is below this."""

    @classmethod
    def read(cls) -> Sampler:
        """From the environment. As the specification says, a wrong value is logged, and everything is sampled."""
        name = os.environ.get("OTEL_TRACES_SAMPLER") or "parentbased_always_on"
        argument = os.environ.get("OTEL_TRACES_SAMPLER_ARG") or "1.0"
        follows_parent = name.startswith("parentbased_")
        match name.removeprefix("parentbased_"):
            case "always_on":
                return cls(follows_parent, _ALL)
            case "always_off":
                return cls(follows_parent, 0)
            case "traceidratio":
                try:
                    share = float(argument)
                except ValueError:
                    share = -1.0
                if not 0 <= share <= 1:
                    log.warning("variable_ignored", variable="OTEL_TRACES_SAMPLER_ARG", reason="not from 0 to 1")
                    share = 1.0
                return cls(follows_parent, round(share * _ALL))
        log.warning("variable_ignored", variable="OTEL_TRACES_SAMPLER", reason=f"unknown sampler {name[:100]}")
        return cls(True, _ALL)

    def takes(self, trace_id: str) -> bool:
        """Whether a trace that begins here is recorded."""
        return int(trace_id[16:], 16) < self.below

    def follows(self, parent: TraceParent) -> bool:
        """Whether a trace that has begun elsewhere is recorded."""
        return parent.is_sampled if self.follows_parent else self.takes(parent.trace_id)


class _Tracing:
    """The SDK, once it has been configured."""

    def __init__(self, component: str, sampler: Sampler, links_jobs: bool, protocol: str) -> None:
        """Raises ImportError if the extra is not installed, and ValueError for variables that the SDK does not take."""
        from opentelemetry import trace
        from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON

        if protocol == "grpc":
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        else:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # type: ignore[assignment]
                OTLPSpanExporter,
            )

        class DrawnIds(RandomIdGenerator):
            """A trace gets the id by which it was sampled."""

            def generate_trace_id(self) -> int:
                return _drawn_trace_id.get() or super().generate_trace_id()

        self.api = trace
        self.sampler = sampler
        self.links_jobs = links_jobs
        instance = f"{socket.gethostname()}-{os.getpid()}"
        named = {SERVICE_NAME: component, SERVICE_INSTANCE_ID: instance, **OTELResourceDetector().detect().attributes}
        self._exporter = _ReportingExporter(OTLPSpanExporter())
        self._processor = BatchSpanProcessor(self._exporter)  # type: ignore[arg-type]  # has what the processor calls
        # Not the global provider, with which FastAPI would write spans of its own.
        provider = TracerProvider(
            sampler=ALWAYS_ON, resource=Resource.create(named), id_generator=DrawnIds(), shutdown_on_exit=False
        )
        provider.add_span_processor(self._processor)
        self._tracer = provider.get_tracer("serving_common")
        self._kinds = {kind: trace.SpanKind[kind.value] for kind in SpanKind}

    def start(
        self,
        parent: Any,
        name: str,
        kind: SpanKind,
        attributes: Attributes | None,
        links: Iterable[Span] = (),
        start_ns: int | None = None,
    ) -> Span:
        contexts = [each._otel.get_span_context() for each in links if isinstance(each, _SampledSpan)]
        return _SampledSpan(
            self,
            self._tracer.start_span(
                name,
                self.api.set_span_in_context(parent),
                self._kinds[kind],
                attributes,
                [self.api.Link(context) for context in contexts],
                start_ns,
            ),
        )

    def remote_context(self, parent: TraceParent) -> Any:
        return self.api.SpanContext(
            int(parent.trace_id, 16),
            int(parent.span_id, 16),
            is_remote=True,
            trace_flags=self.api.TraceFlags(parent.flags),
            trace_state=self.api.TraceState.from_header([parent.tracestate]) if parent.tracestate else None,
        )

    def resume(self, parent: TraceParent) -> Span:
        if not self.sampler.follows(parent):
            return _UnsampledSpan(parent)
        sampled = parent._replace(flags=parent.flags | 1)
        return _SampledSpan(self, self.api.NonRecordingSpan(self.remote_context(sampled)))

    def begin(
        self, name: str, kind: SpanKind, attributes: Attributes | None, links: Sequence[Span], force: bool
    ) -> Span:
        ids = os.urandom(24).hex()  # of the trace and of a span
        trace_id = ids[:32]
        if not (force or self.sampler.takes(trace_id)):
            return _UnsampledSpan(TraceParent(trace_id, ids[32:], 0))
        drawn = _drawn_trace_id.set(int(trace_id, 16))
        try:
            return self.start(self.api.INVALID_SPAN, name, kind, attributes, links)
        finally:
            _drawn_trace_id.reset(drawn)

    def shutdown(self, within_s: float) -> None:
        # On a thread, because the SDK's own shutdown waits up to 30 s for a collector that does not answer.
        closing = threading.Thread(target=self._processor.shutdown, daemon=True)
        closing.start()
        closing.join(within_s)
        if closing.is_alive():
            self._exporter.abort()


_drawn_trace_id: ContextVar[int] = ContextVar("drawn_trace_id", default=0)
_tracing: _Tracing | None = None


class _ReportingExporter:
    """Logs one line when exports begin to fail, and one when they succeed again."""

    def __init__(self, exporter: Any) -> None:
        self._exporter = exporter
        self._has_failed = False
        self._messages = _LastMessage()
        # The SDK logs each failed try and each full queue: a collector that is away would fill the log.
        for name in ("opentelemetry.exporter", "opentelemetry.sdk._shared_internal"):
            logger = logging.getLogger(name)
            logger.addHandler(self._messages)
            logger.propagate = False

    def export(self, spans: Sequence[Any]) -> Any:
        result = self._exporter.export(spans)
        if (has_failed := result.value != 0) != self._has_failed:
            self._has_failed = has_failed
            if has_failed:
                log.warning("span_export_failed", reason=self._messages.text, spans=len(spans))
            else:
                log.info("span_export_recovered")
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def abort(self) -> None:
        """End an export that is still being tried."""
        log.warning("spans_lost", reason=self._messages.text or "the collector does not answer")
        self._exporter.shutdown()


class _LastMessage(logging.Handler):
    """Keeps the last message instead of writing it."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()[:500]


def configure(component: str) -> bool:
    """Turn traces on if the environment says so; whether they are on.

    A wrong variable or a missing package leaves them off, with one line in the log: no service ends because of that.

    Args:
        component: `service.name`, unless OTEL_SERVICE_NAME is set.
    """
    global _tracing
    environ = os.environ
    endpoint = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    exporter = environ.get("OTEL_TRACES_EXPORTER") or ("otlp" if endpoint else "none")
    if exporter == "none" or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    try:
        if exporter != "otlp":
            raise ValueError(f"OTEL_TRACES_EXPORTER={exporter[:100]} is unknown: only otlp and none are known")
        _tracing = _Tracing(component, Sampler.read(), _links_jobs(), _protocol(endpoint))
    except ImportError as exc:
        log.error("tracing_off", reason=f"{exc}: install serving-common[otel]")
        return False
    except ValueError as exc:
        log.error("tracing_off", reason=str(exc))
        return False
    log.info("tracing_on", endpoint=endpoint, sampler=environ.get("OTEL_TRACES_SAMPLER"))
    return True


def _protocol(endpoint: str | None) -> str:
    """OTEL_EXPORTER_OTLP_PROTOCOL; unset, what the endpoint's port stands for. Raises ValueError."""
    environ = os.environ
    default = "grpc" if endpoint and urlsplit(endpoint).port == _GRPC_PORT else "http/protobuf"
    protocol = (
        environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or default
    )
    if protocol not in ("grpc", "http/protobuf"):
        raise ValueError(f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol[:100]} is neither grpc nor http/protobuf")
    return protocol


def _links_jobs() -> bool:
    relation = os.environ.get("OTEL_JOB_SPANS") or "child"
    if relation not in ("child", "link"):
        raise ValueError(f"OTEL_JOB_SPANS={relation[:100]} is neither child nor link")
    return relation == "link"


def shutdown(within_s: float = SHUTDOWN_S) -> None:
    """Export what is left, for at most this time, and turn traces off."""
    global _tracing
    if _tracing is not None:
        _tracing.shutdown(within_s)
        _tracing = None


def current() -> Span:
    """The span that runs now."""
    return _current.get()


def span(name: str, kind: SpanKind = INTERNAL, attributes: Attributes | None = None) -> Span:
    """A span within the one that runs now; NO_SPAN if that is not recorded."""
    return _current.get().child(name, kind, attributes)


def headers() -> Mapping[str, str]:
    """`traceparent` and `tracestate` for a call that is made now; empty outside a trace."""
    return _current.get().headers


def begin(
    headers: Iterable[tuple[str | bytes, str | bytes]],
    name: str,
    kind: SpanKind = SERVER,
    attributes: Attributes | None = None,
) -> Span:
    """The first span of this process in the caller's trace, or in a new one if the caller has none that is valid.

    Args:
        headers: of the request, in lower case: HTTP's, or gRPC's metadata.
    """
    if _tracing is None:
        return NO_SPAN
    parent = _received(headers)
    if parent is None:
        return _tracing.begin(name, kind, attributes, (), force=False)
    resumed = _tracing.resume(parent)
    return resumed.child(name, kind, attributes) if resumed.is_recording else resumed


def log_ids(headers: Iterable[tuple[str | bytes, str | bytes]]) -> dict[str, str]:
    """`request_id` and `trace_id` for a line about a request, as far as its headers have them, also with traces off."""
    found = {}
    headers = [*headers]
    for name, value in headers:
        given = value.encode("latin-1", "replace") if isinstance(value, str) else value
        if name in (b"x-request-id", "x-request-id") and REQUEST_ID.fullmatch(given):
            found["request_id"] = given.decode()
    trace_id = current().trace_id or (parent.trace_id if (parent := _received(headers)) else "")
    return found | {"trace_id": trace_id} if trace_id else found


def _received(headers: Iterable[tuple[str | bytes, str | bytes]]) -> TraceParent | None:
    traceparent = tracestate = ""
    for name, value in headers:
        if name in (b"traceparent", "traceparent"):
            traceparent = value if isinstance(value, str) else value.decode("latin-1")
        elif name in (b"tracestate", "tracestate"):
            tracestate = value if isinstance(value, str) else value.decode("latin-1")
    return TraceParent.parse(traceparent, tracestate) if traceparent else None


def resume(traceparent: str, tracestate: str = "") -> Span:
    """The span of another process, to which children can be added, if its trace is recorded here."""
    parent = TraceParent.parse(traceparent, tracestate) if _tracing is not None and traceparent else None
    return NO_SPAN if _tracing is None or parent is None else _tracing.resume(parent)


def begin_job(name: str, producer: Span, attributes: Attributes) -> Span:
    """The span of a queued job's processing, whose producer is recorded: a child of it or, by OTEL_JOB_SPANS=link, in a
    trace of its own.
    """
    if _tracing is not None and _tracing.links_jobs:
        return _tracing.begin(name, CONSUMER, attributes, [producer], force=True)
    return producer.child(name, CONSUMER, attributes)


def batch_span(name: str, members: Sequence[Span], attributes: Attributes) -> Span:
    """One span for work that several share, linked to all that are recorded, and in the trace of the first of them."""
    recorded = [each for each in members if each.is_recording]
    if not recorded:
        return members[0] if members else NO_SPAN  # the call within carries on the trace that is not recorded
    batch = recorded[0].child(name, INTERNAL, attributes, links=recorded)
    for each in recorded[1:]:
        each.link(batch)
    return batch
