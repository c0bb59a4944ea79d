"""Requests to a pattern: which there are, from its OpenAPI document, and what one of them did."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from typing import TYPE_CHECKING, Any

import httpx

from scripts.devstack.load import UNFINISHED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scripts.devstack.console.live import Live, Reading
    from scripts.devstack.load import Work
    from scripts.devstack.spans import SpanStore
    from scripts.devstack.stack import DevStack

SHOWN_BYTES = 64 * 1024
TIMEOUT_S = 30
FOLLOW_S = 20
FIRST_LOOK_S, LAST_LOOK_S = 0.005, 0.3  # at a job that has not ended
EXPORTED_EVERY_S, EXPORTED_WITHIN_S = 0.2, 5.0  # spans, by `make up TRACES=1`
DEPTH = 8
NO_REQUESTS = ("/health", "/metrics", "/docs")


def operations(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`method`, `path` and example `body` (or None) of every operation that does something."""
    schemas = document.get("components", {}).get("schemas", {})
    found = []
    for path, methods in document.get("paths", {}).items():
        if path.startswith(NO_REQUESTS):
            continue
        for method, operation in methods.items():
            filled = path
            for parameter in operation.get("parameters", []):
                if parameter["in"] == "path":
                    value = example(parameter["schema"] | parameter, schemas)
                    filled = filled.replace(f"{{{parameter['name']}}}", str(value))
            content = operation.get("requestBody", {}).get("content", {}).get("application/json")
            body = None if content is None else example(content | content.get("schema", {}), schemas)
            found.append({"method": method.upper(), "path": filled, "body": body})
    return found


def example(schema: Mapping[str, Any], schemas: Mapping[str, Any], depth: int = DEPTH) -> Any:
    """A value for this JSON schema: its own example where it has one, else one made of its parts."""
    if "$ref" in schema:
        schema = schemas.get(schema["$ref"].rpartition("/")[2], {})
    if isinstance(examples := schema.get("examples"), list) and examples:
        return examples[0]
    for key in ("example", "const", "default"):
        if schema.get(key) is not None:
            return schema[key]
    if depth == 0:
        return None
    for key in ("anyOf", "oneOf", "allOf", "enum"):
        if options := schema.get(key):
            return options[0] if key == "enum" else example(options[0], schemas, depth - 1)
    if schema.get("type") == "object":
        wanted = schema.get("required", ())
        properties = schema.get("properties", {}).items()
        return {name: example(each, schemas, depth - 1) for name, each in properties if name in wanted}
    if schema.get("type") == "array":
        return [example(schema.get("items", {}), schemas, depth - 1)]
    return {"integer": 1, "number": 1.0, "boolean": True, "string": ""}.get(schema.get("type", ""))


async def send(
    stack: DevStack,
    live: Live,
    client: httpx.AsyncClient,
    work: Work,
    column: Mapping[str, int],
    request: Any,
    spans: SpanStore | None,
) -> dict[str, Any]:
    """Send one request, and follow the job that it started, to its result.

    Args:
        client: of the process that takes the pattern's requests.
        column: of every process in the pattern's diagram.
        request: `method`, `path` and `body`, a text.
        spans: where the processes export theirs; None: the timeline is made from their metrics.

    Returns: `status`, `answer`, `ms`, the `job` with its own answer and ms if it started one, the `timeline` of spans
    with `what`, `process`, `start_ms` and `ms`, and its `source`.
    """
    processes = [managed for managed in stack.processes if managed.id in column]
    processes.sort(key=lambda managed: column[managed.id])
    before = [await live.reading(managed) for managed in processes]
    trace_id, began_us = secrets.token_hex(16), time.time_ns() // 1000
    headers = {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"}
    answered = await _exchange(client, request["method"], request["path"], request["body"], headers)
    middle = [await live.reading(managed) for managed in processes]
    timeline = [_span("callers", f"{request['method']} {request['path']}", 0.0, answered["ms"])]
    after, result = middle, answered | {"job": None}
    if answered["status"] == 200 and (path := work.job_path(_parsed(answered["answer"]))):
        job = await _followed(client, work, path)
        result["job"] = job | {"path": path}
        timeline.append(_span("callers", f"GET {path}", answered["ms"], job["ms"]))
        after = [await live.reading(managed) for managed in processes]
    if spans is not None and (trace := await _exported(spans, trace_id)):
        for span in trace:
            start_ms, ms = (span["start_us"] - began_us) / 1000, span["duration_us"] / 1000
            timeline.append(_span(span["service"].replace("-", " ", 1), span["name"], start_ms, ms))
        return result | {"timeline": timeline, "source": f"From trace {trace_id}."}
    for managed, *readings in zip(processes, before, middle, after, strict=True):
        phase = 0 if column[managed.id] <= 2 or len(timeline) == 1 else 1
        if (ms := _mean_ms(readings[0], readings[1 + phase])) is not None:
            outer = timeline[phase]
            start_ms = outer["start_ms"] + max(0.0, outer["ms"] - ms) / 2
            timeline.append(_span(managed.label, "", start_ms, ms))
    source = "From the metrics, which have how long each process took, but not when; make up TRACES=1 shows both."
    return result | {"timeline": timeline, "source": source}


def _span(process: str, what: str, start_ms: float, ms: float) -> dict[str, Any]:
    return {"process": process, "what": what, "start_ms": start_ms, "ms": ms}


async def _exported(spans: SpanStore, trace_id: str) -> list[dict[str, Any]]:
    """The spans of a trace, once no more come; processes export theirs every EXPORTED_EVERY_S."""
    deadline, trace = time.monotonic() + EXPORTED_WITHIN_S, list[dict[str, Any]]()
    while time.monotonic() < deadline:
        await asyncio.sleep(2 * EXPORTED_EVERY_S)
        before, trace = trace, spans.trace(trace_id)
        if before and len(trace) == len(before):
            break
    return trace


def _mean_ms(before: Reading | None, after: Reading | None) -> float | None:
    """What a process did between two readings took so long, on average; None if it did nothing."""
    if before is None or after is None or after.count <= before.count:
        return None
    return 1000 * (after.seconds - before.seconds) / (after.count - before.count)


async def _exchange(
    client: httpx.AsyncClient, method: str, path: str, body: str = "", headers: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """One request: `status` (None without an answer), `answer` and `ms`. Long answers are cut off."""
    started = time.perf_counter()
    headers = dict(headers or {}) | ({"Content-Type": "application/json"} if body else {})
    status, content = None, b""
    try:
        async with (
            asyncio.timeout(TIMEOUT_S),
            client.stream(method, path, content=body.encode(), headers=headers) as response,
        ):
            status = response.status_code
            async for chunk in response.aiter_bytes():
                content += chunk
                if len(content) > SHOWN_BYTES:
                    break
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, UnicodeError) as exc:
        status, content = None, f"no answer: {type(exc).__name__} {exc}".strip().encode()
    text = content[:SHOWN_BYTES].decode(errors="replace") + "…" * (len(content) > SHOWN_BYTES)
    return {"status": status, "answer": text, "ms": 1000 * (time.perf_counter() - started)}


async def _followed(client: httpx.AsyncClient, work: Work, path: str) -> dict[str, Any]:
    """The answer about a job that has ended, or has not within FOLLOW_S; ms since this was called."""
    started, again_s = time.perf_counter(), FIRST_LOOK_S
    while True:
        answered = await _exchange(client, "GET", path)
        ms = 1000 * (time.perf_counter() - started)
        has_ended = answered["status"] == 200 and work.state_of(_parsed(answered["answer"])) not in UNFINISHED
        if has_ended or ms > 1000 * FOLLOW_S:
            return answered | {"ms": ms}
        await asyncio.sleep(again_s)
        again_s = min(2 * again_s, LAST_LOOK_S)


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None
