"""Endpoints of one specialised service."""

from collections.abc import Callable
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, Request

from serving_common import callers
from serving_common.cards import Card, Task
from serving_common.direct import direct
from serving_common.problems import problem_responses
from src.ml.predictor import Predictor
from src.models import Health, Metadata, metadata_of, prediction_type, request_types


async def _predictor(request: Request) -> Predictor:
    return cast(Predictor, request.app.state.predictor)


async def _waits(request: Request) -> Callable[[], bool]:
    return callers.waits(request)


PredictorDep = Annotated[Predictor, Depends(_predictor)]
CallerWaitsDep = Annotated[Callable[[], bool], Depends(_waits)]

health_router = APIRouter(tags=["health"])


@health_router.get("/health")
async def health() -> Health:
    """Readiness: answers once the model is loaded."""
    return {"health": "ok"}


def create_router(card: Card, service_name: str) -> APIRouter:
    """The routes for predictions; requests and responses have the form that the card gives them."""
    router = APIRouter(tags=["prediction"], responses=problem_responses(401))
    bodies, prediction = request_types(card), prediction_type(card)
    description, respond = metadata_of(card, [service_name]), _responder(card)

    @router.get("/metadata")
    async def metadata() -> Metadata:
        """Types and shapes of input and output."""
        return description

    @router.post("/predict", response_model=prediction, responses=problem_responses(413, 422, 429, 503))
    @direct(body=bodies.list_rows)
    async def predict(
        request: bodies.any_rows,  # type: ignore[name-defined]  # made at the start
        predictor: PredictorDep,
        caller_waits: CallerWaitsDep,
    ) -> Any:
        """The prediction for each row."""
        return respond(await predictor.predict(request.data, caller_waits))

    @router.get("/predict/test", response_model=prediction, responses=problem_responses(429, 503))
    async def predict_test(predictor: PredictorDep, caller_waits: CallerWaitsDep) -> Any:
        """The same for the sample of the model's card."""
        return respond(await predictor.predict(card.sample_rows, caller_waits))

    return router


def _responder(card: Card) -> Callable[[list[list[float]]], dict[str, Any]]:
    """Shapes the model's numbers, row by row, as `prediction_type` says."""

    def numbers(rows: list[list[float]]) -> dict[str, Any]:
        return {"prediction": rows[0] if len(rows) == 1 else rows}

    def labelled(rows: list[list[float]]) -> dict[str, Any]:
        return numbers(rows) | {"labels": card.labels}

    def values(rows: list[list[float]]) -> dict[str, Any]:
        predictions = [{"value": value} for [value] in rows]
        return {"prediction": predictions[0] if len(rows) == 1 else predictions}

    return {Task.ONE_VS_REST: numbers, Task.REGRESSION: values}.get(card.task, labelled)
