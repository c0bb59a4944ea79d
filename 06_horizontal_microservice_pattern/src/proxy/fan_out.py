"""The pattern: send one request to all services at once, collect their responses, let the most confident one decide.

           fan_out                           decide
           ┌─► setosa     ─► [0.98, 0.02] ─┐
a flower ──┼─► versicolor ─► [0.01, 0.99] ─┼─► all three responses, or the label with the highest first number
           └─► virginica  ─► [0.01, 0.99] ─┘
"""

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Protocol, TypeVar, cast

import orjson
from pydantic import TypeAdapter

from serving_common import iris
from serving_common.errors import FieldError, InvalidInput, Overloaded, Unavailable
from src.models import Health, LabelResponse, Prediction, ReceivedPrediction
from src.proxy.backends import MAX_RESPONSE_BYTES, BackendRequest, Backends, Failure, RequestContext

T = TypeVar("T", bound=Mapping[str, object])
# Room for a pair of numbers of 24 characters each, indented: see MAX_RESPONSE_BYTES.
BYTES_PER_ROW = 128

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
            raise InvalidInput("Every service refused the request", reasons)
        raise Unavailable("No service answered", reasons)
    return results


async def check_health(backends: Backends, context: RequestContext) -> Results[Health]:
    """The current health of each service, also of those whose circuit breaker is open."""
    calls = [backend.call_unguarded(HEALTH, context) for backend in backends.by_name.values()]
    return dict(zip(backends.by_name, await asyncio.gather(*calls), strict=True))


def decide(results: Results[Prediction]) -> LabelResponse:
    """The label of each row: the class whose service is most confident. Failed services are `missing`."""
    confidences = {
        name: [p for p, _ in _pairs(result)] for name, result in results.items() if not isinstance(result, Failure)
    }
    row_count = len(next(iter(confidences.values())))
    labels = [max(confidences, key=lambda name: confidences[name][row]) for row in range(row_count)]
    probas = [confidences[label][row] for row, label in enumerate(labels)]
    if row_count == 1:
        response: LabelResponse = {"prediction": {"proba": probas[0], "label": labels[0]}}
    else:
        response = {"prediction": {"proba": probas, "label": labels}}
    if missing := [name for name, result in results.items() if isinstance(result, Failure)]:
        response["missing"] = missing
    return response


def predict_request(body: bytes, row_count: int) -> BackendRequest[Prediction]:
    """The request that predicts the `row_count` rows of this body, `{"data": […]}`."""
    max_bytes = MAX_RESPONSE_BYTES + BYTES_PER_ROW * row_count
    return BackendRequest("POST", "/predict", partial(_parse_prediction, row_count=row_count), body, max_bytes)


def _parse_prediction(content: bytes, row_count: int) -> Prediction:
    received = _received.validate_json(content)
    pairs = _pairs(received)
    if len(pairs) != row_count:
        raise ValueError("the response has another number of rows than the request")
    if all(0 <= p <= 1 for pair in pairs for p in pair):
        return received
    clipped = [[min(max(p, 0.0), 1.0) for p in pair] for pair in pairs]
    return {"prediction": clipped if isinstance(received["prediction"][0], list) else clipped[0]}


def _pairs(prediction: Prediction) -> list[list[float]]:
    """The probabilities, shape (N, 2), also for one row."""
    rows = prediction["prediction"]
    # The two shapes differ in the type of their elements, which mypy does not follow.
    return cast(list[list[float]], rows if isinstance(rows[0], list) else [rows])


_health = TypeAdapter(Health)
_received = TypeAdapter(ReceivedPrediction)

HEALTH = BackendRequest("GET", "/health", _health.validate_json)
PREDICT_TEST = BackendRequest("GET", "/predict/test", partial(_parse_prediction, row_count=1))
PREDICT_SAMPLE = predict_request(orjson.dumps({"data": iris.SAMPLE}), len(iris.SAMPLE))
