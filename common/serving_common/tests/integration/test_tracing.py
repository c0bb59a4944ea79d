"""Traces in this process, exported to a real collector; and what is left of them when they are off or it is away."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from serving_common import tracing
from serving_common.queue.client import JobQueue
from serving_common.queue.consumers import run_consumers
from serving_common.queue.types import Job, JobKeys
from serving_common.queue.worker import Worker
from serving_common.tracing import NO_SPAN, Sampler, TraceParent
from serving_testing.collector import Collector, attributes, running_collector
from serving_testing.fixtures import redis as redis
from serving_testing.fixtures import redis_server as redis_server
from serving_testing.processes import free_port, running

COMMON = Path(__file__).parents[2]
TRACE_ID, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
KEYS = JobKeys("queue:predict")
Configure = Callable[..., None]


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch) -> Iterator[Configure]:
    def configure(**environment: str) -> None:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert tracing.configure("shop")

    yield configure
    tracing.shutdown()


@pytest.fixture
def collector(configure: Configure) -> Iterator[Collector]:
    with running_collector() as collector:
        configure(**collector.environment)
        yield collector


def traced_request(number: int = 1, *, flags: str = "01") -> tracing.Span:
    trace_id = f"{number:032x}"
    return tracing.begin([(b"traceparent", f"00-{trace_id}-{CALLER}-{flags}".encode())], "POST")


class TestTraceParent:
    @pytest.mark.parametrize(
        "header",
        [
            pytest.param(f"00-{TRACE_ID}-{CALLER}-01", id="sampled"),
            pytest.param(f"00-{TRACE_ID}-{CALLER}-03", id="sampled, with a random id"),
            pytest.param(f"42-{TRACE_ID}-{CALLER}-01-more", id="of a later version"),
        ],
    )
    def test_valid_headers_are_read(self, header):
        parent = TraceParent.parse(header, "shop=7")
        assert parent is not None
        assert (parent.trace_id, parent.span_id, parent.is_sampled) == (TRACE_ID, CALLER, True)
        assert parent.tracestate == "shop=7"

    @pytest.mark.parametrize(
        "header",
        [
            pytest.param("", id="empty"),
            pytest.param(f"00-{TRACE_ID}-{CALLER}", id="without flags"),
            pytest.param(f"00-{TRACE_ID.upper()}-{CALLER}-01", id="upper case"),
            pytest.param(f"00-{'0' * 32}-{CALLER}-01", id="trace id zero"),
            pytest.param(f"00-{TRACE_ID}-{'0' * 16}-01", id="span id zero"),
            pytest.param(f"ff-{TRACE_ID}-{CALLER}-01", id="version ff"),
            pytest.param(f"00-{TRACE_ID}-{CALLER}-01-more", id="more than version 00 has"),
            pytest.param(f"00-{TRACE_ID}-{CALLER}-01\n", id="line break"),
        ],
    )
    def test_other_headers_are_ignored(self, header):
        assert TraceParent.parse(header) is None

    @pytest.mark.parametrize("state", ["a=" + "1" * 511, "a=\n", "a=é"])
    def test_a_tracestate_that_is_too_long_or_not_ascii_is_dropped(self, state):
        parent = TraceParent.parse(f"00-{TRACE_ID}-{CALLER}-01", state)
        assert parent is not None
        assert parent.tracestate == ""


class TestSampler:
    @pytest.mark.parametrize(
        ("name", "argument", "expected"),
        [
            ("", "", Sampler(True, 2**64)),
            ("always_on", "", Sampler(False, 2**64)),
            ("always_off", "", Sampler(False, 0)),
            ("traceidratio", "0.25", Sampler(False, 2**62)),
            ("parentbased_traceidratio", "0.01", Sampler(True, round(2**64 / 100))),
            ("parentbased_always_off", "", Sampler(True, 0)),
            ("traceidratio", "two", Sampler(False, 2**64)),
            ("traceidratio", "nan", Sampler(False, 2**64)),
            ("nonsense", "0.5", Sampler(True, 2**64)),
        ],
    )
    def test_the_variables_choose_it(self, monkeypatch, name, argument, expected):
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", name)
        monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", argument)
        assert Sampler.read() == expected

    def test_a_share_of_the_trace_ids_is_taken_the_sdks_way(self):
        sampler = Sampler(True, 2**62)
        assert sampler.takes(f"{2**62 - 1:032x}")
        assert not sampler.takes(f"{2**62:032x}")
        assert sampler.takes(f"{2**127 + 1:032x}")

    @pytest.mark.parametrize("flag", [0, 1])
    def test_only_a_parent_based_sampler_follows_the_caller(self, flag):
        parent = TraceParent(TRACE_ID, CALLER, flag)
        opposite = 0 if flag else 2**64
        assert Sampler(True, opposite).follows(parent) is bool(flag)
        assert Sampler(False, opposite).follows(parent) is not bool(flag)


def test_what_is_not_sampled_carries_its_id_and_nothing_else(configure):
    configure(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1", OTEL_TRACES_SAMPLER="parentbased_always_off")
    headers = [("tracestate", "shop=7"), ("traceparent", f"00-{TRACE_ID}-{CALLER}-00")]
    with tracing.begin(headers, "POST") as span:
        assert tracing.headers() == {"traceparent": f"00-{TRACE_ID}-{CALLER}-00", "tracestate": "shop=7"}
        assert tracing.span("inner") is NO_SPAN
        assert not span.is_recording
    with tracing.begin([], "POST"):
        parent = TraceParent.parse(tracing.headers()["traceparent"])
        assert parent is not None
        assert not parent.is_sampled
    assert tracing.headers() == {}


def test_an_error_is_recorded_on_its_span(collector):
    with pytest.raises(ValueError, match="broken"), traced_request(), tracing.span("inner"):
        raise ValueError("broken")
    inner, outer = collector.all_spans(2)
    assert (inner.status.code, inner.status.message) == (inner.status.STATUS_CODE_ERROR, "broken")
    assert attributes(inner) == {"error.type": "builtins.ValueError"}
    assert [event.name for event in inner.events] == ["exception"]
    assert outer.status.code == outer.status.STATUS_CODE_ERROR


class TestJobs:
    @pytest.fixture
    def queue(self, redis: Redis) -> JobQueue:
        return JobQueue(redis, KEYS)

    @pytest.fixture
    def worker(self, redis: Redis) -> Worker:
        return Worker(redis, KEYS)

    async def test_a_batch_is_linked_to_its_recorded_jobs_and_they_to_it(self, collector, queue, worker):
        with traced_request(3, flags="00"):
            await queue.enqueue(b"{}")
        for number in (1, 2):
            with traced_request(number):
                await queue.enqueue(b"{}")
        await queue.enqueue(b"{}")  # of no trace
        are_done = asyncio.Event()

        async def process(jobs: Sequence[Job]) -> None:
            await worker.complete([(job.id, b"{}") for job in jobs])
            are_done.set()

        async def ready() -> None:
            pass

        consumers = run_consumers(worker, queue, process, concurrency=1, batch_size=10, grace_s=5, before_claim=ready)
        async with consumers:
            await are_done.wait()
        spans = await asyncio.to_thread(collector.all_spans, 10)
        [batch] = [span for span in spans if span.name == "process batch"]
        members = {span.span_id: span for span in spans if span.name == "process queue:predict"}
        assert {link.span_id for link in batch.links} == members.keys()
        first = members.pop(batch.parent_span_id)
        [second] = members.values()
        assert (first.trace_id[-1], second.trace_id[-1]) == (1, 2)
        assert [link.span_id for link in second.links] == [batch.span_id]
        assert attributes(batch)["messaging.batch.message_count"] == 4

    async def test_a_requeued_job_waits_and_is_processed_again_in_the_same_trace(self, collector, queue, worker):
        with traced_request():
            await queue.enqueue(b"{}")
        await worker.retry(await worker.claim(1), "Model inference failed")
        [job] = await worker.claim(1)
        await worker.complete([(job.id, b"{}")])
        spans = collector.all_spans(6)
        first, second = (span for span in spans if span.name == "wait queue:predict")
        assert second.start_time_unix_nano >= first.end_time_unix_nano
        failed = [span.status.message for span in spans if span.status.code == span.status.STATUS_CODE_ERROR]
        assert failed == ["Model inference failed"]
        assert {span.trace_id for span in spans} == {bytes(15) + b"\1"}

    async def test_otel_job_spans_link_begins_a_trace_that_is_linked_to_the_producer(self, configure, queue, worker):
        with running_collector() as collector:
            configure(**collector.environment, OTEL_JOB_SPANS="link")
            with traced_request():
                await queue.enqueue(b"{}")
            [job] = await worker.claim(1)
            await worker.complete([(job.id, b"{}")])
            spans = {span.name: span for span in collector.all_spans(4)}
        process, producer = spans["process queue:predict"], spans["send queue:predict"]
        assert process.trace_id != producer.trace_id
        assert [link.span_id for link in process.links] == [producer.span_id]
        assert spans["wait queue:predict"].trace_id == producer.trace_id
        assert job.trace_id == producer.trace_id.hex()

    async def test_a_job_from_redis_cli_with_any_context_is_claimed(self, collector, redis, queue, worker):
        job_id = await queue.enqueue(b"{}")
        await redis.hset(f"queue:predict:meta:{job_id}", "context", b"id \xff-nonsense \xe9")
        await redis.expire(f"queue:predict:meta:{job_id}", 60)
        [job] = await worker.claim(1)
        assert (job.id, job.span) == (job_id, NO_SPAN)


OFF = """
import sys
from serving_common import tracing
assert not tracing.configure("shop")
with tracing.begin([("traceparent", "{traceparent}")], "POST"), tracing.span("inner"):
    assert tracing.headers() == {{}}
print([name for name in sys.modules if name.startswith("opentelemetry")])
import serving_common.service, serving_common.queue.worker
print([name for name in sys.modules if name.startswith(("opentelemetry.sdk.trace", "opentelemetry.exporter"))])
"""


@pytest.mark.parametrize(
    "environment", [{}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "OTEL_SDK_DISABLED": "true"}]
)
def test_off_imports_nothing(environment):
    """FastAPI itself imports OpenTelemetry's API, and redis-py the SDK's metrics where it finds them."""
    program = OFF.format(traceparent=f"00-{TRACE_ID}-{CALLER}-01")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run([sys.executable, "-c", program], env=clean | environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n[]\n", "")


@pytest.mark.parametrize(
    "environment",
    [
        {"OTEL_TRACES_EXPORTER": "zipkin"},
        {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
        {"OTEL_JOB_SPANS": "sibling"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:port"},
    ],
)
def test_a_wrong_variable_leaves_traces_off_and_is_named(monkeypatch, environment):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with capture_logs() as lines:
        assert not tracing.configure("shop")
    assert [line["event"] for line in lines] == ["tracing_off"]


def test_a_collector_that_is_away_costs_one_line_and_no_second(tmp_path):
    port = free_port()
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}", "OTEL_BSP_SCHEDULE_DELAY": "10"}
    with running(
        "tests.apps.example",
        cwd=COMMON,
        env={"PORT": str(port), "LOG_FORMAT": "json", **environment},
        log=tmp_path / "log",
        ready=f"http://127.0.0.1:{port}/health",
    ) as service:
        for _ in range(3):
            assert httpx.post(f"http://127.0.0.1:{port}/flowers", json={"data": [[5, 3, 1, 1]]}).json() == 1
        started = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - started < 8  # the SDK alone tries for 10 s
    lines = [json.loads(line) for line in service.log.splitlines()]
    complaints = [line["action"] for line in lines if line["level"] != "INFO"]
    # One of each at most; in any order, because the export that is given up ends on a thread of its own.
    assert sorted(complaints) in (["span_export_failed"], ["spans_lost"], ["span_export_failed", "spans_lost"])
