"""Endpoints of the proxy."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, cast

from fastapi import APIRouter, Depends, Request

from serving_common.cards import Card
from serving_common.direct import direct
from serving_common.problems import problem_responses
from src.models import (
    Health,
    LabelResponse,
    Metadata,
    Prediction,
    ServiceError,
    ServicesMetadata,
    metadata_of,
    request_types,
)
from src.proxy.backends import BackendRequest, Backends, Failure, RequestContext
from src.proxy.fan_out import (
    PREDICT_TEST,
    FanOut,
    Results,
    bytes_per_row,
    check_health,
    decide,
    fetch_metadata,
    predict_request,
    sample_request,
)

T = TypeVar("T", bound=Mapping[str, object])


async def _backends(request: Request) -> Backends:
    return cast(Backends, request.app.state.backends)


async def _context(request: Request) -> RequestContext:
    return RequestContext(request.state.request_id, request.state.arrived)


BackendsDep = Annotated[Backends, Depends(_backends)]
ContextDep = Annotated[RequestContext, Depends(_context)]


def create_routers(services: list[str], card: Card | None, fan_out: FanOut) -> tuple[APIRouter, APIRouter]:
    """The routers for health and for predictions.

    Args:
        services: named in the response schemas.
        card: what the rows are checked against; None: only the services check them.
        fan_out: how the services are called.
    """
    health_router = APIRouter(tags=["health"])
    router = APIRouter(tags=["prediction"], responses=problem_responses(401))
    bodies, max_row_bytes, sample = request_types(card), bytes_per_row(card), sample_request(card)

    async def to_backends(
        request: Request, rows: bodies.any_rows  # type: ignore[name-defined]  # made at the start
    ) -> BackendRequest[Prediction]:
        # The body is forwarded as received. Serialised again, every 1 would become 1.0, and a body within this proxy's
        # size limit could exceed that of the services.
        return predict_request(await request.body(), len(rows.data), max_row_bytes)

    PredictRequestDep = Annotated[BackendRequest[Prediction], Depends(to_backends)]  # noqa: N806 - a type

    @health_router.get("/health")
    async def health() -> Health:
        """Liveness of the proxy itself."""
        return {"health": "ok"}

    @health_router.get("/health/all", responses=_named(services))
    async def health_all(backends: BackendsDep, context: ContextDep) -> dict[str, Health | ServiceError]:
        """Current health of each service."""
        return _entries(await check_health(backends, context))

    if card is not None:
        description = metadata_of(card, services)

        @router.get("/metadata")
        async def metadata() -> Metadata:
            """Types and shapes of input and output, per service."""
            return description

    else:

        @router.get("/metadata")
        async def metadata_of_each(backends: BackendsDep, context: ContextDep) -> ServicesMetadata:
            """Types and shapes of input and output of each service."""
            return {"services": services, "metadata": _entries(await fetch_metadata(backends, context))}

    @router.post("/predict", responses=_named(services) | problem_responses(413, 422, 429, 503))
    @direct(body=bodies.list_rows)
    async def predict(
        request: PredictRequestDep, backends: BackendsDep, context: ContextDep
    ) -> dict[str, Prediction | ServiceError]:
        """The prediction of each service."""
        return _entries(await fan_out(backends, request, context))

    @router.post("/predict/label", responses=problem_responses(413, 422, 429, 503), response_model_exclude_unset=True)
    @direct(body=bodies.list_rows)
    async def predict_label(request: PredictRequestDep, backends: BackendsDep, context: ContextDep) -> LabelResponse:
        """The most probable class: that of the most confident service."""
        return decide(await fan_out(backends, request, context))

    @router.get("/predict/get/test", responses=_named(services) | problem_responses(422, 429, 503))
    async def predict_get_test(backends: BackendsDep, context: ContextDep) -> dict[str, Prediction | ServiceError]:
        """The prediction of each service for its own test data."""
        return _entries(await fan_out(backends, PREDICT_TEST, context))

    @router.post("/predict/post/test", responses=_named(services) | problem_responses(422, 429, 503))
    async def predict_post_test(backends: BackendsDep, context: ContextDep) -> dict[str, Prediction | ServiceError]:
        """The prediction of each service for the sample of the rows' card."""
        return _entries(await fan_out(backends, sample, context))

    return health_router, router


def _entries(results: Results[T]) -> dict[str, T | ServiceError]:
    return {
        name: ServiceError(error=result.reason) if isinstance(result, Failure) else result
        for name, result in results.items()
    }


def _named(services: list[str]) -> dict[int | str, dict[str, Any]]:
    """Names the services in the schema of a response that has one entry for each."""
    schema = {"required": services, "propertyNames": {"enum": services}}
    return {200: {"content": {"application/json": {"schema": schema}}}}
