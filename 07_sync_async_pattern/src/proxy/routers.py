"""Endpoints of the proxy."""

from typing import Annotated, cast

import structlog
from fastapi import APIRouter, Depends, Path, Query, Request

from serving_common.callers import while_connected
from serving_common.problems import problem_responses
from serving_common.queue.types import JobId
from src.jobs import MAX_WAIT_S, Jobs
from src.proxy.predictor import SyncPredictor
from src.schemas import Health, ImageJobResult, Metadata, PredictRequest, PredictResponse

health_router = APIRouter(tags=["health"])
router = APIRouter(tags=["prediction"], responses=problem_responses(401))

log = structlog.get_logger()


async def _predictor(request: Request) -> SyncPredictor:
    return cast(SyncPredictor, request.app.state.predictor)


async def _jobs(request: Request) -> Jobs:
    return cast(Jobs, request.app.state.jobs)


async def _job_id(job_id: Annotated[str, Path(examples=["a1b2c3"])]) -> JobId:
    structlog.contextvars.bind_contextvars(job_id=job_id)
    return JobId(job_id)


PredictorDep = Annotated[SyncPredictor, Depends(_predictor)]


@health_router.get("/health")
async def health() -> Health:
    """Whether the fast model is ready; the better one also needs Redis and a worker."""
    return {"health": "ok"}


@router.get("/metadata")
async def metadata(request: Request) -> Metadata:
    """Input and output, and whether each model's weights are pretrained or random."""
    return {
        "data_type": "str",
        "data_structure": "(1,1)",
        "data_sample": "base64 encoded image file",
        "prediction_type": "str",
        "prediction_structure": "(1,1)",
        "prediction_sample": request.app.state.label_sample,
        "weights": request.app.state.weights,
    }


@router.post("/predict", responses=problem_responses(400, 413, 429, 503))
async def predict(body: PredictRequest, request: Request, predictor: PredictorDep) -> PredictResponse:
    """The fast model's label for an image, and the id of the job for the better model's."""
    return await _predict(request, predictor, body.image_data)


@router.get("/predict/test", responses=problem_responses(429, 503))
async def predict_test(request: Request, predictor: PredictorDep) -> PredictResponse:
    """The same for the proxy's own sample photograph."""
    return await _predict(request, predictor, request.app.state.sample)


async def _predict(request: Request, predictor: SyncPredictor, image_data: str) -> PredictResponse:
    job_id, prediction = await while_connected(request, predictor.predict(image_data))
    structlog.contextvars.bind_contextvars(job_id=job_id)
    log.info("POST /predict - job_id: %s", job_id)
    log.info("Sync prediction: %s", prediction.label)
    return PredictResponse(job_id=job_id, result_sync=prediction.label)


@router.get("/job/{job_id}", responses=problem_responses(400, 404, 503))
async def get_job(
    request: Request,
    job_id: Annotated[JobId, Depends(_job_id)],
    jobs: Annotated[Jobs, Depends(_jobs)],
    detail: Annotated[bool, Query(description="Also return the five best classes of both models.")] = False,
    wait: Annotated[
        float,
        Query(ge=0, allow_inf_nan=False, description=f"Seconds to wait for the job to end; at most {MAX_WAIT_S}."),
    ] = 0,
) -> dict[str, ImageJobResult]:
    """The better model's label; empty until the job has completed."""
    getting = jobs.get(job_id, wait)
    state = await (while_connected(request, getting) if wait else getting)
    entry: ImageJobResult = {"prediction": (state.result or b"").decode()}
    if state.error is not None:
        entry["error"] = state.error
    if detail:
        details = await jobs.details(job_id)
        entry["top5"] = details["async"]["top5"] if "async" in details else []
        if "sync" in details:
            entry["sync"] = details["sync"]
    return {job_id: entry}
