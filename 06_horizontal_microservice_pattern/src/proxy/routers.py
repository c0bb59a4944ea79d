"""Endpoints of the proxy."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, cast

from fastapi import APIRouter, Depends, Request

from serving_common import iris
from serving_common.direct import direct
from serving_common.problems import problem_responses
from src.models import Health, LabelResponse, Metadata, Prediction, PredictRequest, ServiceError
from src.proxy.backends import BackendRequest, Backends, Failure, RequestContext
from src.proxy.fan_out import PREDICT_SAMPLE, PREDICT_TEST, FanOut, Results, check_health, decide, predict_request

T = TypeVar("T", bound=Mapping[str, object])


async def _backends(request: Request) -> Backends:
    return cast(Backends, request.app.state.backends)


async def _context(request: Request) -> RequestContext:
    return RequestContext(request.state.request_id, request.state.arrived)


async def _predict_request(request: Request, flowers: PredictRequest) -> BackendRequest[Prediction]:
    # The body is forwarded as received. Serialised again, every 1 would become 1.0, and a body within this proxy's size
    # limit could exceed that of the services.
    return predict_request(await request.body(), len(flowers.data))


BackendsDep = Annotated[Backends, Depends(_backends)]
ContextDep = Annotated[RequestContext, Depends(_context)]
PredictRequestDep = Annotated[BackendRequest[Prediction], Depends(_predict_request)]


def create_routers(services: list[str], fan_out: FanOut) -> tuple[APIRouter, APIRouter]:
    """The routers for health and for predictions; the response schemas name these services."""
    health_router = APIRouter(tags=["health"])
    router = APIRouter(tags=["prediction"], responses=problem_responses(401))

    @health_router.get("/health")
    async def health() -> Health:
        """Liveness of the proxy itself."""
        return {"health": "ok"}

    @health_router.get("/health/all", responses=_named(services))
    async def health_all(backends: BackendsDep, context: ContextDep) -> dict[str, Health | ServiceError]:
        """Current health of each service."""
        return _entries(await check_health(backends, context))

    @router.get("/metadata")
    async def metadata() -> Metadata:
        """Types and shapes of input and output, per service."""
        return {
            "data_type": "float32",
            "data_structure": "(N,4)",
            "data_sample": iris.SAMPLE,
            "data_names": list(iris.FEATURES),
            "prediction_type": "float32",
            "prediction_structure": "(N,2)",
            "prediction_sample": [0.98, 0.02],
            "services": services,
        }

    @router.post("/predict", responses=_named(services) | problem_responses(413, 422, 429, 503))
    @direct
    async def predict(
        request: PredictRequestDep, backends: BackendsDep, context: ContextDep
    ) -> dict[str, Prediction | ServiceError]:
        """The prediction of each service."""
        return _entries(await fan_out(backends, request, context))

    @router.post("/predict/label", responses=problem_responses(413, 422, 429, 503), response_model_exclude_unset=True)
    @direct
    async def predict_label(request: PredictRequestDep, backends: BackendsDep, context: ContextDep) -> LabelResponse:
        """The class whose service is most confident."""
        return decide(await fan_out(backends, request, context))

    @router.get("/predict/get/test", responses=_named(services) | problem_responses(422, 429, 503))
    async def predict_get_test(backends: BackendsDep, context: ContextDep) -> dict[str, Prediction | ServiceError]:
        """The prediction of each service for its own test data."""
        return _entries(await fan_out(backends, PREDICT_TEST, context))

    @router.post("/predict/post/test", responses=_named(services) | problem_responses(422, 429, 503))
    async def predict_post_test(backends: BackendsDep, context: ContextDep) -> dict[str, Prediction | ServiceError]:
        """The prediction of each service for a known setosa."""
        return _entries(await fan_out(backends, PREDICT_SAMPLE, context))

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
