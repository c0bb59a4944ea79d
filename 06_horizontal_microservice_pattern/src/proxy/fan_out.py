"""The pattern: send one request to all services at once, collect their responses, let the most confident one decide.

           fan_out                           decide
           ┌─► service a ─► [0.98, 0.02] ─┐
a row    ──┼─► service b ─► [0.01, 0.99] ─┼─► all three responses, or the label with the highest first number
           └─► service c ─► [0.01, 0.99] ─┘
"""

import asyncio
from collections.abc import Mapping
from functools import partial
from operator import itemgetter
from typing import Any, Protocol, TypeVar

import orjson
from pydantic import TypeAdapter, ValidationError

from serving_common.cards import Card, Task
from serving_common.errors import FieldError, InvalidInput, Overloaded, Unavailable
from src.models import ROUNDING, Health, LabelResponse, Prediction
from src.proxy.backends import MAX_RESPONSE_BYTES, Backend, BackendRequest, Backends, Failure, RequestContext

T = TypeVar("T", bound=Mapping[str, object])
# Room for numbers of 24 characters each, indented, of a pair, or of 120 classes: see MAX_RESPONSE_BYTES.
BYTES_PER_PAIR, BYTES_PER_ROW = 128, 4096
MOST_RESPONSE_BYTES = 32 * 1024 * 1024

Results = dict[str, T | Failure]
"""One entry per service, in the order of SERVICES."""


class FanOut(Protocol):
    """How the services are called: `fan_out`, or what `create_app` is given instead of it."""

    async def __call__(self, backends: Backends, request: BackendRequest[T], context: RequestContext) -> Results[T]: ...


async def fan_out(backends: Backends, request: BackendRequest[T], context: RequestContext) -> Results[T]:
    """Call all services at once.

    Raises:
        Unavailable: all services failed.
        InvalidInput: all services refused the request.
        Overloaded: too many requests are in flight here, or in every service (backpressure).
    """
    with backends.limiter:
        calls = [backend.call(request, context) for backend in backends.by_name.values()]
        results = dict(zip(backends.by_name, await asyncio.gather(*calls), strict=True))
    failures = {name: result for name, result in results.items() if isinstance(result, Failure)}
    if len(failures) == len(results):
        reasons: list[FieldError] = [{"field": name, "reason": failure.reason} for name, failure in failures.items()]
        refusals = {failure.refusal for failure in failures.values()}
        if refusals == {429}:
            raise Overloaded("Every service has too many requests", reasons)
        if None not in refusals:
            first, *others = (failure.errors for failure in failures.values())
            if first and all(errors == first for errors in others):
                raise InvalidInput("Invalid input", first)
            raise InvalidInput("Every service refused the request", reasons)
        raise Unavailable("No service answered", reasons)
    return results


async def check_health(backends: Backends, context: RequestContext) -> Results[Health]:
    """The current health of each service, also of those whose circuit breaker is open."""
    calls = [backend.call_unguarded(HEALTH, context) for backend in backends.by_name.values()]
    return dict(zip(backends.by_name, await asyncio.gather(*calls), strict=True))


async def missing_services(backends: Backends, context: RequestContext, within_s: float) -> list[str]:
    """A sentence about each service whose health check fails, or takes longer than this."""

    async def check(name: str, backend: Backend) -> str | None:
        try:
            async with asyncio.timeout(within_s):
                health = await backend.call_unguarded(HEALTH, context)
        except TimeoutError:
            return f"{name} did not answer within {within_s:g} s"
        return f"{name} {health.reason}" if isinstance(health, Failure) else None

    found = await asyncio.gather(*(check(*each) for each in backends.by_name.items()))
    return [sentence for sentence in found if sentence]


async def fetch_metadata(backends: Backends, context: RequestContext) -> Results[dict[str, Any]]:
    """What each service says about its inputs and outputs."""
    calls = [backend.call_unguarded(METADATA, context) for backend in backends.by_name.values()]
    return dict(zip(backends.by_name, await asyncio.gather(*calls), strict=True))


def decide(results: Results[Prediction]) -> LabelResponse:
    """The label of each row: the most probable class of all services. Failed services are `missing`.

    Raises:
        InvalidInput: no service gives probabilities.
        Unavailable: none of those that answered does.
    """
    failures = {name: result.reason for name, result in results.items() if isinstance(result, Failure)}
    best: dict[str, list[tuple[float, str]]] = {}
    undecided: dict[str, str] = {}
    for name, result in results.items():
        if not isinstance(result, Failure):
            try:
                best[name] = _best_of(name, result)
            except ValueError as exc:
                undecided[name] = str(exc)
    if not best:
        errors: list[FieldError] = [{"field": name, "reason": why} for name, why in (undecided | failures).items()]
        if failures:
            raise Unavailable("No service that gives probabilities answered", errors)
        raise InvalidInput("No service gives probabilities, from which a label could be decided", errors)
    winners = [max(candidates, key=itemgetter(0)) for candidates in zip(*best.values(), strict=True)]
    if len(winners) == 1:
        response: LabelResponse = {"prediction": {"proba": winners[0][0], "label": winners[0][1]}}
    else:
        response = {"prediction": {"proba": [p for p, _ in winners], "label": [label for _, label in winners]}}
    if failures:
        response["missing"] = list(failures)
    if undecided:
        response["without_probabilities"] = list(undecided)
    return response


def _best_of(name: str, prediction: Prediction) -> list[tuple[float, str]]:
    """For each row the most probable class that this service knows. Raises ValueError if it gives no probabilities."""
    rows, labels = _rows(prediction), prediction.get("labels")
    if isinstance(rows[0], dict):
        raise ValueError("answers with a value, not with probabilities")
    if labels is None:
        if len(rows[0]) != 2:
            raise ValueError(f"answers with {len(rows[0])} numbers, and without their labels")
        return [(p, name) for p, _ in rows]
    if not all(-ROUNDING <= p <= 1 + ROUNDING for row in rows for p in row):
        raise ValueError("answers with numbers that are not probabilities")
    return [max(zip(row, labels, strict=True), key=itemgetter(0)) for row in rows]


def predict_request(body: bytes, row_count: int, bytes_per_row: int = BYTES_PER_PAIR) -> BackendRequest[Prediction]:
    """The request that predicts the `row_count` rows of this body, `{"data": […]}`."""
    max_bytes = min(MAX_RESPONSE_BYTES + bytes_per_row * row_count, MOST_RESPONSE_BYTES)
    return BackendRequest("POST", "/predict", partial(_parse_prediction, row_count=row_count), body, max_bytes)


def bytes_per_row(card: Card | None) -> int:
    """Bound of a response to each row of this card, or of any form."""
    return BYTES_PER_PAIR if card is not None and card.task is Task.ONE_VS_REST else BYTES_PER_ROW


def sample_request(card: Card | None) -> BackendRequest[Prediction]:
    """The request that predicts the sample of the rows' card; without one, each service's own."""
    if card is None:
        return PREDICT_TEST
    return predict_request(orjson.dumps({"data": card.sample_rows}), len(card.sample_rows), bytes_per_row(card))


def _parse_prediction(content: bytes, row_count: int | None) -> Prediction:
    """The service's answer with all its fields; probabilities of a pair are clipped to 0 to 1."""
    try:
        received = _received.validate_json(content)
    except ValidationError as exc:
        for error in exc.errors(include_url=False, include_context=False):
            if error["type"] == "finite_number":
                row, *column = [part for part in error["loc"] if isinstance(part, int)] or [0]
                raise ValueError(f"row {row if column else 0} is not a finite number") from None
        raise
    rows = _rows(received)
    if row_count not in (None, len(rows)):
        raise ValueError("it has another number of rows than the request")
    if isinstance(rows[0], dict):
        return received
    labels = received.get("labels")
    width = len(rows[0]) if labels is None else len(labels)
    if any(len(row) != width for row in rows):
        raise ValueError("its rows differ in length, or from its labels")
    if labels is None and width == 2 and not all(0 <= p <= 1 for row in rows for p in row):
        if not all(-ROUNDING <= p <= 1 + ROUNDING for row in rows for p in row):
            raise ValueError("its pairs are not probabilities")
        clipped = [[min(max(p, 0.0), 1.0) for p in row] for row in rows]
        received["prediction"] = clipped if rows is received["prediction"] else clipped[0]
    return received


def _rows(prediction: Prediction) -> Any:
    """The predictions as a list, also for one row: lists of numbers, or values."""
    rows = prediction["prediction"]
    return rows if isinstance(rows, list) and not isinstance(rows[0], float) else [rows]


_health = TypeAdapter(Health)
_received = TypeAdapter(Prediction)
_metadata = TypeAdapter(dict[str, Any])

HEALTH = BackendRequest("GET", "/health", _health.validate_json)
METADATA = BackendRequest("GET", "/metadata", _metadata.validate_json)
PREDICT_TEST = BackendRequest(
    "GET", "/predict/test", partial(_parse_prediction, row_count=None), max_bytes=16 * MAX_RESPONSE_BYTES
)
