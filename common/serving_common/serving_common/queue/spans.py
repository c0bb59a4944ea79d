"""The way of a job in its request's trace: sent, waiting, processed, and the batch that it was processed in.

    POST /predict                        the proxy
    └─ send queue:predict                until Redis has the job
       ├─ wait queue:predict             until its claim; once more after each requeue
       └─ process queue:predict          until its result is stored, or it is requeued
          └─ process batch               linked to all recorded jobs in it, and in the trace of the first one
             ├─ …                        what the worker calls
             └─ settle queue:predict     storing the results

Request id and trace travel as one field of the job's record: `request-id`, or `request-id traceparent tracestate`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import cache

from serving_common import tracing
from serving_common.queue.types import Job, JobId
from serving_common.tracing import CLIENT, PRODUCER, Span


@cache
def _attributes(operation: str, kind: str, queue: str) -> Mapping[str, str]:
    """What the semantic conventions for messaging require."""
    return {
        "messaging.system": "redis",
        "messaging.destination.name": queue,
        "messaging.operation.name": operation,
        "messaging.operation.type": kind,
    }


def sending(queue: str) -> Span:
    """Around the command that enqueues a job."""
    return tracing.span(f"send {queue}", PRODUCER, _attributes("send", "send", queue))


def settling(queue: str) -> Span:
    """Around the command that ends jobs."""
    return tracing.span(f"settle {queue}", CLIENT, _attributes("settle", "settle", queue))


def context() -> str:
    """What a job takes along from the request that is being answered; empty outside one."""
    request_id, headers = tracing.request_id.get(), tracing.headers()
    return f"{request_id} {' '.join(headers.values())}" if headers else request_id


def claimed_job(queue: str, job_id: str, data: bytes, context: bytes, waited_us: int, *, is_suspect: bool) -> Job:
    """The job, with its span begun and its time in the queue recorded."""
    request_id, _, trace = context.decode(errors="replace").partition(" ")
    if not trace:
        return Job(JobId(job_id), data, is_suspect, request_id)
    traceparent, _, tracestate = trace.partition(" ")
    span = tracing.resume(traceparent, tracestate)
    if span.is_recording:
        span = _processing(queue, job_id, span, waited_us)
    return Job(JobId(job_id), data, is_suspect, request_id, traceparent[3:35], span)


def _processing(queue: str, job_id: str, producer: Span, waited_us: int) -> Span:
    """The span that processes the job, after one for the time that it waited."""
    attributes = {"messaging.message.id": job_id, **_attributes("process", "process", queue)}
    waiting = {**attributes, "messaging.operation.name": "wait", "messaging.operation.type": "receive"}
    # Redis's clock says how long: it need not agree with the clock of this machine.
    now_ns = time.time_ns()
    producer.child(f"wait {queue}", attributes=waiting, start_ns=now_ns - 1000 * waited_us).end(now_ns)
    return tracing.begin_job(f"process {queue}", producer, attributes)


def batch(queue: str, jobs: Sequence[Job]) -> Span:
    """Around the work on these jobs."""
    attributes: tracing.Attributes = {"messaging.destination.name": queue, "messaging.batch.message_count": len(jobs)}
    return tracing.batch_span("process batch", [job.span for job in jobs], attributes)
