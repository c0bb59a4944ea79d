"""Requests to a pattern: which there are, from its OpenAPI document, and what one of them did."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import httpx

from scripts.devstack.load import UNFINISHED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scripts.devstack.console.live import Live, Reading
    from scripts.devstack.load import Work
    from scripts.devstack.stack import DevStack

SHOWN_BYTES = 64 * 1024
TIMEOUT_S = 30
FOLLOW_S = 20
FIRST_LOOK_S, LAST_LOOK_S = 0.005, 0.3  # at a job that has not ended
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
    stack: DevStack, live: Live, client: httpx.AsyncClient, work: Work, column: Mapping[str, int], request: Any
) -> dict[str, Any]:
    """Send one request, and follow the job that it started, to its result.

    Args:
        client: of the process that takes the pattern's requests.
        column: of every process in the pattern's diagram.
        request: `method`, `path` and `body`, a text.

    Returns: `status`, `answer`, `ms`, the `job` with its own answer and ms if it started one, and the `timeline`.
    """
    processes = [managed for managed in stack.processes if managed.id in column]
    processes.sort(key=lambda managed: column[managed.id])
    before = [await live.reading(managed) for managed in processes]
    answered = await _exchange(client, request["method"], request["path"], request["body"])
    middle = [await live.reading(managed) for managed in processes]
    sent = f"{request['method']} {request['path']}"
    spans = [{"what": sent, "process": "callers", "start_ms": 0.0, "ms": answered["ms"]}]
    after, result = middle, answered | {"job": None}
    if answered["status"] == 200 and (path := work.job_path(_parsed(answered["answer"]))):
        job = await _followed(client, work, path)
        result["job"] = job | {"path": path}
        spans.append({"what": f"GET {path}", "process": "callers", "start_ms": answered["ms"], "ms": job["ms"]})
        after = [await live.reading(managed) for managed in processes]
    for managed, *readings in zip(processes, before, middle, after, strict=True):
        phase = 0 if column[managed.id] <= 2 or len(spans) == 1 else 1
        ms = _mean_ms(readings[0], readings[1 + phase])
        if ms is not None:
            outer = spans[phase]
            start = float(outer["start_ms"]) + max(0.0, float(outer["ms"]) - ms) / 2
            spans.append({"what": "its own metrics", "process": managed.id, "start_ms": start, "ms": ms})
    return result | {"timeline": spans}


def _mean_ms(before: Reading | None, after: Reading | None) -> float | None:
    """What a process did between two readings took so long, on average; None if it did nothing."""
    if before is None or after is None or after.count <= before.count:
        return None
    return 1000 * (after.seconds - before.seconds) / (after.count - before.count)


async def _exchange(client: httpx.AsyncClient, method: str, path: str, body: str) -> dict[str, Any]:
    """One request: `status` (None without an answer), `answer` and `ms`. Long answers are cut off."""
    started = time.perf_counter()
    headers = {"Content-Type": "application/json"} if body else {}
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
        answered = await _exchange(client, "GET", path, "")
        ms = 1000 * (time.perf_counter() - started)
        has_ended = answered["status"] == 200 and work.state(_parsed(answered["answer"])) not in UNFINISHED
        if has_ended or ms > 1000 * FOLLOW_S:
            return answered | {"ms": ms}
        await asyncio.sleep(again_s)
        again_s = min(2 * again_s, LAST_LOOK_S)


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None
