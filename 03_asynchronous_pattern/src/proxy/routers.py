"""Endpoints of the proxy."""

import asyncio
from datetime import UTC, datetime
from typing import Annotated, cast

import structlog
from fastapi import APIRouter, Depends, Header, HTTPException, Path, Query, Request, Response

from serving_common.callers import while_connected
from serving_common.cards import Card
from serving_common.direct import direct
from serving_common.errors import CallerGone
from serving_common.problems import problem_responses
from serving_common.queue.client import JobQueue
from serving_common.queue.types import JobId, JobStatus, Priority
from src import jobs
from src.constants import HEALTH_WITHIN_S, MAX_WAIT_S
from src.schemas import Health, JobPage, JobResult, Metadata, PredictRequest, PredictResponse, request_type
from src.tf_serving import TfServing

LATE_S = 0.05
"""A submission that took longer until here checks whether its caller is still there; the check takes 0.1 ms."""

health_router = APIRouter(tags=["health"])
router = APIRouter(tags=["prediction"], responses=problem_responses(401))


async def _queue(request: Request) -> JobQueue:
    return cast(JobQueue, request.app.state.queue)


async def _model(request: Request) -> TfServing:
    return cast(TfServing, request.app.state.model)


async def _rate_limited(request: Request) -> None:
    if request.app.state.check_rate is not None:
        await request.app.state.check_rate(request)


async def _caller_waits(request: Request) -> None:
    """Raises CallerGone if the caller hung up before its job was stored: nobody would ask for the result."""
    is_late = asyncio.get_running_loop().time() - request.state.arrived > LATE_S
    if is_late and await request.is_disconnected():
        raise CallerGone("The caller has disconnected")


async def _job_id(job_id: Annotated[str, Path(examples=["a1b2c3"])]) -> JobId:
    structlog.contextvars.bind_contextvars(job_id=job_id)
    return JobId(job_id)


QueueDep = Annotated[JobQueue, Depends(_queue)]
ModelDep = Annotated[TfServing, Depends(_model)]
JobIdDep = Annotated[JobId, Depends(_job_id)]
# Not in the schema: whether a key is accepted depends on its earlier use, which OpenAPI cannot express.
IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=255, include_in_schema=False)]


@health_router.get("/health", responses={503: {"model": Health, "description": "Redis does not answer"}})
async def health(queue: QueueDep, model: ModelDep, response: Response) -> Health:
    """Whether jobs are accepted (200) and whether they are being processed (`healthy`)."""
    no_redis, no_model = await asyncio.gather(
        queue.why_unavailable(HEALTH_WITHIN_S), model.why_unavailable(HEALTH_WITHIN_S)
    )
    if no_redis:
        response.status_code = 503
    report: Health = {
        "status": "unhealthy" if no_redis else "degraded" if no_model else "healthy",
        "components": {
            "redis": "unavailable" if no_redis else "ok",
            "tensorflow_serving": "unavailable" if no_model else "ok",
        },
    }
    if model.mismatch:
        report["reason"] = model.mismatch
    return report


@router.get("/metadata", responses=problem_responses(503))
async def metadata(model: ModelDep) -> Metadata:
    """The model's inputs and outputs, as TensorFlow Serving reports them."""
    return await model.metadata()


def create_router(card: Card) -> APIRouter:
    """The endpoints that take rows of this card's model."""
    router = APIRouter(tags=["prediction"], responses=problem_responses(401))
    body = request_type(card, named=True)

    @router.post(
        "/predict",
        responses=problem_responses(413, 422, 429, 503),
        dependencies=[Depends(_rate_limited), Depends(_caller_waits)],  # the caller may give up while Redis counts
    )
    @direct(body=request_type(card, named=False))
    async def predict(
        request: body, queue: QueueDep, idempotency_key: IdempotencyKey = None  # type: ignore[valid-type]  # of the card
    ) -> PredictResponse:
        """Queue one or more rows for inference. The response has the job's id, once Redis has stored the job.

        A request with the header `Idempotency-Key` can be retried: the same key returns the same job, or 422 if the
        body differs.
        """
        return await _submit(queue, request, idempotency_key)

    @router.post("/predict/test", responses=problem_responses(429, 503), dependencies=[Depends(_rate_limited)])
    async def predict_test(queue: QueueDep) -> PredictResponse:
        """Queue the card's sample."""
        return await _submit(queue, PredictRequest(data=card.sample_rows, priority=Priority.NORMAL), None)

    return router


async def _submit(queue: JobQueue, request: PredictRequest, idempotency_key: str | None) -> PredictResponse:
    job_id = await jobs.submit(queue, request.data, request.priority, idempotency_key)
    structlog.contextvars.bind_contextvars(job_id=job_id)
    return PredictResponse(job_id=job_id)


@router.get("/job/{job_id}", responses=problem_responses(404, 422, 503))
async def get_job(
    request: Request,
    job_id: JobIdDep,
    queue: QueueDep,
    wait: Annotated[
        float,
        Query(ge=0, allow_inf_nan=False, description=f"Seconds to wait for the job to end; at most {MAX_WAIT_S}."),
    ] = 0,
) -> JobResult:
    """A job's status, and its result once completed."""
    finding = jobs.find(queue, job_id, wait)
    return await (while_connected(request, finding) if wait else finding)


@router.delete("/job/{job_id}", responses=problem_responses(404, 409, 503))
async def cancel_job(job_id: JobIdDep, queue: QueueDep) -> JobResult:
    """Cancel a job that has not ended."""
    return await jobs.cancel(queue, job_id)


# Starlette's own 405 lists only the methods of the first route of a path.
@router.api_route("/job/{job_id}", methods=["HEAD", "OPTIONS", "PATCH", "POST", "PUT"], include_in_schema=False)
async def other_methods() -> None:
    raise HTTPException(405, headers={"Allow": "DELETE, GET"})


@router.get("/jobs", responses=problem_responses(422, 503))
async def list_jobs(
    queue: QueueDep,
    status: JobStatus | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    cursor: Annotated[
        str | None, Query(pattern=r"^[0-9]{1,18}$", description="`next_cursor` of the previous page.")
    ] = None,
) -> JobPage:
    """The jobs of the last 24 hours, newest first. With `status`, a page may be short although more follow."""
    entries, next_cursor = await queue.page(limit, int(cursor) if cursor else None, status)
    return {
        "jobs": [
            {"job_id": entry.id, "status": entry.status, "created_at": datetime.fromtimestamp(entry.created, UTC)}
            for entry in entries
        ],
        "next_cursor": str(next_cursor) if next_cursor is not None else None,
    }
