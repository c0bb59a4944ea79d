"""The steps of a demo: send a request, compare the response with what is wanted."""

from __future__ import annotations

import math
import os
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

# One flower of each class, from the Iris data set: sepal length and width, petal length and width, in cm.
FLOWERS = {"setosa": [5.1, 3.5, 1.4, 0.2], "versicolor": [6.4, 2.9, 4.3, 1.3], "virginica": [6.3, 3.3, 6.0, 2.5]}


@dataclass(frozen=True, kw_only=True)
class Step:
    """One request of a demo and its response."""

    method: str
    url: httpx.URL
    sent: object
    answer: object
    status: int | None
    latency_ms: float
    problem: str | None
    is_highlight: bool


Urls = Mapping[str, str]
Steps = AsyncGenerator[Step, None]
Demo = Callable[[httpx.AsyncClient, Urls], Steps]


async def send(
    client: httpx.AsyncClient,
    method: str,
    url: str,
    body: object = None,
    *,
    want: object,
    status: int = 200,
    shown: object = None,
    is_highlight: bool = False,
) -> Step:
    """Send one request. `want` describes the expected response, see `mismatch`; highlights appear in the summary.

    shown: printed instead of a body that is not readable.
    """
    started = time.perf_counter()
    answer, got_status = None, None
    try:
        response = await client.request(method, url, json=body)
        answer, got_status = response.json(), response.status_code
        problem = mismatch(want, answer) if got_status == status else f"status {got_status}, not {status}"
    except httpx.HTTPError as exc:
        problem = f"no answer: {exc}"
    except ValueError:
        answer, got_status, problem = response.text, response.status_code, "the answer is not JSON"
    return Step(
        method=method,
        url=httpx.URL(url),
        sent=body if shown is None else shown,
        answer=answer,
        status=got_status,
        latency_ms=1000 * (time.perf_counter() - started),
        problem=problem,
        is_highlight=is_highlight,
    )


def caller_api_key() -> str:
    """The API key of our environment, or of the file that it names; empty if there is none."""
    if path := os.environ.get("API_KEY_FILE"):
        return Path(path).read_text(encoding="utf-8").rstrip("\r\n")
    return os.environ.get("API_KEY", "")


def mismatch(want: object, got: object, where: str = "answer") -> str | None:
    """Where `got` differs from what is wanted, or None.

    A type accepts any value of that type; a dict requires at least these keys; a list as many items; a float any number
    within 1e-5, also relative to large ones; anything else must be equal.
    """
    if isinstance(want, type):
        return None if isinstance(got, want) else f"{where} is {got!r}, not a {want.__name__}"
    if isinstance(want, dict) and isinstance(got, dict):
        if missing := want.keys() - got.keys():
            return f"{where} has no {', '.join(sorted(missing))}"
        return next(filter(None, (mismatch(want[key], got[key], f"{where}.{key}") for key in want)), None)
    if isinstance(want, list) and isinstance(got, list) and len(want) == len(got):
        pairs = enumerate(zip(want, got, strict=True))
        return next(filter(None, (mismatch(one, other, f"{where}[{i}]") for i, (one, other) in pairs)), None)
    is_near = (
        isinstance(want, float) and isinstance(got, int | float) and math.isclose(want, got, abs_tol=1e-5, rel_tol=1e-5)
    )
    return None if is_near or want == got else f"{where} is {got!r}, not {want!r}"
