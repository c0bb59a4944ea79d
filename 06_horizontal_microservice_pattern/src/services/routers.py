"""Endpoints of one specialised service."""

from collections.abc import Callable
from typing import Annotated, cast

from fastapi import APIRouter, Depends, Request

from serving_common import callers, iris
from serving_common.direct import direct
from serving_common.problems import problem_responses
from src.ml.predictor import Predictor
from src.models import Health, Metadata, Prediction, PredictRequest


async def _predictor(request: Request) -> Predictor:
    return cast(Predictor, request.app.state.predictor)


async def _waits(request: Request) -> Callable[[], bool]:
    return callers.waits(request)


PredictorDep = Annotated[Predictor, Depends(_predictor)]
CallerWaitsDep = Annotated[Callable[[], bool], Depends(_waits)]

health_router = APIRouter(tags=["health"])
router = APIRouter(tags=["prediction"], responses=problem_responses(401))


@health_router.get("/health")
async def health() -> Health:
    """Readiness: answers once the model is loaded."""
    return {"health": "ok"}


@router.get("/metadata")
async def metadata(request: Request) -> Metadata:
    """Types and shapes of input and output."""
    return {
        "data_type": "float32",
        "data_structure": "(N,4)",
        "data_sample": iris.SAMPLE,
        "data_names": list(iris.FEATURES),
        "prediction_type": "float32",
        "prediction_structure": "(N,2)",
        "prediction_sample": [0.98, 0.02],
        "services": [request.app.state.service_name],
    }


@router.post("/predict", responses=problem_responses(413, 422, 429, 503))
@direct
async def predict(request: PredictRequest, predictor: PredictorDep, caller_waits: CallerWaitsDep) -> Prediction:
    """The probability that each flower is of this service's class, and that it is not."""
    return _response(await predictor.predict(request.data, caller_waits))


@router.get("/predict/test", responses=problem_responses(429, 503))
async def predict_test(predictor: PredictorDep, caller_waits: CallerWaitsDep) -> Prediction:
    """The same for a known setosa."""
    return _response(await predictor.predict(iris.SAMPLE, caller_waits))


def _response(rows: list[list[float]]) -> Prediction:
    return {"prediction": rows[0] if len(rows) == 1 else rows}
