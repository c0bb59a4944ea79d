"""The pattern: ask all services at once, put their answers together, and let the surest one decide.

a flower ─┬─► setosa     ─► [0.98, 0.02] ─┐
          ├─► versicolor ─► [0.01, 0.99] ─┼─► all three answers, or the label of the highest first number
          └─► virginica  ─► [0.01, 0.99] ─┘
"""

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import TypeVar, cast

import orjson
from pydantic import TypeAdapter

from serving_common import iris
from serving_common.errors import Unavailable
from src.models import Health, LabelResponse, Prediction
from src.proxy.backends import Backends, Call, Failure, Origin

T = TypeVar("T", bound=Mapping[str, object])
Answers = dict[str, T | Failure]


def _parse_prediction(content: bytes, count: int) -> Prediction:
    prediction = _prediction.validate_json(content)
    if len(_pairs(prediction)) != count:
        raise ValueError("the answer has another number of rows than the question")
    return prediction


_health = TypeAdapter(Health)
_prediction = TypeAdapter(Prediction)


def predict(body: bytes, count: int) -> Call[Prediction]:
    """The call that asks for the `count` rows of this body, `{"data": […]}`."""
    return Call("POST", "/predict", partial(_parse_prediction, count=count), body)


HEALTH = Call("GET", "/health", _health.validate_json)
PREDICT_TEST = Call("GET", "/predict/test", partial(_parse_prediction, count=1))
PREDICT_SAMPLE = predict(orjson.dumps({"data": iris.SAMPLE}), len(iris.SAMPLE))


async def ask_all(backends: Backends, call: Call[T], origin: Origin) -> Answers[T]:
    """One entry per service, in the services' order; those that do not answer are Failures.

    Raises:
        Unavailable: not one service answered.
        Overloaded: too many requests are being worked on.
    """
    with backends.places:
        asked = [backend.ask(call, origin) for backend in backends.by_name.values()]
        answers = dict(zip(backends.by_name, await asyncio.gather(*asked), strict=True))
    failures = {name: answer for name, answer in answers.items() if isinstance(answer, Failure)}
    if len(failures) == len(answers):
        raise Unavailable(
            "No service answered", [{"field": name, "reason": failure.reason} for name, failure in failures.items()]
        )
    return answers


async def check_all(backends: Backends, origin: Origin) -> Answers[Health]:
    """How each service is right now, those too that are not being asked for predictions at the moment."""
    asked = [backend.probe(HEALTH, origin) for backend in backends.by_name.values()]
    return dict(zip(backends.by_name, await asyncio.gather(*asked), strict=True))


def decide(answers: Answers[Prediction]) -> LabelResponse:
    """The label of each row: the class whose service is surest. Services that did not answer are `missing`."""
    sure = {name: [p for p, _ in _pairs(answer)] for name, answer in answers.items() if not isinstance(answer, Failure)}
    labels = [max(sure, key=lambda name: sure[name][row]) for row in range(len(next(iter(sure.values()))))]
    probas = [sure[label][row] for row, label in enumerate(labels)]
    if len(labels) == 1:
        response: LabelResponse = {"prediction": {"proba": probas[0], "label": labels[0]}}
    else:
        response = {"prediction": {"proba": probas, "label": labels}}
    if missing := [name for name, answer in answers.items() if isinstance(answer, Failure)]:
        response["missing"] = missing
    return response


def _pairs(prediction: Prediction) -> list[list[float]]:
    """The probabilities as shape (N, 2), those of one row too."""
    rows = prediction["prediction"]
    # The two shapes are told apart by what is in them, which mypy does not follow.
    return cast(list[list[float]], rows if isinstance(rows[0], list) else [rows])
